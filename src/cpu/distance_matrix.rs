//! Distances between the rows of two batches, in tiles of products, and by difference for pairs too near for these. One
//! thread takes a row of tiles from left to right: neither the number of threads nor their speed changes a bit.

use std::ops::Range;

use super::batch::{Batch, Products, add_scaled, add_scaled_difference, direct};
use super::blocks;
use super::gemm::View;
use crate::Distance;
use crate::Scalar;

/// Rows of one task.
pub const TASK_ROWS: usize = 64;

/// Columns of a tile.
pub const TILE_COLUMNS: usize = 256;

/// The rows and the columns of a matrix of distances.
pub struct DistanceMatrix<'a, A> {
    rows: &'a Batch<A>,
    columns: &'a Batch<A>,
    of_rows: Products<A>,
    /// `None`: the columns are the rows.
    of_columns: Option<Products<A>>,
    /// Whether each column is not finite; empty if all are finite.
    bad: Vec<bool>,
}

impl<'a, A: Scalar> DistanceMatrix<'a, A> {
    pub fn new(rows: &'a Batch<A>, columns: &'a Batch<A>) -> Self {
        let (of_rows, of_columns) = if std::ptr::eq(rows, columns) {
            (Products::new(rows), None)
        } else {
            let Ok([of_rows, of_columns]) = <[_; 2]>::try_from(Products::of([rows, columns])) else {
                unreachable!("two batches")
            };
            (of_rows, Some(of_columns))
        };
        let bad = match columns.poisoned {
            true => (0..columns.rows).map(|j| !is_finite(columns.row(j))).collect(),
            false => Vec::new(),
        };
        Self { rows, columns, of_rows, of_columns, bad }
    }

    fn of_columns(&self) -> &Products<A> {
        self.of_columns.as_ref().unwrap_or(&self.of_rows)
    }

    /// The least that [`direct`] may be for row i and column j, whose distance by products is `compared`.
    pub fn at_least(&self, i: usize, j: usize, compared: A) -> A {
        let (of_rows, of_columns) = (&self.of_rows, self.of_columns());
        compared - (of_rows.error * (of_rows.norms[i] + of_columns.norms[j]) + of_rows.tiny)
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<A> {
        let columns = self.columns.rows;
        (0..columns).step_by(TILE_COLUMNS).map(move |start| start..columns.min(start + TILE_COLUMNS))
    }

    fn task(&self, index: usize) -> Range<usize> {
        index * TASK_ROWS..self.rows.rows.min((index + 1) * TASK_ROWS)
    }

    /// Writes the whole matrix of distances, row after row.
    pub fn distances(&self, to: &mut [A]) {
        let columns = self.columns.rows;
        blocks::for_each(to.chunks_mut(TASK_ROWS * columns).collect(), |task, to: &mut [A]| {
            for tile in self.tiles() {
                self.fill(self.task(task), tile.clone(), &mut to[tile.start..], columns, |_, _| ());
                if self.rows.is_root() {
                    for row in to.chunks_exact_mut(columns) {
                        row[tile.clone()].iter_mut().for_each(|d| *d = d.sqrt());
                    }
                }
            }
        });
    }

    /// Calls `visit(state, i, columns, compared)` for each row i and each run of columns from left to right, with what
    /// their distances are [compared](Batch::direct) by; one state for each [`TASK_ROWS`] rows.
    pub fn sweep<W: Send>(&self, states: Vec<W>, visit: impl Fn(&mut W, usize, Range<usize>, &mut [A]) + Sync) {
        self.sweep_where(states, |_, _| true, visit);
    }

    /// A [`sweep`](Self::sweep) over those tiles alone that are `wanted(rows, columns)`.
    pub fn sweep_where<W: Send>(
        &self,
        states: Vec<W>,
        wanted: impl Fn(&Range<usize>, &Range<usize>) -> bool + Sync,
        visit: impl Fn(&mut W, usize, Range<usize>, &mut [A]) + Sync,
    ) {
        assert_eq!(states.len(), self.rows.rows.div_ceil(TASK_ROWS), "a state for each task");
        blocks::for_each(states, |task, mut state| {
            let rows = self.task(task);
            let mut to = vec![A::ZERO; rows.len() * TILE_COLUMNS];
            for tile in self.tiles().filter(|tile| wanted(&rows, tile)) {
                self.fill(rows.clone(), tile.clone(), &mut to, TILE_COLUMNS, |_, _| ());
                for (i, row) in rows.clone().zip(to.chunks_exact_mut(TILE_COLUMNS)) {
                    visit(&mut state, i, tile.clone(), &mut row[..tile.len()]);
                }
            }
        });
    }

    /// Fills a tile, whose rows are `step` numbers apart, with what distances are compared by. Calls `near(i, j)`, with
    /// places in the tile, for each that was computed by difference.
    fn fill(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        to: &mut [A],
        step: usize,
        mut near: impl FnMut(usize, usize),
    ) {
        let (of_rows, of_columns) = (&self.of_rows, self.of_columns());
        let by_difference = of_rows.huge || of_columns.huge;
        if !by_difference {
            let (left, right) = (of_rows.rows(self.rows, &rows), of_columns.rows(self.columns, &columns).t());
            A::product(to, step, false, left, right);
        }
        for (k, i) in rows.enumerate() {
            let to = &mut to[k * step..][..columns.len()];
            if self.rows.poisoned && !is_finite(self.rows.row(i)) {
                to.fill(A::NAN);
                continue;
            }
            let (norm, norms) = (of_rows.norms[i], &of_columns.norms[columns.clone()]);
            if by_difference || of_rows.to_distances(to, norm, norms) {
                for ((j, d), other) in columns.clone().zip(to.iter_mut()).zip(norms) {
                    if by_difference || *d < of_rows.near * (norm + *other) {
                        *d = direct(self.rows.metric, self.rows.row(i), self.columns.row(j));
                        near(k, j - columns.start);
                    }
                }
            }
            if !self.bad.is_empty() {
                let bad = to.iter_mut().zip(&self.bad[columns.clone()]).filter(|(_, bad)| **bad);
                bad.for_each(|(d, _)| *d = A::NAN);
            }
        }
    }

    /// Writes `Σ_j W_ij ∇_i d_ij` with respect to the given rows, row after row; one state for each [`TASK_ROWS`].
    ///
    /// `weigh(state, i, columns, distances, weights)` fills a run of W_i, zeros at first, and returns whether there is
    /// anything else; both slices have [`TILE_COLUMNS`] numbers, of which those beyond the run mean nothing. After the last
    /// run `add(state, i, gradient)` adds to the sum with respect to row i of the batch.
    pub fn gradient<W: Send>(
        &self,
        to: &mut [A],
        states: Vec<W>,
        weigh: impl Fn(&mut W, usize, Range<usize>, &mut [A], &mut [A]) -> bool + Sync,
        add: impl Fn(&mut W, usize, &mut [A]) + Sync,
    ) {
        let Self { rows, columns, .. } = self;
        let dim = rows.dim;
        let cosine = rows.metric == Distance::Cosine;
        assert_eq!(states.len(), rows.rows.div_ceil(TASK_ROWS), "a state for each task");
        let parts = to.chunks_mut(TASK_ROWS * dim).zip(states).collect();
        blocks::for_each(parts, |index, (to, mut state): (&mut [A], W)| {
            let task = self.task(index);
            let mut tile = vec![A::ZERO; task.len() * TILE_COLUMNS];
            let mut weights = tile.clone();
            // Σ_j W_ij and Σ_j W_ij x_j of pairs by products; the part of near pairs goes to `to`.
            let mut weight = vec![0.0; task.len()];
            let mut pulled = vec![A::ZERO; to.len()];
            let mut near = Vec::new();
            to.fill(A::ZERO);
            for of_tile in self.tiles() {
                near.clear();
                self.fill(task.clone(), of_tile.clone(), &mut tile, TILE_COLUMNS, |k, j| near.push((k, j)));
                let mut any = false;
                weights.fill(A::ZERO);
                let rows_of_tile = tile.chunks_exact_mut(TILE_COLUMNS).zip(weights.chunks_exact_mut(TILE_COLUMNS));
                for (i, (d, w)) in task.clone().zip(rows_of_tile) {
                    if rows.is_root() {
                        d[..of_tile.len()].iter_mut().for_each(|d| *d = d.sqrt());
                    }
                    if weigh(&mut state, i, of_tile.clone(), d, w) {
                        any = true;
                        if rows.is_root() {
                            let run = w.iter_mut().zip(d.iter()).take(of_tile.len());
                            run.for_each(|(w, d)| *w = *w * rows.slope(*d));
                        }
                    }
                }
                if !any {
                    continue;
                }
                for &(k, j) in &near {
                    let w = std::mem::replace(&mut weights[k * TILE_COLUMNS + j], A::ZERO);
                    if !(w == A::ZERO) {
                        let (x, y) = (rows.row(task.start + k), columns.row(of_tile.start + j));
                        let to = &mut to[k * dim..(k + 1) * dim];
                        match cosine {
                            true => add_scaled(to, -w, y),
                            false => add_scaled_difference(to, w * rows.slope_factor(), x, y),
                        }
                    }
                }
                for (weight, w) in weight.iter_mut().zip(weights.chunks_exact(TILE_COLUMNS)) {
                    // Eight sums side by side: in a single one each addition would wait for the one before.
                    let mut lanes = [0.0; 8];
                    for part in w[..of_tile.len()].chunks(lanes.len()) {
                        lanes.iter_mut().zip(part).for_each(|(lane, w)| *lane += w.to_f64());
                    }
                    *weight += lanes.iter().sum::<f64>();
                }
                let pulls = View::new(&weights, task.len(), of_tile.len(), TILE_COLUMNS);
                A::product(&mut pulled, dim, true, pulls, self.of_columns().rows(columns, &of_tile));
            }
            for (k, i) in task.enumerate() {
                let to = &mut to[k * dim..(k + 1) * dim];
                let pulled = &pulled[k * dim..(k + 1) * dim];
                if cosine {
                    to.iter_mut().zip(pulled).for_each(|(to, p)| *to += -*p);
                } else {
                    let (x, w) = (&self.of_rows.x(rows)[i * dim..][..dim], A::from_f64(weight[k]));
                    let slope = rows.slope_factor();
                    to.iter_mut().zip(pulled).zip(x).for_each(|((to, p), x)| *to += slope * (w * *x - *p));
                }
                add(&mut state, i, to);
                rows.through_normalization(i, to);
                if rows.poisoned && !is_finite(rows.row(i)) {
                    to.fill(A::NAN);
                }
            }
        });
    }
}

fn is_finite<A: Scalar>(row: &[A]) -> bool {
    row.iter().all(|x| x.is_finite())
}
