//! Distances between the rows of two batches, in tiles of products, and by difference for pairs too near for these. One
//! thread takes a row of tiles from left to right: neither the number of threads nor their speed changes a bit.

use std::ops::Range;

use super::batch::{Batch, Both, roots};
use super::blocks;
use crate::Scalar;

/// Rows of one task.
pub const TASK_ROWS: usize = 64;

/// Columns of a tile.
pub const TILE_COLUMNS: usize = 256;

/// The rows and the columns of a matrix of distances.
pub struct DistanceMatrix<'a, A> {
    rows: &'a Batch<A>,
    columns: &'a Batch<A>,
    both: &'a Both<A>,
    /// Whether each column is not finite; empty if all are finite.
    bad: Vec<bool>,
}

/// Which tiles of a matrix have pairs that were computed by difference.
pub struct Near {
    tiles: Vec<bool>,
    /// Rows of a tile.
    rows: usize,
    /// Tiles in a row of tiles.
    across: usize,
}

impl Near {
    /// As many tiles as a matrix of distances has, none of them with such a pair.
    fn none(rows: usize, columns: usize) -> Self {
        // Larger tiles where there are enough for many threads: what is made ready for a product serves more of them.
        let of_tile = if rows < 16 * TASK_ROWS { TASK_ROWS } else { 2 * TASK_ROWS };
        let across = columns.div_ceil(TILE_COLUMNS);
        Self { tiles: vec![false; rows.div_ceil(of_tile) * across], rows: of_tile, across }
    }

    /// Those of a matrix of these many rows and columns, from what [`flags`](Self::flags) was for it; further flags are
    /// ignored.
    ///
    /// # Panics
    /// If there are fewer flags than tiles.
    pub fn from_flags(rows: usize, columns: usize, flags: &[u8]) -> Self {
        let none = Self::none(rows, columns);
        let tiles = flags[..none.tiles.len()].iter().map(|flag| *flag != 0).collect();
        Self { tiles, ..none }
    }

    /// Whether each tile has such a pair.
    pub fn flags(&self) -> &[bool] {
        &self.tiles
    }

    /// Whether there may be such a pair among these rows and columns.
    pub fn any(&self, rows: &Range<usize>, columns: &Range<usize>) -> bool {
        let across = columns.start / TILE_COLUMNS..columns.end.div_ceil(TILE_COLUMNS);
        (rows.start / self.rows..rows.end.div_ceil(self.rows))
            .any(|row| self.tiles[row * self.across..][across.clone()].contains(&true))
    }
}

impl<'a, A: Scalar> DistanceMatrix<'a, A> {
    pub fn new(rows: &'a Batch<A>, columns: &'a Batch<A>, both: &'a Both<A>) -> Self {
        let bad = match columns.poisoned {
            true => (0..columns.rows).map(|j| !columns.is_finite(j)).collect(),
            false => Vec::new(),
        };
        Self { rows, columns, both, bad }
    }

    /// The least that [`Batch::direct`] may be for row i and column j, whose distance by products is `compared`.
    pub fn at_least(&self, i: usize, j: usize, compared: A) -> A {
        let (of_rows, of_columns) = (&self.both.rows, self.both.columns());
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
    pub fn distances(&self, to: &mut [A]) -> Near {
        let columns = self.columns.rows;
        let mut near = Near::none(self.rows.rows, columns);
        let (rows, across) = (near.rows, near.across);
        let tasks = to.chunks_mut(rows * columns).zip(near.tiles.chunks_mut(across)).collect();
        blocks::for_each(tasks, |task, (to, near): (&mut [A], &mut [bool])| {
            let of_task = task * rows..self.rows.rows.min((task + 1) * rows);
            for (tile, near) in self.tiles().zip(near) {
                *near = self.fill(of_task.clone(), tile.clone(), &mut to[tile.start..], columns);
                if self.rows.is_root() {
                    to.chunks_exact_mut(columns).for_each(|row| roots(&mut row[tile.clone()]));
                }
            }
        });
        near
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
                self.fill(rows.clone(), tile.clone(), &mut to, TILE_COLUMNS);
                for (i, row) in rows.clone().zip(to.chunks_exact_mut(TILE_COLUMNS)) {
                    visit(&mut state, i, tile.clone(), &mut row[..tile.len()]);
                }
            }
        });
    }

    /// Fills a tile, whose rows are `step` numbers apart, with what distances are compared by; returns whether any was
    /// computed by difference.
    fn fill(&self, rows: Range<usize>, columns: Range<usize>, to: &mut [A], step: usize) -> bool {
        if !self.both.is_huge() {
            let right = self.both.columns().rows(self.columns, &columns).t();
            A::product(to, step, false, self.both.rows.rows(self.rows, &rows), right);
        }
        let mut any = false;
        for (k, i) in rows.enumerate() {
            let to = &mut to[k * step..][..columns.len()];
            if self.rows.poisoned && !self.rows.is_finite(i) {
                to.fill(A::NAN);
                continue;
            }
            self.both.compare([self.rows, self.columns], i, &columns, &(0..0), to, |_| any = true);
            if !self.bad.is_empty() {
                let bad = to.iter_mut().zip(&self.bad[columns.clone()]).filter(|(_, bad)| **bad);
                bad.for_each(|(d, _)| *d = A::NAN);
            }
        }
        any
    }
}
