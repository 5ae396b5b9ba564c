//! What mined losses share: reference sets, and the checks of every call.

use crate::distance::Metric;
pub(crate) use crate::matrix::check_len;
use crate::{Distance, Error};

/// Rows that positives and negatives are drawn from instead of the batch itself: a memory bank, or the batches of all
/// devices.
///
/// On slices `E` is a [`Matrix`](crate::Matrix) and `L` is `&[i64]`; on tensors both are `&Tensor`. The embeddings are
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
/// all shards under [`Reduction::Sum`](crate::Reduction::Sum) add up to the whole batch's, and so do their gradients.
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
    #[allow(dead_code, reason = "the losses that take a reference ask")]
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
#[allow(dead_code, reason = "the losses that take a reference ask")]
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

/// The shape of a batch and the options that every mined loss has.
pub(crate) fn check(margin: f64, distance: Distance, rows: usize, dim: usize, labels: usize) -> Result<Metric, Error> {
    if !margin.is_finite() || margin < 0.0 {
        return Err(Error::argument("margin", "a finite number, 0 or more", margin.to_string()));
    }
    let metric = metric(distance)?;
    check_rows("embeddings", rows, dim)?;
    if labels != rows {
        return Err(Error::argument("labels", format!("{rows}, one for each embedding"), labels.to_string()));
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

/// Rows are numbered with `u32`, and its largest number means none.
pub(crate) fn check_rows(argument: &'static str, rows: usize, dim: usize) -> Result<(), Error> {
    let shape = || format!("[{rows}, {dim}]");
    if rows == 0 || dim == 0 {
        return Err(Error::argument(argument, "at least one row and one column", shape()));
    }
    if rows >= u32::MAX as usize {
        return Err(Error::argument(argument, format!("fewer than {} rows", u32::MAX), shape()));
    }
    Ok(())
}

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
