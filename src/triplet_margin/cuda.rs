//! The launches of kernels/triplet_margin.cu.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};

use super::{NAMES, Problem, TripletMarginLoss};
use crate::cuda::paired::{self, PairedArgs, Wanted};
use crate::cuda::{CudaMatrix, DeviceProperties, Launcher};
use crate::element::largest;
use crate::paired::one_shape;
use crate::{Element, Error};

pub use crate::cuda::paired::{Plan, Shape};

/// Inputs and gradients are of anchor, positive and negative.
pub type Pass = paired::Pass<3>;

const STEM: &str = "triplet_margin";

/// `Args` of kernels/triplet_margin.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    paired: PairedArgs<3>,
    swap: u32,
    /// Four bytes that a compiler would leave unnamed at the end: `Pod` allows no gaps.
    padding: u32,
}

impl Args {
    fn of(problem: &Problem) -> impl FnOnce(PairedArgs<3>) -> Self {
        let swap = problem.swap.into();
        move |paired| Self { paired, swap, padding: 0 }
    }
}

/// Launches the pass.
///
/// # Safety
/// The addresses in `pass` are device memory of the launcher: inputs of the problem's rows of T, `strides` apart; outputs
/// as [`paired::Pass`] describes; all alive until the kernel has run.
pub(crate) unsafe fn run<T: Element, L: Launcher>(launcher: &L, problem: &Problem, pass: &Pass) -> Result<(), Error> {
    // SAFETY: the caller's contract, and `Args` is these kernels' argument.
    unsafe { paired::run::<T, L, _, 3>(launcher, STEM, &problem.paired, pass, Args::of(problem)) }
}

/// For callers that hold device memory of their own: tests on whatever implements [`Launcher`].
impl TripletMarginLoss {
    /// Which kernel `run_on` would launch.
    ///
    /// # Errors
    /// If the shape is empty or an option is out of range.
    #[doc(hidden)]
    pub fn plan_on<T: Element>(
        &self,
        device: &DeviceProperties,
        shape: [usize; 2],
        pass: &Pass,
    ) -> Result<Plan, Error> {
        Ok(paired::plan::<T, 3>(STEM, &self.checked(shape, largest::<T>())?.paired, pass, device))
    }

    /// One pass over rows in the launcher's memory.
    ///
    /// # Safety
    /// As [`run`], for inputs `[rows, dim]`.
    ///
    /// # Errors
    /// As `plan_on`, or if the device refuses.
    #[doc(hidden)]
    pub unsafe fn run_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        shape: [usize; 2],
        pass: &Pass,
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { run::<T, L>(launcher, &self.checked(shape, largest::<T>())?, pass) }
    }
}

impl TripletMarginLoss {
    /// [`loss_and_grad`](Self::loss_and_grad) on cudarc slices, in the order of `stream`: nothing waits for the device.
    ///
    /// `loss` takes one number, or for `Reduction::None` one a row; `None` in place of a gradient skips it. For
    /// `Reduction::None` the gradients are those of the losses' sum.
    ///
    /// # Errors
    /// If shapes differ or are empty, an option is out of range, an output has the wrong length, or the device refuses.
    pub fn loss_and_grad_cuda<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        rows: [CudaMatrix<'_, T>; 3],
        loss: &mut CudaSlice<T::Scalar>,
        grads: [Option<&mut CudaSlice<T>>; 3],
    ) -> Result<(), Error>
    where
        T::Scalar: DeviceRepr,
    {
        self.run_on_stream(stream, &rows, Wanted::Losses(loss), grads)
    }

    /// [`grad`](Self::grad) on cudarc slices.
    ///
    /// # Errors
    /// If shapes differ or are empty, an option is out of range, a slice has the wrong length, or the device refuses.
    pub fn grad_cuda<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        rows: [CudaMatrix<'_, T>; 3],
        upstream: &CudaSlice<T::Scalar>,
        grads: [Option<&mut CudaSlice<T>>; 3],
    ) -> Result<(), Error>
    where
        T::Scalar: DeviceRepr,
    {
        self.run_on_stream(stream, &rows, Wanted::Upstream(upstream), grads)
    }

    fn run_on_stream<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        rows: &[CudaMatrix<'_, T>; 3],
        wanted: Wanted<'_, T::Scalar>,
        grads: [Option<&mut CudaSlice<T>>; 3],
    ) -> Result<(), Error>
    where
        T::Scalar: DeviceRepr,
    {
        let problem = self.checked(one_shape(NAMES, paired::shapes(rows))?, largest::<T>())?;
        // SAFETY: `Args` is these kernels' argument.
        unsafe { paired::run_on_stream(stream, STEM, &problem.paired, rows, wanted, grads, |_| Args::of(&problem)) }
    }
}
