//! Launches on PyTorch's current stream, with memory from PyTorch's caching allocator.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::Error;
use crate::cuda::device::Device;
use crate::cuda::{Address, DeviceProperties, Grid, Launcher, Memory};

/// Launches on one of PyTorch's streams, with tensors as memory.
pub(crate) struct TorchLauncher {
    device: Arc<Device>,
    ordinal: usize,
    stream: *mut c_void,
}

impl TorchLauncher {
    /// A launcher on the stream that PyTorch's own kernels on this device would use now.
    pub fn current(ordinal: usize) -> Result<Self, Error> {
        let mut stream = ptr::null_mut();
        let index =
            i32::try_from(ordinal).map_err(|_| Error::argument("device", "a CUDA device", ordinal.to_string()))?;
        // SAFETY: an out-pointer to a live variable.
        super::autograd::check(unsafe { tercet_current_stream(index, &mut stream) })?;
        Ok(Self { device: Device::primary(ordinal)?, ordinal, stream })
    }
}

// SAFETY: memory is a tensor of as many bytes, which PyTorch's allocator aligns to 512; the properties are the device's; work
// is given to one stream, whose order it keeps.
unsafe impl Launcher for TorchLauncher {
    type Memory = Workspace;

    fn properties(&self) -> &DeviceProperties {
        self.device.properties()
    }

    fn allocate(&self, bytes: usize) -> Result<Workspace, Error> {
        let Ok(count) = i64::try_from(bytes) else {
            let reason = "no tensor has so many elements".into();
            return Err(Error::Cuda { action: format!("allocating {bytes} bytes"), reason });
        };
        let tensor = Tensor::f_empty([count], (Kind::Uint8, tch::Device::Cuda(self.ordinal)))?;
        Ok(Workspace(tensor))
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { self.device.clear(self.stream.cast(), to, bytes) }
    }

    unsafe fn launch(&self, stem: &str, kernel: &str, grid: Grid, arguments: &[u8]) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { self.device.launch(self.stream.cast(), stem, kernel, grid, arguments) }
    }
}

/// Runs `f` with a stream of PyTorch's pool as the current one; `f` gets the driver's handle of it.
///
/// # Errors
/// If there is no such device.
///
/// # Panics
/// If `f` does.
pub fn on_pool_stream<F: FnOnce(*mut c_void) -> R, R>(ordinal: usize, f: F) -> Result<R, Error> {
    struct State<F, R> {
        f: Option<F>,
        result: Option<std::thread::Result<R>>,
    }
    /// Calls the `f` of `state`.
    ///
    /// # Safety
    /// `state` is a `State<F, R>` that nothing else uses meanwhile.
    unsafe extern "C" fn run<F: FnOnce(*mut c_void) -> R, R>(state: *mut c_void, stream: *mut c_void) {
        // SAFETY: the caller's contract.
        let state = unsafe { &mut *state.cast::<State<F, R>>() };
        let f = state.f.take().expect("called once");
        // No panic may cross C++.
        state.result = Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(stream))));
    }
    let ordinal =
        i32::try_from(ordinal).map_err(|_| Error::argument("device", "a CUDA device", ordinal.to_string()))?;
    let mut state = State { f: Some(f), result: None };
    // SAFETY: `run` is called with this live state, before this returns.
    super::autograd::check(unsafe { tercet_on_pool_stream(ordinal, run::<F, R>, ptr::from_mut(&mut state).cast()) })?;
    state.result.expect("no error: it was called").map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
}

/// A tensor of bytes. PyTorch's allocator gives freed memory only to later work of the same stream, so that it may be
/// dropped before that work has run.
pub(crate) struct Workspace(Tensor);

// SAFETY: PyTorch aligns memory to 512 bytes, a tensor's elements do not move, nobody else has this tensor, and what it
// frees goes to later work of the same stream alone.
unsafe impl Memory for Workspace {
    fn address(&self) -> Address {
        self.0.data_ptr() as Address
    }
}

/// Where a tensor's elements start.
pub(crate) fn address(tensor: &Tensor) -> Address {
    tensor.data_ptr() as Address
}

unsafe extern "C" {
    fn tercet_current_stream(device: i32, stream: *mut *mut c_void) -> *mut c_char;
    fn tercet_on_pool_stream(
        device: i32,
        run: unsafe extern "C" fn(*mut c_void, *mut c_void),
        state: *mut c_void,
    ) -> *mut c_char;
}
