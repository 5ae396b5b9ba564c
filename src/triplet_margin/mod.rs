//! The triplet margin loss of pre-formed triplets.

use crate::cpu::paired::Pass;
use crate::element::largest;
use crate::matrix::check_len;
use crate::paired::{self, check_grads, check_reduced, one_shape};
use crate::{Element, Error, Matrix, PairedDistance, Reduction};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod oracle;
#[cfg(feature = "torch")]
mod torch;

use cpu::CheckedTriplets;

/// `relu(d(a, p) - d(a, n) + margin)` over rows of anchors `a`, positives `p` and negatives `n`.
///
/// ```text
/// loss_b = max(d(a_b, p_b) - d_n + margin, 0)
/// d_n    = d(a_b, n_b),  or with `swap`  min(d(a_b, n_b), d(p_b, n_b))
/// ```
///
/// From FaceNet (Schroff, Kalenichenko, Philbin 2015); `swap` is the distance swap of Balntas et al. (BMVC 2016). The
/// default is FaceNet's: squared Euclidean distance, margin 0.2, mean. [`TripletMarginLoss::torch`] has the defaults of
/// `torch.nn.TripletMarginLoss`.
///
/// Differences from torch: a triplet is active only if its loss is strictly positive (`relu`), so the gradient at
/// exactly 0 is 0, while torch has 1; equal swap distances take `d(a, n)`, while torch halves the gradient; a NaN or
/// infinity in any of the three rows makes the loss and those rows' gradients NaN.
///
/// The inputs are `[B, D]`, f32, f64, f16 or bf16. Losses are f64 for f64 and f32 for all others; the batch is summed
/// in f64 in a fixed order.
///
/// ```
/// use tercet::{Matrix, TripletMarginLoss};
///
/// // d(a, p) = 0.7 and d(a, n) = 0.5 give 0.7 - 0.5 + 0.2; 0.1 and 0.5 give nothing.
/// let (anchor, positive, negative) = ([0f64, 0.0], [0.7f64.sqrt(), 0.1f64.sqrt()], [0.5f64.sqrt(), 0.5f64.sqrt()]);
/// let rows = [Matrix::new(&anchor, 1)?, Matrix::new(&positive, 1)?, Matrix::new(&negative, 1)?];
/// let mut losses = [0.0; 2];
/// TripletMarginLoss::default().losses(rows, &mut losses)?;
/// assert!((losses[0] - 0.4).abs() < 1e-12 && losses[1] == 0.0);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TripletMarginLoss {
    /// How much farther than the positive the negative should be; 0 or more.
    pub margin: f64,
    /// The distance `d`.
    pub distance: PairedDistance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`PairedDistance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// Hold the negative away from the nearer one of anchor and positive, instead of from the anchor.
    pub swap: bool,
    /// How the rows' losses become the result. The mean is over all `B` rows.
    pub reduction: Reduction,
}

impl Default for TripletMarginLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            distance: PairedDistance::SquaredEuclidean,
            normalize: false,
            swap: false,
            reduction: Reduction::Mean,
        }
    }
}

const NAMES: [&str; 3] = ["anchor", "positive", "negative"];

impl TripletMarginLoss {
    /// The defaults of `torch.nn.TripletMarginLoss`: margin 1, `Lp` with p = 2 and eps = 1e-6.
    #[must_use]
    pub fn torch() -> Self {
        Self { margin: 1.0, distance: PairedDistance::Lp { p: 2.0, eps: 1e-6 }, ..Self::default() }
    }

    /// The loss of a batch in memory, reduced by mean or sum.
    ///
    /// # Errors
    /// If the shapes differ or are empty, an option is out of range, or `reduction` is `None`.
    pub fn loss<T: Element>(&self, rows: [Matrix<'_, T>; 3]) -> Result<T::Scalar, Error> {
        check_reduced(self.reduction)?;
        Ok(cpu::triplet_margin(&self.problem(&rows)?, Pass::of(rows)))
    }

    /// The loss of each row, whatever the reduction.
    ///
    /// # Errors
    /// If the shapes differ or are empty, an option is out of range, or `losses` has not one entry a row.
    pub fn losses<T: Element>(&self, rows: [Matrix<'_, T>; 3], losses: &mut [T::Scalar]) -> Result<(), Error> {
        let problem = self.problem(&rows)?;
        check_len("losses", losses.len(), problem.paired.rows)?;
        cpu::triplet_margin(&problem, Pass { losses: Some(losses), ..Pass::of(rows) });
        Ok(())
    }

    /// The loss, reduced by mean or sum, and its gradients with respect to anchor, positive and negative, in one pass.
    ///
    /// The gradients are `[B, D]`, contiguous; what they held before is overwritten. Gradients of 16-bit inputs are
    /// rounded once, after the mean's division: to scale them up first, see [`grad`](Self::grad).
    ///
    /// # Errors
    /// Those of [`loss`](Self::loss), or if a gradient has not `B D` numbers.
    ///
    /// ```
    /// use tercet::{Matrix, TripletMarginLoss};
    ///
    /// let (anchor, positive, negative) = ([0f32, 0.0], [1.0, 0.0], [0.5, 0.5]);
    /// let rows = [Matrix::new(&anchor, 2)?, Matrix::new(&positive, 2)?, Matrix::new(&negative, 2)?];
    /// let (mut to_a, mut to_p, mut to_n) = ([0f32; 2], [0f32; 2], [0f32; 2]);
    /// let loss = TripletMarginLoss::default().loss_and_grad(rows, [&mut to_a, &mut to_p, &mut to_n])?;
    /// assert!((loss - 0.7).abs() < 1e-6);
    /// assert_eq!((to_a, to_p, to_n), ([-1.0, 1.0], [2.0, 0.0], [-1.0, -1.0]));
    /// # Ok::<(), tercet::Error>(())
    /// ```
    pub fn loss_and_grad<T: Element>(
        &self,
        rows: [Matrix<'_, T>; 3],
        grads: [&mut [T]; 3],
    ) -> Result<T::Scalar, Error> {
        check_reduced(self.reduction)?;
        let problem = self.problem(&rows)?;
        check_grads(&problem.paired, grads.each_ref().map(|g| Some(g.len())))?;
        Ok(cpu::triplet_margin(&problem, Pass { grads: grads.map(Some), ..Pass::of(rows) }))
    }

    /// The gradients times `upstream`, the gradient of what follows with respect to this loss: one number for mean and
    /// sum, one a row for `Reduction::None`. `None` in place of a gradient skips it.
    ///
    /// # Errors
    /// If the shapes differ or are empty, an option is out of range, or `upstream` or a gradient has the wrong length.
    pub fn grad<T: Element>(
        &self,
        rows: [Matrix<'_, T>; 3],
        upstream: &[T::Scalar],
        grads: [Option<&mut [T]>; 3],
    ) -> Result<(), Error> {
        let problem = self.problem(&rows)?;
        check_len("upstream", upstream.len(), problem.paired.upstreams())?;
        check_grads(&problem.paired, grads.each_ref().map(|g| g.as_ref().map(|g| g.len())))?;
        cpu::triplet_margin(&problem, Pass { upstream: Some(upstream), grads, ..Pass::of(rows) });
        Ok(())
    }

    /// Checks a call on slices.
    fn problem<T: Element>(&self, rows: &[Matrix<'_, T>; 3]) -> Result<CheckedTriplets, Error> {
        self.checked(one_shape(NAMES, rows.each_ref().map(|m| [m.rows(), m.dim()]))?, largest::<T>())
    }

    /// Checks the options and the shape of a call. `largest`: the largest number of the arithmetic.
    pub(crate) fn checked(&self, shape: [usize; 2], largest: f64) -> Result<CheckedTriplets, Error> {
        let Self { margin, distance, normalize, swap, reduction } = *self;
        let options = paired::Options { margin, distance, normalize, reduction };
        Ok(CheckedTriplets { paired: options.checked(NAMES[0], shape, largest)?, swap })
    }
}
