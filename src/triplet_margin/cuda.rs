//! The launches of kernels/triplet_margin.cu.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};

use super::cpu::CheckedTriplets;
use super::{NAMES, TripletMarginLoss};
use crate::cuda::paired::{self, PairedArgs, Wanted};
use crate::cuda::{CudaMatrix, Launcher};
use crate::element::largest;
use crate::paired::one_shape;
use crate::{Element, Error};

/// A pass whose inputs and gradients are those of anchor, positive and negative.
pub type Pass = paired::Pass<3>;

pub(crate) const STEM: &str = "triplet_margin";

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
    fn of(problem: &CheckedTriplets) -> impl FnOnce(PairedArgs<3>) -> Self {
        let swap = problem.swap.into();
        move |paired| Self { paired, swap, padding: 0 }
    }
}

/// Launches a pass of the triplet margin loss.
///
/// # Safety
/// The addresses in `pass` are device memory of the launcher: inputs of the problem's rows of T, `strides` apart;
/// outputs as [`paired::Pass`] describes; all alive until the kernel has run.
pub(crate) unsafe fn run<T: Element, L: Launcher>(
    launcher: &L,
    problem: &CheckedTriplets,
    pass: &Pass,
) -> Result<(), Error> {
    // SAFETY: the caller's contract, and `Args` is these kernels' argument.
    unsafe { paired::run::<T, L, _, 3>(launcher, STEM, &problem.paired, pass, Args::of(problem)) }
}

impl TripletMarginLoss {
    /// [`loss_and_grad`](Self::loss_and_grad) on cudarc slices, in the order of `stream`: nothing waits for the device.
    ///
    /// `loss` takes one number, or for `Reduction::None` one a row; `None` in place of a gradient skips it. For
    /// `Reduction::None` the gradients are those of the losses' sum.
    ///
    /// # Errors
    /// If shapes differ or are empty, an option is out of range, a slice has the wrong length, or the device refuses.
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

    /// [`grad`](Self::grad) on cudarc slices, in the order of `stream`: nothing waits for the device.
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
