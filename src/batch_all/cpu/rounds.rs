//! A batch against itself: each tile of distances serves both of its sides.
//!
//! Blocks of rows meet in rounds as players of a tournament do, each in one pair of a round, and one thread takes a
//! pair: so each block is written by one thread at a time, and always in the same order. Neither the number of threads
//! nor their speed changes a bit.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use pulp::{Simd, WithSimd};

use super::count::{Columns, Count, Scratch};
use super::thresholds::{TASK_ROWS, Thresholds};
use crate::Scalar;
use crate::cpu::batch::{Batch, Classes, Products};
use crate::cpu::blocks;
use crate::cpu::gemm::View;
use crate::cpu::simd::V;
use crate::cpu::tiles::Tiling;

/// What is known of a block of rows so far.
pub struct Block<A> {
    pub rows: Range<usize>,
    /// For each pair of an anchor with a row of its class, how many negatives are nearer than its threshold.
    pub counts: Vec<u32>,
    /// `Σ c_an d_an` of the tiles that this block met as the first of a pair; see [`RowCount`](super::count::RowCount).
    pub active_distances: f64,
    /// `Σ d_an` over all triplets of the tiles that this block met as the first of a pair.
    pub distances: f64,
    /// `Σ_j S_ij x_j` of each row i: `S_ij` is how many active triplets want i and j farther apart, for the Euclidean
    /// distance divided by it.
    pulled: Vec<A>,
    /// `Σ_j S_ij` of each row i.
    weight: Vec<f64>,
    /// The gradient of pairs that are too near for these sums, from the differences of their rows; empty without any.
    near: Vec<A>,
}

/// Room for the tile of a pair of blocks.
struct Tile<A> {
    /// `edge` numbers a row; MAX for pairs of one class and outside of the batch.
    distances: Vec<A>,
    /// Active triplets of each pair of rows, and then S.
    counts: Vec<A>,
    /// Thresholds of rows too near for products, and their S.
    near: Vec<(usize, usize, A)>,
    scratch: Scratch<A>,
    /// `Σ_i S_ij` of each column j.
    columns: Vec<A>,
}

/// A pair of blocks that meet in a round; `second` is `None` if nobody is left for the first.
struct Meeting<'a, A> {
    first: &'a mut Block<A>,
    second: Option<&'a mut Block<A>>,
    tile: &'a mut Tile<A>,
}

pub struct Rounds<'a, A> {
    batch: &'a Batch<A>,
    classes: &'a Classes,
    pairs: &'a Thresholds<A>,
    products: Products<A>,
    tiling: Tiling,
    with_grad: bool,
    overflow: AtomicBool,
}

/// The pairs of round `round` among `count` players, the first before the second; `None`: nobody is left for the first.
fn round(count: usize, round: usize) -> impl Iterator<Item = (usize, Option<usize>)> {
    // The circle method: one player stays in place, with an odd count nobody (a bye); the others go round in a circle.
    let circle = count.next_multiple_of(2) - 1;
    (0..=circle / 2).map(move |k| {
        let (a, b) = ((round + k) % circle, if k == 0 { circle } else { (round + circle - k) % circle });
        if b == count { (a, None) } else { (a.min(b), Some(a.max(b))) }
    })
}

impl<'a, A: Scalar> Rounds<'a, A> {
    pub fn new(batch: &'a Batch<A>, classes: &'a Classes, pairs: &'a Thresholds<A>, with_grad: bool) -> Self {
        Self {
            batch,
            classes,
            pairs,
            products: Products::new(batch),
            tiling: Tiling::at_most(batch.rows, 128),
            with_grad,
            overflow: AtomicBool::new(false),
        }
    }

    /// Whether a distance between two classes overflowed.
    pub fn overflowed(&self) -> bool {
        self.overflow.load(Ordering::Relaxed)
    }

    pub fn sweep(&self) -> Vec<Block<A>> {
        let (count, edge) = (self.tiling.blocks(), self.tiling.edge);
        let mut all: Vec<Block<A>> = (0..count).map(|block| self.block(block)).collect();
        let tile = |_| Tile {
            distances: vec![A::MAX; edge * edge],
            counts: vec![A::ZERO; edge * edge],
            near: Vec::new(),
            scratch: Scratch::default(),
            columns: vec![A::ZERO; edge],
        };
        let mut tiles: Vec<Tile<A>> = (0..count.div_ceil(2)).map(tile).collect();
        let rounds = count.next_multiple_of(2) - 1;
        for r in 0..rounds {
            let mut free: Vec<Option<&mut Block<A>>> = all.iter_mut().map(Some).collect();
            let mut take = |block: usize| free[block].take().expect("each block is in one pair");
            let pairs = round(count, r).zip(&mut tiles);
            let pairs =
                pairs.map(|((a, b), tile)| Meeting { first: take(a), second: b.map(&mut take), tile }).collect();
            blocks::for_each(pairs, |_, Meeting { first, second, tile }: Meeting<'_, A>| {
                if r == 0 {
                    self.meet_itself(first, tile);
                }
                let Some(second) = second else { return };
                if r == 0 {
                    self.meet_itself(second, tile);
                }
                self.meet(first, second, tile);
            });
        }
        blocks::for_each(all.iter_mut().collect(), |_, block: &mut Block<A>| self.in_class_order(block));
        all
    }

    fn block(&self, index: usize) -> Block<A> {
        let rows = self.tiling.range(index);
        let of_grad = if self.with_grad { rows.len() } else { 0 };
        Block {
            counts: vec![0; self.pairs.start[rows.end] - self.pairs.start[rows.start]],
            active_distances: 0.0,
            distances: 0.0,
            pulled: vec![A::ZERO; of_grad * self.batch.dim],
            weight: vec![0.0; of_grad],
            near: Vec::new(),
            rows,
        }
    }

    /// Works on the tile of a block with itself. Its columns are its rows, so that all except S comes twice.
    fn meet_itself(&self, block: &mut Block<A>, tile: &mut Tile<A>) {
        let (rows, mut twice) = (block.rows.clone(), vec![0; block.counts.len()]);
        if self.count(block, rows.clone(), &mut twice, tile, 0.5) && self.with_grad {
            self.weigh(&rows, &rows, tile, &mut block.weight);
            self.pull(block, &rows, &tile.counts, false);
            for &(i, j, weight) in &tile.near {
                self.push_near(block, i, j, weight);
            }
        }
    }

    /// Works on the tile of two blocks.
    fn meet(&self, a: &mut Block<A>, b: &mut Block<A>, tile: &mut Tile<A>) {
        let (rows, columns) = (a.rows.clone(), b.rows.clone());
        if self.count(a, columns.clone(), &mut b.counts, tile, 1.0) && self.with_grad {
            self.weigh(&rows, &columns, tile, &mut a.weight);
            b.weight.iter_mut().zip(&tile.columns).for_each(|(sum, weight)| *sum += weight.to_f64());
            self.pull(a, &columns, &tile.counts, false);
            self.pull(b, &rows, &tile.counts, true);
            for &(i, j, weight) in &tile.near {
                self.push_near(a, i, j, weight);
                self.push_near(b, j, i, weight);
            }
        }
    }

    /// Fills the tile of a block's rows with the distances to `columns`, and counts them with both as anchors. Returns
    /// whether there is any active triplet. The block's sums grow by a `share` of what is found.
    fn count(
        &self,
        block: &mut Block<A>,
        columns: Range<usize>,
        totals: &mut [u32],
        tile: &mut Tile<A>,
        share: f64,
    ) -> bool {
        tile.near.clear();
        if self.classes.ranges[block.rows.start].1 as usize >= columns.end {
            return false; // one class
        }
        self.fill(block.rows.clone(), columns.clone(), tile);
        let found = pulp::Arch::new().dispatch(Count {
            pairs: self.pairs,
            rows: block.rows.clone(),
            edge: self.tiling.edge,
            distances: &tile.distances,
            counts: &mut tile.counts,
            totals: &mut block.counts,
            columns: Some(Columns { range: columns, totals, scratch: &mut tile.scratch }),
        });
        block.active_distances += share * found.active_distances;
        block.distances += share * found.distances;
        found.active
    }

    /// Turns counts into S, without the pairs that are near; adds its sums over columns to `weight`, and writes those
    /// over rows to the tile.
    fn weigh(&self, rows: &Range<usize>, columns: &Range<usize>, tile: &mut Tile<A>, weight: &mut [f64]) {
        let (edge, root) = (self.tiling.edge, self.batch.is_root());
        for (i, j, weight) in &mut tile.near {
            let at = (*i - rows.start) * edge + (*j - columns.start);
            let (count, d) = (std::mem::replace(&mut tile.counts[at], A::ZERO), tile.distances[at]);
            *weight = match (root, d > A::ZERO) {
                (false, _) => count,
                (true, true) => count / d,
                (true, false) => A::ZERO,
            };
        }
        tile.near.retain(|(_, _, weight)| *weight > A::ZERO);
        let Tile { distances, counts, columns, .. } = tile;
        pulp::Arch::new().dispatch(Weigh { distances, counts, edge, root, rows: weight, columns });
    }

    /// Adds S, or with `transposed` its transpose, times the rows of another block to what the block is pulled by.
    fn pull(&self, block: &mut Block<A>, others: &Range<usize>, counts: &[A], transposed: bool) {
        let (edge, dim) = (self.tiling.edge, self.batch.dim);
        let pulls = if transposed {
            View::new(counts, others.len(), block.rows.len(), edge).t()
        } else {
            View::new(counts, block.rows.len(), others.len(), edge)
        };
        A::product(&mut block.pulled, dim, true, pulls, self.products.rows(self.batch, others));
    }

    /// Pushes row i of the block away from row j, which is near, with `weight` as S.
    fn push_near(&self, block: &mut Block<A>, i: usize, j: usize, weight: A) {
        let dim = self.batch.dim;
        block.near.resize(block.pulled.len(), A::ZERO);
        let slope = self.batch.slope_factor();
        self.batch.pull(&mut block.near[(i - block.rows.start) * dim..][..dim], -(weight * slope), i, j);
    }

    /// Fills the tile with the distances of rows of different classes.
    fn fill(&self, rows: Range<usize>, cols: Range<usize>, tile: &mut Tile<A>) {
        let Self { batch, products, classes, .. } = self;
        let edge = self.tiling.edge;
        if !products.huge {
            let (left, right) = (products.rows(batch, &rows), products.rows(batch, &cols).t());
            A::product(&mut tile.distances, edge, false, left, right);
        }
        for (i, to) in rows.clone().zip(tile.distances.chunks_exact_mut(edge)) {
            let (start, end) = classes.ranges[i];
            let own = (start as usize).clamp(cols.start, cols.end)..(end as usize).clamp(cols.start, cols.end);
            let (to, rest) = to.split_at_mut(cols.len());
            rest.fill(A::MAX);
            let others = || (cols.start..own.start).chain(own.end..cols.end);
            if products.huge {
                for j in others() {
                    to[j - cols.start] = batch.distance(batch.direct(i, j));
                }
            } else {
                let norms = &products.norms[cols.clone()];
                let near = products.to_distances(to, products.norms[i], norms);
                if near {
                    let (norm, limit) = (products.norms[i], products.near);
                    for j in others() {
                        let d = &mut to[j - cols.start];
                        if *d < limit * (norm + products.norms[j]) {
                            *d = batch.direct(i, j);
                            tile.near.push((i, j, A::ZERO));
                        }
                    }
                }
                if batch.is_root() {
                    to.iter_mut().for_each(|d| *d = d.sqrt());
                }
            }
            to[own.start - cols.start..own.end - cols.start].fill(A::MAX);
            if products.huge && !to.iter().all(|d| d.is_finite()) {
                self.overflow.store(true, Ordering::Relaxed);
            }
        }
        tile.distances[rows.len() * edge..].fill(A::MAX);
    }

    fn in_class_order(&self, block: &mut Block<A>) {
        let base = self.pairs.start[block.rows.start];
        for i in block.rows.clone() {
            let of = self.pairs.of(i);
            self.pairs.in_class_order(i, &mut block.counts[of.start - base..of.end - base]);
        }
    }
}

/// Divides counts by distances, if `root` asks for it, and sums them up.
struct Weigh<'a, A> {
    distances: &'a [A],
    counts: &'a mut [A],
    edge: usize,
    root: bool,
    /// The sums of the rows are added to these.
    rows: &'a mut [f64],
    /// Overwritten with the sums of the columns.
    columns: &'a mut [A],
}

impl<A: Scalar> WithSimd for Weigh<'_, A> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { distances, counts, edge, root, rows, columns } = self;
        let (zero, one) = (V::<S, A>::splat(simd, A::ZERO), V::<S, A>::splat(simd, A::ONE));
        columns.fill(A::ZERO);
        let (columns, _) = A::registers_mut::<S>(columns);
        for ((sum, counts), d) in rows.iter_mut().zip(counts.chunks_exact_mut(edge)).zip(distances.chunks_exact(edge)) {
            let ((counts, _), (d, _)) = (A::registers_mut::<S>(counts), A::registers::<S>(d));
            let mut of_row = zero;
            for ((register, &d), column) in counts.iter_mut().zip(d).zip(columns.iter_mut()) {
                let mut count = V::<S, A> { simd, register: *register };
                if root {
                    // At a distance below the normal numbers there is no direction: 0 over 1.
                    let d = V::<S, A> { simd, register: d };
                    let apart = one - d.if_below(V::splat(simd, A::TINY));
                    count = (count * apart) / (d * apart + (one - apart));
                    *register = count.register;
                }
                of_row = of_row + count;
                *column = (V::<S, A> { simd, register: *column } + count).register;
            }
            *sum += of_row.sum().to_f64();
        }
    }
}

/// Writes the gradient with respect to the given rows, from what each row is pulled by.
pub fn write_gradient<A: Scalar>(rounds: &Rounds<'_, A>, blocks: &[Block<A>], grad: &mut [A]) {
    let Rounds { batch, classes, pairs, products, tiling, .. } = rounds;
    let dim = batch.dim;
    let count = |i: usize, k: usize| {
        let block = &blocks[i / tiling.edge];
        block.counts[pairs.start[i] - pairs.start[block.rows.start] + k]
    };
    blocks::for_each(grad.chunks_mut(TASK_ROWS * dim).collect(), |task, grad: &mut [A]| {
        for (row, to) in grad.chunks_exact_mut(dim).enumerate() {
            let i = classes.position[task * TASK_ROWS + row] as usize;
            let block = &blocks[i / tiling.edge];
            let at = (i - block.rows.start) * dim..(i - block.rows.start + 1) * dim;
            let pulled = &block.pulled[at.clone()];
            if batch.metric == crate::Distance::Cosine {
                to.copy_from_slice(pulled);
            } else {
                let slope = batch.slope_factor();
                let weight = A::from_f64(block.weight[i - block.rows.start]);
                let x = &products.x(batch)[i * dim..][..dim];
                to.iter_mut().zip(pulled).zip(x).for_each(|((to, p), x)| *to = slope * (*p - weight * *x));
            }
            if let Some(near) = block.near.get(at) {
                to.iter_mut().zip(near).for_each(|(to, near)| *to += *near);
            }
            let first = classes.ranges[i].0 as usize;
            for p in classes.positives(i) {
                let both = count(i, p - first) as u64 + count(p, i - first) as u64;
                if both > 0 {
                    let slope = batch.slope(pairs.distances(i)[p - first]);
                    batch.pull(to, A::from_f64(both as f64) * slope, i, p);
                }
            }
            batch.through_normalization(i, to);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::round;

    #[test]
    fn each_pair_meets_once_and_nobody_twice_in_a_round() {
        for count in 1..10_usize {
            let mut met = Vec::new();
            for r in 0..count.next_multiple_of(2) - 1 {
                let pairs: Vec<_> = round(count, r).collect();
                let mut players: Vec<usize> = pairs.iter().flat_map(|(a, b)| [Some(*a), *b]).flatten().collect();
                players.sort_unstable();
                assert!(players.into_iter().eq(0..count), "{count} players, round {r}: {pairs:?}");
                met.extend(pairs.into_iter().filter_map(|(a, b)| Some((a, b?))));
            }
            met.sort_unstable();
            assert!(met.into_iter().eq((0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)))), "{count}");
        }
    }
}
