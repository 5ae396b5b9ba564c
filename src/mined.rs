//! The checks that mined losses share.

use crate::distance::Metric;
pub(crate) use crate::matrix::check_len;
use crate::{Distance, Error};

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
