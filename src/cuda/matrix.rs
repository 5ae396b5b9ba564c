//! A view of embeddings in device memory.

use cudarc::driver::{CudaSlice, CudaView};

use crate::Error;

/// `rows` embeddings of `dim` numbers each in a cudarc slice, `stride` numbers from one row to the next.
pub struct CudaMatrix<'a, T> {
    pub(crate) data: CudaView<'a, T>,
    pub(crate) rows: usize,
    pub(crate) dim: usize,
    pub(crate) stride: usize,
}

impl<'a, T> CudaMatrix<'a, T> {
    /// The rows of a contiguous slice.
    ///
    /// # Errors
    /// If `dim` is 0 or does not divide the slice's length.
    pub fn new(data: &'a CudaSlice<T>, dim: usize) -> Result<Self, Error> {
        if dim == 0 {
            return Err(Error::argument("dim", "at least 1", "0"));
        }
        if !data.len().is_multiple_of(dim) {
            return Err(Error::argument("data", format!("a multiple of dim = {dim} numbers"), data.len().to_string()));
        }
        Ok(Self { rows: data.len() / dim, dim, stride: dim, data: data.as_view() })
    }

    /// `rows` rows of `dim` numbers, each `stride` numbers after the one before.
    ///
    /// # Errors
    /// If `dim` is 0 or the view is too short.
    pub fn strided(data: CudaView<'a, T>, rows: usize, dim: usize, stride: usize) -> Result<Self, Error> {
        crate::matrix::check_extent(data.len(), rows, dim, stride)?;
        Ok(Self { data, rows, dim, stride })
    }
}
