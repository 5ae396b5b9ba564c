//! An operator of PyTorch written in Rust: its schema, its arguments, and what becomes of its errors.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Mutex;

use tercet::Error;

use crate::abi::{self, Handle, Kernel, RELEASE, Value, torch};
use crate::tensor::{Dtype, Tensor};
use crate::threads::on_libtorchs;

/// An operator: its arguments, which it has read from PyTorch's stack, and how it runs.
pub trait Operator: Sized {
    /// Its name, without that of the library, `tercet`.
    fn name() -> String;
    /// Its arguments and results, as PyTorch's schemas have them: `(Tensor x, float margin) -> Tensor`.
    fn schema() -> String;
    /// Takes all arguments, in the schema's order. Those that are invalid may be an error after all have been taken.
    fn take(stack: &mut Stack) -> Result<Self, Error>;
    /// Its results, as many as the schema has.
    fn run(self) -> Result<Vec<Tensor>, Error>;
}

/// The arguments of a call, which are this value's own once they have been taken.
pub struct Stack {
    next: *mut Value,
    left: u64,
}

impl Stack {
    fn value(&mut self) -> Value {
        assert!(self.left > 0, "an operator takes as many arguments as its schema has");
        self.left -= 1;
        // SAFETY: PyTorch's stack has as many values as it said, of which `left` were not yet taken.
        unsafe {
            let value = self.next.read();
            self.next = self.next.add(1);
            value
        }
    }

    pub fn tensor(&mut self) -> Tensor {
        // SAFETY: the schema says that this is a tensor, whose reference the operator gets.
        unsafe { Tensor::from_handle(self.value() as Handle) }
    }

    fn optional(&mut self) -> Option<Value> {
        let at = ptr::with_exposed_provenance_mut::<Value>(self.value() as usize);
        if at.is_null() {
            return None;
        }
        // SAFETY: an optional argument that is there is a value which PyTorch has allocated for the operator to free.
        unsafe {
            let value = at.read();
            abi::delete(at);
            Some(value)
        }
    }

    pub fn optional_tensor(&mut self) -> Option<Tensor> {
        // SAFETY: as in `tensor`.
        self.optional().map(|value| unsafe { Tensor::from_handle(value as Handle) })
    }

    pub fn int(&mut self) -> i64 {
        self.value().cast_signed()
    }

    pub fn optional_int(&mut self) -> Option<i64> {
        self.optional().map(u64::cast_signed)
    }

    pub fn float(&mut self) -> f64 {
        f64::from_bits(self.value())
    }

    pub fn bool(&mut self) -> bool {
        // A bool is the value's first byte.
        self.value() as u8 != 0
    }

    pub fn string(&mut self) -> String {
        let handle = self.value() as Handle;
        let (mut length, mut data): (usize, *const c_char) = (0, ptr::null());
        // SAFETY: the schema says that this is a string, whose handle the operator gets: it is read, and freed after that.
        unsafe {
            let codes = [(torch().string_length)(handle, &mut length), (torch().string_data)(handle, &mut data)];
            let bytes: &[u8] =
                if codes == [0; 2] && !data.is_null() { std::slice::from_raw_parts(data.cast(), length) } else { b"" };
            let text = String::from_utf8_lossy(bytes).into_owned();
            (torch().delete_string)(handle);
            text
        }
    }
}

thread_local! {
    /// The text of the last error on this thread, which outlives the exception that is thrown with it.
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a panic, which is a bug: {}", text.unwrap_or_else(|| "of an unknown kind".into()))
}

/// Runs the operator; whether it went well. If not, its text is in `LAST_ERROR`.
///
/// # Safety
/// That of [`kernel`].
unsafe fn run<O: Operator>(stack: *mut Value, arguments: u64, results: u64) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let operator = O::take(&mut Stack { next: stack, left: arguments })?;
        on_libtorchs(|| operator.run())
    }));
    let text = match outcome {
        Ok(Ok(tensors)) if tensors.len() as u64 == results => {
            for (place, tensor) in tensors.into_iter().enumerate() {
                // SAFETY: PyTorch's stack has room for as many results.
                unsafe { *stack.add(place) = tensor.into_handle() as Value };
            }
            return true;
        }
        Ok(Ok(tensors)) => format!("{} results where the schema has {results}, which is a bug", tensors.len()),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => message(&*panic),
    };
    let text = format!("tercet::{}: {text}", O::name()).replace('\0', " ");
    LAST_ERROR.set(CString::new(text).unwrap_or_default());
    false
}

/// What PyTorch calls: an operator by its stack of arguments. An error is thrown as libtorch's own C++ exception.
///
/// # Safety
/// `stack` has `arguments` values of the types of the operator's schema, and room for `results`.
unsafe extern "C-unwind" fn kernel<O: Operator>(stack: *mut Value, arguments: u64, results: u64) {
    // SAFETY: the caller's contract.
    if unsafe { run::<O>(stack, arguments, results) } {
        return;
    }
    let text = LAST_ERROR.with_borrow(|text| text.as_ptr());
    // SAFETY: texts that end in NUL; `text` stays until the next error on this thread, and the exception copies it. Nothing
    // in this function has a destructor, and `C-unwind` lets the exception pass to libtorch, which called.
    unsafe { (torch().check)(false, c"tercet".as_ptr(), c"python/src/operator.rs".as_ptr(), line!(), text) };
}

/// A library of PyTorch's dispatcher in the making.
pub struct Library {
    def: Handle,
    /// By dispatch key.
    impls: Vec<Handle>,
}

/// What was registered, kept for as long as the process lives: a library that is deleted takes its operators along.
static REGISTERED: Mutex<bool> = Mutex::new(false);

/// The name of a dispatch key.
const KEYS: &[&std::ffi::CStr] = if cfg!(feature = "cuda") { &[c"CPU", c"CUDA"] } else { &[c"CPU"] };

impl Library {
    /// Begins the library `tercet`, unless this process has it; `register` adds the operators.
    pub fn once(register: impl FnOnce(&Self) -> Result<(), String>) -> Result<(), String> {
        let mut registered = REGISTERED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *registered {
            return Ok(());
        }
        let torch = &abi::find()?.torch;
        let failed = |code: i32, what: &str| if code == 0 { Ok(()) } else { Err(format!("PyTorch refused {what}")) };
        let file = c"python/src/lib.rs".as_ptr();
        let mut def = ptr::null_mut();
        // SAFETY: names that end in NUL and live as long as the process, and an out-pointer to a live variable.
        failed(unsafe { (torch.library_def)(c"tercet".as_ptr(), file, line!(), &mut def) }, "the library")?;
        let mut impls = Vec::new();
        for key in KEYS {
            let mut handle = ptr::null_mut();
            // SAFETY: as above.
            let code = unsafe { (torch.library_impl)(c"tercet".as_ptr(), key.as_ptr(), file, line!(), &mut handle) };
            failed(code, "an implementation's dispatch key")?;
            impls.push(handle);
        }
        register(&Self { def, impls })?;
        *registered = true;
        Ok(())
    }

    /// Adds an operator, on each kind of device.
    pub fn add<O: Operator>(&self) -> Result<(), String> {
        let torch = &abi::find()?.torch;
        let nul = |text: String| CString::new(text).map_err(|error| error.to_string());
        let (schema, name) = (nul(format!("{}{}", O::name(), O::schema()))?, nul(O::name())?);
        // SAFETY: handles of libraries that live, and texts that end in NUL, which are copied.
        if unsafe { (torch.def)(self.def, schema.as_ptr()) } != 0 {
            return Err(format!("PyTorch refused the schema {}", schema.to_string_lossy()));
        }
        for &library in &self.impls {
            let function: Kernel = kernel::<O>;
            // SAFETY: as above; the function keeps to the convention that this release's ABI has.
            if unsafe { (torch.implement)(library, name.as_ptr(), function, RELEASE) } != 0 {
                return Err(format!("PyTorch refused the operator {}", name.to_string_lossy()));
            }
        }
        Ok(())
    }
}

/// An empty tensor in place of a result that was not asked for.
pub fn nothing(dtype: Dtype, like: &Tensor) -> Result<Tensor, Error> {
    Tensor::empty(&[0], dtype, like.device())
}
