//! Operations, which are the losses and the distance, and the backends that each of them runs on.

use std::fmt::Debug;

use half::{bf16, f16};
use rayon::ThreadPool;
use tercet::Element;

#[cfg(feature = "cuda")]
use super::cuda::Cuda;
#[cfg(feature = "cuda")]
use super::devices::TestDevice;

/// A dtype that every backend takes: cudarc can copy it to a device.
#[cfg(feature = "cuda")]
pub trait Number: Element<Scalar: cudarc::driver::DeviceRepr> + cudarc::driver::DeviceRepr + Debug {}
#[cfg(feature = "cuda")]
impl<T: Element<Scalar: cudarc::driver::DeviceRepr> + cudarc::driver::DeviceRepr + Debug> Number for T {}
/// A dtype that every backend takes.
#[cfg(not(feature = "cuda"))]
pub trait Number: Element + Debug {}
#[cfg(not(feature = "cuda"))]
impl<T: Element + Debug> Number for T {}

/// What is run: one call of a loss with all its results, or of another operation.
pub trait Operation {
    /// The names of the files and folders that belong to it.
    const STEM: &'static str;
    /// Whether devices take f64, as the CPU does.
    const F64_ON_DEVICES: bool = false;
    /// The options and the shape of a call.
    type Case: Clone + Debug + Sync;
    /// The numbers of a call.
    type Data<T: Number>: Sync;
    type Output<T: Number>: Send;

    /// Decides in which order a simulated device runs its blocks and threads.
    #[cfg(feature = "emulator")]
    fn seed(case: &Self::Case) -> u64;
    fn on_cpu<T: Number>(case: &Self::Case, data: &Self::Data<T>) -> Self::Output<T>;
    /// Through the crate's own launches.
    #[cfg(feature = "cuda")]
    fn on_device<T: Number, D: TestDevice>(device: &D, case: &Self::Case, data: &Self::Data<T>) -> Self::Output<T>;
    /// On a CUDA device: through the public functions on cudarc slices, for an operation that has no other.
    #[cfg(feature = "cuda")]
    fn on_cuda<T: Number>(cuda: &Cuda, case: &Self::Case, data: &Self::Data<T>) -> Self::Output<T> {
        Self::on_device(cuda, case, data)
    }
}

pub trait Backend {
    const NAME: &'static str;
    /// Devices have precisions to choose from, and most operations refuse f64 there.
    const IS_DEVICE: bool;
    /// The largest number of rows of a random case: the oracle is slow, and the emulator slower.
    const LARGEST: usize = 300;

    fn run<O: Operation, T: Number>(&self, case: &O::Case, data: &O::Data<T>) -> O::Output<T>;
}

pub struct Cpu;

impl Backend for Cpu {
    const NAME: &'static str = "cpu";
    const IS_DEVICE: bool = false;

    fn run<O: Operation, T: Number>(&self, case: &O::Case, data: &O::Data<T>) -> O::Output<T> {
        O::on_cpu(case, data)
    }
}

/// The CPU with one thread.
pub struct OneThread(ThreadPool);

impl OneThread {
    pub fn new() -> Self {
        Self(rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread"))
    }
}

impl Backend for OneThread {
    const NAME: &'static str = "one thread of the cpu";
    const IS_DEVICE: bool = false;

    fn run<O: Operation, T: Number>(&self, case: &O::Case, data: &O::Data<T>) -> O::Output<T> {
        self.0.install(|| O::on_cpu(case, data))
    }
}

/// What is done for each dtype.
pub trait EachDtype {
    type Result;
    fn of<T: Number>(&self) -> Self::Result;
}

/// The results for each dtype that `B` takes for `O`.
pub fn each_dtype<O: Operation, B: Backend, E: EachDtype>(each: &E) -> Vec<E::Result> {
    let mut results = vec![each.of::<f32>()];
    if !B::IS_DEVICE || O::F64_ON_DEVICES {
        results.push(each.of::<f64>());
    }
    results.extend([each.of::<f16>(), each.of::<bf16>()]);
    results
}
