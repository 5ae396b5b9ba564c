//! The nearest rows of many for each query: exact search.

use crate::call::Input;
use crate::matrix::check_len;
use crate::problem::{check_rows, check_sizes};
use crate::{Distance, Element, Error, Matrix, Own, Precision};

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod narrow;
pub mod oracle;
mod stored;
#[cfg(feature = "torch")]
mod torch;

#[cfg(feature = "cuda")]
pub use cuda::CudaStored;
pub use stored::{Int8Rows, Stored};
#[cfg(feature = "torch")]
pub use torch::StoredTensor;

/// For each query the `k` nearest of many stored rows: exact search in memory for the results alone, without a matrix of
/// distances.
///
/// ```text
/// distances[i, 0] <= distances[i, 1] <= ..     the k least of d(query_i, row_j) over the rows j
/// indices[i, r]                                which row that is; of equally far ones the lowest index comes first
/// ```
///
/// Queries are `[Q, D]`, f32, f64, f16 or bf16, and stored rows `[M, D]`, f32, f16, bf16 or [`Int8Rows`], which stand for
/// exactly what they store; queries of f64 take rows of f64. Distances are f64 for f64 and f32 for all others. They are
/// computed from the difference of two rows, of the cosine from their product: equal rows are at distance 0, and neither
/// the number of threads nor what else is searched for changes a bit.
///
/// Where there are fewer than `k` rows, what is left of a result is +inf and -1. A row with NaN or infinity is no
/// neighbour of any query, and a query with one gets NaN and -1. Finite rows so far that the distance overflows are
/// neighbours at +inf.
///
/// Rows of fewer bits are read faster and take less memory. With [`exact`](Search::exact) the f32 rows that they were
/// rounded from decide between all that the rounding leaves open: the answers are those of the f32 rows, and only the
/// few of them that matter are read.
///
/// ```
/// use tercet::{Distance, Matrix, TopK};
///
/// let stored = [0f32, 0.0, 3.0, 4.0, 0.0, 1.0, 0.0, -1.0];
/// let top = TopK { k: 3, distance: Distance::Euclidean, ..Default::default() };
/// let (mut distances, mut indices) = ([0f32; 3], [0i64; 3]);
/// top.on(Matrix::new(&[0f32, 0.0], 2)?, Matrix::new(&stored, 2)?).search(&mut distances, &mut indices)?;
/// assert_eq!((distances, indices), ([0.0, 1.0, 1.0], [0, 2, 3]));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopK {
    /// How many rows to find for each query.
    pub k: usize,
    /// The distance `d`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// How exactly a CUDA device multiplies rows to rule them out; see [`Precision`]. It does not change the results.
    pub precision: Precision,
}

impl Default for TopK {
    /// One row, at the least squared Euclidean distance.
    fn default() -> Self {
        Self { k: 1, distance: Distance::default(), normalize: false, precision: Precision::default() }
    }
}

/// One search of a [`TopK`], begun by [`TopK::on`]; [`own`](Self::own) and [`exact`](Self::exact) may be added to it, and
/// the last method runs it.
#[derive(Clone, Copy, Debug)]
#[must_use = "a search does nothing until its last method runs it"]
pub struct Search<I: SearchInput> {
    top_k: TopK,
    queries: I,
    stored: I::Stored,
    exact: Option<I::Exact>,
    own: Own<I::Labels>,
}

/// Queries that a search takes: a [`Matrix`] in memory or a `&Tensor`. The trait is sealed, as [`Input`] is.
pub trait SearchInput: Input {
    /// The stored rows that go with them.
    type Stored;
    /// The f32 rows that stored ones were rounded from.
    type Exact;
}

impl<'a, T: Element> SearchInput for Matrix<'a, T> {
    type Stored = Stored<'a>;
    type Exact = Matrix<'a, f32>;
}

/// The options and shapes of a search, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopKProblem {
    pub queries: usize,
    pub rows: usize,
    pub dim: usize,
    pub k: usize,
    pub distance: Distance,
    /// Whether rows are divided by their norm first, for the cosine distance too.
    pub normalize: bool,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU knows one precision"))]
    pub precision: Precision,
}

impl TopK {
    /// Begins a search for the rows nearest to each of `queries` among `stored`: on slices a [`Matrix`] and what is a
    /// [`Stored`], on tensors two of them.
    pub fn on<I: SearchInput>(&self, queries: I, stored: impl Into<I::Stored>) -> Search<I> {
        Search { top_k: *self, queries, stored: stored.into(), exact: None, own: Own::None }
    }

    /// Checks the shapes of a search.
    pub(crate) fn checked(&self, queries: [usize; 2], stored: [usize; 2]) -> Result<TopKProblem, Error> {
        if self.k == 0 {
            return Err(Error::argument("k", "at least 1", "0"));
        }
        check_rows("queries", queries)?;
        check_sizes("stored", stored)?;
        if stored[1] != queries[1] {
            let expected = format!("rows of {} numbers, as the queries", queries[1]);
            return Err(Error::argument("stored", expected, format!("{stored:?}")));
        }
        if queries[0].checked_mul(self.k).is_none_or(|count| count > isize::MAX as usize / 8) {
            let expected = format!("no more results for {} queries than memory has addresses for", queries[0]);
            return Err(Error::argument("k", expected, self.k.to_string()));
        }
        Ok(TopKProblem {
            queries: queries[0],
            rows: stored[0],
            dim: queries[1],
            k: self.k,
            distance: self.distance,
            normalize: self.normalize || self.distance == Distance::Cosine,
            precision: self.precision,
        })
    }
}

impl<I: SearchInput> Search<I> {
    /// Says which stored row each query is itself: that row is never its neighbour. Queries are to this what anchors are
    /// to a [`Reference`](crate::Reference).
    pub fn own(self, own: Own<I::Labels>) -> Self {
        Self { own, ..self }
    }

    /// Decides by these f32 rows between all rows that the rounding of the stored ones leaves open, and gives the distances
    /// to these: the answers are those of a search among these rows.
    ///
    /// The stored rows must be these rounded to the nearest f16 or bf16, or by [`Int8Rows::quantize`].
    pub fn exact(self, rows: I::Exact) -> Self {
        Self { exact: Some(rows), ..self }
    }
}

impl<T: Element> Search<Matrix<'_, T>> {
    /// Writes the distances of the nearest rows, ascending, and their indices, both `[Q, k]`; what they held before is
    /// overwritten.
    ///
    /// # Errors
    /// If `k` is 0, there is no query, rows differ in length, the stored type does not go with the queries', there are not
    /// as many exact rows as stored ones, or an output has not `Q k` numbers.
    pub fn search(self, distances: &mut [T::Scalar], indices: &mut [i64]) -> Result<(), Error> {
        let Self { top_k, queries, stored, exact, own } = self;
        let problem = top_k.checked([queries.rows(), queries.dim()], stored.shape())?;
        check_exact(exact.map(|exact| [exact.rows(), exact.dim()]), stored.shape())?;
        if let Own::Rows(rows) = own {
            check_len("own", rows.len(), problem.queries)?;
        }
        check_len("distances", distances.len(), problem.queries * problem.k)?;
        check_len("indices", indices.len(), problem.queries * problem.k)?;
        cpu::search(&problem, &queries, &stored, exact, own, distances, indices)
    }
}

/// Whether there is one exact row for each stored one.
pub(crate) fn check_exact(exact: Option<[usize; 2]>, stored: [usize; 2]) -> Result<(), Error> {
    match exact.filter(|exact| *exact != stored) {
        Some(exact) => Err(Error::argument("exact", format!("{stored:?}, as the stored rows"), format!("{exact:?}"))),
        None => Ok(()),
    }
}

/// The error of queries and stored rows whose types do not go together.
pub(crate) fn wrong_types(queries: &str, stored: &str) -> Error {
    let expected = if queries == "f64" { "f64, as the queries" } else { "f32, f16, bf16 or int8" };
    Error::argument("stored", expected, stored)
}
