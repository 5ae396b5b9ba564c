//! The rows that a search looks among, in the type that they are stored in.

use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use super::narrow;
use crate::cpu::batch::{dot, squares};
use crate::cpu::rows::Rows;
use crate::element::{ByElement, ElementFn};
use crate::matrix::check_len;
use crate::{Element, Error, Matrix, Scalar};

/// Rows that [`TopK`](crate::TopK) looks among: a [`Matrix`] of f32, f64, f16 or bf16, or [`Int8Rows`]. There may be none.
///
/// Each of them turns into this by itself: `top_k.on(queries, matrix)`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Stored<'a> {
    /// Rows of f32.
    F32(Matrix<'a, f32>),
    /// Rows of f64, for queries of f64.
    F64(Matrix<'a, f64>),
    /// Rows of f16.
    F16(Matrix<'a, f16>),
    /// Rows of bf16.
    Bf16(Matrix<'a, bf16>),
    /// Rows of integers with a scale each.
    Int8(Int8Rows<'a>),
}

impl<'a, T: Element> From<Matrix<'a, T>> for Stored<'a> {
    fn from(rows: Matrix<'a, T>) -> Self {
        T::of(&OF_MATRIX)(rows)
    }
}

struct OfMatrix;
impl ElementFn for OfMatrix {
    type Of<T: Element> = fn(Matrix<'_, T>) -> Stored<'_>;
}
static OF_MATRIX: ByElement<OfMatrix> =
    ByElement { f32: |x| Stored::F32(x), f64: |x| Stored::F64(x), f16: |x| Stored::F16(x), bf16: |x| Stored::Bf16(x) };

impl<'a> From<Int8Rows<'a>> for Stored<'a> {
    fn from(rows: Int8Rows<'a>) -> Self {
        Self::Int8(rows)
    }
}

impl Stored<'_> {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        match self {
            Self::F32(rows) => [rows.rows(), rows.dim()],
            Self::F64(rows) => [rows.rows(), rows.dim()],
            Self::F16(rows) => [rows.rows(), rows.dim()],
            Self::Bf16(rows) => [rows.rows(), rows.dim()],
            Self::Int8(rows) => [rows.rows(), rows.dim()],
        }
    }

    /// The name of the type of the numbers.
    pub(crate) fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => f32::NAME,
            Self::F64(_) => f64::NAME,
            Self::F16(_) => f16::NAME,
            Self::Bf16(_) => bf16::NAME,
            Self::Int8(_) => "int8",
        }
    }
}

/// The largest integer of [`Int8Rows`]: the range is symmetric.
const LARGEST: f32 = 127.0;

/// Rows of 8-bit integers with a scale each, a quarter of the bytes of f32: number `c` of row `j` is
/// `scales[j] * data[j * dim + c]`, rounded to f32.
///
/// ```
/// use tercet::{Int8Rows, Matrix};
///
/// let rows = Matrix::new(&[0.5f32, -1.27, 3.0, 0.0], 2)?;
/// let (mut data, mut scales) = ([0i8; 4], [0f32; 2]);
/// let stored = Int8Rows::quantize(rows, &mut data, &mut scales)?;
/// assert_eq!((stored.rows(), stored.dim()), (2, 2));
/// assert_eq!(data, [50, -127, 127, 0]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Int8Rows<'a> {
    data: &'a [i8],
    scales: &'a [f32],
    dim: usize,
}

impl<'a> Int8Rows<'a> {
    /// Rows of `dim` integers, one after another, and a scale for each.
    ///
    /// # Errors
    /// If `dim` is 0, or there are not `dim` integers for each scale.
    pub fn new(data: &'a [i8], scales: &'a [f32], dim: usize) -> Result<Self, Error> {
        if dim == 0 {
            return Err(Error::argument("dim", "at least 1", "0"));
        }
        if scales.len().checked_mul(dim) != Some(data.len()) {
            let expected = format!("{dim} integers for each of {} scales", scales.len());
            return Err(Error::argument("data", expected, data.len().to_string()));
        }
        Ok(Self { data, scales, dim })
    }

    /// Rounds each row to integers: its scale is the largest magnitude over 127, so that none is cut off and every number
    /// is off by half a scale at most, beside rounding. A row with NaN or infinity gets the scale NaN, and is no neighbour.
    ///
    /// # Errors
    /// If `data` has not as many integers as `rows` has numbers, or there is not one scale a row.
    pub fn quantize(rows: Matrix<'_, f32>, data: &'a mut [i8], scales: &'a mut [f32]) -> Result<Self, Error> {
        let dim = rows.dim();
        check_len("data", data.len(), rows.rows() * dim)?;
        check_len("scales", scales.len(), rows.rows())?;
        for (j, (to, scale)) in data.chunks_exact_mut(dim).zip(scales.iter_mut()).enumerate() {
            let row = rows.row(j);
            let largest = row.iter().fold(0f32, |m, x| if x.is_finite() { m.max(x.abs()) } else { f32::NAN });
            let finite = row.iter().all(|x| x.is_finite());
            // Below, the quotients of a scale that lost its last bits would leave the range.
            *scale = if finite { (largest / LARGEST).max(f32::MIN_POSITIVE) } else { f32::NAN };
            for (to, x) in to.iter_mut().zip(row) {
                *to = (x / *scale).round_ties_even().clamp(-LARGEST, LARGEST) as i8;
            }
        }
        Self::new(data, scales, dim)
    }

    /// The number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// The numbers in a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }
}

/// By how much a number of T may differ from the one that was rounded to it: the first times its size, and the second.
pub(crate) fn rounding_of<T: Element>() -> [f64; 2] {
    match T::NAME {
        // Half a unit of the last place, and half of the least number.
        "f16" => [1.0 / 2048.0, 1.0 / f64::from(1 << 25)],
        // Half of the least number is below what f32 computes with.
        "bf16" => [1.0 / 256.0, 0.0],
        _ => [0.0; 2],
    }
}

/// By how much a number of [`Int8Rows`] may differ from the one that was rounded to it, over the row's scale.
pub(crate) const INT8_ROUNDING: f32 = 0.5;

/// Stored rows as a search reads them.
pub(crate) trait Source<A>: Sync {
    /// Row j in place, if it is stored in the type of arithmetic.
    fn in_place(&self, j: usize) -> Option<&[A]>;
    /// Writes the rows from `first` on, as many as `to` has room for, in the type of arithmetic.
    fn widen(&self, first: usize, to: &mut [A]);
    /// Sums over each of the rows from `first` on, as many as `sums` has room for; see [`Sums`].
    fn sums(&self, first: usize, query: &Query<'_, A>, sums: Sums<'_, A>);
    /// Whether `sums` wants products and squares, whatever the distance.
    fn by_products(&self) -> bool {
        false
    }
    /// A query made ready for `sums`.
    fn query<'a>(&self, x: &'a [A]) -> Query<'a, A> {
        Query { x, coarse: None }
    }
    /// By how much a number x may differ from the one that was rounded to it: this times |x|, and [`absolute`](Self::absolute).
    fn relative(&self) -> A;
    /// See [`relative`](Self::relative), for the numbers of each of the rows from `first` on.
    fn absolute(&self, first: usize, to: &mut [A]);
}

/// A query of [`Source::sums`].
pub(crate) struct Query<'a, A> {
    pub x: &'a [A],
    coarse: Option<narrow::Coarse>,
}

impl<A> Query<'_, A> {
    /// How far the query is from what its products are taken with.
    pub fn lost(&self) -> f32 {
        self.coarse.as_ref().map_or(0.0, |coarse| coarse.lost)
    }
}

/// What is summed up over rows x and a query q, one number a row.
pub(crate) struct Sums<'a, A> {
    /// `Σ (x - q)²` or, if `products`, `Σ x q`.
    pub main: &'a mut [A],
    pub products: bool,
    /// `Σ x²`; empty: not wanted.
    pub squares: &'a mut [A],
}

impl<T: Element> Source<T::Scalar> for Matrix<'_, T> {
    fn in_place(&self, j: usize) -> Option<&[T::Scalar]> {
        T::as_scalars(self.row(j))
    }

    fn widen(&self, first: usize, to: &mut [T::Scalar]) {
        for (j, to) in (first..).zip(to.chunks_exact_mut(self.dim())) {
            T::widen(self.row(j), to);
        }
    }

    fn sums(&self, first: usize, query: &Query<'_, T::Scalar>, sums: Sums<'_, T::Scalar>) {
        T::of(&OF_ELEMENTS)(self, first, query.x, sums);
    }

    fn relative(&self) -> T::Scalar {
        T::Scalar::from_f64(rounding_of::<T>()[0])
    }

    fn absolute(&self, _: usize, to: &mut [T::Scalar]) {
        to.fill(T::Scalar::from_f64(rounding_of::<T>()[1]));
    }
}

impl Source<f32> for Int8Rows<'_> {
    fn in_place(&self, _: usize) -> Option<&[f32]> {
        None
    }

    fn widen(&self, first: usize, to: &mut [f32]) {
        let rows = first..first + to.len() / self.dim;
        let data = &self.data[rows.start * self.dim..rows.end * self.dim];
        pulp::Arch::new().dispatch(WidenInt8 { data, scales: &self.scales[rows], dim: self.dim, to });
    }

    fn sums(&self, first: usize, query: &Query<'_, f32>, sums: Sums<'_, f32>) {
        let row = |k: usize| &self.data[(first + k) * self.dim..][..self.dim];
        match &query.coarse {
            Some(coarse) => coarse.sums(row, &self.scales[first..], sums),
            None => {
                let Sums { main, squares: to, .. } = sums;
                let mut wide = vec![0.0; self.dim];
                for (k, (main, square)) in main.iter_mut().zip(to).enumerate() {
                    self.widen(first + k, &mut wide);
                    (*main, *square) = (dot(&wide, query.x), squares(&wide));
                }
            }
        }
    }

    fn by_products(&self) -> bool {
        true
    }

    fn query<'a>(&self, x: &'a [f32]) -> Query<'a, f32> {
        Query { x, coarse: narrow::Coarse::new(x) }
    }

    fn relative(&self) -> f32 {
        0.0
    }

    fn absolute(&self, first: usize, to: &mut [f32]) {
        // Integers are 127 at most: what is lost where they are multiplied is less than a thousandth of this.
        to.iter_mut().zip(&self.scales[first..]).for_each(|(to, scale)| *to = scale.abs() * INT8_ROUNDING);
    }
}

/// The work of [`Int8Rows`]' `widen`, which the compiler makes vector instructions of.
struct WidenInt8<'a> {
    data: &'a [i8],
    scales: &'a [f32],
    dim: usize,
    to: &'a mut [f32],
}

impl WithSimd for WidenInt8<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.data.chunks_exact(self.dim).zip(self.scales);
        for (to, (from, scale)) in self.to.chunks_exact_mut(self.dim).zip(rows) {
            for (to, q) in to.iter_mut().zip(from) {
                *to = f32::from(*q) * scale;
            }
        }
    }
}

struct OfElements;
impl ElementFn for OfElements {
    type Of<T: Element> = fn(&Matrix<'_, T>, usize, &[T::Scalar], Sums<'_, T::Scalar>);
}
static OF_ELEMENTS: ByElement<OfElements> =
    ByElement { f32: sums_in_place, f64: sums_in_place, f16: sums_of_f16, bf16: sums_of_bf16 };

fn sums_in_place<A: Scalar>(rows: &Matrix<'_, A>, first: usize, query: &[A], sums: Sums<'_, A>) {
    pulp::Arch::new().dispatch(InPlace { rows, first, query, sums });
}

/// Sums over rows in the type of arithmetic.
struct InPlace<'a, 'b, A> {
    rows: &'a Matrix<'b, A>,
    first: usize,
    query: &'a [A],
    sums: Sums<'a, A>,
}

impl<A: Scalar> WithSimd for InPlace<'_, '_, A> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, first, query, sums: Sums { main, products, squares } } = self;
        for (k, main) in main.iter_mut().enumerate() {
            let pair = Rows::new(simd, [rows.row(first + k), query]);
            if !squares.is_empty() {
                [squares[k]] = pair.sums(
                    #[inline(always)]
                    |[x, _], [sum]| [x.mul_add(x, sum)],
                );
            }
            [*main] = match products {
                true => pair.sums(
                    #[inline(always)]
                    |[x, q], [sum]| [x.mul_add(q, sum)],
                ),
                false => pair.sums(
                    #[inline(always)]
                    |[x, q], [sum]| {
                        let e = x - q;
                        [e.mul_add(e, sum)]
                    },
                ),
            };
        }
    }
}

fn sums_of_f16(rows: &Matrix<'_, f16>, first: usize, query: &[f32], sums: Sums<'_, f32>) {
    narrow::sums(|k| rows.row(first + k), query, sums);
}

fn sums_of_bf16(rows: &Matrix<'_, bf16>, first: usize, query: &[f32], sums: Sums<'_, f32>) {
    narrow::sums(|k| rows.row(first + k), query, sums);
}
