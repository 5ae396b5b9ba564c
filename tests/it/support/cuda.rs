//! The first CUDA device, for tests that every backend takes, and for those that need one.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytemuck::Pod;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaModule, CudaStream, result};
use cudarc::nvrtc::Ptx;
use tercet::internal::{CudaLauncher, Image, KernelReport, Launcher, Memory, choose};

use super::backends::{Backend, Number, Operation};
use super::devices::{MemoryOf, TestDevice};
use super::skipped::skipped;

/// The kernels that are for tests alone.
pub static TEST_IMAGES: &[Image] = include!(env!("TERCET_TEST_IMAGES"));

/// Held by each test that uses the device: shared, or alone by one that captures graphs, for which no other thread may
/// allocate memory, or that fills the memory.
static DEVICE: RwLock<()> = RwLock::new(());

pub type Shared = RwLockReadGuard<'static, ()>;
pub type Alone = RwLockWriteGuard<'static, ()>;

/// Whether there is a device. If not, says that `test` is skipped, or fails if `TERCET_REQUIRE_CUDA` is set.
fn there_is_a_device(test: &str) -> bool {
    if tercet::cuda::device_count() > 0 {
        return true;
    }
    assert!(std::env::var_os("TERCET_REQUIRE_CUDA").is_none(), "TERCET_REQUIRE_CUDA is set, and there is no device");
    skipped(&format!("no CUDA device: {test}"));
    false
}

/// The right to use the device beside other tests; `None`, after naming the test as skipped, if there is none.
pub fn shared(test: &str) -> Option<Shared> {
    there_is_a_device(test).then(|| DEVICE.read().unwrap_or_else(PoisonError::into_inner))
}

/// The right to use the device while no other test does; `None`, after naming the test as skipped, if there is none.
pub fn alone(test: &str) -> Option<Alone> {
    there_is_a_device(test).then(|| DEVICE.write().unwrap_or_else(PoisonError::into_inner))
}

/// A number that the driver knows of a device.
pub fn attribute(context: &CudaContext, what: Attribute) -> u32 {
    u32::try_from(context.attribute(what).unwrap()).unwrap()
}

/// A device's compute capability.
pub fn capability(context: &CudaContext) -> [u32; 2] {
    [Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR]
        .map(|what| attribute(context, what))
}

/// The kernels of a file that is for tests alone, on a device.
pub fn test_module(context: &Arc<CudaContext>, stem: &str) -> Arc<CudaModule> {
    let [major, minor] = capability(context);
    let image = choose(TEST_IMAGES, stem, major, minor).expect("an image for this device");
    let bytes = image.decompressed();
    let code = match image.target.starts_with("sm_") {
        true => Ptx::from_binary(bytes),
        false => Ptx::from_src(String::from_utf8(bytes).unwrap().trim_end_matches('\0')),
    };
    context.load_module(code).unwrap()
}

/// The first device and its default stream.
pub struct Cuda {
    stream: Arc<CudaStream>,
    launcher: CudaLauncher,
    _shared: Option<Shared>,
}

impl Cuda {
    /// The first device, beside other tests; `None`, after naming the test as skipped, if there is none.
    pub fn first(test: &str) -> Option<Self> {
        Some(Self::new(Some(shared(test)?)))
    }

    /// The first device, for a test that uses it alone.
    pub fn alone(_: &Alone) -> Self {
        Self::new(None)
    }

    fn new(shared: Option<Shared>) -> Self {
        let stream = CudaContext::new(0).unwrap().default_stream();
        Self { launcher: CudaLauncher::new(&stream).unwrap(), stream, _shared: shared }
    }

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

impl Backend for Cuda {
    const NAME: &'static str = "cuda";
    const IS_DEVICE: bool = true;

    fn run<O: Operation, T: Number>(&self, case: &O::Case, data: &O::Data<T>) -> O::Output<T> {
        O::on_cuda(self, case, data)
    }
}
