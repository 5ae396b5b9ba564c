//! The batch-all triplet loss.

use crate::distance::Metric;
use crate::mined::{self, Loss, Set, Shape};
use crate::{Distance, Element, Error, Matrix, Precision, Reduction, Scalar, Stats};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
pub mod reference;
#[cfg(feature = "torch")]
mod torch;

use cpu::Swept;

/// Every triplet of the batch, without a list of triplets.
///
/// ```text
/// loss = Σ max(d(a, p) - d(a, n) + margin, 0) / M      over all a, p, n with y_p = y_a, p ≠ a, y_n ≠ y_a
/// M    = how many of the terms are above 0, or with `MeanOver::Valid` how many terms there are
/// ```
///
/// The batch-all loss of "In Defense of the Triplet Loss for Person Re-Identification" (Hermans, Beyer, Leibe 2017), whose
/// mean over the active triplets keeps its size when most triplets have become easy. With no active triplet the loss and
/// its gradients are 0; an anchor without a positive or without a negative adds nothing.
///
/// A triplet is active only when its term is strictly positive. NaN or infinity anywhere in the embeddings makes the loss
/// NaN, and the gradients; so does a distance that overflows.
///
/// In the [`Stats`], `valid` counts all triplets, `active` those whose loss is above 0, and the distances are means over all
/// triplets.
///
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for f64
/// and f32 for all others. With P positives an anchor there are about `N² P` triplets; time grows with `N² (D + P)`, for
/// large classes with `N² (D + log P)`, and memory with `N (D + P)`: how often each pair is part of an active triplet is
/// counted, the counts are the gradient's weights (the derivation is in `docs/batch-all.md`).
///
/// On CUDA there is room for 2²² pairs of an anchor and a row of its class, or for 128 rows of its class an anchor if that is more:
/// how many there are is known on the device alone, and the host does not wait for it. A batch with more makes the loss
/// NaN, and the gradients; a few classes of thousands of rows are then to be passed in shards of at most
/// 2²² / N anchors against the whole batch (`forward_against`), whose pairs always fit.
///
/// ```
/// use tercet::{BatchAllTripletLoss, Matrix};
///
/// // Two classes on a line, at 0, 1 and at 3, 5; with d = (x - y)² and a margin of 4 the terms of the eight triplets are
/// // 1 - 9 + 4, 1 - 25 + 4; 1 - 4 + 4, 1 - 16 + 4; 4 - 9 + 4, 4 - 4 + 4; 4 - 25 + 4, 4 - 16 + 4: two are above 0.
/// let embeddings = [0f32, 1.0, 3.0, 5.0];
/// let loss_fn = BatchAllTripletLoss { margin: 4.0, ..Default::default() };
/// let (loss, stats) = loss_fn.loss_with_stats(Matrix::new(&embeddings, 1)?, &[7, 7, -1, -1])?;
/// assert_eq!((loss, stats.active, stats.valid), ((1.0 + 4.0) / 2.0, 2, 8));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchAllTripletLoss {
    /// How much farther than the positive the negative should be; 0 or more.
    pub margin: f64,
    /// The distance `d`: any but `Lp`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// `Mean` or `Sum`: the sweep that counts also makes the gradient, and cannot weigh each anchor afterwards.
    pub reduction: Reduction,
    /// What `Reduction::Mean` divides by.
    pub mean_over: MeanOver,
    /// How exactly a CUDA device computes the distances to negatives; see [`Precision`].
    pub precision: Precision,
}

/// The triplets that a mean is taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MeanOver {
    /// Those whose loss is above 0.
    #[default]
    Active,
    /// All.
    Valid,
}

impl Default for BatchAllTripletLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            distance: Distance::SquaredEuclidean,
            normalize: false,
            reduction: Reduction::Mean,
            mean_over: MeanOver::Active,
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
    pub mean_over: MeanOver,
    pub precision: Precision,
}

impl Problem {
    /// What the sum of the triplets' losses, and the gradient, is divided by.
    pub fn divisor(&self, stats: &Stats) -> f64 {
        match (self.reduction, self.mean_over) {
            (Reduction::Mean, MeanOver::Active) => stats.active.max(1) as f64,
            (Reduction::Mean, MeanOver::Valid) => stats.valid.max(1) as f64,
            _ => 1.0,
        }
    }
}

mined::slice_calls!(BatchAllTripletLoss);

impl Loss for BatchAllTripletLoss {
    const NAME: &'static str = "BatchAllTripletLoss";
    const READS_AGAIN: bool = false;
    type Problem = Problem;
    type Found<A: Scalar> = Swept<A>;

    fn check(&self, shape: &Shape) -> Result<Problem, Error> {
        if self.reduction == Reduction::None {
            return Err(Error::argument("reduction", "Mean or Sum", "None"));
        }
        let metric = mined::check(self.margin, self.distance, shape)?;
        Ok(Problem {
            rows: shape.rows,
            others: shape.reference.map(|reference| reference.rows),
            dim: shape.dim,
            metric,
            margin: self.margin,
            normalize: self.normalize && metric != Metric::Cosine,
            reduction: self.reduction,
            mean_over: self.mean_over,
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
        with_grad: [bool; 2],
    ) -> Swept<T::Scalar> {
        cpu::sweep(problem, embeddings, labels, reference, with_grad)
    }

    fn loss<A: Scalar>(problem: &Problem, swept: &Swept<A>) -> A {
        swept.loss(problem)
    }

    fn losses<A: Scalar>(_: &Swept<A>) -> &[A] {
        unreachable!("refused by the checks: one sweep counts for all anchors")
    }

    fn stats<A: Scalar>(swept: &Swept<A>) -> Stats {
        swept.stats
    }

    fn gradients<T: Element>(
        problem: &Problem,
        swept: &Swept<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) {
        cpu::gradients(problem, swept, upstream, grads);
    }
}
