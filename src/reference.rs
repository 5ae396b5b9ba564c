//! Reference sets: rows that positives and negatives are drawn from instead of the batch itself.

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
/// The gradients with respect to the reference and to the batch are separate, and that of the reference is only
/// computed if it is asked for: a tensor that requires none is a memory bank. NaN or infinity in the reference makes
/// the loss NaN. Of equally far rows the one with the lowest index in the reference is taken.
///
/// Some of the anchors against the whole batch, with their position in it as [`Own::Offset`], are a shard: the losses
/// of all shards under [`Reduction::Sum`](crate::Reduction::Sum) add up to the whole batch's, and so do their
/// gradients. Under [`Reduction::Mean`](crate::Reduction::Mean) they do not, for each divides by its own count: the
/// labels 0, 0, 1, 2 in two shards give a shard of two counted anchors and one of none. Add up the sums, and divide
/// them and the gradients by the sum of the shards' `stats.valid`.
///
/// ```
/// use tercet::{BatchAllTripletLoss, Matrix, Own, Reference};
///
/// // Six rows of all devices, of which this one's begin at row 3.
/// let (rows, labels) = ([0f32, 1.0, 5.0, 0.5, 4.0, 6.0], [0i64, 0, 1, 0, 1, 1]);
/// let reference = Reference { embeddings: Matrix::new(&rows, 1)?, labels: &labels[..], own: Own::Offset(3) };
/// let loss_fn = BatchAllTripletLoss { margin: 8.0, ..Default::default() };
/// let loss = loss_fn.on(Matrix::new(&rows[3..], 1)?, &labels[3..]).against(&reference).loss()?;
/// assert!(loss > 0.0);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Reference<E, L> {
    /// The embeddings of the reference rows, `[M, D]`.
    pub embeddings: E,
    /// The labels of the reference rows, `[M]`.
    pub labels: L,
    /// Which reference row each anchor is itself: a row is never its own positive.
    pub own: Own<L>,
}

impl<E, L> Reference<E, L> {
    /// This reference set with `embeddings` and `labels` applied to its parts, or their first error.
    #[cfg(feature = "torch")]
    pub(crate) fn try_map<'a, F, M, X>(
        &'a self,
        embeddings: impl FnOnce(&'a E) -> Result<F, X>,
        labels: impl Fn(&'static str, &'a L) -> Result<M, X>,
    ) -> Result<Reference<F, M>, X> {
        Ok(Reference {
            embeddings: embeddings(&self.embeddings)?,
            own: self.own.try_map(|rows| labels("reference.own", rows))?,
            labels: labels("reference.labels", &self.labels)?,
        })
    }

    /// This reference set with `embeddings` and `labels` applied to its parts.
    pub(crate) fn map<'a, F, M>(
        &'a self,
        embeddings: impl FnOnce(&'a E) -> F,
        mut labels: impl FnMut(&'a L) -> M,
    ) -> Reference<F, M> {
        let own = self.own.map(&mut labels);
        Reference { embeddings: embeddings(&self.embeddings), labels: labels(&self.labels), own }
    }
}

/// Which reference row an anchor is itself.
///
/// An index outside of the reference, negative ones included, means that the anchor is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Own<L> {
    /// No anchor is in the reference.
    #[default]
    None,
    /// Anchor `a` is reference row `a` + this.
    Offset(i64),
    /// Anchor `a` is the reference row whose index is entry `a` of this, `[N]`.
    Rows(L),
}

impl<L> Own<L> {
    /// This with `rows` applied to its indices.
    pub(crate) fn map<'a, M>(&'a self, rows: impl FnOnce(&'a L) -> M) -> Own<M> {
        match self {
            Own::None => Own::None,
            Own::Offset(offset) => Own::Offset(*offset),
            Own::Rows(given) => Own::Rows(rows(given)),
        }
    }

    /// This with `rows` applied to its indices, or the error of `rows`.
    #[cfg(feature = "torch")]
    fn try_map<'a, M, X>(&'a self, rows: impl FnOnce(&'a L) -> Result<M, X>) -> Result<Own<M>, X> {
        Ok(match self.map(rows) {
            Own::None => Own::None,
            Own::Offset(offset) => Own::Offset(offset),
            Own::Rows(rows) => Own::Rows(rows?),
        })
    }
}

impl Own<&[i64]> {
    /// The reference row that anchor `a` is, in a reference set of `references` rows.
    pub(crate) fn row(&self, a: usize, references: usize) -> Option<usize> {
        let row = match self {
            Own::None => return None,
            Own::Offset(offset) => (a as i64).checked_add(*offset)?,
            Own::Rows(rows) => rows[a],
        };
        usize::try_from(row).ok().filter(|&row| row < references)
    }
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
}
