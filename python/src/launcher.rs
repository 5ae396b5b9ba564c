//! Launches on PyTorch's current stream, with memory from PyTorch's caching allocator.

use std::ffi::c_void;
use std::sync::Arc;

use tercet::Error;
use tercet::internal::{Address, DeviceProperties, Grid, Launcher, Memory};

use crate::abi::current_cuda_stream;
use crate::tensor::{self, Dtype, Tensor, wrong};

/// Launches on one of PyTorch's streams, with tensors as memory.
pub struct PyTorchLauncher {
    device: Arc<tercet::internal::Device>,
    of: tensor::Device,
    stream: *mut c_void,
}

impl PyTorchLauncher {
    /// A launcher on the stream that PyTorch's own kernels on this device would use now.
    pub fn current(of: tensor::Device) -> Result<Self, Error> {
        let ordinal = usize::try_from(of.index).map_err(|_| wrong("device", "a CUDA device", of.index.to_string()))?;
        let stream = current_cuda_stream(of.index).map_err(|text| wrong("device", "a CUDA device", text))?;
        Ok(Self { device: tercet::internal::Device::primary(ordinal)?, of, stream })
    }

    /// Memory of f32 that are 1.
    pub fn ones(&self, count: usize) -> Result<Workspace, Error> {
        let memory = self.allocate(count * size_of::<f32>())?;
        // SAFETY: fresh memory of that size, and a stream of this device.
        unsafe { self.device.fill_with_ones(self.stream.cast(), memory.address(), count)? };
        Ok(memory)
    }
}

// SAFETY: memory is a tensor of as many bytes, which PyTorch's allocator aligns to 512; the properties are the device's; work
// is given to one stream, whose order it keeps.
unsafe impl Launcher for PyTorchLauncher {
    type Memory = Workspace;

    fn properties(&self) -> &DeviceProperties {
        self.device.properties()
    }

    fn allocate(&self, bytes: usize) -> Result<Workspace, Error> {
        Ok(Workspace(Tensor::empty(&[bytes], Dtype::Uint8, self.of)?))
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

/// A tensor of bytes. PyTorch's allocator gives freed memory only to later work of the same stream, so that it may be
/// dropped before that work has run.
pub struct Workspace(Tensor);

// SAFETY: a tensor's count of references is atomic, and nobody else has this tensor.
unsafe impl Send for Workspace {}

// SAFETY: PyTorch aligns memory to 512 bytes, a tensor's elements do not move, nobody else has this tensor, and what it
// frees goes to later work of the same stream alone.
unsafe impl Memory for Workspace {
    fn address(&self) -> Address {
        self.0.address()
    }
}
