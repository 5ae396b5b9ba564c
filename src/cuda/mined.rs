//! The trait of mined losses that run on a device.

use super::arguments::{Inputs, Output};
use super::{Address, Launcher, Memory};
use crate::mined::Loss;
use crate::problem::Problem;
use crate::{Element, Error};

/// The passes of a mined loss on a device. Each loss implements them in its cuda.rs, those that choose one negative for
/// each pair in cuda/triplets.rs.
pub trait OnDevice: Loss {
    /// What a backward pass needs of its forward pass.
    type Kept<M: Memory>: Send + 'static;

    /// Mines the batch and writes its loss. `with_grad`: which gradients `backward` may be asked for later, with
    /// respect to the anchors and to the reference set.
    ///
    /// # Safety
    /// The inputs, and those outputs that are not 0, are device memory of the launcher, of the problem's sizes; all are
    /// alive until the kernels have run.
    unsafe fn forward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem<Self::Extra>,
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Self::Kept<L::Memory>, Error>;

    /// Writes the gradients times `upstream`, one f32, or for `Reduction::None` one an anchor; 0 in place of a gradient
    /// skips it.
    ///
    /// # Safety
    /// `kept` comes from `forward` with the same problem and with these gradients. The embeddings hold what they held then,
    /// wherever they lie now, or may be null if the loss does not read them again; labels and step are not read. The
    /// gradients are `[N, D]` and `[M, D]` of T, contiguous. All of these, the upstream gradient, and the statistics that
    /// the forward pass wrote, are alive until the kernels have run.
    unsafe fn backward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem<Self::Extra>,
        kept: &Self::Kept<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error>;
}
