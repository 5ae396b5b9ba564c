//! A view of embeddings in memory.

use crate::{Element, Error};

/// `rows` embeddings of `dim` numbers each, row after row, `stride` numbers from one row to the next.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    dim: usize,
    stride: usize,
}

impl<'a, T: Element> Matrix<'a, T> {
    /// The rows of a contiguous slice.
    ///
    /// # Errors
    /// If `dim` is 0 or does not divide the slice's length.
    pub fn new(data: &'a [T], dim: usize) -> Result<Self, Error> {
        if dim == 0 {
            return Err(Error::argument("dim", "at least 1", "0"));
        }
        if !data.len().is_multiple_of(dim) {
            return Err(Error::argument("data", format!("a multiple of dim = {dim} numbers"), data.len().to_string()));
        }
        Ok(Self { data, rows: data.len() / dim, dim, stride: dim })
    }

    /// `rows` rows of `dim` numbers, each `stride` numbers after the one before: columns of a wider matrix, say, or
    /// with `stride = 0` the same row again and again.
    ///
    /// # Errors
    /// If `dim` is 0 or the slice is too short.
    pub fn strided(data: &'a [T], rows: usize, dim: usize, stride: usize) -> Result<Self, Error> {
        check_extent(data.len(), rows, dim, stride)?;
        Ok(Self { data, rows, dim, stride })
    }

    /// The number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The numbers in a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        &self.data[i * self.stride..i * self.stride + self.dim]
    }

    /// The rows in a range.
    pub(crate) fn rows_in(&self, rows: std::ops::Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        Self { data: &self.data[rows.start * self.stride..], rows: rows.len(), ..*self }
    }

    /// The same rows in the type of arithmetic, if T is that type.
    pub(crate) fn as_scalars(&self) -> Option<Matrix<'a, T::Scalar>> {
        let data = T::as_scalars(self.data)?;
        Some(Matrix { data, rows: self.rows, dim: self.dim, stride: self.stride })
    }
}

/// Whether `len` numbers hold `rows` rows of `dim` numbers, `stride` apart.
pub(crate) fn check_extent(len: usize, rows: usize, dim: usize, stride: usize) -> Result<(), Error> {
    if dim == 0 {
        return Err(Error::argument("dim", "at least 1", "0"));
    }
    let needed = match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride).and_then(|n| n.checked_add(dim)),
    };
    // With a small stride the rows may have more numbers than the slice, and the gradients will have as many.
    let needed = needed.filter(|_| rows.checked_mul(dim).is_some());
    if needed.is_none_or(|needed| needed > len) {
        let expected = format!("{rows} rows of {dim} numbers, {stride} apart");
        return Err(Error::argument("data", expected, format!("{len} numbers")));
    }
    Ok(())
}

/// Whether a slice has as many numbers as it should.
pub(crate) fn check_len(argument: &'static str, actual: usize, expected: usize) -> Result<(), Error> {
    if actual != expected {
        return Err(Error::argument(argument, format!("{expected} numbers"), actual.to_string()));
    }
    Ok(())
}
