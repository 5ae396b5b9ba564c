//! The options and sizes of one call of a mined loss, and their checks.

use crate::matrix::check_len;
use crate::{Distance, Error, MeanOver, Own, Precision, Reduction, Reference, Stats};

/// The options that every mined loss has, as the caller set them, and `extra`: those that this loss alone has.
#[derive(Clone, Copy, Debug)]
pub struct Options<X> {
    pub margin: f64,
    pub distance: Distance,
    pub normalize: bool,
    pub reduction: Reduction,
    /// What `Reduction::Mean` divides by.
    pub mean_over: MeanOver,
    pub precision: Precision,
    /// Pairs that a device has room for, of a loss that lists them; `None`: the default.
    pub pairs_at_once: Option<usize>,
    pub extra: X,
}

/// The options and sizes of one call, checked. Nothing that gets it checks again.
#[derive(Clone, Copy, Debug)]
pub struct Problem<X> {
    /// The anchors.
    pub rows: usize,
    /// The numbers in a row.
    pub dim: usize,
    /// The rows of the reference set; `None`: the batch itself.
    pub references: Option<usize>,
    /// The step of the draws on the CPU; kernels read it from the device's memory.
    pub step: i64,
    /// `normalize` is false for the cosine distance, which normalises by itself.
    pub options: Options<X>,
}

/// The sizes of a call's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows and columns.
    pub embeddings: [usize; 2],
    pub labels: usize,
    pub reference: Option<Reference<[usize; 2], usize>>,
    /// The largest number of the arithmetic.
    pub largest: f64,
}

impl<X: Copy> Problem<X> {
    /// The checks of every call; [`Loss::problem`](crate::mined::Loss::problem) adds those of the loss.
    pub fn new(options: Options<X>, sizes: &Sizes) -> Result<Self, Error> {
        check_margin(options.margin, sizes.largest)?;
        if let Some(pairs) = options.pairs_at_once.filter(|pairs| !(1..=MAX_PAIRS).contains(pairs)) {
            return Err(Error::argument("pairs_at_once", format!("1 to {MAX_PAIRS}"), pairs.to_string()));
        }
        check_rows("embeddings", sizes.embeddings)?;
        let [rows, dim] = sizes.embeddings;
        if sizes.labels != rows {
            let expected = format!("{rows}, one for each embedding");
            return Err(Error::argument("labels", expected, sizes.labels.to_string()));
        }
        if let Some(reference) = &sizes.reference {
            check_reference(sizes.embeddings, reference)?;
        }
        Ok(Self {
            rows,
            dim,
            references: sizes.reference.map(|reference| reference.labels),
            step: 0,
            options: Options { normalize: options.normalize && options.distance != Distance::Cosine, ..options },
        })
    }

    /// How many numbers an upstream gradient has.
    pub fn upstreams(&self) -> usize {
        if self.options.reduction == Reduction::None { self.rows } else { 1 }
    }

    /// What the sum of the losses, and their gradient, is divided by.
    pub fn divisor(&self, stats: &Stats) -> f64 {
        match (self.options.reduction, self.options.mean_over) {
            (Reduction::Mean, MeanOver::Valid) => stats.valid.max(1) as f64,
            (Reduction::Mean, MeanOver::Active) => stats.active.max(1) as f64,
            (Reduction::Sum | Reduction::None, _) => 1.0,
        }
    }

    /// The checks of the gradients that a call writes, by their lengths: with respect to the embeddings, and to the reference
    /// set.
    pub fn check_grads(&self, lens: [Option<usize>; 2]) -> Result<(), Error> {
        let [grad, reference_grad] = lens;
        if let Some(len) = grad {
            check_len("grad", len, self.rows * self.dim)?;
        }
        match (reference_grad, self.references) {
            (Some(len), Some(references)) => check_len("reference_grad", len, references * self.dim),
            (Some(len), None) => Err(Error::argument(
                "reference_grad",
                "None, for the call has no reference set",
                format!("{len} numbers"),
            )),
            (None, _) => Ok(()),
        }
    }
}

/// The check of every loss's margin. One beyond f32 would be infinite, and so would the loss.
pub(crate) fn check_margin(margin: f64, largest: f64) -> Result<(), Error> {
    check_margin_of("margin", margin, largest)
}

/// The check of a margin of another name.
pub(crate) fn check_margin_of(argument: &'static str, margin: f64, largest: f64) -> Result<(), Error> {
    if !margin.is_finite() || margin < 0.0 {
        return Err(Error::argument(argument, "a finite number, 0 or more", margin.to_string()));
    }
    if margin > largest {
        let expected = format!("at most {largest:e}, the largest number of this dtype's arithmetic");
        return Err(Error::argument(argument, expected, format!("{margin:e}")));
    }
    Ok(())
}

/// Kernels number pairs with `u32`.
const MAX_PAIRS: usize = u32::MAX as usize;
/// Kernels number rows, in whole tiles of them, with `u32`.
const MAX_ROWS: usize = u32::MAX as usize - 256;
/// Kernels number pieces of 128 rows with `u32`: from 2^25 f32 columns on that wraps.
const MAX_DIM: usize = 1 << 24;

/// The check of a matrix, `[rows, columns]`, of rows that are compared with each other.
pub(crate) fn check_rows(argument: &'static str, shape: [usize; 2]) -> Result<(), Error> {
    match shape {
        [0, _] | [_, 0] => Err(Error::argument(argument, "at least one row and one column", format!("{shape:?}"))),
        _ => check_sizes(argument, shape),
    }
}

/// The check of a matrix that may have no rows.
pub(crate) fn check_sizes(argument: &'static str, shape: [usize; 2]) -> Result<(), Error> {
    let [rows, dim] = shape;
    let refused = |expected: String| Err(Error::argument(argument, expected, format!("{shape:?}")));
    match shape {
        [_, 0] => refused("at least one column".into()),
        _ if rows > MAX_ROWS => refused(format!("at most {MAX_ROWS} rows")),
        _ if dim > MAX_DIM => refused(format!("at most {MAX_DIM} columns")),
        _ => Ok(()),
    }
}

/// The check of a reference set's sizes, for embeddings of the shape `[rows, dim]`.
fn check_reference([rows, dim]: [usize; 2], reference: &Reference<[usize; 2], usize>) -> Result<(), Error> {
    let Reference { embeddings: shape @ [references, columns], labels, own } = *reference;
    check_rows("reference.embeddings", shape)?;
    if columns != dim {
        let expected = format!("rows of {dim} numbers, as the embeddings'");
        return Err(Error::argument("reference.embeddings", expected, format!("{shape:?}")));
    }
    if labels != references {
        let expected = format!("{references}, one for each reference row");
        return Err(Error::argument("reference.labels", expected, labels.to_string()));
    }
    match own {
        Own::Rows(own) if own != rows => {
            Err(Error::argument("reference.own", format!("{rows}, one for each anchor"), own.to_string()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_of_another_shape_is_named() {
        let reference = |embeddings, labels, own| Reference { embeddings, labels, own };
        assert!(check_reference([3, 2], &reference([5, 2], 5, Own::Rows(3))).is_ok());
        assert!(check_reference([3, 2], &reference([5, 2], 5, Own::None)).is_ok());
        for (embeddings, labels, own, argument) in [
            ([5, 3], 5, Own::None, "reference.embeddings: expected rows of 2 numbers, as the embeddings', got [5, 3]"),
            ([0, 2], 0, Own::None, "reference.embeddings: expected at least one row and one column, got [0, 2]"),
            ([5, 2], 4, Own::None, "reference.labels: expected 5, one for each reference row, got 4"),
            ([5, 2], 5, Own::Rows(5), "reference.own: expected 3, one for each anchor, got 5"),
        ] {
            let error = check_reference([3, 2], &reference(embeddings, labels, own)).unwrap_err();
            assert_eq!(error.to_string(), argument);
        }
    }
}
