//! The batch-hard triplet loss.

use crate::distance::Metric;
use crate::{Distance, Element, Error, Matrix, Precision, Reduction, Stats, mined};

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
/// Of equally far positives, and of equally near negatives, the one with the lowest index is taken, by distances
/// computed from the difference of the rows. A triplet is active only when its loss is strictly positive. NaN or infinity
/// anywhere in the embeddings makes the loss NaN, and the gradients; so does a selected distance that overflows.
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

impl BatchHardTripletLoss {
    /// The loss of a batch in memory, reduced by mean or sum.
    ///
    /// # Errors
    /// If the batch is empty or too large, there is not one label a row, an option is out of range, or `reduction` is
    /// `None`.
    pub fn loss<T: Element>(&self, embeddings: Matrix<'_, T>, labels: &[i64]) -> Result<T::Scalar, Error> {
        Ok(self.loss_with_stats(embeddings, labels)?.0)
    }

    /// The loss, reduced by mean or sum, and what the batch is like: `valid` counts the anchors with both a positive and
    /// a negative, `active` those among them whose loss is above 0, and the distances are those of the selected rows.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn loss_with_stats<T: Element>(
        &self,
        embeddings: Matrix<'_, T>,
        labels: &[i64],
    ) -> Result<(T::Scalar, Stats), Error> {
        let problem = self.reduced_problem(&embeddings, labels)?;
        let (_, _, selection) = cpu::select(&problem, &embeddings, labels);
        Ok((selection.loss(&problem), selection.stats))
    }

    /// The loss of each anchor, whatever the reduction: 0 without a positive or without a negative.
    ///
    /// # Errors
    /// As [`loss`](Self::loss), or if `losses` has not one place a row; `reduction` may be `None`.
    pub fn losses<T: Element>(
        &self,
        embeddings: Matrix<'_, T>,
        labels: &[i64],
        losses: &mut [T::Scalar],
    ) -> Result<(), Error> {
        let problem = self.problem(&embeddings, labels)?;
        mined::check_len("losses", losses.len(), problem.rows)?;
        let (_, _, selection) = cpu::select(&problem, &embeddings, labels);
        losses.copy_from_slice(&selection.losses);
        Ok(())
    }

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
        let problem = self.problem(&embeddings, labels)?;
        Ok(cpu::select(&problem, &embeddings, labels).2)
    }

    /// The loss, reduced by mean or sum, and its gradient with respect to the embeddings.
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
        let problem = self.reduced_problem(&embeddings, labels)?;
        mined::check_len("grad", grad.len(), problem.rows * problem.dim)?;
        let (batch, classes, selection) = cpu::select(&problem, &embeddings, labels);
        cpu::gradient(&problem, &batch, Some(&classes.position), &selection, None, grad);
        Ok(selection.loss(&problem))
    }

    /// The gradient times `upstream`, the gradient of what follows with respect to this loss: one number for mean and
    /// sum, one an anchor for `Reduction::None`.
    ///
    /// # Errors
    /// As [`losses`](Self::losses), or if `upstream` or `grad` has another length.
    pub fn grad<T: Element>(
        &self,
        embeddings: Matrix<'_, T>,
        labels: &[i64],
        upstream: &[T::Scalar],
        grad: &mut [T],
    ) -> Result<(), Error> {
        let problem = self.problem(&embeddings, labels)?;
        let expected = if self.reduction == Reduction::None { problem.rows } else { 1 };
        mined::check_len("upstream", upstream.len(), expected)?;
        mined::check_len("grad", grad.len(), problem.rows * problem.dim)?;
        let (batch, classes, selection) = cpu::select(&problem, &embeddings, labels);
        cpu::gradient(&problem, &batch, Some(&classes.position), &selection, Some(upstream), grad);
        Ok(())
    }

    /// The checks of every call on slices.
    fn problem<T: Element>(&self, embeddings: &Matrix<'_, T>, labels: &[i64]) -> Result<Problem, Error> {
        self.checked(embeddings.rows(), embeddings.dim(), labels.len())
    }

    fn reduced_problem<T: Element>(&self, embeddings: &Matrix<'_, T>, labels: &[i64]) -> Result<Problem, Error> {
        if self.reduction == Reduction::None {
            return Err(Error::argument("reduction", "Mean or Sum (`losses` and `grad` take None)", "None"));
        }
        self.problem(embeddings, labels)
    }

    /// The checks of every call: options and shape.
    pub(crate) fn checked(&self, rows: usize, dim: usize, labels: usize) -> Result<Problem, Error> {
        let metric = mined::check(self.margin, self.distance, rows, dim, labels)?;
        Ok(Problem {
            rows,
            dim,
            metric,
            margin: self.margin,
            normalize: self.normalize && metric != Metric::Cosine,
            soft_margin: self.soft_margin,
            reduction: self.reduction,
            precision: self.precision,
        })
    }
}
