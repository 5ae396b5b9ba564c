//! The nearest negative of each anchor. Negatives are filtered by tiles of products, and what the products' error leaves open
//! is computed by difference: the chosen pair is the exact minimum, so neither the number of threads nor the order of the
//! tiles changes a bit.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use pulp::{Simd, WithSimd};

use super::batch::{Batch, Both, Classes};
use super::blocks;
use super::comparison::{Comparison, NONE};
use super::distance_matrix;
use super::simd::V;
use super::threads;
use super::tiles::Tiling;
use crate::Scalar;

/// For each sorted anchor, a sorted row and how far it is in terms of [`Batch::direct`].
pub struct Picked<A> {
    pub compared: Vec<A>,
    pub row: Vec<u32>,
}

/// The nearest negative of each anchor that has both a negative and a positive.
pub fn nearest_negatives<A: Scalar>(comparison: &Comparison<A>) -> Picked<A> {
    if comparison.is_itself() {
        among_themselves(&comparison.anchors, &comparison.classes)
    } else {
        against_others(comparison)
    }
}

fn against_others<A: Scalar>(comparison: &Comparison<A>) -> Picked<A> {
    let rows = comparison.anchors.rows;
    let products = comparison.products();
    let tiled = comparison.matrix(&products);
    let mut found = Picked { compared: vec![A::INFINITY; rows], row: vec![NONE; rows] };
    let states = found
        .compared
        .chunks_mut(distance_matrix::TASK_ROWS)
        .zip(found.row.chunks_mut(distance_matrix::TASK_ROWS))
        .collect();
    let visit = |(compared, row): &mut (&mut [A], &mut [u32]), i: usize, columns: Range<usize>, distances: &mut [A]| {
        let at = i % distance_matrix::TASK_ROWS;
        let (class, positives) = (comparison.class(i), comparison.count_positives(i));
        if positives == 0 {
            return;
        }
        let given = |row: u32| if row == NONE { NONE } else { comparison.given(row as usize) };
        for (j, &by_product) in columns.zip(distances.iter()) {
            // A distance that overflowed is not ruled out before another is found: infinity is not above infinity.
            if tiled.at_least(i, j, by_product) > compared[at] || class.contains(&j) {
                continue;
            }
            let d = comparison.direct(i, j);
            if d < compared[at] || (d == compared[at] && comparison.given(j) < given(row[at])) {
                (compared[at], row[at]) = (d, j as u32);
            }
        }
    };
    tiled.sweep(states, visit);
    found
}

fn among_themselves<A: Scalar>(batch: &Batch<A>, classes: &Classes) -> Picked<A> {
    let products = Both::new(batch, batch).rows;
    let tiling = Tiling::at_most(batch.rows, 256, 32, 8);
    // A distance by products exceeds the exact one by at most the sum of what its two norms are lowered by.
    let half_tiny = products.tiny / (A::ONE + A::ONE);
    let lowered: Vec<A> = products.norms.iter().map(|&n| n - products.error * n - half_tiny).collect();
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Vec::new());
    let workers = threads::count().min(tiling.tiles());
    blocks::for_each(vec![(); workers], |_, ()| {
        let mut nearest = Nearest::new(batch, classes);
        let mut tile = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= tiling.tiles() {
                break;
            }
            let (row_block, col_block) = tiling.tile(index);
            let (rows, cols) = (tiling.range(row_block), tiling.range(col_block));
            if classes.ranges[rows.start].1 as usize >= cols.end {
                continue; // one class
            }
            if products.huge {
                nearest.by_difference(rows, cols);
                continue;
            }
            tile.resize(tiling.edge * tiling.edge, A::ZERO);
            let (left, right) = (products.rows(batch, &rows), products.rows(batch, &cols).t());
            A::product(&mut tile, cols.len(), false, left, right);
            pulp::Arch::new().dispatch(Filter {
                nearest: &mut nearest,
                tile: &tile,
                rows,
                cols,
                lowered: &lowered,
                factor: products.factor,
            });
        }
        all.lock().unwrap_or_else(PoisonError::into_inner).push(nearest.found);
    });
    // The smallest of (distance, given index) is the same in any order.
    let mut parts = all.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter();
    let first = parts.next().expect("one worker or more");
    let mut nearest = Nearest { batch, classes, found: first };
    for part in parts {
        for i in 0..batch.rows {
            if part.row[i] != NONE {
                nearest.offer(i, part.compared[i], part.row[i] as usize);
            }
        }
    }
    nearest.found
}

/// The nearest negatives that one worker has found so far.
struct Nearest<'a, A> {
    batch: &'a Batch<A>,
    classes: &'a Classes,
    found: Picked<A>,
}

impl<'a, A: Scalar> Nearest<'a, A> {
    fn new(batch: &'a Batch<A>, classes: &'a Classes) -> Self {
        // For an anchor without a triplet -∞: nothing is nearer.
        let start = |i| if classes.is_valid(i) { A::INFINITY } else { -A::INFINITY };
        let found = Picked { compared: (0..batch.rows).map(start).collect(), row: vec![NONE; batch.rows] };
        Self { batch, classes, found }
    }

    fn offer(&mut self, i: usize, compared: A, row: usize) {
        let (best, best_row) = (self.found.compared[i], self.found.row[i]);
        let given = |row: u32| self.classes.order.get(row as usize).copied().unwrap_or(NONE);
        if compared < best || (compared == best && given(row as u32) < given(best_row)) {
            (self.found.compared[i], self.found.row[i]) = (compared, row as u32);
        }
    }

    fn meet(&mut self, i: usize, j: usize) {
        let compared = self.batch.direct(i, j);
        self.offer(i, compared, j);
        self.offer(j, compared, i);
    }

    /// Looks at the pairs of row i and rows from `first` on that their products do not rule out.
    fn offer_each(&mut self, i: usize, first: usize, products: &[A], lowered: &[A], factor: A) {
        for (j, product) in (first..).zip(products) {
            let bound = lowered[i] + lowered[j] - factor * *product;
            if bound <= self.found.compared[i] || bound <= self.found.compared[j] {
                self.meet(i, j);
            }
        }
    }

    /// The first row after `i` of another class, within `cols` or at its end: the tiles are on and above the diagonal.
    fn first_negative(&self, i: usize, cols: &Range<usize>) -> usize {
        (self.classes.ranges[i].1 as usize).clamp(cols.start, cols.end)
    }

    fn by_difference(&mut self, rows: Range<usize>, cols: Range<usize>) {
        for i in rows {
            for j in self.first_negative(i, &cols)..cols.end {
                self.meet(i, j);
            }
        }
    }
}

/// Products of a row that are looked at together.
const GROUP: usize = 64;

/// Offers the pairs that a tile of products does not rule out.
struct Filter<'a, 'b, A> {
    nearest: &'a mut Nearest<'b, A>,
    tile: &'a [A],
    rows: Range<usize>,
    cols: Range<usize>,
    lowered: &'a [A],
    factor: A,
}

impl<A: Scalar> WithSimd for Filter<'_, '_, A> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { nearest, tile, rows, cols, lowered, factor } = self;
        let minus_factor = V::<S, A>::splat(simd, -factor);
        let load = |register| V::<S, A> { simd, register };
        for (i, products) in rows.zip(tile.chunks_exact(cols.len())) {
            let first = nearest.first_negative(i, &cols);
            let lowered_i = lowered[i];
            for start in (first..cols.end).step_by(GROUP) {
                let group = start..cols.end.min(start + GROUP);
                let products = &products[start - cols.start..][..group.len()];
                let best_i = V::<S, A>::splat(simd, nearest.found.compared[i]);
                let lowered_i = V::<S, A>::splat(simd, lowered_i);
                let (p, rest) = A::registers::<S>(products);
                let (l, _) = A::registers::<S>(&lowered[group.clone()]);
                let (b, _) = A::registers::<S>(&nearest.found.compared[group.clone()]);
                let mut least = V::<S, A>::splat(simd, A::INFINITY);
                for ((p, l), b) in p.iter().zip(l).zip(b) {
                    let bound = minus_factor.mul_add(load(*p), lowered_i + load(*l));
                    least = least.min(bound - best_i.max(load(*b)));
                }
                let lanes = V::<S, A>::LANES;
                let ruled_out = least.smallest() > A::ZERO;
                if !ruled_out {
                    // What is left of a group: a register of it at a time, with what is the nearest by then.
                    for (at, (&p, &l)) in (0..).step_by(lanes).zip(p.iter().zip(l)) {
                        let bound = minus_factor.mul_add(load(p), lowered_i + load(l));
                        let best_i = V::<S, A>::splat(simd, nearest.found.compared[i]);
                        let (b, _) = A::registers::<S>(&nearest.found.compared[start + at..][..lanes]);
                        let ruled_out = (bound - best_i.max(load(b[0]))).smallest() > A::ZERO;
                        if !ruled_out {
                            nearest.offer_each(i, start + at, &products[at..][..lanes], lowered, factor);
                        }
                    }
                }
                nearest.offer_each(i, group.end - rest.len(), rest, lowered, factor);
            }
        }
    }
}
