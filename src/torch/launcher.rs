//! Launches on PyTorch's current stream, with memory from PyTorch's caching allocator.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::Error;
use crate::cuda::{Address, Device, DeviceProperties, Grid, Launcher, Memory};

pub(crate) struct TorchLauncher {
    device: Arc<Device>,
    ordinal: usize,
    stream: *mut c_void,
}

impl TorchLauncher {
    /// On the stream that PyTorch's own kernels on this device would use now.
    pub fn current(ordinal: usize) -> Result<Self, Error> {
        let mut stream = ptr::null_mut();
        let index =
            i32::try_from(ordinal).map_err(|_| Error::argument("device", "a CUDA device", ordinal.to_string()))?;
        // SAFETY: an out-pointer to a live variable.
        super::autograd::check(unsafe { tercet_current_stream(index, &mut stream) })?;
        Ok(Self { device: Device::primary(ordinal)?, ordinal, stream })
    }
}

impl Launcher for TorchLauncher {
    type Memory = Workspace;

    fn properties(&self) -> &DeviceProperties {
        self.device.properties()
    }

    fn allocate(&self, bytes: usize) -> Result<Workspace, Error> {
        let tensor = Tensor::f_empty([bytes as i64], (Kind::Uint8, tch::Device::Cuda(self.ordinal)))?;
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

/// The allocator gives freed memory only to later work of the same stream, so dropping it early is safe.
pub(crate) struct Workspace(Tensor);

impl Memory for Workspace {
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
}
