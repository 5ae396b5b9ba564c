//! One row of each of K matrices, looked at together, a vector register at a time: the counterpart of
//! kernels/rows.cuh. Everything is inlined into a function that [`pulp`] compiles for the processor it finds.

use pulp::Simd;

use super::simd::V;
use crate::Scalar;

/// Registers that each sum is spread over: with two sums enough to hide the latency of an addition.
const SUMS: usize = 4;

/// The same row of K matrices.
pub(crate) struct Rows<'a, S, A, const K: usize> {
    simd: S,
    rows: [&'a [A]; K],
}

impl<'a, S: Simd, A: Scalar, const K: usize> Rows<'a, S, A, K> {
    /// # Panics
    /// If the rows are not of one length.
    #[inline(always)]
    pub fn new(simd: S, rows: [&'a [A]; K]) -> Self {
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "rows of one length");
        Self { simd, rows }
    }

    /// The same number in every lane.
    #[inline(always)]
    pub fn splat(&self, x: A) -> V<S, A> {
        V::splat(self.simd, x)
    }

    /// The row of matrix `k`.
    #[inline(always)]
    pub fn row(&self, k: usize) -> &'a [A] {
        self.rows[k]
    }

    /// Whole registers of each row, and how many there are.
    #[inline(always)]
    fn registers(&self) -> ([&'a [A::Register<S>]; K], usize) {
        let registers = self.rows.map(
            #[inline(always)]
            |row| A::registers::<S>(row).0,
        );
        (registers, registers[0].len())
    }

    /// Register `i` of each row.
    ///
    /// # Safety
    /// `i` is below the count that came with `registers`.
    #[inline(always)]
    unsafe fn at(&self, registers: &[&[A::Register<S>]; K], i: usize) -> [V<S, A>; K] {
        registers.map(
            #[inline(always)]
            |row| {
                // SAFETY: rows of one length (`new`) have equally many registers; `i` is below that (the contract).
                V { simd: self.simd, register: unsafe { *row.get_unchecked(i) } }
            },
        )
    }

    /// What is left of each row after whole registers, with zeros behind, and how many numbers that is.
    #[inline(always)]
    fn rest(&self) -> ([V<S, A>; K], usize) {
        let rests = self.rows.map(
            #[inline(always)]
            |row| A::registers::<S>(row).1,
        );
        (
            rests.map(
                #[inline(always)]
                |rest| V { simd: self.simd, register: A::load_part(self.simd, rest) },
            ),
            rests[0].len(),
        )
    }

    /// M sums over the row, always in the same order: `f(x, sums)` adds what it makes of the K elements of a column.
    #[inline(always)]
    pub fn sums<const M: usize>(&self, f: impl Fn([V<S, A>; K], [V<S, A>; M]) -> [V<S, A>; M]) -> [A; M] {
        let mut sums = [[self.splat(A::ZERO); M]; SUMS];
        let (registers, count) = self.registers();
        let mut i = 0;
        while i + SUMS <= count {
            for (lag, sums) in sums.iter_mut().enumerate() {
                // SAFETY: i + lag < i + SUMS <= count.
                *sums = f(unsafe { self.at(&registers, i + lag) }, *sums);
            }
            i += SUMS;
        }
        while i < count {
            // SAFETY: i < count.
            sums[0] = f(unsafe { self.at(&registers, i) }, sums[0]);
            i += 1;
        }
        let (rest, len) = self.rest();
        if len > 0 {
            let terms = f(rest, [self.splat(A::ZERO); M]);
            for m in 0..M {
                sums[1][m] = sums[1][m] + terms[m].first(len);
            }
        }
        std::array::from_fn(
            #[inline(always)]
            |m| ((sums[0][m] + sums[1][m]) + (sums[2][m] + sums[3][m])).sum(),
        )
    }

    /// The maxima over the row of the M numbers, 0 or more, that `f` makes of the K elements of each column. NaN wins.
    #[inline(always)]
    pub fn maxima<const M: usize>(&self, f: impl Fn([V<S, A>; K]) -> [V<S, A>; M]) -> [A; M] {
        let mut maxima = [self.splat(A::ZERO); M];
        #[allow(clippy::eq_op, reason = "NaN")]
        let larger = |x: A, y: A| if y > x || y != y { y } else { x };
        let (registers, count) = self.registers();
        for i in 0..count {
            // SAFETY: i < count.
            let terms = f(unsafe { self.at(&registers, i) });
            for m in 0..M {
                maxima[m] = maxima[m].zip(terms[m], larger);
            }
        }
        let (rest, len) = self.rest();
        if len > 0 {
            let terms = f(rest);
            for m in 0..M {
                maxima[m] = maxima[m].zip(terms[m].first(len), larger);
            }
        }
        maxima.map(|m| m.lanes().iter().copied().fold(A::ZERO, larger))
    }

    /// Writes to `to` the K numbers that `f` makes of the K elements of each column.
    ///
    /// # Panics
    /// If `to` has not rows of the same length.
    #[inline(always)]
    pub fn map(&self, to: [&mut [A]; K], f: impl Fn([V<S, A>; K]) -> [V<S, A>; K]) {
        assert!(to.iter().all(|to| to.len() == self.rows[0].len()), "targets of the rows' length");
        let (registers, count) = self.registers();
        let to = to.map(
            #[inline(always)]
            |to| A::registers_mut::<S>(to),
        );
        for i in 0..count {
            // SAFETY: i < count.
            let y = f(unsafe { self.at(&registers, i) });
            for k in 0..K {
                // SAFETY: i < count, and a target of the rows' length (asserted above) has as many registers.
                unsafe { *to[k].0.get_unchecked_mut(i) = y[k].register };
            }
        }
        let (rest, len) = self.rest();
        if len > 0 {
            let y = f(rest);
            for k in 0..K {
                A::store_part(self.simd, to[k].1, y[k].register);
            }
        }
    }
}

/// `to += weight x`, or with `y` `to += weight (x - y)`.
///
/// # Panics
/// If the rows are not of one length.
#[inline(always)]
pub(crate) fn add_scaled<S: Simd, A: Scalar>(simd: S, to: &mut [A], weight: A, x: &[A], y: Option<&[A]>) {
    assert!(x.len() == to.len() && y.is_none_or(|y| y.len() == to.len()), "rows of one length");
    let weight = V::<S, A>::splat(simd, weight);
    let (to, to_rest) = A::registers_mut::<S>(to);
    let (x, x_rest) = A::registers::<S>(x);
    let load = |register| V { simd, register };
    let part = |rest: &[A]| V { simd, register: A::load_part(simd, rest) };
    match y {
        None => {
            for (to, x) in to.iter_mut().zip(x) {
                *to = weight.mul_add(load(*x), load(*to)).register;
            }
            if !to_rest.is_empty() {
                let sum = weight.mul_add(part(x_rest), part(to_rest));
                A::store_part(simd, to_rest, sum.register);
            }
        }
        Some(y) => {
            let (y, y_rest) = A::registers::<S>(y);
            for ((to, x), y) in to.iter_mut().zip(x).zip(y) {
                *to = weight.mul_add(load(*x) - load(*y), load(*to)).register;
            }
            if !to_rest.is_empty() {
                let sum = weight.mul_add(part(x_rest) - part(y_rest), part(to_rest));
                A::store_part(simd, to_rest, sum.register);
            }
        }
    }
}
