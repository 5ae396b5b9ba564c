//! Compares a tile's distances with the thresholds of its rows, and of its columns.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::thresholds::{LARGE, Thresholds};
use crate::Scalar;
use crate::cpu::simd::V;

/// What a sweep over all tiles counts and adds up.
pub struct Sums {
    /// c_ap of each pair, in the order of [`Thresholds`].
    pub counts: Vec<u32>,
    /// `Σ_an c_an d_an`, in parts.
    pub active_distances: Vec<f64>,
    /// `Σ d_an` over all triplets, in parts.
    pub distances: Vec<f64>,
}

/// Counts the active triplets of a tile with its rows as anchors, and with its columns as well if there are
/// [`Columns`]. The tile has `edge` numbers a row, a multiple of every register's width, MAX if not a negative.
pub struct Count<'a, A> {
    pub pairs: &'a Thresholds<A>,
    pub rows: Range<usize>,
    pub edge: usize,
    pub distances: &'a [A],
    /// c_an of both sides together, overwritten.
    pub counts: &'a mut [A],
    /// c_ap of the rows, added to; in large classes how many d are below this threshold and not below the one before.
    pub totals: &'a mut [u32],
    pub columns: Option<Columns<'a, A>>,
}

/// A tile's columns as anchors.
pub struct Columns<'a, A> {
    pub range: Range<usize>,
    /// c_ap of the columns, added to; in large classes as [`Count::totals`] are.
    pub totals: &'a mut [u32],
    pub scratch: &'a mut Scratch<A>,
}

/// What is known of columns while their tile is counted.
#[derive(Default)]
pub struct Scratch<A> {
    /// The size of the largest class that is not [`LARGE`].
    most: usize,
    any_large: bool,
    /// For each column its thresholds, and -∞ after them: registers of columns side by side, `most` after each other.
    thresholds: Vec<A>,
    /// For each of the `thresholds`, in the same places, how many distances are below it.
    found: Vec<A>,
    /// The largest threshold of each column.
    reach: Vec<A>,
    /// How many positives each column has.
    positives: Vec<A>,
}

/// What was found in a tile.
#[derive(Default)]
pub struct RowCount {
    /// Whether there is any active triplet.
    pub active: bool,
    /// `Σ_n c_an d_an`.
    pub active_distances: f64,
    /// `Σ d_an` over all triplets.
    pub distances: f64,
}

/// Thresholds that are compared together, so that their counts stay in registers.
const TOGETHER: usize = 4;

impl<A: Scalar> WithSimd for Count<'_, A> {
    type Output = RowCount;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> RowCount {
        let Self { pairs, rows, edge, distances, counts, totals, mut columns } = self;
        let base = pairs.start[rows.start];
        let mut found = RowCount::default();
        if let Some(columns) = &mut columns {
            columns.prepare(pairs, edge, V::<S, A>::LANES);
        }
        counts[rows.len() * edge..].fill(A::ZERO);
        for (i, (d, counts)) in rows.zip(distances.chunks_exact(edge).zip(counts.chunks_exact_mut(edge))) {
            counts.fill(A::ZERO);
            let (d_registers, _) = A::registers::<S>(d);
            let (mut least, mut sum) = (V::<S, A>::splat(simd, A::MAX), V::<S, A>::splat(simd, A::ZERO));
            let outside = least;
            for &d in d_registers {
                let d = V::<S, A> { simd, register: d };
                least = least.min(d);
                sum = d.if_below(outside).mul_add(d, sum);
            }
            found.distances += sum.sum().to_f64() * pairs.positives[i] as f64;
            let mut active = false;
            if least.smallest() < pairs.reach[i] {
                let thresholds = pairs.thresholds(i);
                let totals = &mut totals[pairs.start[i] - base..][..thresholds.len()];
                if thresholds.len() > LARGE {
                    for (d, count) in d.iter().zip(counts.iter_mut()).filter(|(d, _)| **d < pairs.reach[i]) {
                        *count = search(thresholds, *d, totals);
                    }
                } else {
                    compare(simd, thresholds, d, counts, totals);
                }
                active = true;
            }
            if let Some(columns) = &mut columns {
                active |= columns.count(simd, pairs, d, counts, &mut found.distances);
            }
            if active {
                found.active = true;
                let mut sum = V::<S, A>::splat(simd, A::ZERO);
                for (&d, &count) in d_registers.iter().zip(A::registers::<S>(counts).0) {
                    sum = V::<S, A> { simd, register: d }.mul_add(V { simd, register: count }, sum);
                }
                found.active_distances += sum.sum().to_f64();
            }
        }
        if let Some(columns) = columns {
            columns.finish(pairs, V::<S, A>::LANES);
        }
        found
    }
}

/// How many of the ascending `thresholds` are above `d`, which is below the last; counts the first in `totals`.
fn search<A: Scalar>(thresholds: &[A], d: A, totals: &mut [u32]) -> A {
    let above = thresholds.partition_point(|t| *t <= d);
    totals[above] += 1;
    A::from_f64((thresholds.len() - above) as f64)
}

/// Compares a row of distances with one anchor's thresholds, and adds to `counts` and `totals`.
#[inline(always)]
fn compare<S: Simd, A: Scalar>(simd: S, thresholds: &[A], d: &[A], counts: &mut [A], totals: &mut [u32]) {
    let ((d, _), (counts, _)) = (A::registers::<S>(d), A::registers_mut::<S>(counts));
    for (thresholds, totals) in thresholds.chunks(TOGETHER).zip(totals.chunks_mut(TOGETHER)) {
        let mut limits = [V::<S, A>::splat(simd, -A::INFINITY); TOGETHER];
        for (limit, threshold) in limits.iter_mut().zip(thresholds) {
            *limit = V::splat(simd, *threshold);
        }
        let mut found = [V::<S, A>::splat(simd, A::ZERO); TOGETHER];
        for (&d, count) in d.iter().zip(counts.iter_mut()) {
            let d = V::<S, A> { simd, register: d };
            // No `map`: its closure would be compiled for the plainest processor.
            let mut below = limits;
            for (below, found) in below.iter_mut().zip(&mut found) {
                *below = d.if_below(*below);
                *found = *found + *below;
            }
            let [a, b, c, d] = below;
            *count = (V { simd, register: *count } + ((a + b) + (c + d))).register;
        }
        for (total, found) in totals.iter_mut().zip(found) {
            *total += found.sum().to_f64() as u32;
        }
    }
}

impl<A: Scalar> Columns<'_, A> {
    #[inline(always)]
    fn prepare(&mut self, pairs: &Thresholds<A>, edge: usize, lanes: usize) {
        let Scratch { most, any_large, thresholds, found, reach, positives } = &mut *self.scratch;
        let sizes = || self.range.clone().map(|j| pairs.of(j).len());
        *most = sizes().filter(|size| *size <= LARGE).max().unwrap_or(0);
        *any_large = sizes().any(|size| size > LARGE);
        for (numbers, len, of) in [
            (&mut *thresholds, edge * *most, -A::INFINITY),
            (found, edge * *most, A::ZERO),
            (&mut *reach, edge, -A::INFINITY),
            (&mut *positives, edge, A::ZERO),
        ] {
            numbers.clear();
            numbers.resize(len, of);
        }
        for (at, j) in self.range.clone().enumerate() {
            reach[at] = pairs.reach[j];
            positives[at] = A::from_f64(pairs.positives[j] as f64);
            if pairs.of(j).len() <= LARGE {
                let from = at / lanes * *most * lanes + at % lanes;
                let to = thresholds[from..].iter_mut().step_by(lanes);
                to.zip(pairs.thresholds(j)).for_each(|(to, threshold)| *to = *threshold);
            }
        }
    }

    /// Counts a row of the tile; returns whether there is any active triplet.
    #[inline(always)]
    fn count<S: Simd>(
        &mut self,
        simd: S,
        pairs: &Thresholds<A>,
        d: &[A],
        counts: &mut [A],
        all_distances: &mut f64,
    ) -> bool {
        let Scratch { most, any_large, thresholds, found, reach, positives } = &mut *self.scratch;
        let zero = V::<S, A>::splat(simd, A::ZERO);
        let outside = V::<S, A>::splat(simd, A::MAX);
        let (d_registers, _) = A::registers::<S>(d);
        let (reach_registers, positives) = (A::registers::<S>(reach).0, A::registers::<S>(positives).0);
        let (mut within_reach, mut sum) = (zero, zero);
        for ((&d, &reach), &positives) in d_registers.iter().zip(reach_registers).zip(positives) {
            let d = V::<S, A> { simd, register: d };
            within_reach = within_reach + d.if_below(V { simd, register: reach });
            sum = (d.if_below(outside) * d).mul_add(V { simd, register: positives }, sum);
        }
        *all_distances += sum.sum().to_f64();
        if within_reach.sum() == A::ZERO {
            return false;
        }
        if *most > 0 {
            let thresholds = A::registers::<S>(thresholds).0.chunks_exact(*most);
            let found = A::registers_mut::<S>(found).0.chunks_exact_mut(*most);
            let counts = A::registers_mut::<S>(counts).0;
            for ((&d, count), (thresholds, found)) in d_registers.iter().zip(counts).zip(thresholds.zip(found)) {
                let (d, mut sum) = (V::<S, A> { simd, register: d }, V::<S, A> { simd, register: *count });
                for (&threshold, found) in thresholds.iter().zip(found) {
                    let below = d.if_below(V { simd, register: threshold });
                    *found = (V::<S, A> { simd, register: *found } + below).register;
                    sum = sum + below;
                }
                *count = sum.register;
            }
        }
        if *any_large {
            let base = pairs.start[self.range.start];
            for (j, (&d, count)) in self.range.clone().zip(d.iter().zip(counts)) {
                let thresholds = pairs.thresholds(j);
                if thresholds.len() > LARGE && d < pairs.reach[j] {
                    let totals = &mut self.totals[pairs.start[j] - base..][..thresholds.len()];
                    *count += search(thresholds, d, totals);
                }
            }
        }
        true
    }

    #[inline(always)]
    fn finish(self, pairs: &Thresholds<A>, lanes: usize) {
        let Scratch { most, found, .. } = self.scratch;
        let base = pairs.start[self.range.start];
        for (at, j) in self.range.enumerate().filter(|(_, j)| pairs.of(*j).len() <= LARGE) {
            let of = pairs.of(j);
            let found = found[at / lanes * *most * lanes + at % lanes..].iter().step_by(lanes);
            for (total, found) in self.totals[of.start - base..of.end - base].iter_mut().zip(found) {
                *total += found.to_f64() as u32;
            }
        }
    }
}
