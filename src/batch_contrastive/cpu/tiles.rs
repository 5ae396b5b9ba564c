//! The pairs of different classes, all of them: what tiles of distances add to losses, and their weights in the gradient.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::Sums;
use super::terms::Terms;
use crate::Scalar;
use crate::cpu::comparison::Comparison;
use crate::cpu::paired::inlined;
use crate::cpu::rounds::{Tile, Weigh};
use crate::cpu::simd::V;

/// The weight of a pair is `d - m` below the margin m, or -1 with power 1, else 0; times the anchor's upstream gradient. In a batch by itself both
/// orders of a pair pull alike, and a tile has both.
pub struct Pairs<'a, A> {
    pub comparison: &'a Comparison<A>,
    pub terms: Terms<A>,
    /// The upstream gradient of each anchor, in class order; `None`: 1 for all.
    pub upstream: Option<&'a [A]>,
    pub is_huge: bool,
}

/// What the columns of a tile add up to: `Σ max(m - d, 0)²`, or with power 1 `Σ max(m - d, 0)`; `Σ d`; and how many d are below m.
#[derive(Default)]
pub struct Columns<A>([Vec<A>; 3]);

impl<A: Scalar> Weigh<A> for Pairs<'_, A> {
    /// The sums of each anchor; empty for rows of a reference set.
    type Block = Vec<Sums>;
    type Scratch = Columns<A>;

    fn block(&self, side: usize, rows: &Range<usize>) -> Vec<Sums> {
        vec![Sums::default(); if side == 0 { rows.len() } else { 0 }]
    }

    fn left_out(&self, i: usize) -> Range<usize> {
        self.comparison.class(i)
    }

    fn weigh(
        &self,
        tile: &mut Tile<A>,
        scratch: &mut Columns<A>,
        rows: &mut Vec<Sums>,
        columns: Option<&mut Vec<Sums>>,
    ) -> bool {
        let itself = self.comparison.is_itself();
        let alike = if itself && self.upstream.is_none() { A::ONE + A::ONE } else { A::ONE };
        let columns = columns.filter(|_| itself);
        let before: u64 = rows.iter().map(|sums| sums.active).sum();
        let mut any = false;
        if self.is_huge {
            any = self.one_by_one(tile, rows, columns, alike);
        } else {
            if columns.is_some() {
                for sums in &mut scratch.0 {
                    sums.clear();
                    sums.resize(tile.edge, A::ZERO);
                }
            }
            let of_columns = columns.is_some().then_some(&mut *scratch);
            let (terms, arch) = (self.terms, pulp::Arch::new());
            match terms.linear {
                false => arch.dispatch(Visit::<_, false> { tile, terms, alike, rows, columns: of_columns }),
                true => arch.dispatch(Visit::<_, true> { tile, terms, alike, rows, columns: of_columns }),
            }
            if let Some(columns) = columns {
                let [squares, distances, active] = &scratch.0;
                for (((sums, square), d), active) in columns.iter_mut().zip(squares).zip(distances).zip(active) {
                    sums.add([*square, *d, *active], self.terms.unit());
                }
            }
        }
        if let Some(upstream) = self.upstream {
            for (i, weights) in tile.rows.clone().zip(tile.weights.chunks_exact_mut(tile.edge)) {
                for (j, weight) in tile.columns.clone().zip(weights) {
                    *weight = *weight * if itself { upstream[i] + upstream[j] } else { upstream[i] };
                }
            }
        }
        any || rows.iter().map(|sums| sums.active).sum::<u64>() > before
    }
}

impl<A: Scalar> Pairs<'_, A> {
    /// What [`Visit`] does, for distances that may be infinite. Returns whether one is.
    fn one_by_one(&self, tile: &mut Tile<A>, rows: &mut [Sums], mut columns: Option<&mut Vec<Sums>>, alike: A) -> bool {
        let mut lost = false;
        let lines = tile.distances.chunks_exact(tile.edge).zip(tile.weights.chunks_exact_mut(tile.edge));
        for (of_row, (d, weights)) in rows.iter_mut().zip(lines) {
            for (k, (&d, weight)) in d.iter().zip(weights).enumerate() {
                *weight = self.terms.derivative(d) * alike;
                lost |= !d.is_finite();
                // MAX is no pair.
                let sums = [self.terms.negative(d), d, if d < self.terms.margin { A::ONE } else { A::ZERO }];
                if d != A::MAX {
                    of_row.add(sums, self.terms.unit());
                    if let Some(columns) = &mut columns {
                        columns[k].add(sums, self.terms.unit());
                    }
                }
            }
        }
        lost
    }
}

impl Sums {
    /// Adds `Σ max(m - d, 0)²`, or with power 1 `Σ max(m - d, 0)`; `Σ d`; and how many d are below m. `unit`: that of the first.
    fn add<A: Scalar>(&mut self, [gaps, distances, active]: [A; 3], unit: f64) {
        self.loss += gaps.to_f64() * unit;
        self.distances[1] += distances.to_f64();
        self.active += active.to_f64() as u64;
    }
}

/// Weighs the pairs of a tile and sums them up by row and, if asked to, by column; all its distances are finite. `LINEAR`: a
/// pair costs its gap.
struct Visit<'a, A, const LINEAR: bool> {
    tile: &'a mut Tile<A>,
    terms: Terms<A>,
    /// What weights are multiplied by.
    alike: A,
    rows: &'a mut [Sums],
    columns: Option<&'a mut Columns<A>>,
}

impl<A: Scalar, const LINEAR: bool> WithSimd for Visit<'_, A, LINEAR> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { tile: Tile { distances, weights, edge, .. }, terms, alike, rows, mut columns } = self;
        let splat = inlined(
            #[inline(always)]
            |x| V::<S, A>::splat(simd, x),
        );
        let load = inlined(
            #[inline(always)]
            |register| V::<S, A> { simd, register },
        );
        let (zero, margins, minus_alike, outside) = (splat(A::ZERO), splat(terms.margin), splat(-alike), splat(A::MAX));
        let lines = distances.chunks_exact(*edge).zip(weights.chunks_exact_mut(*edge));
        for (of_row, (d, weights)) in rows.iter_mut().zip(lines) {
            let ((d, _), (weights, _)) = (A::registers::<S>(d), A::registers_mut::<S>(weights));
            let mut sums = [zero; 3];
            match &mut columns {
                None => {
                    for (&d, weight) in d.iter().zip(weights) {
                        let d = load(d);
                        let gap = (margins - d).max(zero);
                        let below = d.if_below(margins);
                        let slope = if LINEAR { below } else { gap };
                        *weight = (slope * minus_alike).register;
                        sums[0] = gap.mul_add(slope, sums[0]);
                        sums[1] = d.if_below(outside).mul_add(d, sums[1]);
                        sums[2] = sums[2] + below;
                    }
                }
                Some(Columns([squares, of_d, active])) => {
                    let columns = A::registers_mut::<S>(squares).0.iter_mut();
                    let columns = columns.zip(A::registers_mut::<S>(of_d).0).zip(A::registers_mut::<S>(active).0);
                    for ((&d, weight), ((squares, of_d), active)) in d.iter().zip(weights).zip(columns) {
                        let d = load(d);
                        let gap = (margins - d).max(zero);
                        let below = d.if_below(margins);
                        let slope = if LINEAR { below } else { gap };
                        *weight = (slope * minus_alike).register;
                        let (square, d) = (gap * slope, d.if_below(outside) * d);
                        sums = [sums[0] + square, sums[1] + d, sums[2] + below];
                        *squares = (load(*squares) + square).register;
                        *of_d = (load(*of_d) + d).register;
                        *active = (load(*active) + below).register;
                    }
                }
            }
            let sums = sums.map(
                #[inline(always)]
                |sum| sum.sum(),
            );
            of_row.add(sums, terms.unit());
        }
    }
}
