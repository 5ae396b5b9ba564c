//! What paired losses share: the options and the shape of a call, and its checks.

use crate::distance::Metric;
use crate::matrix::check_len;
use crate::problem::check_margin;
use crate::{Error, PairedDistance, Reduction};

/// The options that every paired loss has, as the caller set them.
pub(crate) struct Options {
    pub margin: f64,
    pub distance: PairedDistance,
    pub normalize: bool,
    pub reduction: Reduction,
}

/// The options and shape of one call of a paired loss, checked.
#[derive(Clone, Copy, Debug)]
pub struct PairedProblem {
    pub rows: usize,
    pub dim: usize,
    pub metric: Metric,
    pub margin: f64,
    pub normalize: bool,
    pub reduction: Reduction,
}

impl Options {
    /// Checks the options and the shape of a call. `first`: the name of the matrix of this shape; `largest`: the
    /// largest number of the arithmetic.
    pub fn checked(&self, first: &'static str, [rows, dim]: [usize; 2], largest: f64) -> Result<PairedProblem, Error> {
        check_margin(self.margin, largest)?;
        let metric = self.distance.metric()?;
        if let Metric::Difference { eps, .. } | Metric::Power { eps, .. } = metric
            && eps.abs() > largest
        {
            let expected = format!("at most {largest:e}, the largest number of this dtype's arithmetic");
            return Err(Error::argument("distance.eps", expected, format!("{eps:e}")));
        }
        if rows == 0 || dim == 0 {
            return Err(Error::argument(first, "at least one row and one column", format!("[{rows}, {dim}]")));
        }
        Ok(PairedProblem {
            rows,
            dim,
            metric,
            margin: self.margin,
            normalize: self.normalize && metric != Metric::Cosine,
            reduction: self.reduction,
        })
    }
}

impl PairedProblem {
    /// What the sum of the rows' losses, and each row's gradient, is multiplied by.
    pub fn scale(&self) -> f64 {
        match self.reduction {
            Reduction::Mean => 1.0 / self.rows as f64,
            Reduction::Sum | Reduction::None => 1.0,
        }
    }

    /// Whether a forward pass makes the gradients of rows of T too, for an upstream gradient of 1; backward runs the pass again
    /// only if the upstream is another. Not of f16, which a gradient scaler trains, so that the upstream is never 1; nor of one
    /// loss a row, whose upstreams are known only later.
    #[cfg(any(feature = "cuda", feature = "torch"))]
    pub fn grads_with_loss<T: crate::Element>(&self) -> bool {
        self.reduction != Reduction::None && T::NAME != <half::f16 as crate::Element>::NAME
    }

    /// How many numbers an upstream gradient has.
    pub fn upstreams(&self) -> usize {
        if self.reduction == Reduction::None { self.rows } else { 1 }
    }
}

/// The shape `[rows, dim]` that all matrices have, or an error.
pub(crate) fn one_shape<const K: usize>(
    names: [&'static str; K],
    shapes: [[usize; 2]; K],
) -> Result<[usize; 2], Error> {
    for (name, shape) in names.into_iter().zip(shapes) {
        if shape != shapes[0] {
            let expected = format!("the shape of {}, {:?}", names[0], shapes[0]);
            return Err(Error::argument(name, expected, format!("{shape:?}")));
        }
    }
    Ok(shapes[0])
}

/// Checks that the losses are reduced, for calls that return one number.
pub(crate) fn check_reduced(reduction: Reduction) -> Result<(), Error> {
    if reduction == Reduction::None {
        return Err(Error::argument("reduction", "Mean or Sum (`losses` and `grad` take None)", "None"));
    }
    Ok(())
}

/// Checks the lengths of the gradients that are wanted.
pub(crate) fn check_grads(problem: &PairedProblem, lens: impl IntoIterator<Item = Option<usize>>) -> Result<(), Error> {
    for (argument, len) in ["grads[0]", "grads[1]", "grads[2]"].into_iter().zip(lens) {
        if let Some(len) = len {
            check_len(argument, len, problem.rows * problem.dim)?;
        }
    }
    Ok(())
}
