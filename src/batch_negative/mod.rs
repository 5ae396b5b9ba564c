//! The triplet loss of a batch with one chosen negative for each pair.

use crate::cpu::against::Against;
use crate::cpu::triplets::Chosen;
use crate::distance::Metric;
use crate::mined::{self, Set, Shape};
use crate::triplets::{ChoosesNegatives, select_calls};
use crate::{Distance, Element, Error, Matrix, Own, Precision, Reduction};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
pub mod reference;
#[cfg(feature = "torch")]
mod torch;

pub use crate::cpu::triplets::Triplets;

/// One negative for each pair of anchor and positive: the hardest, or one at random.
///
/// ```text
/// loss_apn   = d(a, p) - d(a, n) + margin             over all a, p with y_p = y_a, p ≠ a
/// n          = of the rows with y_n ≠ y_a
///   Hardest    the nearest, if d(a, n) < d(a, p) + margin
///   Random     any with d(a, n) < d(a, p) + margin
///   SemiHard   any with d(a, p) < d(a, n) < d(a, p) + margin
/// ```
///
/// A pair without such a row is skipped, so every selected triplet is active, and the mean is over them. With none the loss
/// and its gradients are 0. `SemiHard` is the mining of "FaceNet: A Unified Embedding for Face Recognition and Clustering"
/// (Schroff, Kalenichenko, Philbin 2015); the three, with [`Pairs::Once`], are the selectors of the library siamese-triplet,
/// which falls back to one fixed triplet where none is found in the whole batch.
///
/// # Random choices
/// Each candidate of a pair is as likely as the others. What is drawn depends on `seed`, on the step, and on the bits of the
/// three rows (not on their places): the same triplets in any order of the batch, for any shard of its anchors, on every
/// backend, within rounding of the bounds above. The other side of it: equal rows draw alike, and without a new step, or
/// with embeddings that do not change, the same triplets are drawn again.
///
/// Of equally near negatives the one with the lowest index is taken. On CUDA candidates are looked for by products: the hardest
/// is the nearest within their error (see [`Precision`]), and its distance is then computed from the difference of the rows. NaN or infinity anywhere in the embeddings makes the
/// loss NaN, and the gradients; so does the distance of a positive that overflows. In the [`Stats`](crate::Stats), `valid` and `active`
/// count the selected triplets, and the distances are means over them.
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
/// use tercet::{BatchNegativeTripletLoss, Matrix, Negative};
///
/// // Two classes on a line, at 0, 2 and at 3, 7; with d = (x - y)² and a margin of 6 the nearest negatives of the pairs
/// // (0, 2), (2, 0), (3, 7), (7, 3) give 4 - 9 + 6, 4 - 1 + 6, 16 - 1 + 6 and 16 - 25 + 6: the last is skipped.
/// let embeddings = [0f64, 2.0, 3.0, 7.0];
/// let loss_fn = BatchNegativeTripletLoss { margin: 6.0, negative: Negative::Hardest, ..Default::default() };
/// let rows = Matrix::new(&embeddings, 1)?;
/// let (loss, stats) = loss_fn.loss_with_stats(rows, &[7, 7, -1, -1])?;
/// assert_eq!((loss, stats.valid), ((1.0 + 9.0 + 21.0) / 3.0, 3));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNegativeTripletLoss {
    /// How much farther than the positive the negative should be; 0 or more.
    pub margin: f64,
    /// Which negative a pair gets.
    pub negative: Negative,
    /// Which pairs there are.
    pub pairs: Pairs,
    /// What random choices are drawn from.
    pub seed: u64,
    /// The distance `d`: any but `Lp`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// How the triplets' losses become the result.
    pub reduction: Reduction,
    /// How exactly a CUDA device looks for the negatives; see [`Precision`].
    pub precision: Precision,
}

/// Which negative a pair of anchor and positive gets; see [`BatchNegativeTripletLoss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Negative {
    /// The nearest, if its loss is above 0.
    Hardest,
    /// Any whose loss is above 0.
    Random,
    /// Any that is farther than the positive, by less than the margin.
    #[default]
    SemiHard,
}

/// Which pairs of anchor and positive there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// `(a, p)` and `(p, a)`: each row of a pair is an anchor.
    #[default]
    Ordered,
    /// `(a, p)` with `a < p` alone. Against a reference: with the anchor's own row in it before the positive; an anchor that
    /// is not in the reference has no pairs, and [`Own::None`] is an error.
    Once,
}

impl Default for BatchNegativeTripletLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            negative: Negative::SemiHard,
            pairs: Pairs::Ordered,
            seed: 0,
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
    pub negative: Negative,
    pub pairs: Pairs,
    pub seed: u64,
    pub step: i64,
    pub normalize: bool,
    pub reduction: Reduction,
    pub precision: Precision,
}

mined::slice_calls!(BatchNegativeTripletLoss, per_anchor);
select_calls!(BatchNegativeTripletLoss);

impl ChoosesNegatives for BatchNegativeTripletLoss {
    const NAME: &'static str = "BatchNegativeTripletLoss";
    type Problem = Problem;

    fn check(&self, shape: &Shape) -> Result<Problem, Error> {
        let metric = mined::check(self.margin, self.distance, shape)?;
        if self.pairs == Pairs::Once && shape.reference.is_some_and(|reference| reference.own == Own::None) {
            // Pairs that are taken once have an order, so anchors need a place.
            let expected = "Ordered where no anchor is in the reference (own: None)";
            return Err(Error::argument("pairs", expected, "Once"));
        }
        Ok(Problem {
            rows: shape.rows,
            others: shape.reference.map(|reference| reference.rows),
            dim: shape.dim,
            metric,
            margin: self.margin,
            negative: self.negative,
            pairs: self.pairs,
            seed: self.seed,
            step: 0,
            normalize: self.normalize && metric != Metric::Cosine,
            reduction: self.reduction,
            precision: self.precision,
        })
    }

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn at_step(problem: Problem, step: i64) -> Problem {
        Problem { step, ..problem }
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
