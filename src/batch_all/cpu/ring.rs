//! A batch against itself: each tile of distances serves both of its sides.
//!
//! Blocks of rows stand in a ring, and in step s block I meets block I + s: so in every half of a step each block is written
//! by one thread alone, and always in the same order: neither the number of threads nor their speed changes a bit.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::TASK_ROWS;
use super::pairs::{Count, Pairs};
use crate::Scalar;
use crate::cpu::batch::{Batch, Classes, Products};
use crate::cpu::blocks;
use crate::cpu::gemm::View;
use crate::cpu::tiles::{Tiling, add_transposed, transpose};

/// What is known of a block of rows so far.
pub struct Block<A> {
    pub rows: Range<usize>,
    /// Of each pair of an anchor with its class: how many negatives are nearer than the threshold.
    pub counts: Vec<u32>,
    /// See [`Found`](super::pairs::Found).
    pub active_distances: f64,
    /// Likewise.
    pub distances: f64,
    /// `Σ_j S_ij x_j`, and `Σ_j S_ij`: S counts the active triplets that want i and j farther apart, over their distance
    /// for the Euclidean one.
    pulled: Vec<A>,
    weight: Vec<f64>,
    /// The same of pairs so near that the difference of both would be lost, and so by differences; empty without any.
    near: Vec<A>,
}

/// A tile of the ring: its rows are block I, its columns block J.
struct Tile<A> {
    columns: usize,
    /// Whether it has a pair of two classes.
    mixed: bool,
    /// `edge` numbers a row; MAX for pairs of one class and outside of the batch.
    distances: Vec<A>,
    /// First each pair's c with the row as anchor, then S.
    counts: Vec<A>,
    active: bool,
    /// Pairs that products cannot tell, and their S.
    near: Vec<(usize, usize, A)>,
}

pub struct Ring<'a, A> {
    batch: &'a Batch<A>,
    classes: &'a Classes,
    pairs: &'a Pairs<A>,
    products: Products<A>,
    tiling: Tiling,
    with_grad: bool,
    overflow: AtomicBool,
}

impl<'a, A: Scalar> Ring<'a, A> {
    pub fn new(batch: &'a Batch<A>, classes: &'a Classes, pairs: &'a Pairs<A>, with_grad: bool) -> Self {
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
            columns: 0,
            mixed: false,
            distances: vec![A::MAX; edge * edge],
            counts: vec![A::ZERO; edge * edge],
            active: false,
            near: Vec::new(),
        };
        let mut tiles: Vec<Tile<A>> = (0..count).map(tile).collect();
        for step in 0..=count / 2 {
            // Opposite blocks meet once.
            let meeting = if step > 0 && 2 * step == count { step } else { count };
            blocks::for_each(
                all.iter_mut().zip(&mut tiles).collect(),
                |i, (block, tile): (&mut Block<A>, &mut Tile<A>)| {
                    self.pull_rows(block, tile);
                    if i < meeting {
                        self.meet(block, tile, (i + step) % count);
                    }
                },
            );
            if step > 0 {
                let mut columns: Vec<&mut Block<A>> = all.iter_mut().collect();
                columns.rotate_left(step);
                let parts = columns.into_iter().zip(&mut tiles).take(meeting).collect();
                blocks::for_each(parts, |i, (block, tile): (&mut Block<A>, &mut Tile<A>)| {
                    self.meet_back(self.tiling.range(i), block, tile);
                });
            }
        }
        blocks::for_each(
            all.iter_mut().zip(&mut tiles).collect(),
            |_, (block, tile): (&mut Block<A>, &mut Tile<A>)| {
                self.pull_rows(block, tile);
                self.in_class_order(block);
            },
        );
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

    /// Fills the tile with the distances to block `columns`, and counts them with its rows as anchors.
    fn meet(&self, block: &mut Block<A>, tile: &mut Tile<A>, columns: usize) {
        let cols = self.tiling.range(columns);
        let (first, last) = if block.rows.start <= cols.start { (&block.rows, &cols) } else { (&cols, &block.rows) };
        tile.columns = columns;
        tile.mixed = (self.classes.ranges[first.start].1 as usize) < last.end;
        (tile.active, tile.near) = (false, Vec::new());
        if !tile.mixed {
            return;
        }
        self.fill(block.rows.clone(), cols.clone(), tile);
        tile.active = self.count(block, &tile.distances, &mut tile.counts);
        if block.rows == cols && self.with_grad && tile.active {
            let one_way = tile.counts.clone();
            add_transposed(&one_way, &mut tile.counts, self.tiling.edge);
            self.weigh(tile);
        }
    }

    /// Counts with the tile's columns as anchors, and adds what they are pulled by.
    fn meet_back(&self, rows: Range<usize>, block: &mut Block<A>, tile: &mut Tile<A>) {
        if !tile.mixed {
            return;
        }
        let (edge, dim) = (self.tiling.edge, self.batch.dim);
        let (mut distances, mut counts) = (vec![A::ZERO; edge * edge], vec![A::ZERO; edge * edge]);
        transpose(&tile.distances, &mut distances, edge);
        tile.active |= self.count(block, &distances, &mut counts);
        if !self.with_grad || !tile.active {
            return;
        }
        add_transposed(&counts, &mut tile.counts, edge);
        self.weigh(tile);
        let pulls = View::new(&tile.counts, rows.len(), block.rows.len(), edge).t();
        A::product(&mut block.pulled, dim, true, pulls, self.products.rows(self.batch, &rows));
        let mut weight = vec![A::ZERO; edge];
        for counts in tile.counts.chunks_exact(edge) {
            weight.iter_mut().zip(counts).for_each(|(sum, count)| *sum += *count);
        }
        block.weight.iter_mut().zip(weight).for_each(|(sum, weight)| *sum += weight.to_f64());
        for &(i, j, weight) in &tile.near {
            self.push_near(block, j, i, weight);
        }
    }

    /// Adds what the tile's rows are pulled by, if that is still to be done.
    fn pull_rows(&self, block: &mut Block<A>, tile: &mut Tile<A>) {
        if !std::mem::take(&mut tile.active) || !self.with_grad {
            return;
        }
        let (edge, dim) = (self.tiling.edge, self.batch.dim);
        let cols = self.tiling.range(tile.columns);
        let pulls = View::new(&tile.counts, block.rows.len(), cols.len(), edge);
        A::product(&mut block.pulled, dim, true, pulls, self.products.rows(self.batch, &cols));
        for (sum, counts) in block.weight.iter_mut().zip(tile.counts.chunks_exact(edge)) {
            let mut lanes = [A::ZERO; 16];
            for part in counts.chunks(16) {
                lanes.iter_mut().zip(part).for_each(|(lane, count)| *lane += *count);
            }
            *sum += lanes.iter().map(|lane| lane.to_f64()).sum::<f64>();
        }
        for &(i, j, weight) in &tile.near {
            self.push_near(block, i, j, weight);
        }
    }

    /// Row i of the block away from row j, `weight` times.
    fn push_near(&self, block: &mut Block<A>, i: usize, j: usize, weight: A) {
        let dim = self.batch.dim;
        block.near.resize(block.pulled.len(), A::ZERO);
        let slope = self.batch.slope_factor();
        self.batch.pull(&mut block.near[(i - block.rows.start) * dim..][..dim], -(weight * slope), i, j);
    }

    /// From counts to S, without the pairs that are near.
    fn weigh(&self, tile: &mut Tile<A>) {
        let edge = self.tiling.edge;
        if self.batch.is_root() {
            for (count, &d) in tile.counts.iter_mut().zip(&tile.distances) {
                *count = if d > A::ZERO { *count / d } else { A::ZERO };
            }
        }
        let origin = |block: usize| self.tiling.range(block).start;
        let columns = origin(tile.columns);
        for (i, j, weight) in &mut tile.near {
            let at = *i % edge * edge + (*j - columns);
            *weight = std::mem::replace(&mut tile.counts[at], A::ZERO);
        }
        tile.near.retain(|(_, _, weight)| *weight > A::ZERO);
    }

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

    /// Writes c_an of the block's anchors to `counts` and adds to their c_ap; whether there is any.
    fn count(&self, block: &mut Block<A>, distances: &[A], counts: &mut [A]) -> bool {
        let found = pulp::Arch::new().dispatch(Count {
            pairs: self.pairs,
            rows: block.rows.clone(),
            edge: self.tiling.edge,
            distances,
            counts,
            totals: &mut block.counts,
        });
        block.active_distances += found.active_distances;
        block.distances += found.distances;
        found.active
    }

    fn in_class_order(&self, block: &mut Block<A>) {
        let base = self.pairs.start[block.rows.start];
        for i in block.rows.clone() {
            let of = self.pairs.of(i);
            self.pairs.in_class_order(i, &mut block.counts[of.start - base..of.end - base]);
        }
    }
}

/// From what each row is pulled by to the gradient with respect to the given rows.
pub fn write_gradient<A: Scalar>(ring: &Ring<'_, A>, blocks: &[Block<A>], grad: &mut [A]) {
    let Ring { batch, classes, pairs, products, tiling, .. } = ring;
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
            if batch.metric == crate::distance::Metric::Cosine {
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
