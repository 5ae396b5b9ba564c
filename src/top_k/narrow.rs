//! Sums over rows of numbers of fewer bits than f32, which are decoded in registers: to write them out first would take
//! longer than to read them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m256i, _mm_add_epi32, _mm_add_ps, _mm_add_ss, _mm_cvtsi128_si32, _mm_cvtss_f32, _mm_loadu_si128,
    _mm_movehdup_ps, _mm_movehl_ps, _mm_shuffle_epi32, _mm256_abs_epi8, _mm256_add_epi32, _mm256_add_ps,
    _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmpeq_epi8, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_min_epi8, _mm256_movemask_epi8,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8, _mm256_slli_epi32,
    _mm256_sub_ps,
};

use half::{bf16, f16};

use super::stored::Sums;

/// A number of fewer bits than f32.
pub(super) trait Narrow: Copy {
    fn decode(self) -> f32;
    /// Decodes as many numbers as a register takes.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn decode_all(x: &[Self; LANES]) -> __m256;
}

/// Numbers in a register of AVX2.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 8;

impl Narrow for f16 {
    fn decode(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn decode_all(x: &[Self; LANES]) -> __m256 {
        // SAFETY: the processor has the instructions (the contract), and 16 bytes are read where 16 bytes are.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())) }
    }
}

impl Narrow for bf16 {
    fn decode(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn decode_all(x: &[Self; LANES]) -> __m256 {
        // SAFETY: as for f16.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast())), 16)) }
    }
}

/// Sums over rows and a query; `row(k)` is row k.
pub(super) fn sums<'a, Q: Narrow + 'a>(row: impl Fn(usize) -> &'a [Q], query: &[f32], sums: Sums<'_, f32>) {
    match (sums.products, !sums.squares.is_empty()) {
        (false, false) => of_rows::<Q, false, false>(row, query, sums),
        (false, true) => of_rows::<Q, false, true>(row, query, sums),
        (true, false) => of_rows::<Q, true, false>(row, query, sums),
        (true, true) => of_rows::<Q, true, true>(row, query, sums),
    }
}

fn of_rows<'a, Q: Narrow + 'a, const PRODUCTS: bool, const SQUARES: bool>(
    row: impl Fn(usize) -> &'a [Q],
    query: &[f32],
    sums: Sums<'_, f32>,
) {
    #[cfg(target_arch = "x86_64")]
    if has_registers() {
        // SAFETY: the processor has the instructions.
        return unsafe { by_registers::<Q, PRODUCTS, SQUARES>(row, query, sums) };
    }
    for (k, main) in sums.main.iter_mut().enumerate() {
        let [of_main, square] = one_by_one::<Q, PRODUCTS, SQUARES>(row(k), query);
        *main = of_main;
        if SQUARES {
            sums.squares[k] = square;
        }
    }
}

/// Whether the processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
fn has_registers() -> bool {
    std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c")
}

/// Sums over a row and a query, of 8 numbers each so that they do not wait for each other.
fn one_by_one<Q: Narrow, const PRODUCTS: bool, const SQUARES: bool>(x: &[Q], query: &[f32]) -> [f32; 2] {
    let mut sums = [[0.0f32; 8]; 2];
    for (x, query) in x.chunks(8).zip(query.chunks(8)) {
        for (l, (x, query)) in x.iter().zip(query).enumerate() {
            let (x, e) = (x.decode(), x.decode() - query);
            sums[0][l] += if PRODUCTS { x * query } else { e * e };
            sums[1][l] += if SQUARES { x * x } else { 0.0 };
        }
    }
    sums.map(|sums| sums.iter().sum())
}

/// Registers that each sum is spread over.
#[cfg(target_arch = "x86_64")]
const SUMS: usize = 4;

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn by_registers<'a, Q: Narrow + 'a, const PRODUCTS: bool, const SQUARES: bool>(
    row: impl Fn(usize) -> &'a [Q],
    query: &[f32],
    sums: Sums<'_, f32>,
) {
    let (queries, query_rest) = query.as_chunks::<LANES>();
    let (queries_by_four, queries_few) = queries.as_chunks::<SUMS>();
    for (k, to) in sums.main.iter_mut().enumerate() {
        let x = row(k);
        assert_eq!(x.len(), query.len(), "rows of one length");
        let (chunks, rest) = x.as_chunks::<LANES>();
        let (by_four, few) = chunks.as_chunks::<SUMS>();
        let mut main = [_mm256_setzero_ps(); SUMS];
        let mut squares = main;
        for (x, query) in by_four.iter().zip(queries_by_four) {
            for lag in 0..SUMS {
                // SAFETY: the processor has the instructions (this function's contract).
                let [of_main, square] =
                    unsafe { add::<Q, PRODUCTS, SQUARES>([main[lag], squares[lag]], &x[lag], &query[lag]) };
                (main[lag], squares[lag]) = (of_main, square);
            }
        }
        for (x, query) in few.iter().zip(queries_few) {
            // SAFETY: as above.
            [main[0], squares[0]] = unsafe { add::<Q, PRODUCTS, SQUARES>([main[0], squares[0]], x, query) };
        }
        let [of_main, square] = one_by_one::<Q, PRODUCTS, SQUARES>(rest, query_rest);
        *to = total(main) + of_main;
        if SQUARES {
            sums.squares[k] = total(squares) + square;
        }
    }
}

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn add<Q: Narrow, const PRODUCTS: bool, const SQUARES: bool>(
    [main, squares]: [__m256; 2],
    x: &[Q; LANES],
    query: &[f32; LANES],
) -> [__m256; 2] {
    // SAFETY: the processor has the instructions (the contract), and 32 bytes are read where 32 bytes are.
    unsafe {
        let (x, query) = (Q::decode_all(x), _mm256_loadu_ps(query.as_ptr()));
        let e = _mm256_sub_ps(x, query);
        let main = if PRODUCTS { _mm256_fmadd_ps(x, query, main) } else { _mm256_fmadd_ps(e, e, main) };
        [main, if SQUARES { _mm256_fmadd_ps(x, x, squares) } else { squares }]
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn total(sums: [__m256; SUMS]) -> f32 {
    let four = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let two = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
    let one = _mm_add_ps(two, _mm_movehl_ps(two, two));
    _mm_cvtss_f32(_mm_add_ss(one, _mm_movehdup_ps(one)))
}

/// A query as integers, too: with rows of integers its products are exact, and many are computed by one instruction.
pub(super) struct Coarse {
    integers: Vec<i8>,
    scale: f32,
    /// How far the query is from the integers times the scale.
    pub lost: f32,
}

/// The longest rows of integers whose products fit into 32 bits.
const LONGEST: usize = 1 << 16;

impl Coarse {
    /// `None` for rows that are too long.
    pub fn new(x: &[f32]) -> Option<Self> {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        if x.len() > LONGEST || !largest.is_finite() {
            return None;
        }
        let scale = (largest / 127.0).max(f32::MIN_POSITIVE);
        let integers: Vec<i8> = x.iter().map(|x| (x / scale).round().clamp(-127.0, 127.0) as i8).collect();
        let lost = x.iter().zip(&integers).map(|(x, q)| (f64::from(*x) - f64::from(scale) * f64::from(*q)).powi(2));
        Some(Self { scale, lost: (lost.sum::<f64>().sqrt() * 1.001) as f32, integers })
    }

    /// The products of rows with the integers, and the rows' squares, times `scales`.
    pub fn sums<'a>(&self, row: impl Fn(usize) -> &'a [i8], scales: &[f32], sums: Sums<'_, f32>) {
        for ((k, main), scale) in sums.main.iter_mut().enumerate().zip(scales) {
            let x = row(k);
            assert_eq!(x.len(), self.integers.len(), "rows of one length");
            #[cfg(target_arch = "x86_64")]
            let [product, square] = match has_registers() {
                // SAFETY: the processor has the instructions, and the rows are no longer than `LONGEST`.
                true => unsafe { integer_sums(x, &self.integers) },
                false => integer_sums_one_by_one(x, &self.integers),
            };
            #[cfg(not(target_arch = "x86_64"))]
            let [product, square] = integer_sums_one_by_one(x, &self.integers);
            *main = product as f32 * (self.scale * scale);
            sums.squares[k] = square as f32 * (scale * scale);
        }
    }
}

/// `Σ x y` and `Σ x²`.
fn integer_sums_one_by_one(x: &[i8], y: &[i8]) -> [i32; 2] {
    let products = x.iter().zip(y).map(|(x, y)| i32::from(*x) * i32::from(*y));
    [products.sum(), x.iter().map(|x| i32::from(*x).pow(2)).sum()]
}

/// `Σ x y` and `Σ x²`; y has no -128.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn integer_sums(x: &[i8], y: &[i8]) -> [i32; 2] {
    const BYTES: usize = 32;
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<BYTES>(), y.as_chunks::<BYTES>());
    let ones = _mm256_set1_epi16(1);
    let (mut products, mut squares, mut least) = (_mm256_setzero_si256(), _mm256_setzero_si256(), ones);
    for (x, y) in xs.iter().zip(ys) {
        // SAFETY: 32 bytes are read where 32 bytes are.
        let (x, y) = unsafe { (_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(y.as_ptr().cast())) };
        least = _mm256_min_epi8(least, x);
        // One factor of this product has no sign. Two products of 127 at most fit into 16 bits.
        let size = _mm256_abs_epi8(x);
        let product = _mm256_maddubs_epi16(size, _mm256_sign_epi8(y, x));
        products = _mm256_add_epi32(products, _mm256_madd_epi16(product, ones));
        squares = _mm256_add_epi32(squares, _mm256_madd_epi16(_mm256_maddubs_epi16(size, size), ones));
    }
    // The size of -128 is no number of 8 bits with a sign, and two of its squares are none of 16.
    if _mm256_movemask_epi8(_mm256_cmpeq_epi8(least, _mm256_set1_epi8(i8::MIN))) != 0 {
        return integer_sums_one_by_one(x, y);
    }
    let total = |sums: __m256i| {
        let four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0b00_00_11_10));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)))
    };
    let [product, square] = integer_sums_one_by_one(x_rest, y_rest);
    [total(products) + product, total(squares) + square]
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// -128 too, whose size and whose square need more bits than those of the others.
    #[test]
    fn sums_of_integers_are_exact_by_registers() {
        if !has_registers() {
            return;
        }
        for len in 0..200 {
            for least in [i8::MIN, -127] {
                let x: Vec<i8> = (0..len).map(|i| if i % 3 < 2 { least } else { (i * 37 % 251) as i8 }).collect();
                let y: Vec<i8> = (0..len).map(|i| (i * 53 % 255 - 127) as i8).collect();
                // SAFETY: the processor has the instructions.
                let sums = unsafe { integer_sums(&x, &y) };
                assert_eq!(sums, integer_sums_one_by_one(&x, &y), "{len} numbers from {least} on");
            }
        }
    }
}
