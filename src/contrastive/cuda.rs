//! The launches of kernels/contrastive.cu.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr};

use super::{ContrastiveLoss, NAMES, check_same};
use crate::cuda::paired::{self, PairedArgs, Wanted};
use crate::cuda::{Address, CudaMatrix, Launcher};
use crate::element::largest;
use crate::paired::{PairedProblem, one_shape};
use crate::{Element, Error};

/// A pass whose inputs and gradients are those of x1 and x2.
pub type Pass = paired::Pass<2>;

pub(crate) const STEM: &str = "contrastive";

/// `Args` of kernels/contrastive.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    paired: PairedArgs<2>,
    same: Same,
}

/// Which pairs belong together: one number a row in device memory, 1 or 0; any other makes the row's loss NaN. It is
/// `Same` of kernels/contrastive.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Same {
    address: Address,
    one: u64,
    magnitude: u64,
    bytes: u32,
    /// Four bytes that a compiler would leave unnamed at the end: `Pod` allows no gaps.
    padding: u32,
}

impl Same {
    /// From integers, signed or not, or bools, of `bytes` bytes each.
    #[must_use]
    pub fn integers(address: Address, bytes: u32) -> Self {
        Self { address, one: 1, magnitude: u64::MAX, bytes, padding: 0 }
    }

    /// From floats of type T; -0 counts as 0.
    #[must_use]
    pub fn floats<T: Element>(address: Address) -> Self {
        let bits = |x: f64| {
            let mut word = [0; 8];
            word[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&T::from_f64(x)));
            u64::from_le_bytes(word)
        };
        Self { address, one: bits(1.0), magnitude: !bits(-0.0), bytes: size_of::<T>() as u32, padding: 0 }
    }
}

/// Launches a pass of the contrastive loss.
///
/// # Safety
/// The addresses in `pass` and `same` are device memory of the launcher: inputs of `problem.rows` rows of `problem.dim`
/// elements of T, `strides` apart; outputs as [`paired::Pass`] describes; `same` one number a row, aligned to its size;
/// all alive until the kernel has run.
pub(crate) unsafe fn run<T: Element, L: Launcher>(
    launcher: &L,
    problem: &PairedProblem,
    pass: &Pass,
    same: Same,
) -> Result<(), Error> {
    // SAFETY: the caller's contract, and `Args` is these kernels' argument.
    unsafe { paired::run::<T, L, _, 2>(launcher, STEM, problem, pass, |paired| Args { paired, same }) }
}

impl ContrastiveLoss {
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
        rows: [CudaMatrix<'_, T>; 2],
        same: &CudaSlice<bool>,
        loss: &mut CudaSlice<T::Scalar>,
        grads: [Option<&mut CudaSlice<T>>; 2],
    ) -> Result<(), Error>
    where
        T::Scalar: DeviceRepr,
    {
        self.run_on_stream(stream, &rows, same, Wanted::Losses(loss), grads)
    }

    /// [`grad`](Self::grad) on cudarc slices, in the order of `stream`: nothing waits for the device.
    ///
    /// # Errors
    /// If shapes differ or are empty, an option is out of range, a slice has the wrong length, or the device refuses.
    pub fn grad_cuda<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        rows: [CudaMatrix<'_, T>; 2],
        same: &CudaSlice<bool>,
        upstream: &CudaSlice<T::Scalar>,
        grads: [Option<&mut CudaSlice<T>>; 2],
    ) -> Result<(), Error>
    where
        T::Scalar: DeviceRepr,
    {
        self.run_on_stream(stream, &rows, same, Wanted::Upstream(upstream), grads)
    }

    fn run_on_stream<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        rows: &[CudaMatrix<'_, T>; 2],
        same: &CudaSlice<bool>,
        wanted: Wanted<'_, T::Scalar>,
        grads: [Option<&mut CudaSlice<T>>; 2],
    ) -> Result<(), Error>
    where
        T::Scalar: DeviceRepr,
    {
        let problem = self.checked(one_shape(NAMES, paired::shapes(rows))?, largest::<T>())?;
        check_same(same.len(), &problem)?;
        // SAFETY: `Args` is these kernels' argument, and there is a bool for each row.
        unsafe {
            paired::run_on_stream(stream, STEM, &problem, rows, wanted, grads, |guards| {
                let (address, guard) = same.device_ptr(stream);
                guards.push(guard);
                move |paired| Args { paired, same: Same::integers(address, 1) }
            })
        }
    }
}
