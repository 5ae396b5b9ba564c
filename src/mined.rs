//! What a mined loss is made of. Each loss implements [`Loss`] in its mod.rs and
//! [`OnDevice`](crate::cuda::mined::OnDevice) in its cuda.rs; those that choose one negative for each pair have both
//! from triplets.rs and cuda/triplets.rs.

use std::fmt::Debug;

use crate::element::largest;
use crate::problem::{Options, Problem, Sizes};
use crate::{Element, Error, Matrix, Reference, Scalar, Stats};

/// The embeddings and labels of a call on slices, and its reference set.
#[derive(Clone, Copy, Debug)]
pub struct Slices<'a, T> {
    pub embeddings: Matrix<'a, T>,
    pub labels: &'a [i64],
    /// `None`: the batch itself.
    pub reference: Option<&'a Reference<Matrix<'a, T>, &'a [i64]>>,
}

impl<T: Element> Slices<'_, T> {
    /// What [`Loss::problem`] checks.
    pub fn sizes(&self) -> Sizes {
        let shape = |matrix: &Matrix<'_, T>| [matrix.rows(), matrix.dim()];
        Sizes {
            embeddings: shape(&self.embeddings),
            labels: self.labels.len(),
            reference: self.reference.map(|reference| reference.map(shape, |labels| labels.len())),
            largest: largest::<T>(),
        }
    }
}

/// A mined loss: its options, and its passes on the CPU.
pub trait Loss: Copy + Debug + Send + Sync + 'static {
    /// The loss's name in error messages and in autograd graphs.
    const NAME: &'static str;
    /// Whether a backward pass on a device reads the embeddings again, which must then be unchanged. On the CPU none
    /// does: what `find` returns has all that `gradients` needs.
    const READS_AGAIN_ON_DEVICE: bool;
    /// Whether the mean distances are over the pairs of one class, and over those of different classes: each over its own kind. If
    /// not, both are over what `valid` counts.
    const DISTANCES_BY_KIND: bool = false;
    /// The options that this loss alone has.
    type Extra: Copy + Debug + Send + Sync + 'static;
    /// What a forward pass on the CPU found.
    type Found<A: Scalar>: Send + 'static;

    fn options(&self) -> Options<Self::Extra>;
    /// Checks of the options that this loss alone has.
    fn check(&self, sizes: &Sizes) -> Result<(), Error> {
        let _ = sizes;
        Ok(())
    }
    /// Whether each anchor's losses depend on no other anchor, so that parts of the anchors, each against the whole batch, add up
    /// to the loss of the batch.
    fn is_sum_over_anchors(&self) -> bool {
        true
    }
    /// The options and sizes of a call, checked.
    fn problem(&self, sizes: &Sizes) -> Result<Problem<Self::Extra>, Error> {
        let problem = Problem::new(self.options(), sizes)?;
        self.check(sizes)?;
        Ok(problem)
    }
    /// The forward pass on the CPU. `with_grad`: for which gradients `gradients` may be called, with respect to the anchors and
    /// to the reference set.
    fn find<T: Element>(
        problem: &Problem<Self::Extra>,
        slices: &Slices<'_, T>,
        with_grad: [bool; 2],
    ) -> Self::Found<T::Scalar>;
    /// The sum of all losses; NaN if the loss is.
    fn sum<A: Scalar>(found: &Self::Found<A>) -> f64;
    /// The loss, reduced by mean or sum.
    fn loss<A: Scalar>(problem: &Problem<Self::Extra>, found: &Self::Found<A>) -> A {
        A::from_f64(Self::sum(found) / problem.divisor(&Self::stats(found)))
    }
    /// The loss of each anchor; empty for a loss that has no number for each anchor, and so refuses `Reduction::None`.
    fn losses<A: Scalar>(found: &Self::Found<A>) -> &[A];
    fn stats<A: Scalar>(found: &Self::Found<A>) -> Stats;
    /// Writes the gradients with respect to the anchors and to the reference set, times `upstream` (one number, or one
    /// an anchor; `None`: 1). If the batch is its own reference set the first is that with respect to the batch.
    /// `found` comes from `find` with these gradients.
    fn gradients<T: Element>(
        problem: &Problem<Self::Extra>,
        found: &Self::Found<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    );
}
