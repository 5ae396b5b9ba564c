//! Tensors of PyTorch: their checks, and views of their memory.

use std::ffi::c_void;
use std::ptr;

use half::{bf16, f16};
use tercet::{Element, Error, Matrix};

use crate::abi::{Code, Handle, RELEASE, Value, torch};

/// A reference to a tensor, which is counted.
#[derive(Debug)]
pub struct Tensor(Handle);

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: a handle of our own, given back once.
        unsafe { (torch().delete_tensor)(self.0) };
    }
}

/// The dtypes that operators take, by the names that PyTorch gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    Bool,
    Uint8,
    Int8,
    Int16,
    Int32,
    Int64,
    Float16,
    Bfloat16,
    Float32,
    Float64,
    /// Any other.
    Other,
}

impl Dtype {
    const ALL: [Self; 10] = [
        Self::Bool,
        Self::Uint8,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Float16,
        Self::Bfloat16,
        Self::Float32,
        Self::Float64,
    ];

    /// libtorch's number for it.
    fn code(self) -> i32 {
        let torch = torch();
        let of = match self {
            Self::Bool => torch.bool,
            Self::Uint8 => torch.uint8,
            Self::Int8 => torch.int8,
            Self::Int16 => torch.int16,
            Self::Int32 => torch.int32,
            Self::Int64 => torch.int64,
            Self::Float16 => torch.float16,
            Self::Bfloat16 => torch.bfloat16,
            Self::Float32 => torch.float32,
            Self::Float64 => torch.float64,
            Self::Other => return -1,
        };
        // SAFETY: a function without arguments, that returns a constant.
        unsafe { of() }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Uint8 => "uint8",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Other => "a dtype of another kind",
        }
    }

    /// The bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Int16 | Self::Float16 | Self::Bfloat16 => 2,
            Self::Int32 | Self::Float32 => 4,
            Self::Int64 | Self::Float64 => 8,
            Self::Other => unreachable!("no tensor of another dtype is made or read"),
        }
    }

    /// The dtype of losses of embeddings of this one.
    pub fn of_losses(self) -> Self {
        if self == Self::Float64 { Self::Float64 } else { Self::Float32 }
    }
}

/// A type of numbers in tensors.
pub trait InTensors: Copy {
    const DTYPE: Dtype;
}
impl InTensors for f32 {
    const DTYPE: Dtype = Dtype::Float32;
}
impl InTensors for f64 {
    const DTYPE: Dtype = Dtype::Float64;
}
impl InTensors for f16 {
    const DTYPE: Dtype = Dtype::Float16;
}
impl InTensors for bf16 {
    const DTYPE: Dtype = Dtype::Bfloat16;
}
impl InTensors for i64 {
    const DTYPE: Dtype = Dtype::Int64;
}
impl InTensors for i8 {
    const DTYPE: Dtype = Dtype::Int8;
}
impl InTensors for u8 {
    const DTYPE: Dtype = Dtype::Uint8;
}

/// An element type, with its dtype.
pub trait OfDtype: Element<Scalar: InTensors> + InTensors {}
impl<T: Element<Scalar: InTensors> + InTensors> OfDtype for T {}

/// Runs `$body` with `$T` as the element type of `$dtype`, which [`check_embeddings`] has accepted.
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::Dtype::Float32 => {
                type $T = f32;
                $body
            }
            $crate::tensor::Dtype::Float64 => {
                type $T = f64;
                $body
            }
            $crate::tensor::Dtype::Float16 => {
                type $T = half::f16;
                $body
            }
            $crate::tensor::Dtype::Bfloat16 => {
                type $T = half::bf16;
                $body
            }
            other => unreachable!("checked: {other:?}"),
        }
    };
}
pub(crate) use with_element;

/// Where a tensor is: libtorch's number for the kind of device, and the device's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    kind: i32,
    pub index: i32,
}

impl Device {
    pub fn is_cpu(self) -> bool {
        // SAFETY: a function without arguments, that returns a constant.
        self.kind == unsafe { (torch().cpu)() }
    }

    fn name(self) -> String {
        if self.is_cpu() { "cpu".into() } else { format!("cuda:{}", self.index) }
    }
}

/// The error of an argument.
pub fn wrong(argument: &'static str, expected: impl Into<String>, actual: impl Into<String>) -> Error {
    Error::Argument { argument, expected: expected.into(), actual: actual.into() }
}

/// The error of a function of libtorch's that has failed, which wrote its own text to the log.
fn refused(what: &'static str, code: Code) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(wrong(what, "PyTorch to do it", "an error, which it has written to its log")) }
}

impl Tensor {
    /// # Safety
    /// `handle` is one of a tensor, and becomes this value's own.
    pub unsafe fn from_handle(handle: Handle) -> Self {
        Self(handle)
    }

    /// The handle, for whoever takes it over.
    pub fn into_handle(self) -> Handle {
        let handle = self.0;
        std::mem::forget(self);
        handle
    }

    /// Another reference to the same tensor.
    fn share(&self) -> Result<Self, Error> {
        let mut handle = ptr::null_mut();
        // SAFETY: a tensor's handle, and an out-pointer to a live variable.
        refused("a reference", unsafe { (torch().new_handle)(self.0, &mut handle) })?;
        Ok(Self(handle))
    }

    /// What a function tells of a tensor; those called here cannot fail for a defined one.
    fn ask<X: Copy>(&self, f: unsafe extern "C" fn(Handle, *mut X) -> Code, mut answer: X) -> X {
        // SAFETY: a tensor's handle, and an out-pointer to a live variable.
        let code = unsafe { f(self.0, &mut answer) };
        assert_eq!(code, 0, "libtorch says what a tensor is");
        answer
    }

    fn numbers(&self, f: unsafe extern "C" fn(Handle, *mut *const i64) -> Code) -> &[i64] {
        let dim = usize::try_from(self.ask(torch().dim, 0)).expect("a number of axes");
        let first = self.ask(f, ptr::null());
        if dim == 0 || first.is_null() {
            return &[];
        }
        // SAFETY: libtorch keeps as many numbers as there are axes while the tensor lives, and nobody resizes it meanwhile.
        unsafe { std::slice::from_raw_parts(first, dim) }
    }

    pub fn sizes(&self) -> &[i64] {
        self.numbers(torch().sizes)
    }

    pub fn strides(&self) -> &[i64] {
        self.numbers(torch().strides)
    }

    pub fn size(&self, axis: usize) -> usize {
        usize::try_from(self.sizes()[axis]).expect("sizes are not negative")
    }

    /// How many numbers there are.
    pub fn count(&self) -> usize {
        (0..self.sizes().len()).map(|axis| self.size(axis)).product()
    }

    pub fn dtype(&self) -> Dtype {
        let code = self.ask(torch().dtype, 0);
        Dtype::ALL.into_iter().find(|dtype| dtype.code() == code).unwrap_or(Dtype::Other)
    }

    pub fn device(&self) -> Device {
        Device { kind: self.ask(torch().device_type, 0), index: self.ask(torch().device_index, 0) }
    }

    pub fn data(&self) -> *mut c_void {
        self.ask(torch().data, ptr::null_mut())
    }

    /// Where the tensor's elements start, in its device's memory.
    #[cfg(feature = "cuda")]
    pub fn address(&self) -> tercet::internal::Address {
        self.data() as tercet::internal::Address
    }

    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.sizes().iter().zip(self.strides()).rev().all(|(&size, &stride)| {
            let fits = size <= 1 || stride == step;
            step *= size.max(1);
            fits
        })
    }

    /// An uninitialised contiguous tensor.
    pub fn empty(sizes: &[usize], dtype: Dtype, device: Device) -> Result<Self, Error> {
        let bytes = sizes.iter().try_fold(dtype.bytes(), |bytes, &size| bytes.checked_mul(size));
        let Some(bytes) = bytes.filter(|bytes| isize::try_from(*bytes).is_ok()) else {
            return Err(wrong("result", "no more bytes than memory has addresses for", format!("shape {sizes:?}")));
        };
        let sizes: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
        let mut strides = vec![1; sizes.len()];
        for axis in (1..sizes.len()).rev() {
            strides[axis - 1] = strides[axis] * sizes[axis].max(1);
        }
        let mut handle = ptr::null_mut();
        // SAFETY: as many sizes as strides, and an out-pointer to a live variable.
        let code = unsafe {
            (torch().empty)(
                sizes.len() as i64,
                sizes.as_ptr(),
                strides.as_ptr(),
                dtype.code(),
                device.kind,
                device.index,
                &mut handle,
            )
        };
        if code != 0 {
            return Err(wrong("result", format!("{bytes} bytes of memory"), "an error of PyTorch's allocator"));
        }
        let tensor = Self(handle);
        if device.is_cpu() && bytes >= HUGE_BYTES {
            advise_huge_pages(tensor.data(), bytes);
        }
        Ok(tensor)
    }

    /// Calls an operator of PyTorch's that takes this tensor first and gives one.
    fn through<const N: usize>(
        &self,
        name: &std::ffi::CStr,
        overload: &std::ffi::CStr,
        rest: [Value; N],
    ) -> Result<Self, Error> {
        let mut stack = vec![self.share()?.into_handle() as Value];
        stack.extend(rest);
        // SAFETY: the operator's arguments in order, of the types of its schema; it takes the reference over, and leaves one.
        let code = unsafe { (torch().call)(name.as_ptr(), overload.as_ptr(), stack.as_mut_ptr(), RELEASE) };
        refused("a copy", code)?;
        Ok(Self(stack[0] as Handle))
    }

    /// A contiguous tensor of the same numbers: this one, if it is.
    pub fn contiguous(&self) -> Result<Self, Error> {
        // The memory format is the number of `torch.contiguous_format`, 0.
        if self.is_contiguous() { self.share() } else { self.through(c"aten::contiguous", c"", [0]) }
    }

    /// The tensor itself if each of its rows is contiguous, else a contiguous copy.
    pub fn with_contiguous_rows(&self) -> Result<Self, Error> {
        if self.size(1) <= 1 || self.strides()[1] == 1 { self.share() } else { self.contiguous() }
    }

    /// The numbers in another dtype, contiguous.
    fn converted(&self, dtype: Dtype) -> Result<Self, Error> {
        if self.dtype() == dtype {
            return self.contiguous();
        }
        // (dtype, non_blocking, copy, memory_format: None)
        self.through(c"aten::to", c"dtype", [dtype.code() as u32 as Value, 0, 0, 0])?.contiguous()
    }

    /// The distance from row to row of a matrix, in elements.
    pub fn row_stride(&self) -> usize {
        // The stride of a single row means nothing and may be anything.
        if self.size(0) <= 1 { self.size(1) } else { self.strides()[0] as usize }
    }

    /// The memory of a checked CPU matrix with contiguous rows.
    pub fn matrix<T: OfDtype>(&self) -> Result<Matrix<'_, T>, Error> {
        let (rows, dim, stride) = (self.size(0), self.size(1), self.row_stride());
        let len = if rows == 0 || dim == 0 { 0 } else { (rows - 1) * stride + dim };
        Matrix::strided(self.read(len), rows, dim, stride)
    }

    /// The memory of a contiguous CPU tensor.
    pub fn slice<T: InTensors>(&self) -> &[T] {
        assert!(self.is_contiguous());
        self.read(self.count())
    }

    /// The memory of a CPU matrix, and how many numbers apart its rows and its columns are; a tensor that was expanded has 0
    /// there.
    pub fn strided<T: InTensors>(&self) -> (&[T], [usize; 2]) {
        let steps = [0, 1].map(|axis| self.strides()[axis] as usize);
        let last: usize = [0, 1].map(|axis| (self.size(axis).max(1) - 1) * steps[axis]).iter().sum();
        (self.read(if self.count() == 0 { 0 } else { last + 1 }), steps)
    }

    fn read<T: InTensors>(&self, len: usize) -> &[T] {
        assert!(self.dtype() == T::DTYPE && self.device().is_cpu());
        match len {
            0 => &[],
            // SAFETY: libtorch keeps the elements that sizes and strides reach in memory while the tensor lives, and what lies
            // between them is of the same memory; the dtype is T's. As with any operation on tensors, nobody may write to it
            // from another thread meanwhile.
            len => unsafe { std::slice::from_raw_parts(self.data().cast::<T>().cast_const(), len) },
        }
    }

    /// The memory of a contiguous CPU tensor that this crate has made and has not yet handed out.
    pub fn slice_mut<T: InTensors>(&mut self) -> &mut [T] {
        assert!(self.dtype() == T::DTYPE && self.device().is_cpu() && self.is_contiguous());
        match self.count() {
            0 => &mut [],
            // SAFETY: as in `read`; the tensor is new, so that nobody else has its memory.
            len => unsafe { std::slice::from_raw_parts_mut(self.data().cast::<T>(), len) },
        }
    }
}

/// From how many bytes on memory is asked to be on huge pages: a page fault every 4 KiB takes several times what computing
/// the content of a large tensor takes.
const HUGE_BYTES: usize = 4 << 20;
/// The size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

fn advise_huge_pages(start: *mut c_void, bytes: usize) {
    let first = (start as usize).next_multiple_of(HUGE_PAGE);
    let end = (start as usize + bytes) / HUGE_PAGE * HUGE_PAGE;
    if first < end {
        // SAFETY: whole pages of a tensor that is ours alone. The advice may be refused; nothing depends on it.
        unsafe { libc::madvise(first as *mut c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

/// Checks that a tensor is strided, and on a device that operators are registered for.
fn check_dense(argument: &'static str, tensor: &Tensor) -> Result<(), Error> {
    // SAFETY: a function without arguments, that returns a constant.
    if tensor.ask(torch().layout, 0) != unsafe { (torch().strided)() } {
        return Err(wrong(argument, "a dense tensor", "one of another layout"));
    }
    Ok(())
}

/// Checks that a tensor holds embeddings: float32, float16, bfloat16 or on the CPU float64, `[B, D]`.
pub fn check_embeddings(argument: &'static str, tensor: &Tensor, f64_on_cuda: bool) -> Result<(), Error> {
    use Dtype::{Bfloat16, Float16, Float32, Float64};
    let dtype = tensor.dtype();
    if !matches!(dtype, Float32 | Float64 | Float16 | Bfloat16) {
        return Err(wrong(argument, "dtype float32, float16, bfloat16 or float64", dtype.name()));
    }
    check_matrix(argument, tensor)?;
    if dtype == Float64 && !f64_on_cuda && !tensor.device().is_cpu() {
        return Err(wrong(argument, "dtype float32, float16 or bfloat16 on a CUDA device", dtype.name()));
    }
    Ok(())
}

/// Checks that a tensor is dense, of the shape `[B, D]`.
pub fn check_matrix(argument: &'static str, tensor: &Tensor) -> Result<(), Error> {
    check_dense(argument, tensor)?;
    if tensor.sizes().len() != 2 {
        return Err(wrong(argument, "shape [B, D]", format!("{:?}", tensor.sizes())));
    }
    Ok(())
}

/// Checks that a tensor has the dtype and the device of another one.
pub fn check_dtype_and_device(
    argument: &'static str,
    tensor: &Tensor,
    other: &'static str,
    model: &Tensor,
) -> Result<(), Error> {
    if tensor.dtype() != model.dtype() {
        let expected = format!("the dtype of {other}, {}", model.dtype().name());
        return Err(wrong(argument, expected, tensor.dtype().name()));
    }
    check_device(argument, tensor, other, model)
}

pub fn check_device(argument: &'static str, tensor: &Tensor, other: &'static str, model: &Tensor) -> Result<(), Error> {
    let (actual, expected) = (tensor.device(), model.device());
    if actual != expected {
        return Err(wrong(argument, format!("the device of {other}, {}", expected.name()), actual.name()));
    }
    Ok(())
}

/// Checks that a tensor has one number for each row of a matrix, of one of these dtypes.
pub fn check_per_row(
    argument: &'static str,
    tensor: &Tensor,
    dtypes: (&str, &[Dtype]),
    other: &'static str,
    model: &Tensor,
) -> Result<(), Error> {
    if !dtypes.1.contains(&tensor.dtype()) {
        return Err(wrong(argument, format!("dtype {}", dtypes.0), tensor.dtype().name()));
    }
    check_dense(argument, tensor)?;
    let rows = model.size(0);
    if tensor.sizes() != [rows as i64] {
        return Err(wrong(argument, format!("shape [{rows}]"), format!("{:?}", tensor.sizes())));
    }
    check_device(argument, tensor, other, model)
}

/// One integer for each row of a matrix, as contiguous int64.
pub fn integers(argument: &'static str, tensor: &Tensor, other: &'static str, model: &Tensor) -> Result<Tensor, Error> {
    check_per_row(argument, tensor, ("int64 or int32", &[Dtype::Int64, Dtype::Int32]), other, model)?;
    tensor.converted(Dtype::Int64)
}

/// One int64 on the device of a matrix.
pub fn integer(argument: &'static str, tensor: &Tensor, other: &'static str, model: &Tensor) -> Result<Tensor, Error> {
    if tensor.dtype() != Dtype::Int64 {
        return Err(wrong(argument, "dtype int64", tensor.dtype().name()));
    }
    check_dense(argument, tensor)?;
    if tensor.count() != 1 {
        return Err(wrong(argument, "one number", format!("shape {:?}", tensor.sizes())));
    }
    check_device(argument, tensor, other, model)?;
    tensor.contiguous()
}

/// The numbers of a tensor as contiguous float64, of a CPU tensor that has been checked.
pub fn doubles(tensor: &Tensor) -> Result<Tensor, Error> {
    tensor.converted(Dtype::Float64)
}
