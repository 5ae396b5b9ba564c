//! The contrastive loss over the pairs of a batch.

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

use cpu::Found;
pub use cpu::Selection;

/// Pulls the rows of a class together, and pushes those of different classes `margin` apart.
///
/// ```text
/// loss_aj = d²/2                     y_j = y_a, j ≠ a
///           max(margin - d, 0)²/2    y_j ≠ y_a,             d = d(x_a, x_j)
/// ```
///
/// [`ContrastiveLoss`](crate::ContrastiveLoss), of "Dimensionality Reduction by Learning an Invariant Mapping" (Hadsell,
/// Chopra, LeCun 2006), over the pairs that a labelled batch holds. With [`Negatives::All`] that is every pair; with
/// [`Negatives::Hardest`] all pairs of one class, and as many of those of different classes: the ones with the smallest
/// distances, over the whole call (on CUDA within the error of the products that they are computed by, see [`Precision`]).
///
/// Pairs are ordered, (anchor, other row): in a batch that is its own reference each comes twice, so the mean is the mean
/// over each pair once, and the sum twice the sum over each pair once. The mean is over the selected pairs, those whose loss
/// is 0 too. With none the loss and its gradients are 0: without a pair of one class, `Hardest` selects nothing.
///
/// The default is Hadsell's: Euclidean distance, margin 1. With another distance the formula holds for that `d`. Of equally
/// far pairs `Hardest` takes the one with the lowest anchor, then the lowest other row; in a batch that is its own reference
/// both orders of a pair are selected, or neither. The gradient of coincident rows of different classes, which have no
/// direction to be pushed in, is 0; so is that at `d = margin`. NaN or infinity anywhere in the embeddings makes the loss
/// NaN, and the gradients; so does the distance of a selected pair that overflows.
///
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for f64
/// and f32 for all others. With [`Reduction::None`] the result is `[N]`: each anchor's sum over its pairs.
///
/// In the [`Stats`], `valid` counts the selected pairs, `active` those whose loss is above 0, and each distance is the mean
/// over the selected pairs of its kind. Time grows with `N² D`, and memory with `N D`; on the CPU `Hardest` also lists about
/// twice as many pairs as it selects.
///
/// ```
/// use tercet::{BatchContrastiveLoss, Matrix, Negatives};
///
/// // Two classes on a line, at 0, 2 and at 3, 7; with a margin of 4 the pairs of one class cost 2²/2 and 4²/2. Of the
/// // others, at distances of 3, 7, 1 and 5, the two nearest cost (4 - 1)²/2 and (4 - 3)²/2.
/// let embeddings = [0f64, 2.0, 3.0, 7.0];
/// let loss_fn = BatchContrastiveLoss { margin: 4.0, negatives: Negatives::Hardest, ..Default::default() };
/// let rows = Matrix::new(&embeddings, 1)?;
/// let (loss, stats) = loss_fn.loss_with_stats(rows, &[7, 7, -1, -1])?;
/// assert_eq!((loss, stats.valid), ((2.0 + 8.0 + 4.5 + 0.5) / 4.0, 8));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchContrastiveLoss {
    /// How far apart rows of different classes should be; 0 or more.
    pub margin: f64,
    /// The distance `d`: any but `Lp`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// Which pairs of different classes are selected.
    pub negatives: Negatives,
    /// How the pairs' losses become the result.
    pub reduction: Reduction,
    /// How exactly a CUDA device computes the distances; see [`Precision`].
    pub precision: Precision,
}

/// Which pairs of different classes are selected; see [`BatchContrastiveLoss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Negatives {
    /// All of them.
    #[default]
    All,
    /// Those with the smallest distances, as many as there are pairs of one class.
    Hardest,
}

impl Default for BatchContrastiveLoss {
    fn default() -> Self {
        Self {
            margin: 1.0,
            distance: Distance::Euclidean,
            normalize: false,
            negatives: Negatives::All,
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
    pub negatives: Negatives,
    pub reduction: Reduction,
    pub precision: Precision,
}

impl Problem {
    /// What the sum of the pairs' losses, and their gradient, is divided by; `valid`: the selected pairs.
    pub fn divisor(&self, valid: u64) -> f64 {
        match self.reduction {
            Reduction::Mean => valid.max(1) as f64,
            Reduction::Sum | Reduction::None => 1.0,
        }
    }
}

mined::slice_calls!(BatchContrastiveLoss, per_anchor);

impl BatchContrastiveLoss {
    /// The pairs of different classes that are selected, whatever their loss: of [`Negatives::All`] a list of all of them.
    ///
    /// # Errors
    /// As [`losses`](Self::losses).
    ///
    /// ```
    /// use tercet::{BatchContrastiveLoss, Matrix, Negatives};
    ///
    /// let loss_fn = BatchContrastiveLoss { negatives: Negatives::Hardest, ..Default::default() };
    /// let selection = loss_fn.select(Matrix::new(&[0f64, 2.0, 3.0, 7.0], 1)?, &[7, 7, -1, -1])?;
    /// assert_eq!(selection.anchor, [0, 1, 2, 2]);
    /// assert_eq!(selection.negative, [2, 2, 0, 1]);
    /// assert_eq!(selection.distances, [3.0, 1.0, 3.0, 1.0]);
    /// # Ok::<(), tercet::Error>(())
    /// ```
    pub fn select<T: Element>(&self, embeddings: Matrix<'_, T>, labels: &[i64]) -> Result<Selection<T::Scalar>, Error> {
        let call = Call::<T, Self>::new(self, embeddings, labels, None)?;
        Ok(call.find([false; 2]).selection(&call.problem))
    }

    /// Likewise, against a reference set, of which the negatives are.
    ///
    /// # Errors
    /// As [`losses_against`](Self::losses_against).
    pub fn select_against<T: Element>(
        &self,
        embeddings: Matrix<'_, T>,
        labels: &[i64],
        reference: &Reference<Matrix<'_, T>, &[i64]>,
    ) -> Result<Selection<T::Scalar>, Error> {
        let call = Call::<T, Self>::new(self, embeddings, labels, Some(reference))?;
        Ok(call.find([false; 2]).selection(&call.problem))
    }
}

impl Loss for BatchContrastiveLoss {
    const NAME: &'static str = "BatchContrastiveLoss";
    const READS_AGAIN: bool = true;
    type Problem = Problem;
    type Found<A: Scalar> = Found<A>;

    fn check(&self, shape: &Shape) -> Result<Problem, Error> {
        let metric = mined::check(self.margin, self.distance, shape)?;
        Ok(Problem {
            rows: shape.rows,
            others: shape.reference.map(|reference| reference.rows),
            dim: shape.dim,
            metric,
            margin: self.margin,
            normalize: self.normalize && metric != Metric::Cosine,
            negatives: self.negatives,
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
    ) -> Found<T::Scalar> {
        cpu::find(problem, embeddings, labels, reference)
    }

    fn loss<A: Scalar>(problem: &Problem, found: &Found<A>) -> A {
        found.loss(problem)
    }

    fn losses<A: Scalar>(found: &Found<A>) -> &[A] {
        &found.losses
    }

    fn stats<A: Scalar>(found: &Found<A>) -> Stats {
        found.stats
    }

    fn gradients<T: Element>(
        problem: &Problem,
        found: &Found<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) {
        cpu::gradients(problem, found, upstream, grads);
    }
}
