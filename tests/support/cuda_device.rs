//! The first CUDA device, for tests that every backend takes.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaStream, result};
use tercet::internal::{CudaLauncher, Launcher, Memory};

use super::launches::{MemoryOf, TestDevice};
use skip::there_is_a_device;

#[path = "skip.rs"]
pub mod skip;

pub struct Cuda {
    stream: Arc<CudaStream>,
    launcher: CudaLauncher,
}

impl Cuda {
    /// The first device; `None`, after naming the test as skipped, if there is none.
    pub fn first(test: &str) -> Option<Self> {
        there_is_a_device(test).then(|| {
            let stream = CudaContext::new(0).unwrap().default_stream();
            Self { launcher: CudaLauncher::new(&stream).unwrap(), stream }
        })
    }
}

#[allow(dead_code, reason = "each test uses its share")]
impl Cuda {
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub fn name(&self) -> String {
        self.stream.context().name().unwrap()
    }
}

impl TestDevice for Cuda {
    type Launcher = CudaLauncher;

    fn launcher(&self) -> &CudaLauncher {
        &self.launcher
    }

    fn upload<T: Pod>(&self, data: &[T]) -> MemoryOf<Self> {
        let memory = self.launcher.allocate(size_of_val(data).max(1)).unwrap();
        // SAFETY: fresh memory of at least the size of `data`.
        unsafe { result::memcpy_htod_async(memory.address(), data, self.stream.cu_stream()) }.unwrap();
        self.stream.synchronize().unwrap();
        memory
    }

    fn read<T: Pod>(&self, memory: &MemoryOf<Self>, len: usize) -> Vec<T> {
        let mut to = vec![T::zeroed(); len];
        // SAFETY: the caller allocated at least `len` numbers of T.
        unsafe { result::memcpy_dtoh_async(&mut to, memory.address(), self.stream.cu_stream()) }.unwrap();
        self.stream.synchronize().unwrap();
        to
    }
}
