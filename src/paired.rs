//! What paired losses share: the options and the shape of a call, and its checks.

use crate::distance::Metric;
use crate::matrix::check_len;
use crate::{Distance, Error, Reduction};

/// The options that every paired loss has, as the caller set them.
pub(crate) struct Options {
    pub margin: f64,
    pub distance: Distance,
    pub normalize: bool,
    pub reduction: Reduction,
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
}

impl Options {
    /// The checks of every call. `first`: the name of the matrix that the shape is of; `largest`: the largest number of the
    /// arithmetic.
    pub fn checked(&self, first: &'static str, [rows, dim]: [usize; 2], largest: f64) -> Result<Problem, Error> {
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
        Ok(Problem {
            rows,
            dim,
            metric,
            margin: self.margin,
            normalize: self.normalize && metric != Metric::Cosine,
            reduction: self.reduction,
        })
    }
}

/// Of every loss. A margin beyond f32 would be infinite, and so would the loss.
pub(crate) fn check_margin(margin: f64, largest: f64) -> Result<(), Error> {
    if !margin.is_finite() || margin < 0.0 {
        return Err(Error::argument("margin", "a finite number, 0 or more", margin.to_string()));
    }
    if margin > largest {
        let expected = format!("at most {largest:e}, the largest number of this dtype's arithmetic");
        return Err(Error::argument("margin", expected, format!("{margin:e}")));
    }
    Ok(())
}

impl Problem {
    /// What the sum of the rows' losses, and each row's gradient, is multiplied by.
    pub fn scale(&self) -> f64 {
        match self.reduction {
            Reduction::Mean => 1.0 / self.rows as f64,
            Reduction::Sum | Reduction::None => 1.0,
        }
    }

    /// How many numbers an upstream gradient has.
    pub fn upstreams(&self) -> usize {
        if self.reduction == Reduction::None { self.rows } else { 1 }
    }
}

/// The one shape `[rows, dim]` of all.
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

/// Of calls that return one number.
pub(crate) fn check_reduced(reduction: Reduction) -> Result<(), Error> {
    if reduction == Reduction::None {
        return Err(Error::argument("reduction", "Mean or Sum (`losses` and `grad` take None)", "None"));
    }
    Ok(())
}

/// The lengths of the gradients that are wanted.
pub(crate) fn check_grads(problem: &Problem, lens: impl IntoIterator<Item = Option<usize>>) -> Result<(), Error> {
    for (argument, len) in ["grads[0]", "grads[1]", "grads[2]"].into_iter().zip(lens) {
        if let Some(len) = len {
            check_len(argument, len, problem.rows * problem.dim)?;
        }
    }
    Ok(())
}
