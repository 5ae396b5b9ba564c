//! The batch-hard triplet loss.

use crate::cpu::against::Against;
use crate::distance::Metric;
use crate::mined::{self, Call, Loss, Set, Shape};
use crate::{Distance, Element, Error, Matrix, Precision, Reduction, Reference, Scalar, Stats};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
pub mod reference;
#[cfg(feature = "torch")]
mod torch;

pub use cpu::Selection;

/// For each anchor the farthest positive and the nearest negative of the batch, found and pushed apart in one call.
///
/// ```text
/// loss_a = max(d(a, p) - d(a, n) + margin, 0),  or with `soft_margin`  ln(1 + exp(d(a, p) - d(a, n)))
/// p      = the farthest row with y_p = y_a, p ≠ a
/// n      = the nearest row with y_n ≠ y_a
/// ```
///
/// From "In Defense of the Triplet Loss for Person Re-Identification" (Hermans, Beyer, Leibe 2017), over the batches of
/// FaceNet (Schroff, Kalenichenko, Philbin 2015). The mean is over the anchors that have both a positive and a negative;
/// the others add nothing to the sum or to the count. With no such anchor the loss and its gradients are 0.
///
/// Of equally far positives, and of equally near negatives, the one with the lowest index is taken. Distances are computed
/// from the difference of the rows; on CUDA the nearest negative is first looked for by products, and is the nearest within
/// their error (see [`Precision`]). A triplet is active only when its loss is strictly positive. NaN or infinity
/// anywhere in the embeddings makes the loss NaN, and the gradients; so does a selected distance that overflows.
///
/// In the [`Stats`], `valid` counts the anchors with both a positive and a negative, `active` those among them whose loss is
/// above 0, and the distances are means over the selected rows.
///
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for f64
/// and f32 for all others. No `N x N` matrix is made: memory grows with `N D`.
///
/// ```
/// use tercet::{BatchHardTripletLoss, Matrix};
///
/// // Two classes on a line, at 0, 1 and at 3, 5; with d = (x - y)² and a margin of 4 the losses are
/// // 1 - 9 + 4, 1 - 4 + 4, 4 - 4 + 4 and 4 - 16 + 4.
/// let embeddings = [0f32, 1.0, 3.0, 5.0];
/// let loss_fn = BatchHardTripletLoss { margin: 4.0, ..Default::default() };
/// let mut grad = [0f32; 4];
/// let loss = loss_fn.loss_and_grad(Matrix::new(&embeddings, 1)?, &[7, 7, -1, -1], &mut grad)?;
/// assert_eq!(loss, (1.0 + 4.0) / 4.0);
/// assert_eq!(grad, [-0.5, 2.5, -3.0, 1.0]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchHardTripletLoss {
    /// How much farther than the positive the negative should be; 0 or more. `soft_margin` does not look at it.
    pub margin: f64,
    /// The distance `d`: any but `Lp`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// `ln(1 + exp(x))` in place of `max(x + margin, 0)`.
    pub soft_margin: bool,
    /// How the anchors' losses become the result.
    pub reduction: Reduction,
    /// How exactly a CUDA device looks for the negatives; see [`Precision`].
    pub precision: Precision,
}

impl Default for BatchHardTripletLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            distance: Distance::SquaredEuclidean,
            normalize: false,
            soft_margin: false,
            reduction: Reduction::Mean,
            precision: Precision::Highest,
        }
    }
}

/// The options and shape of one call, checked.
#[derive(Clone, Copy, Debug)]
#[doc(hidden)]
pub struct Problem {
    pub rows: usize,
    /// The rows of the reference set; `None`: the batch itself.
    pub others: Option<usize>,
    pub dim: usize,
    pub metric: Metric,
    pub margin: f64,
    pub normalize: bool,
    pub soft_margin: bool,
    pub reduction: Reduction,
    pub precision: Precision,
}

impl Problem {
    /// What the sum of the anchors' losses, and each anchor's gradient, is divided by; `valid`: the anchors with both a
    /// positive and a negative.
    pub fn divisor(&self, valid: u64) -> f64 {
        match self.reduction {
            Reduction::Mean => valid.max(1) as f64,
            Reduction::Sum | Reduction::None => 1.0,
        }
    }
}

mined::slice_calls!(BatchHardTripletLoss, per_anchor);

impl BatchHardTripletLoss {
    /// The triplets themselves: which rows are selected for each anchor, and how far they are.
    ///
    /// # Errors
    /// As [`losses`](Self::losses).
    ///
    /// ```
    /// use tercet::{BatchHardTripletLoss, Matrix};
    ///
    /// let selection = BatchHardTripletLoss::default().select(Matrix::new(&[0f32, 1.0, 3.0, 5.0], 1)?, &[0, 0, 0, 1])?;
    /// assert_eq!(selection.positive, [2, 2, 0, u32::MAX]);
    /// assert_eq!(selection.negative, [3, 3, 3, u32::MAX]);
    /// # Ok::<(), tercet::Error>(())
    /// ```
    pub fn select<T: Element>(&self, embeddings: Matrix<'_, T>, labels: &[i64]) -> Result<Selection<T::Scalar>, Error> {
        Ok(Call::<T, Self>::new(self, embeddings, labels, None)?.find([false; 2]).1)
    }

    /// Likewise, against a reference set, of which the selected rows are.
    ///
    /// # Errors
    /// As [`losses_against`](Self::losses_against).
    pub fn select_against<T: Element>(
        &self,
        embeddings: Matrix<'_, T>,
        labels: &[i64],
        reference: &Reference<Matrix<'_, T>, &[i64]>,
    ) -> Result<Selection<T::Scalar>, Error> {
        Ok(Call::<T, Self>::new(self, embeddings, labels, Some(reference))?.find([false; 2]).1)
    }
}

impl Loss for BatchHardTripletLoss {
    const NAME: &'static str = "BatchHardTripletLoss";
    const READS_AGAIN: bool = true;
    type Problem = Problem;
    type Found<A: Scalar> = (Against<A>, Selection<A>);

    fn check(&self, shape: &Shape) -> Result<Problem, Error> {
        let metric = mined::check(self.margin, self.distance, shape)?;
        Ok(Problem {
            rows: shape.rows,
            others: shape.reference.map(|reference| reference.rows),
            dim: shape.dim,
            metric,
            margin: self.margin,
            normalize: self.normalize && metric != Metric::Cosine,
            soft_margin: self.soft_margin,
            reduction: self.reduction,
            precision: self.precision,
        })
    }

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn find<T: Element>(
        problem: &Problem,
        embeddings: &Matrix<'_, T>,
        labels: &[i64],
        reference: Option<&Set<'_, T>>,
        _: [bool; 2],
    ) -> Self::Found<T::Scalar> {
        cpu::select(problem, embeddings, labels, reference)
    }

    fn loss<A: Scalar>(problem: &Problem, (_, selection): &Self::Found<A>) -> A {
        selection.loss(problem)
    }

    fn losses<A: Scalar>((_, selection): &Self::Found<A>) -> &[A] {
        &selection.losses
    }

    fn stats<A: Scalar>((_, selection): &Self::Found<A>) -> Stats {
        selection.stats
    }

    fn gradients<T: Element>(
        problem: &Problem,
        (against, selection): &Self::Found<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) {
        cpu::gradient(problem, against, selection, upstream, grads);
    }
}
