//! The contrastive loss of pre-formed pairs.

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

use cpu::LabelledPairs;

/// Pulls the rows `x1` and `x2` together if they belong together, and pushes them `margin` apart if they do not.
///
/// ```text
/// loss_b = d²/2                     if same_b
///          max(margin - d, 0)²/2    if not,         d = d(x1_b, x2_b)
/// ```
///
/// From "Dimensionality Reduction by Learning an Invariant Mapping" (Hadsell, Chopra, LeCun 2006), whose `Y` is 1 for
/// pairs that do *not* belong together. The default is the paper's: Euclidean distance; margin 1, mean. With another
/// distance the formula holds for that `d`: with [`PairedDistance::SquaredEuclidean`] a pair that belongs together
/// costs `(Σ e²)²/2`.
///
/// The gradient of a pair that belongs together is, for the Euclidean distance, the difference of its rows, computed
/// without root or division. That of a pair that does not is 0 if its rows coincide, for there is no direction to push
/// in, and 0 from `d = margin` on, without a jump. A NaN or infinity in either row, or a distance that overflows, makes
/// the loss and both rows' gradients NaN.
///
/// In other libraries: TensorFlow-Addons' `contrastive_loss` has no halves, so it is twice this; siamese-triplet adds
/// 1e-9 to the `d²` of pairs that do not belong together; `torch.nn.functional.pairwise_distance` as `d` is
/// [`PairedDistance::Lp`]` { p: 2.0, eps: 1e-6 }`.
///
/// The inputs are `[B, D]`, f32, f64, f16 or bf16. Losses are f64 for f64 and f32 for all others; the batch is summed
/// in f64 in a fixed order.
///
/// ```
/// use tercet::{ContrastiveLoss, Matrix};
///
/// // At distances of 3, 3 and 5, with a margin of 4: 3²/2, (4 - 3)²/2 and nothing.
/// let (x1, x2) = ([0f64, 0.0, 0.0], [3f64, 3.0, 5.0]);
/// let rows = [Matrix::new(&x1, 1)?, Matrix::new(&x2, 1)?];
/// let mut losses = [0.0; 3];
/// ContrastiveLoss { margin: 4.0, ..Default::default() }.losses(rows, &[true, false, false], &mut losses)?;
/// assert_eq!(losses, [4.5, 0.5, 0.0]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ContrastiveLoss {
    /// How far apart rows that do not belong together should be; 0 or more.
    pub margin: f64,
    /// The distance `d`.
    pub distance: PairedDistance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`PairedDistance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// How the rows' losses become the result. The mean is over all `B` rows.
    pub reduction: Reduction,
}

impl Default for ContrastiveLoss {
    fn default() -> Self {
        Self { margin: 1.0, distance: PairedDistance::Euclidean, normalize: false, reduction: Reduction::Mean }
    }
}

const NAMES: [&str; 2] = ["x1", "x2"];

impl ContrastiveLoss {
    /// The loss of a batch in memory, reduced by mean or sum. `same`: whether the rows `x1_b` and `x2_b` belong
    /// together.
    ///
    /// # Errors
    /// If the shapes differ or are empty, `same` has not one entry a row, an option is out of range, or `reduction` is
    /// `None`.
    pub fn loss<T: Element>(&self, rows: [Matrix<'_, T>; 2], same: &[bool]) -> Result<T::Scalar, Error> {
        check_reduced(self.reduction)?;
        Ok(cpu::contrastive(&self.pairs(&rows, same)?, Pass::of(rows)))
    }

    /// The loss of each row, whatever the reduction. `same`: whether the rows `x1_b` and `x2_b` belong together.
    ///
    /// # Errors
    /// If the shapes differ or are empty, an option is out of range, or `same` or `losses` has not one entry a row.
    pub fn losses<T: Element>(
        &self,
        rows: [Matrix<'_, T>; 2],
        same: &[bool],
        losses: &mut [T::Scalar],
    ) -> Result<(), Error> {
        let pairs = self.pairs(&rows, same)?;
        check_len("losses", losses.len(), pairs.paired.rows)?;
        cpu::contrastive(&pairs, Pass { losses: Some(losses), ..Pass::of(rows) });
        Ok(())
    }

    /// The loss, reduced by mean or sum, and its gradients with respect to x1 and x2, in one pass.
    ///
    /// The gradients are `[B, D]`, contiguous; what they held before is overwritten. Gradients of 16-bit inputs are
    /// rounded once, after the mean's division: to scale them up first, see [`grad`](Self::grad).
    ///
    /// # Errors
    /// Those of [`loss`](Self::loss), or if a gradient has not `B D` numbers.
    ///
    /// ```
    /// use tercet::{ContrastiveLoss, Matrix};
    ///
    /// let (x1, x2) = ([0f32, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.5]);
    /// let rows = [Matrix::new(&x1, 2)?, Matrix::new(&x2, 2)?];
    /// let (mut to_x1, mut to_x2) = ([0f32; 4], [0f32; 4]);
    /// let loss = ContrastiveLoss::default().loss_and_grad(rows, &[true, false], [&mut to_x1, &mut to_x2])?;
    /// assert_eq!(loss, (5.0 / 2.0 + 0.5 * 0.5 / 2.0) / 2.0);
    /// assert_eq!(to_x1, [-1.0, -0.5, 0.0, 0.25]);
    /// assert_eq!(to_x2, [1.0, 0.5, 0.0, -0.25]);
    /// # Ok::<(), tercet::Error>(())
    /// ```
    pub fn loss_and_grad<T: Element>(
        &self,
        rows: [Matrix<'_, T>; 2],
        same: &[bool],
        grads: [&mut [T]; 2],
    ) -> Result<T::Scalar, Error> {
        check_reduced(self.reduction)?;
        let pairs = self.pairs(&rows, same)?;
        check_grads(&pairs.paired, grads.each_ref().map(|g| Some(g.len())))?;
        Ok(cpu::contrastive(&pairs, Pass { grads: grads.map(Some), ..Pass::of(rows) }))
    }

    /// The gradients times `upstream`, the gradient of what follows with respect to this loss: one number for mean and
    /// sum, one a row for `Reduction::None`. `None` in place of a gradient skips it.
    ///
    /// # Errors
    /// If the shapes differ or are empty, an option is out of range, or `same`, `upstream` or a gradient has the wrong
    /// length.
    pub fn grad<T: Element>(
        &self,
        rows: [Matrix<'_, T>; 2],
        same: &[bool],
        upstream: &[T::Scalar],
        grads: [Option<&mut [T]>; 2],
    ) -> Result<(), Error> {
        let pairs = self.pairs(&rows, same)?;
        check_len("upstream", upstream.len(), pairs.paired.upstreams())?;
        check_grads(&pairs.paired, grads.each_ref().map(|g| g.as_ref().map(|g| g.len())))?;
        cpu::contrastive(&pairs, Pass { upstream: Some(upstream), grads, ..Pass::of(rows) });
        Ok(())
    }

    /// Checks a call on slices.
    pub(crate) fn pairs<'a, T: Element>(
        &self,
        rows: &[Matrix<'_, T>; 2],
        same: &'a [bool],
    ) -> Result<LabelledPairs<'a>, Error> {
        let paired = self.checked(one_shape(NAMES, rows.each_ref().map(|m| [m.rows(), m.dim()]))?, largest::<T>())?;
        check_same(same.len(), &paired)?;
        Ok(LabelledPairs { paired, same })
    }

    /// Checks the options and the shape of a call. `largest`: the largest number of the arithmetic.
    pub(crate) fn checked(&self, shape: [usize; 2], largest: f64) -> Result<paired::PairedProblem, Error> {
        let Self { margin, distance, normalize, reduction } = *self;
        paired::Options { margin, distance, normalize, reduction }.checked(NAMES[0], shape, largest)
    }
}

fn check_same(len: usize, problem: &paired::PairedProblem) -> Result<(), Error> {
    if len != problem.rows {
        return Err(Error::argument("same", format!("{}, one for each pair", problem.rows), len.to_string()));
    }
    Ok(())
}
