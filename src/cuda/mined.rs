//! What mined losses on a device share: their inputs, and the shape of their passes.

use super::batch::Input;
use super::{Address, Launcher, Memory};
use crate::mined::{ReferenceShape, Shape};
use crate::{Element, Error, Own};

/// The arguments of a call, in device memory.
#[derive(Clone, Copy, Debug)]
#[doc(hidden)]
pub struct Inputs {
    pub anchors: Input,
    /// `None`: the batch itself.
    pub reference: Option<OtherInput>,
    /// An i64; 0: step 0.
    pub step: Address,
}

impl Inputs {
    /// Of anchors `[rows, dim]`.
    fn shape(&self, [rows, dim]: [usize; 2]) -> Shape {
        let reference = self.reference.as_ref().map(|reference| ReferenceShape {
            rows: reference.count,
            dim,
            labels: reference.count,
            own: match reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(offset),
                Own::Rows(_) => Own::Rows(rows),
            },
        });
        Shape { rows, dim, labels: rows, reference }
    }

    /// A batch that is its own reference set.
    pub fn itself(anchors: Input) -> Self {
        Self { anchors, reference: None, step: 0 }
    }
}

/// A reference set; its own rows are i64.
#[derive(Clone, Copy, Debug)]
#[doc(hidden)]
pub struct OtherInput {
    pub rows: Input,
    /// How many there are.
    pub count: usize,
    pub own: Own<Address>,
}

/// Where a forward pass writes, in device memory; 0: not wanted, or to memory of its own.
#[derive(Clone, Copy, Debug, Default)]
#[doc(hidden)]
pub struct Output {
    /// One f32 an anchor.
    pub losses: Address,
    /// The reduced loss, an f32.
    pub loss: Address,
    /// Five f64: what was counted as valid and active, the sums of both distances, and what the sum of the losses is
    /// multiplied by.
    pub stats: Address,
    /// What was chosen, for losses that choose; each says what.
    pub chosen: [Address; 2],
}

/// The passes of a mined loss on a device.
#[doc(hidden)]
pub trait OnDevice: crate::mined::Loss {
    /// What the backward pass needs of a forward pass.
    type Kept<M: Memory>: Send + 'static;

    /// Mines the batch and writes its loss. `with_grad`: with what it takes for the gradients with respect to the anchors
    /// and to the reference set.
    ///
    /// # Safety
    /// The inputs are device memory of the launcher, of the problem's shape, the outputs too; all alive until the kernels
    /// have run.
    unsafe fn forward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Self::Problem,
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Self::Kept<L::Memory>, Error>;

    /// The gradients times `upstream`, an f32, or one an anchor; 0 in place of one skips it.
    ///
    /// # Safety
    /// The inputs hold what they held in the forward pass, wherever they lie now; the gradients are `[N, D]` and `[M, D]` of
    /// T, contiguous; these, the upstream and the forward pass's statistics alive until the kernels have run.
    unsafe fn backward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Self::Problem,
        kept: &Self::Kept<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error>;

    /// Forward for callers that hold device memory of their own: tests on whatever implements [`Launcher`].
    ///
    /// # Safety
    /// As [`forward`](Self::forward), for anchors `[rows, dim]`.
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    unsafe fn forward_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        shape: [usize; 2],
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Self::Kept<L::Memory>, Error> {
        // SAFETY: the caller's contract.
        unsafe { Self::forward::<T, L>(launcher, &self.check(&inputs.shape(shape))?, inputs, output, with_grad) }
    }

    /// Backward, likewise.
    ///
    /// # Safety
    /// As [`backward`](Self::backward), for what `forward_on` made of the same shape.
    ///
    /// # Errors
    /// If the device refuses.
    unsafe fn backward_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        shape: [usize; 2],
        kept: &Self::Kept<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { Self::backward::<T, L>(launcher, &self.check(&inputs.shape(shape))?, kept, inputs, upstream, grads) }
    }
}
