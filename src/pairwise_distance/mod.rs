//! The distances between all rows of two matrices.

use crate::matrix::check_len;
use crate::problem::check_rows;
use crate::{Distance, Element, Error, Matrix, Precision};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod oracle;
#[cfg(feature = "torch")]
mod torch;

use cpu::PairwiseProblem;

/// The matrix of distances between each row of one matrix and each row of another, with gradients.
///
/// ```text
/// d[i, j] = d(x_i, y_j)
/// ```
///
/// Serves as `torch.cdist`, without its cancellation: products of rows give most distances, and those that are small
/// against the rows' norms are computed from the difference of the rows. Coincident rows are at distance exactly 0
/// (cosine: within rounding), where the gradient of the Euclidean distance is taken as 0.
///
/// `x` is `[N, D]` and `y` `[M, D]`, f32, f64, f16 or bf16; the result is `[N, M]`, f64 for f64 and f32 for all others.
/// NaN or infinity in a row makes its distances NaN; a distance that overflows is infinity or NaN.
///
/// ```
/// use tercet::{Distance, Matrix, PairwiseDistance};
///
/// let x = [0f32, 0.0, 3.0, 4.0];
/// let y = [3f32, 4.0, 0.0, 1.0, 6.0, 8.0];
/// let op = PairwiseDistance { distance: Distance::Euclidean, ..Default::default() };
/// let mut d = [0f32; 6];
/// op.distances(Matrix::new(&x, 2)?, Matrix::new(&y, 2)?, &mut d)?;
/// assert_eq!(d[..3], [5.0, 1.0, 10.0]);
/// assert_eq!(d[3], 0.0);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairwiseDistance {
    /// The distance `d`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// How exactly a CUDA device multiplies rows; see [`Precision`].
    pub precision: Precision,
}

impl PairwiseDistance {
    /// Writes the distances between all rows of `x` and `y` to `to`, `[N, M]`, contiguous; what it held before is
    /// overwritten.
    ///
    /// # Errors
    /// If a matrix is empty or too large, the rows of both differ in length, or `to` has not `N M` numbers.
    pub fn distances<T: Element>(&self, x: Matrix<'_, T>, y: Matrix<'_, T>, to: &mut [T::Scalar]) -> Result<(), Error> {
        let problem = self.problem(&x, &y)?;
        check_len("to", to.len(), problem.rows[0] * problem.rows[1])?;
        cpu::Prepared::new(&problem, [&x, &y]).distances(to);
        Ok(())
    }

    /// The gradients with respect to both matrices, contiguous, for `upstream` `[N, M]`, the gradient of what follows
    /// with respect to the distances; `None` in place of a gradient skips it.
    ///
    /// # Errors
    /// If a matrix is empty or too large, the rows of both differ in length, or `upstream` or a gradient has the wrong
    /// length.
    pub fn grad<T: Element>(
        &self,
        x: Matrix<'_, T>,
        y: Matrix<'_, T>,
        upstream: &[T::Scalar],
        grads: [Option<&mut [T]>; 2],
    ) -> Result<(), Error> {
        let problem = self.problem(&x, &y)?;
        check_len("upstream", upstream.len(), problem.rows[0] * problem.rows[1])?;
        problem.check_grads(grads.each_ref().map(|grad| grad.as_ref().map(|grad| grad.len())))?;
        let upstream = cpu::OfPairs { numbers: upstream, steps: [problem.rows[1], 1] };
        cpu::Prepared::new(&problem, [&x, &y]).gradients(None, upstream, grads);
        Ok(())
    }

    fn problem<T: Element>(&self, x: &Matrix<'_, T>, y: &Matrix<'_, T>) -> Result<PairwiseProblem, Error> {
        self.checked([x.rows(), y.rows()], [x.dim(), y.dim()])
    }

    /// Checks the shapes of a call.
    pub(crate) fn checked(&self, rows: [usize; 2], dims: [usize; 2]) -> Result<PairwiseProblem, Error> {
        for (argument, (rows, dim)) in ["x", "y"].into_iter().zip(rows.into_iter().zip(dims)) {
            check_rows(argument, [rows, dim])?;
        }
        if dims[0] != dims[1] {
            let shape = format!("[{}, {}]", rows[1], dims[1]);
            return Err(Error::argument("y", format!("rows of {} numbers, as x has", dims[0]), shape));
        }
        if rows[0].checked_mul(rows[1]).is_none_or(|count| count > isize::MAX as usize / 8) {
            let shape = format!("[{}, {}]", rows[0], rows[1]);
            return Err(Error::argument("x and y", "no more distances than memory has addresses for", shape));
        }
        let normalize = self.normalize && self.distance != Distance::Cosine;
        Ok(PairwiseProblem { rows, dim: dims[0], distance: self.distance, normalize, precision: self.precision })
    }
}
