//! What mined losses share: reference sets, the checks of a call, and the calls themselves.

use std::fmt::Debug;

use crate::distance::Metric;
pub(crate) use crate::matrix::check_len;
use crate::paired::check_margin;
use crate::{Distance, Element, Error, Matrix, Reduction, Scalar, Stats};

/// Rows that positives and negatives are drawn from instead of the batch itself: a memory bank, or the batches of all
/// devices.
///
/// On slices `E` is a [`Matrix`] and `L` is `&[i64]`; on tensors both are `&Tensor`. The embeddings are
/// `[M, D]`, of the batch's dtype and D, the labels `[M]`. With anchors `a` of the batch and rows `j` of the reference:
///
/// ```text
/// positives of a   y'_j = y_a, and j is not a itself
/// negatives of a   y'_j ≠ y_a
/// ```
///
/// The gradient with respect to the reference is another one than that with respect to the batch, and only made where it
/// is asked for: a tensor that requires none is a memory bank. NaN or infinity in the reference makes the loss NaN. Of
/// equally far rows the one with the lowest index in the reference is taken.
///
/// Some of the anchors against the whole batch, with their place in it as [`Own::Offset`], are a shard: the losses of
/// all shards under [`Reduction::Sum`] add up to the whole batch's, and so do their gradients. Under [`Reduction::Mean`] they do
/// not: each divides by its own count, and the labels 0, 0, 1, 2 in two shards give one of two anchors and one of none. Add up
/// the sums, and divide them and the gradients by the sum of the shards' `stats.valid`.
///
/// ```
/// use tercet::{Matrix, Own, Reference};
///
/// // Six rows of all devices, of which this one's begin at row 3.
/// let (rows, labels) = ([0f32, 1.0, 5.0, 0.5, 4.0, 6.0], [0i64, 0, 1, 0, 1, 1]);
/// let reference = Reference { embeddings: Matrix::new(&rows, 1)?, labels: &labels[..], own: Own::Offset(3) };
/// assert_eq!(reference.own, Own::Offset(3));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Reference<E, L> {
    /// `[M, D]`.
    pub embeddings: E,
    /// `[M]`.
    pub labels: L,
    /// Which of the rows each anchor is itself: never its own positive.
    pub own: Own<L>,
}

/// Which reference row an anchor is itself.
///
/// An index outside of the reference, a negative one too, means that the anchor is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Own<L> {
    /// No anchor is in the reference.
    #[default]
    None,
    /// Anchor `a` is reference row `a` + this.
    Offset(i64),
    /// One index an anchor, `[N]`.
    Rows(L),
}

impl Own<&[i64]> {
    /// The reference row that anchor `a` is, of so many.
    pub(crate) fn row(&self, a: usize, references: usize) -> Option<usize> {
        let row = match self {
            Own::None => return None,
            Own::Offset(offset) => (a as i64).checked_add(*offset)?,
            Own::Rows(rows) => rows[a],
        };
        usize::try_from(row).ok().filter(|&row| row < references)
    }
}

/// The shape of a reference to a batch of `rows` x `dim`; `own`: how many indices it has, one an anchor.
pub(crate) fn check_reference(
    [rows, dim]: [usize; 2],
    embeddings: [usize; 2],
    labels: usize,
    own: Option<usize>,
) -> Result<(), Error> {
    let [references, columns] = embeddings;
    check_rows("reference.embeddings", references, columns)?;
    if columns != dim {
        let expected = format!("rows of {dim} numbers, as the embeddings'");
        return Err(Error::argument("reference.embeddings", expected, format!("[{references}, {columns}]")));
    }
    if labels != references {
        let expected = format!("{references}, one for each reference row");
        return Err(Error::argument("reference.labels", expected, labels.to_string()));
    }
    match own {
        Some(own) if own != rows => {
            Err(Error::argument("reference.own", format!("{rows}, one for each anchor"), own.to_string()))
        }
        _ => Ok(()),
    }
}

/// The sizes of a call's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub dim: usize,
    pub labels: usize,
    pub reference: Option<ReferenceShape>,
    /// The largest number of the arithmetic.
    pub largest: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct ReferenceShape {
    pub rows: usize,
    pub dim: usize,
    pub labels: usize,
    pub own: Own<usize>,
}

impl Shape {
    pub fn of<T: Element>(embeddings: &Matrix<'_, T>, labels: &[i64], reference: Option<&Set<'_, T>>) -> Self {
        let reference = reference.map(|reference| ReferenceShape {
            rows: reference.embeddings.rows(),
            dim: reference.embeddings.dim(),
            labels: reference.labels.len(),
            own: match reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(offset),
                Own::Rows(rows) => Own::Rows(rows.len()),
            },
        });
        let largest = T::Scalar::MAX.to_f64();
        Self { rows: embeddings.rows(), dim: embeddings.dim(), labels: labels.len(), reference, largest }
    }

    /// The number of rows that positives and negatives are drawn from.
    pub fn others(&self) -> usize {
        self.reference.as_ref().map_or(self.rows, |reference| reference.rows)
    }
}

/// A reference set in memory.
pub type Set<'a, T> = Reference<Matrix<'a, T>, &'a [i64]>;

/// The shapes of a call, and the options that every mined loss has.
pub(crate) fn check(margin: f64, distance: Distance, shape: &Shape) -> Result<Metric, Error> {
    let Shape { rows, dim, labels, reference, largest } = *shape;
    check_margin(margin, largest)?;
    let metric = metric(distance)?;
    check_rows("embeddings", rows, dim)?;
    if labels != rows {
        return Err(Error::argument("labels", format!("{rows}, one for each embedding"), labels.to_string()));
    }
    if let Some(reference) = reference {
        let own = if let Own::Rows(own) = reference.own { Some(own) } else { None };
        check_reference([rows, dim], [reference.rows, reference.dim], reference.labels, own)?;
    }
    Ok(metric)
}

/// Those distances that are a function of `‖x‖`, `‖y‖` and `x·y`.
pub(crate) fn metric(distance: Distance) -> Result<Metric, Error> {
    if let Distance::Lp { .. } = distance {
        let expected = "SquaredEuclidean, Euclidean or Cosine (paired losses alone take Lp)";
        return Err(Error::argument("distance", expected, format!("{distance:?}")));
    }
    distance.metric()
}

/// Kernels number rows, in whole tiles of them, with `u32`.
pub(crate) const MAX_ROWS: usize = u32::MAX as usize - 256;
/// Kernels number pieces of 128 rows with `u32`: from 2^25 f32 columns on that wraps.
pub(crate) const MAX_DIM: usize = 1 << 24;

/// The shape of a matrix of rows that are compared with each other.
pub(crate) fn check_rows(argument: &'static str, rows: usize, dim: usize) -> Result<(), Error> {
    let shape = || format!("[{rows}, {dim}]");
    if rows == 0 || dim == 0 {
        return Err(Error::argument(argument, "at least one row and one column", shape()));
    }
    if rows > MAX_ROWS {
        return Err(Error::argument(argument, format!("at most {MAX_ROWS} rows"), shape()));
    }
    if dim > MAX_DIM {
        return Err(Error::argument(argument, format!("at most {MAX_DIM} columns"), shape()));
    }
    Ok(())
}

/// A mined loss as the calls below, on slices and on tensors, see it.
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "for tensors"))]
pub trait Loss: Copy + Debug {
    const NAME: &'static str;
    /// Whether a backward pass on a device reads the embeddings again: they must then be what they were. On the CPU none
    /// does: what `find` returns has all that `gradients` needs.
    const READS_AGAIN: bool;
    /// The options and shape of one call, checked.
    type Problem: Copy + Debug + Send + 'static;
    /// What a forward pass on the CPU found.
    type Found<A: Scalar>: Send + 'static;

    fn check(&self, shape: &Shape) -> Result<Self::Problem, Error>;
    fn reduction(&self) -> Reduction;
    /// Draws of this step, for losses that draw.
    fn at_step(problem: Self::Problem, step: i64) -> Self::Problem {
        let _ = step;
        problem
    }
    fn find<T: Element>(
        problem: &Self::Problem,
        embeddings: &Matrix<'_, T>,
        labels: &[i64],
        reference: Option<&Set<'_, T>>,
        with_grad: [bool; 2],
    ) -> Self::Found<T::Scalar>;
    /// The reduced loss.
    fn loss<A: Scalar>(problem: &Self::Problem, found: &Self::Found<A>) -> A;
    /// The loss of each anchor.
    fn losses<A: Scalar>(found: &Self::Found<A>) -> &[A];
    fn stats<A: Scalar>(found: &Self::Found<A>) -> Stats;
    /// The gradients times `upstream` (one number, or one an anchor; `None`: 1) of what was found `with_grad`, with respect
    /// to the anchors and to the reference set; without one the first is that of the batch.
    fn gradients<T: Element>(
        problem: &Self::Problem,
        found: &Self::Found<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    );
}

/// One call on slices, checked.
pub(crate) struct Call<'a, T: Element, L: Loss> {
    pub problem: L::Problem,
    reduction: Reduction,
    shape: Shape,
    embeddings: Matrix<'a, T>,
    labels: &'a [i64],
    reference: Option<&'a Set<'a, T>>,
}

impl<'a, T: Element, L: Loss> Call<'a, T, L> {
    pub fn new(
        loss: &L,
        embeddings: Matrix<'a, T>,
        labels: &'a [i64],
        reference: Option<&'a Set<'a, T>>,
    ) -> Result<Self, Error> {
        let shape = Shape::of(&embeddings, labels, reference);
        let problem = loss.check(&shape)?;
        Ok(Self { problem, reduction: loss.reduction(), shape, embeddings, labels, reference })
    }

    pub fn reduced(
        loss: &L,
        embeddings: Matrix<'a, T>,
        labels: &'a [i64],
        reference: Option<&'a Set<'a, T>>,
    ) -> Result<Self, Error> {
        if loss.reduction() == Reduction::None {
            return Err(Error::argument("reduction", "Mean or Sum (`losses` and `grad` take None)", "None"));
        }
        Self::new(loss, embeddings, labels, reference)
    }

    /// What the forward pass finds; with what it takes for the gradients with respect to the anchors and the reference set.
    pub fn find(&self, with_grad: [bool; 2]) -> L::Found<T::Scalar> {
        L::find(&self.problem, &self.embeddings, self.labels, self.reference, with_grad)
    }

    pub fn loss_with_stats(&self) -> (T::Scalar, Stats) {
        let found = self.find([false; 2]);
        (L::loss(&self.problem, &found), L::stats(&found))
    }

    pub fn losses(&self, losses: &mut [T::Scalar]) -> Result<(), Error> {
        check_len("losses", losses.len(), self.shape.rows)?;
        losses.copy_from_slice(L::losses(&self.find([false; 2])));
        Ok(())
    }

    pub fn loss_and_grad(
        &self,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) -> Result<T::Scalar, Error> {
        if let Some(upstream) = upstream {
            let expected = if self.reduction == Reduction::None { self.shape.rows } else { 1 };
            check_len("upstream", upstream.len(), expected)?;
        }
        let rows = [("grad", self.shape.rows), ("reference_grad", self.shape.others())];
        for ((name, rows), grad) in rows.into_iter().zip(&grads) {
            if let Some(grad) = grad {
                check_len(name, grad.len(), rows * self.shape.dim)?;
            }
        }
        let found = self.find(grads.each_ref().map(Option::is_some));
        L::gradients(&self.problem, &found, upstream, grads);
        Ok(L::loss(&self.problem, &found))
    }
}

/// The calls on slices of a mined loss.
macro_rules! slice_calls {
    ($loss:ident) => {
        impl $loss {
            /// The loss of a batch in memory, reduced by mean or sum.
            ///
            /// # Errors
            /// If the batch is empty or too large, there is not one label a row, an option is out of range, or `reduction`
            /// is `None`.
            pub fn loss<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
            ) -> Result<T::Scalar, $crate::Error> {
                Ok(self.loss_with_stats(embeddings, labels)?.0)
            }

            /// The loss against a reference set.
            ///
            /// # Errors
            /// As [`loss`](Self::loss), or if the reference set is empty or too large, its rows are not as long as the
            /// batch's, or there is not one label a row.
            pub fn loss_against<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                reference: &$crate::Reference<$crate::Matrix<'_, T>, &[i64]>,
            ) -> Result<T::Scalar, $crate::Error> {
                Ok(self.loss_with_stats_against(embeddings, labels, reference)?.0)
            }

            /// The loss, reduced by mean or sum, and what the batch is like; what is counted stands above.
            ///
            /// # Errors
            /// As [`loss`](Self::loss).
            pub fn loss_with_stats<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
            ) -> Result<(T::Scalar, $crate::Stats), $crate::Error> {
                Ok($crate::mined::Call::<T, Self>::reduced(self, embeddings, labels, None)?.loss_with_stats())
            }

            /// Likewise, against a reference set.
            ///
            /// # Errors
            /// As [`loss_against`](Self::loss_against).
            pub fn loss_with_stats_against<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                reference: &$crate::Reference<$crate::Matrix<'_, T>, &[i64]>,
            ) -> Result<(T::Scalar, $crate::Stats), $crate::Error> {
                Ok($crate::mined::Call::<T, Self>::reduced(self, embeddings, labels, Some(reference))?
                    .loss_with_stats())
            }

            /// The loss, reduced by mean or sum, and its gradient with respect to the embeddings.
            ///
            /// The gradient is `[N, D]`, contiguous; what it held before is overwritten. Gradients of 16-bit embeddings are
            /// rounded once, after the mean's division: to scale them up first, see [`grad`](Self::grad).
            ///
            /// # Errors
            /// As [`loss`](Self::loss), or if `grad` has not `N D` numbers.
            pub fn loss_and_grad<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                grad: &mut [T],
            ) -> Result<T::Scalar, $crate::Error> {
                $crate::mined::Call::<T, Self>::reduced(self, embeddings, labels, None)?
                    .loss_and_grad(None, [Some(grad), None])
            }

            /// The loss against a reference set, and its gradients with respect to the embeddings, `[N, D]`, and to the
            /// reference set, `[M, D]`, where they are wanted.
            ///
            /// # Errors
            /// As [`loss_against`](Self::loss_against), or if a gradient has another length.
            pub fn loss_and_grad_against<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                reference: &$crate::Reference<$crate::Matrix<'_, T>, &[i64]>,
                grads: [Option<&mut [T]>; 2],
            ) -> Result<T::Scalar, $crate::Error> {
                $crate::mined::Call::<T, Self>::reduced(self, embeddings, labels, Some(reference))?
                    .loss_and_grad(None, grads)
            }

            /// The gradient times `upstream`, the gradient of what follows with respect to this loss: one number for mean
            /// and sum, one an anchor for `Reduction::None`.
            ///
            /// # Errors
            /// As [`loss_and_grad`](Self::loss_and_grad), or if `upstream` has another length; `reduction` may be `None`
            /// where the loss takes it.
            pub fn grad<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                upstream: &[T::Scalar],
                grad: &mut [T],
            ) -> Result<(), $crate::Error> {
                $crate::mined::Call::<T, Self>::new(self, embeddings, labels, None)?
                    .loss_and_grad(Some(upstream), [Some(grad), None])
                    .map(drop)
            }

            /// Likewise, against a reference set.
            ///
            /// # Errors
            /// As [`loss_and_grad_against`](Self::loss_and_grad_against), or if `upstream` has another length; `reduction`
            /// may be `None` where the loss takes it.
            pub fn grad_against<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                reference: &$crate::Reference<$crate::Matrix<'_, T>, &[i64]>,
                upstream: &[T::Scalar],
                grads: [Option<&mut [T]>; 2],
            ) -> Result<(), $crate::Error> {
                $crate::mined::Call::<T, Self>::new(self, embeddings, labels, Some(reference))?
                    .loss_and_grad(Some(upstream), grads)
                    .map(drop)
            }
        }
    };
    // And those of a loss that has one number an anchor.
    ($loss:ident, per_anchor) => {
        $crate::mined::slice_calls!($loss);

        impl $loss {
            /// The loss of each anchor, whatever the reduction: 0 without a positive or without a negative.
            ///
            /// # Errors
            /// As [`loss`](Self::loss), or if `losses` has not one place a row; `reduction` may be `None`.
            pub fn losses<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                losses: &mut [T::Scalar],
            ) -> Result<(), $crate::Error> {
                $crate::mined::Call::<T, Self>::new(self, embeddings, labels, None)?.losses(losses)
            }

            /// Likewise, against a reference set.
            ///
            /// # Errors
            /// As [`loss_against`](Self::loss_against), or if `losses` has not one place a row; `reduction` may be `None`.
            pub fn losses_against<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                reference: &$crate::Reference<$crate::Matrix<'_, T>, &[i64]>,
                losses: &mut [T::Scalar],
            ) -> Result<(), $crate::Error> {
                $crate::mined::Call::<T, Self>::new(self, embeddings, labels, Some(reference))?.losses(losses)
            }
        }
    };
}
pub(crate) use slice_calls;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_outside_of_the_reference_is_no_row() {
        for (offset, expected) in [
            (0, [Some(0), Some(1), Some(2)]),
            (2, [Some(2), Some(3), None]),
            (-2, [None, None, Some(0)]),
            (4, [None; 3]),
            (i64::MAX, [None; 3]),
            (i64::MIN, [None; 3]),
        ] {
            assert_eq!([0, 1, 2].map(|a| Own::Offset(offset).row(a, 4)), expected, "{offset}");
        }
        let rows = [3, -1, 4, i64::MAX, 0];
        assert_eq!([0, 1, 2, 3, 4].map(|a| Own::Rows(&rows[..]).row(a, 4)), [Some(3), None, None, None, Some(0)]);
        assert_eq!(Own::None.row(0, 4), None);
    }

    #[test]
    fn a_reference_of_another_shape_is_named() {
        assert!(check_reference([3, 2], [5, 2], 5, Some(3)).is_ok());
        assert!(check_reference([3, 2], [5, 2], 5, None).is_ok());
        for (embeddings, labels, own, argument) in [
            ([5, 3], 5, None, "reference.embeddings: expected rows of 2 numbers, as the embeddings', got [5, 3]"),
            ([0, 2], 0, None, "reference.embeddings: expected at least one row and one column, got [0, 2]"),
            ([5, 2], 4, None, "reference.labels: expected 5, one for each reference row, got 4"),
            ([5, 2], 5, Some(5), "reference.own: expected 3, one for each anchor, got 5"),
        ] {
            assert_eq!(check_reference([3, 2], embeddings, labels, own).unwrap_err().to_string(), argument);
        }
    }
}
