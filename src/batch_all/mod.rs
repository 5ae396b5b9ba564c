//! The batch-all triplet loss.

use crate::distance::Metric;
use crate::{Distance, Element, Error, Matrix, Precision, Reduction, Stats, mined};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
pub mod reference;
#[cfg(feature = "torch")]
mod torch;

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
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for f64
/// and f32 for all others. With P positives an anchor there are about `N² P` triplets; time grows with `N² (D + P)`, for
/// large classes with `N² (D + log P)`, and memory with `N (D + P)`: how often each pair is part of an active triplet is
/// counted, the counts are the gradient's weights (the derivation is in `docs/batch-all.md`).
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

impl BatchAllTripletLoss {
    /// The loss of a batch in memory.
    ///
    /// # Errors
    /// If the batch is empty or too large, there is not one label a row, an option is out of range, or `reduction` is
    /// `None`.
    pub fn loss<T: Element>(&self, embeddings: Matrix<'_, T>, labels: &[i64]) -> Result<T::Scalar, Error> {
        Ok(self.loss_with_stats(embeddings, labels)?.0)
    }

    /// The loss, and what the batch is like: `valid` counts all triplets, `active` those whose loss is above 0, and the
    /// distances are means over all triplets.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn loss_with_stats<T: Element>(
        &self,
        embeddings: Matrix<'_, T>,
        labels: &[i64],
    ) -> Result<(T::Scalar, Stats), Error> {
        let problem = self.problem(&embeddings, labels)?;
        let swept = cpu::sweep(&problem, &embeddings, labels, false);
        Ok((swept.loss(&problem), swept.stats))
    }

    /// The loss, and its gradient with respect to the embeddings.
    ///
    /// The gradient is `[N, D]`, contiguous; what it held before is overwritten. Gradients of 16-bit embeddings are
    /// rounded once, after the mean's division: to scale them up first, see [`grad`](Self::grad).
    ///
    /// # Errors
    /// As [`loss`](Self::loss), or if `grad` has not `N D` numbers.
    pub fn loss_and_grad<T: Element>(
        &self,
        embeddings: Matrix<'_, T>,
        labels: &[i64],
        grad: &mut [T],
    ) -> Result<T::Scalar, Error> {
        self.run(&embeddings, labels, None, grad)
    }

    /// The gradient times `upstream`, the gradient of what follows with respect to this loss.
    ///
    /// # Errors
    /// As [`loss_and_grad`](Self::loss_and_grad).
    pub fn grad<T: Element>(
        &self,
        embeddings: Matrix<'_, T>,
        labels: &[i64],
        upstream: T::Scalar,
        grad: &mut [T],
    ) -> Result<(), Error> {
        self.run(&embeddings, labels, Some(upstream), grad).map(drop)
    }

    fn run<T: Element>(
        &self,
        embeddings: &Matrix<'_, T>,
        labels: &[i64],
        upstream: Option<T::Scalar>,
        grad: &mut [T],
    ) -> Result<T::Scalar, Error> {
        let problem = self.problem(embeddings, labels)?;
        mined::check_len("grad", grad.len(), problem.rows * problem.dim)?;
        let swept = cpu::sweep(&problem, embeddings, labels, true);
        cpu::gradient(&problem, &swept, upstream, grad);
        Ok(swept.loss(&problem))
    }

    /// The checks of every call on slices.
    fn problem<T: Element>(&self, embeddings: &Matrix<'_, T>, labels: &[i64]) -> Result<Problem, Error> {
        self.checked(embeddings.rows(), embeddings.dim(), labels.len())
    }

    /// The checks of every call: options and shape.
    pub(crate) fn checked(&self, rows: usize, dim: usize, labels: usize) -> Result<Problem, Error> {
        if self.reduction == Reduction::None {
            return Err(Error::argument("reduction", "Mean or Sum", "None"));
        }
        let metric = mined::check(self.margin, self.distance, rows, dim, labels)?;
        Ok(Problem {
            rows,
            dim,
            metric,
            margin: self.margin,
            normalize: self.normalize && metric != Metric::Cosine,
            reduction: self.reduction,
            mean_over: self.mean_over,
            precision: self.precision,
        })
    }
}
