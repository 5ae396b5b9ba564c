//! The semi-hard triplet loss of a batch.

use crate::cpu::against::Against;
use crate::cpu::triplets::Chosen;
use crate::distance::Metric;
use crate::mined::{self, Set, Shape};
use crate::triplets::{ChoosesNegatives, select_calls};
use crate::{Distance, Element, Error, Matrix, Precision, Reduction};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
pub mod reference;
#[cfg(feature = "torch")]
mod torch;

pub use crate::cpu::triplets::Triplets;

/// For each pair of anchor and positive the nearest negative that is farther than the positive.
///
/// ```text
/// loss_ap = max(d(a, p) - d(a, n) + margin, 0)         over all a, p with y_p = y_a, p ≠ a
/// n       = the nearest row with y_n ≠ y_a and d(a, n) > d(a, p), else the farthest with y_n ≠ y_a
/// ```
///
/// The semi-hard negatives of "FaceNet: A Unified Embedding for Face Recognition and Clustering" (Schroff, Kalenichenko,
/// Philbin 2015), made deterministic as TensorFlow-Addons' `triplet_semihard_loss` does and sentence-transformers'
/// `BatchSemiHardTripletLoss` after it; both average over pairs as well. FaceNet's own random choice within the margin is
/// [`BatchNegativeTripletLoss`](crate::BatchNegativeTripletLoss). The mean is over all pairs of an anchor that has a
/// negative, the inactive too; an anchor without a positive or without a negative adds nothing to the sum or to the count.
/// With no such pair the loss and its gradients are 0.
///
/// Of equally far negatives the one with the lowest index is taken. On CUDA the negative is looked for by products, and is the
/// nearest within their error (see [`Precision`]); its distance is then computed from the difference of the rows. A pair is active only when its loss is strictly
/// positive. NaN or infinity anywhere in the embeddings makes the loss NaN, and the gradients; so does a selected distance
/// that overflows. In the [`Stats`](crate::Stats), `valid` counts the pairs, `active` those whose loss is above 0, and the distances are
/// means over the pairs.
///
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for f64
/// and f32 for all others. With [`Reduction::None`] the result is `[N]`: each anchor's sum over its pairs.
///
/// On CUDA there is room for 2²² pairs of an anchor and a row of its class, or for 128 rows of its class an anchor if that is more:
/// how many there are is known on the device alone, and the host does not wait for it. A batch with more makes the loss
/// NaN, and the gradients; a few classes of thousands of rows are then to be passed in shards of at most
/// 2²² / N anchors against the whole batch (`forward_against`), whose pairs always fit.
///
/// ```
/// use tercet::{BatchSemiHardTripletLoss, Matrix};
///
/// // Two classes on a line, at 0, 2 and at 3, 5; with d = (x - y)² and a margin of 6 the pairs are (0, 2), whose negative is
/// // at 3; (2, 0), at 5; (3, 5), at 0; (5, 3), at 2: losses of 4 - 9 + 6, 4 - 9 + 6, 4 - 9 + 6, 4 - 9 + 6.
/// let embeddings = [0f64, 2.0, 3.0, 5.0];
/// let loss_fn = BatchSemiHardTripletLoss { margin: 6.0, ..Default::default() };
/// let rows = Matrix::new(&embeddings, 1)?;
/// assert_eq!(loss_fn.loss(rows, &[7, 7, -1, -1])?, 1.0);
/// assert_eq!(loss_fn.select(rows, &[7, 7, -1, -1])?.negative, [2, 3, 0, 1]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchSemiHardTripletLoss {
    /// How much farther than the positive the negative should be; 0 or more.
    pub margin: f64,
    /// The distance `d`: any but `Lp`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// How the pairs' losses become the result.
    pub reduction: Reduction,
    /// How exactly a CUDA device looks for the negatives; see [`Precision`].
    pub precision: Precision,
}

impl Default for BatchSemiHardTripletLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            distance: Distance::SquaredEuclidean,
            normalize: false,
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
    pub reduction: Reduction,
    pub precision: Precision,
}

mined::slice_calls!(BatchSemiHardTripletLoss, per_anchor);
select_calls!(BatchSemiHardTripletLoss);

impl ChoosesNegatives for BatchSemiHardTripletLoss {
    const NAME: &'static str = "BatchSemiHardTripletLoss";
    type Problem = Problem;

    fn check(&self, shape: &Shape) -> Result<Problem, Error> {
        let metric = mined::check(self.margin, self.distance, shape)?;
        Ok(Problem {
            rows: shape.rows,
            others: shape.reference.map(|reference| reference.rows),
            dim: shape.dim,
            metric,
            margin: self.margin,
            normalize: self.normalize && metric != Metric::Cosine,
            reduction: self.reduction,
            precision: self.precision,
        })
    }

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn reduction_of(problem: &Problem) -> Reduction {
        problem.reduction
    }

    fn choose<T: Element>(
        problem: &Problem,
        embeddings: &Matrix<'_, T>,
        labels: &[i64],
        reference: Option<&Set<'_, T>>,
    ) -> (Against<T::Scalar>, Chosen<T::Scalar>) {
        cpu::select(problem, embeddings, labels, reference)
    }
}
