//! Backward passes written in Rust, for any tch program: tch itself has no custom functions.

use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

/// What a backward pass may return as its error: it reaches the caller of `f_backward` as an `Err` with its text.
pub type BackwardError = Box<dyn std::error::Error + Send + Sync>;

/// What a backward pass is given.
pub struct Backward<'a> {
    upstream: &'a Tensor,
    saved: &'a [Tensor],
    needed: &'a [bool],
    keep_graph: bool,
}

impl Backward<'_> {
    /// The gradient of the final result with respect to this function's output.
    pub fn upstream(&self) -> &Tensor {
        self.upstream
    }

    /// The `i`th saved tensor, unchanged since the forward pass: a change in place is an error before this is called.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn saved(&self, i: usize) -> &Tensor {
        &self.saved[i]
    }

    /// All saved tensors, in the order they were given.
    pub(crate) fn all_saved(&self) -> &[Tensor] {
        self.saved
    }

    /// Whether the gradient of input `i` is asked for; what is returned for others is dropped.
    #[must_use]
    pub fn needs(&self, i: usize) -> bool {
        self.needed[i]
    }

    /// Whether the same graph may be run backward again. If not, the closure's state may be used up.
    #[must_use]
    pub fn keep_graph(&self) -> bool {
        self.keep_graph
    }
}

/// Whether a function of `input` has to be prepared for backward: the tensor requires a gradient, and gradients are
/// not switched off (`tch::no_grad`).
#[must_use]
pub fn needs_grad(input: &Tensor) -> bool {
    // SAFETY: reads a thread-local flag of libtorch.
    unsafe { tercet_grad_enabled() && input.requires_grad() }
}

/// A function with a backward pass of its own; `torch.autograd.Function` for tch.
///
/// The forward pass has been computed by the caller, in whatever way, from the inputs' data. [`attach`](Self::attach)
/// makes its result part of the autograd graph.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tercet::torch::CustomFunction;
///
/// // x³, with its gradient 3x² upstream.
/// fn cube(x: &Tensor) -> Result<Tensor, tercet::Error> {
///     let value = tch::no_grad(|| x * x * x);
///     CustomFunction::new("Cube").inputs(&[x]).saved(&[x]).attach(&value, |ctx| {
///         let x = ctx.saved(0);
///         Ok(vec![Some(x * x * 3.0 * ctx.upstream())])
///     })
/// }
/// let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
/// cube(&x)?.sum(Kind::Double).backward();
/// assert_eq!(x.grad(), Tensor::from_slice(&[3.0, 12.0]));
/// # Ok::<(), tercet::Error>(())
/// ```
#[must_use = "a function is in no graph until `attach`"]
pub struct CustomFunction<'a> {
    name: &'a str,
    inputs: &'a [&'a Tensor],
    saved: &'a [&'a Tensor],
}

impl<'a> CustomFunction<'a> {
    /// A function called `name` in error messages and in printed tensors (`grad_fn`).
    pub fn new(name: &'a str) -> Self {
        Self { name, inputs: &[], saved: &[] }
    }

    /// The tensors that the result depends on. The backward pass returns one gradient for each.
    pub fn inputs(mut self, inputs: &'a [&'a Tensor]) -> Self {
        self.inputs = inputs;
        self
    }

    /// The tensors that the backward pass reads, inputs usually. They are kept as PyTorch keeps its own: changing one
    /// in place before backward is an error there, and they are let go when the graph is.
    pub fn saved(mut self, saved: &'a [&'a Tensor]) -> Self {
        self.saved = saved;
        self
    }

    /// A tensor with the data of `output` whose gradient is computed by `backward`; the data alone if no input
    /// needs a gradient.
    ///
    /// `backward` runs with gradients switched off, on whichever thread runs the graph, never twice at a time. It
    /// returns one gradient per input, or `None`s. Its error or panic ends the graph's backward pass with an `Err`
    /// from `f_backward`, and so does running backward through the same graph from within it. It is dropped, once,
    /// with the graph.
    ///
    /// Differentiating through the gradient is refused with an error (`create_graph` alone is not).
    ///
    /// # Errors
    /// If libtorch refuses.
    pub fn attach<F>(self, output: &Tensor, backward: F) -> Result<Tensor, crate::Error>
    where
        F: FnMut(&Backward<'_>) -> Result<Vec<Option<Tensor>>, BackwardError> + Send + 'static,
    {
        let name = CString::new(self.name.replace('\0', "")).expect("NULs were removed");
        let state =
            Box::new(State { backward: Box::new(backward), inputs: self.inputs.len(), saved: self.saved.len() });
        let rust = RustBackward { state: Box::into_raw(state).cast(), apply, drop: drop_state };
        let (inputs, saved) = (pointers(self.inputs), pointers(self.saved));
        let mut result = ptr::null_mut();
        // SAFETY: the tensors' pointers are valid for the call and the arrays have the lengths given; `rust` is what
        // `apply` and `drop_state` expect, and C++ takes it.
        check(unsafe {
            tercet_attach(
                &mut result,
                output.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                saved.as_ptr(),
                saved.len(),
                name.as_ptr(),
                rust,
            )
        })?;
        // SAFETY: without an error `result` is a new tensor that nobody else owns.
        Ok(unsafe { Tensor::from_ptr(result) })
    }
}

type BackwardFn = dyn FnMut(&Backward<'_>) -> Result<Vec<Option<Tensor>>, BackwardError> + Send;

/// What the node holds as its `state`.
struct State {
    backward: Box<BackwardFn>,
    inputs: usize,
    saved: usize,
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|t| t.as_ptr()).collect()
}

/// `RustBackward` of autograd.cpp, in the same layout.
#[repr(C)]
struct RustBackward {
    state: *mut c_void,
    apply: unsafe extern "C" fn(
        *mut c_void,
        *mut C_tensor,
        *const *mut C_tensor,
        *const u8,
        bool,
        *mut *mut C_tensor,
    ) -> *mut c_char,
    drop: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    fn tercet_attach(
        result: *mut *mut C_tensor,
        output: *const C_tensor,
        inputs: *const *const C_tensor,
        input_count: usize,
        saved: *const *const C_tensor,
        saved_count: usize,
        name: *const c_char,
        rust: RustBackward,
    ) -> *mut c_char;
    fn tercet_free_message(message: *mut c_char);
    fn tercet_no_memory_for_a_message() -> *mut c_char;
    fn tercet_grad_enabled() -> bool;
}

/// Runs the closure of a node; returns null, or the text of what went wrong.
///
/// # Safety
/// `state` is a `State` that nobody else uses during the call (C++ holds the node's lock); the pointers are to one
/// upstream tensor, `state.saved` tensors, `state.inputs` flags and `state.inputs` places for results.
unsafe extern "C" fn apply(
    state: *mut c_void,
    upstream: *mut C_tensor,
    saved: *const *mut C_tensor,
    needed: *const u8,
    keep_graph: bool,
    grads: *mut *mut C_tensor,
) -> *mut c_char {
    // No panic may cross into C++. After a panic the state is only dropped or run again, which at worst errs again.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller's contract.
        let (state, upstream, saved, needed) = unsafe {
            let state = &mut *state.cast::<State>();
            let saved: Vec<Tensor> = (0..state.saved).map(|i| Tensor::clone_from_ptr(*saved.add(i))).collect();
            let needed: Vec<bool> = (0..state.inputs).map(|i| *needed.add(i) != 0).collect();
            (state, Tensor::clone_from_ptr(upstream), saved, needed)
        };
        let context = Backward { upstream: &upstream, saved: &saved, needed: &needed, keep_graph };
        let results = (state.backward)(&context).map_err(|e| e.to_string())?;
        if results.len() != state.inputs {
            return Err(format!("the backward pass returned {} gradients for {} inputs", results.len(), state.inputs));
        }
        for (i, result) in results.into_iter().enumerate() {
            if let (Some(mut tensor), true) = (result, needed[i]) {
                // SAFETY: place `i` exists; C++ now owns the tensor that we forget.
                unsafe { *grads.add(i) = tensor.as_mut_ptr() };
                std::mem::forget(tensor);
            }
        }
        Ok(())
    }));
    let text = match outcome {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(text)) => text,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            format!("the backward pass panicked: {}", text.unwrap_or_else(|| "no message".into()))
        }
    };
    let text = CString::new(text.replace('\0', "")).expect("NULs were removed");
    // SAFETY: a NUL-terminated string; the copy is from malloc, as C++ expects, or its own text for lack of memory.
    unsafe {
        let copy = libc::strdup(text.as_ptr());
        if copy.is_null() { tercet_no_memory_for_a_message() } else { copy }
    }
}

/// Drops the closure of a node.
///
/// # Safety
/// `state` is a `State` that nobody will use again.
unsafe extern "C" fn drop_state(state: *mut c_void) {
    // SAFETY: the caller's contract. A panic in a destructor ends here.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(state.cast::<State>()) })));
}

/// The `Err` for an error message of autograd.cpp.
pub(super) fn check(message: *mut c_char) -> Result<(), TchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: autograd.cpp returns null or a string that is ours to give back.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        tercet_free_message(message);
        Err(TchError::Torch(text))
    }
}
