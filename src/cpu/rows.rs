//! One row of each of K matrices, looked at together, a vector register at a time: the counterpart of
//! kernels/rows.cuh. Everything is inlined into a function that [`pulp`] compiles for the processor it finds.

use pulp::Simd;

use super::simd::V;
use super::store;
use crate::{Element, Scalar};

/// Registers of running sums per sum: enough to hide the latency of an addition.
const SUMS: usize = 2;

/// Registers of a gradient row that are computed before they are stored.
const STEP: usize = 4;

/// Row `b` of K matrices.
pub(crate) struct Rows<'a, S, A, const K: usize> {
    pub simd: S,
    pub x: [&'a [A]; K],
}

/// Where the K numbers made of each row go.
pub(crate) struct Targets<'a, T, const K: usize> {
    pub to: [Option<&'a mut [T]>; K],
    /// Past the cache.
    pub stream: bool,
}

impl<T, const K: usize> Targets<'_, T, K> {
    #[inline(always)]
    pub fn any(&self) -> bool {
        self.to.iter().any(Option::is_some)
    }
}

impl<S: Simd, A: Scalar, const K: usize> Rows<'_, S, A, K> {
    /// Whole registers of each row, and how many there are.
    #[inline(always)]
    fn registers(&self) -> ([&[A::Register<S>]; K], usize) {
        let registers = self.x.map(
            #[inline(always)]
            |row| A::registers::<S>(row).0,
        );
        let count = registers[0].len();
        // What `at` relies on.
        assert!(registers.iter().all(|row| row.len() == count), "rows of one length");
        (registers, count)
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
                // SAFETY: every row has `count` registers (checked there), and `i` is below that (the caller's contract).
                V { simd: self.simd, register: unsafe { *row.get_unchecked(i) } }
            },
        )
    }

    /// What is left of each row after whole registers, with zeros behind, and how many numbers that is.
    #[inline(always)]
    fn rest(&self) -> ([V<S, A>; K], usize) {
        let rests = self.x.map(
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

    /// The sums over the row of the M numbers that `f` makes of each K elements, always in the same order.
    #[inline(always)]
    pub fn sums<const M: usize>(&self, f: impl Fn([V<S, A>; K]) -> [V<S, A>; M]) -> [A; M] {
        let mut sums = [[V::splat(self.simd, A::ZERO); M]; SUMS];
        let (registers, count) = self.registers();
        let mut i = 0;
        while i + SUMS <= count {
            for (lag, sums) in sums.iter_mut().enumerate() {
                // SAFETY: i + lag < i + SUMS <= count.
                let terms = f(unsafe { self.at(&registers, i + lag) });
                for m in 0..M {
                    sums[m] = sums[m] + terms[m];
                }
            }
            i += SUMS;
        }
        while i < count {
            // SAFETY: i < count.
            let terms = f(unsafe { self.at(&registers, i) });
            for m in 0..M {
                sums[0][m] = sums[0][m] + terms[m];
            }
            i += 1;
        }
        let (rest, len) = self.rest();
        if len > 0 {
            let terms = f(rest);
            for m in 0..M {
                sums[1][m] = sums[1][m] + terms[m].first(len);
            }
        }
        std::array::from_fn(
            #[inline(always)]
            |m| (sums[0][m] + sums[1][m]).sum(),
        )
    }

    /// The maxima over the row, likewise, of numbers that are 0 or more. NaN wins.
    #[inline(always)]
    pub fn maxima<const M: usize>(&self, f: impl Fn([V<S, A>; K]) -> [V<S, A>; M]) -> [A; M] {
        let mut maxima = [V::splat(self.simd, A::ZERO); M];
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

    /// Writes the K numbers that `f` makes of each K elements to the targets.
    #[inline(always)]
    pub fn map<T: Element<Scalar = A>>(
        &self,
        targets: &mut Targets<'_, T, K>,
        f: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
    ) {
        let lanes = size_of::<A::Register<S>>() / size_of::<A>();
        let (registers, count) = self.registers();
        let mut step = [[A::splat(self.simd, A::ZERO); STEP]; K];
        let mut i = 0;
        while i + STEP <= count {
            #[allow(clippy::needless_range_loop, reason = "the register of each of K rows")]
            for at in 0..STEP {
                // SAFETY: i + at < i + STEP <= count.
                let y = f(unsafe { self.at(&registers, i + at) });
                for k in 0..K {
                    step[k][at] = y[k].register;
                }
            }
            for (to, step) in targets.to.iter_mut().zip(&step) {
                if let Some(to) = to {
                    put(bytemuck::cast_slice(step), &mut to[i * lanes..(i + STEP) * lanes], targets.stream);
                }
            }
            i += STEP;
        }
        while i < count {
            // SAFETY: i < count.
            let y = f(unsafe { self.at(&registers, i) });
            for (to, y) in targets.to.iter_mut().zip(&y) {
                if let Some(to) = to {
                    put(y.lanes(), &mut to[i * lanes..(i + 1) * lanes], targets.stream);
                }
            }
            i += 1;
        }
        let (rest, len) = self.rest();
        if len > 0 {
            let y = f(rest);
            for (to, y) in targets.to.iter_mut().zip(&y) {
                if let Some(to) = to {
                    put(&y.lanes()[..len], &mut to[count * lanes..], targets.stream);
                }
            }
        }
    }
}

/// The most numbers that [`put`] takes: [`STEP`] registers of 64 bytes.
const PUT: usize = STEP * 64 / size_of::<f32>();

/// Rounds and stores some of a gradient row.
#[inline(always)]
fn put<T: Element>(from: &[T::Scalar], to: &mut [T], stream: bool) {
    match (T::as_scalars_mut(to), stream) {
        (Some(to), true) => store::stream(from, to),
        (Some(to), false) => to.copy_from_slice(from),
        (None, _) => {
            let mut rounded = [T::default(); PUT];
            let rounded = &mut rounded[..from.len()];
            T::narrow(from, rounded);
            if stream { store::stream(rounded, to) } else { to.copy_from_slice(rounded) }
        }
    }
}
