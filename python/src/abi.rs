//! PyTorch's stable C ABI, of release 2.10: found by name in the libtorch that `import torch` has loaded, so that nothing is
//! linked. What is taken from it are those functions alone that later releases keep.

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

/// An argument or a result of an operator: a number, or a handle.
pub type Value = u64;
/// A handle of one of libtorch's objects.
pub type Handle = *mut c_void;
/// What every fallible function returns: 0, or an error whose text libtorch has written to its log.
pub type Code = i32;
/// An operator: takes its arguments from the stack, and puts its results there.
pub type Kernel = unsafe extern "C-unwind" fn(stack: *mut Value, arguments: u64, results: u64);

/// The release whose ABI this is, 2.10, as libtorch is told it.
pub const RELEASE: u64 = 2 << 56 | 10 << 48;

/// Declares the functions that are taken from a library, and how they are found in it.
macro_rules! functions {
    ($(#[$about:meta])* $Name:ident { $($field:ident: $symbol:literal = $Type:ty,)* }) => {
        $(#[$about])*
        pub struct $Name { $(pub $field: $Type,)* }

        impl $Name {
            /// # Safety
            /// `library` is a library of libtorch whose functions of these names, if it has them, are those of its ABI.
            unsafe fn of(library: Handle) -> Result<Self, &'static CStr> {
                Ok(Self { $($field: {
                    // SAFETY: a handle of a library and a name that ends in NUL.
                    let found = unsafe { libc::dlsym(library, $symbol.as_ptr()) };
                    if found.is_null() {
                        return Err($symbol);
                    }
                    // SAFETY: the caller vouches for the function's type.
                    unsafe { std::mem::transmute::<Handle, $Type>(found) }
                },)* })
            }
        }
    };
}

type OfTensor<T> = unsafe extern "C" fn(Handle, *mut T) -> Code;
type Constant = unsafe extern "C" fn() -> i32;

functions! {
    /// The functions of libtorch_cpu.
    Libtorch {
        library_def: c"aoti_torch_library_init_def" = unsafe extern "C" fn(*const c_char, *const c_char, u32, *mut Handle) -> Code,
        library_impl: c"aoti_torch_library_init_impl" = unsafe extern "C" fn(*const c_char, *const c_char, *const c_char, u32, *mut Handle) -> Code,
        def: c"aoti_torch_library_def" = unsafe extern "C" fn(Handle, *const c_char) -> Code,
        implement: c"torch_library_impl" = unsafe extern "C" fn(Handle, *const c_char, Kernel, u64) -> Code,
        call: c"torch_call_dispatcher" = unsafe extern "C" fn(*const c_char, *const c_char, *mut Value, u64) -> Code,
        // Throws a C++ exception, which libtorch's bindings turn into Python's RuntimeError, if the condition is false.
        check: c"aoti_torch_check" = unsafe extern "C-unwind" fn(bool, *const c_char, *const c_char, u32, *const c_char),
        threads: c"torch_get_num_threads" = unsafe extern "C" fn(*mut u32) -> Code,
        string_length: c"torch_string_length" = unsafe extern "C" fn(Handle, *mut usize) -> Code,
        string_data: c"torch_string_c_str" = unsafe extern "C" fn(Handle, *mut *const c_char) -> Code,
        delete_string: c"torch_delete_string" = unsafe extern "C" fn(Handle) -> Code,
        delete_tensor: c"aoti_torch_delete_tensor_object" = unsafe extern "C" fn(Handle) -> Code,
        new_handle: c"aoti_torch_new_tensor_handle" = unsafe extern "C" fn(Handle, *mut Handle) -> Code,
        data: c"aoti_torch_get_data_ptr" = OfTensor<*mut c_void>,
        dim: c"aoti_torch_get_dim" = OfTensor<i64>,
        sizes: c"aoti_torch_get_sizes" = OfTensor<*const i64>,
        strides: c"aoti_torch_get_strides" = OfTensor<*const i64>,
        dtype: c"aoti_torch_get_dtype" = OfTensor<i32>,
        layout: c"aoti_torch_get_layout" = OfTensor<i32>,
        device_type: c"aoti_torch_get_device_type" = OfTensor<i32>,
        device_index: c"aoti_torch_get_device_index" = OfTensor<i32>,
        empty: c"aoti_torch_empty_strided" = unsafe extern "C" fn(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> Code,
        cpu: c"aoti_torch_device_type_cpu" = Constant,
        strided: c"aoti_torch_layout_strided" = Constant,
        bool: c"aoti_torch_dtype_bool" = Constant,
        uint8: c"aoti_torch_dtype_uint8" = Constant,
        int8: c"aoti_torch_dtype_int8" = Constant,
        int16: c"aoti_torch_dtype_int16" = Constant,
        int32: c"aoti_torch_dtype_int32" = Constant,
        int64: c"aoti_torch_dtype_int64" = Constant,
        float16: c"aoti_torch_dtype_float16" = Constant,
        bfloat16: c"aoti_torch_dtype_bfloat16" = Constant,
        float32: c"aoti_torch_dtype_float32" = Constant,
        float64: c"aoti_torch_dtype_float64" = Constant,
    }
}

functions! {
    /// The function of libstdc++ that frees what `new` has allocated: libtorch hands over optional arguments so.
    Libstdcxx {
        delete: c"_ZdlPv" = unsafe extern "C" fn(*mut c_void),
    }
}

#[cfg(feature = "cuda")]
functions! {
    /// The functions of libtorch_cuda.
    LibtorchCuda {
        current_stream: c"aoti_torch_get_current_cuda_stream" = unsafe extern "C" fn(i32, *mut *mut c_void) -> Code,
    }
}

/// The libtorch that `import torch` has loaded.
pub struct Abi {
    pub torch: Libtorch,
    pub stdcxx: Libstdcxx,
}

/// The functions of a library that the program has loaded.
///
/// # Safety
/// That of `of`.
unsafe fn loaded<T>(name: &CStr, of: unsafe fn(Handle) -> Result<T, &'static CStr>) -> Result<T, String> {
    // SAFETY: a name that ends in NUL. With RTLD_NOLOAD a library is found only if it is loaded; the handle is kept, and the
    // library with it.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return Err(format!("{} is not loaded", name.to_string_lossy()));
    }
    // SAFETY: the caller's contract.
    unsafe { of(library) }.map_err(|symbol| {
        format!("{} has no {}: PyTorch 2.10 or newer is needed", name.to_string_lossy(), symbol.to_string_lossy())
    })
}

static ABI: OnceLock<Result<Abi, String>> = OnceLock::new();

/// Looks the ABI up, in the first call; the error says what is missing.
pub fn find() -> Result<&'static Abi, String> {
    let found = ABI.get_or_init(|| {
        // SAFETY: the types are those of the headers of release 2.10, which later releases keep.
        unsafe {
            Ok(Abi {
                torch: loaded(c"libtorch_cpu.so", Libtorch::of)?,
                stdcxx: loaded(c"libstdc++.so.6", Libstdcxx::of)?,
            })
        }
    });
    found.as_ref().map_err(Clone::clone)
}

/// The functions of libtorch_cpu. Only operators call this, which exist once they have been found.
pub fn torch() -> &'static Libtorch {
    &find().expect("operators are registered by what was found").torch
}

/// Frees the memory of a value that `new` allocated.
///
/// # Safety
/// libtorch's `new` allocated it, and nobody uses it any more.
pub unsafe fn delete(value: *mut Value) {
    let abi = find().expect("operators are registered by what was found");
    // SAFETY: the caller's contract. A value has no destructor.
    unsafe { (abi.stdcxx.delete)(value.cast()) }
}

/// PyTorch's current stream of a device, a handle of the driver's.
#[cfg(feature = "cuda")]
pub fn current_cuda_stream(index: i32) -> Result<*mut c_void, String> {
    static FOUND: OnceLock<Result<LibtorchCuda, String>> = OnceLock::new();
    // SAFETY: the type is that of the headers of release 2.10, which later releases keep.
    let found = FOUND.get_or_init(|| unsafe { loaded(c"libtorch_cuda.so", LibtorchCuda::of) });
    let functions = found.as_ref().map_err(Clone::clone)?;
    let mut stream = std::ptr::null_mut();
    // SAFETY: an out-pointer to a live variable.
    match unsafe { (functions.current_stream)(index, &mut stream) } {
        0 => Ok(stream),
        _ => Err(format!("PyTorch has no current stream of CUDA device {index}")),
    }
}
