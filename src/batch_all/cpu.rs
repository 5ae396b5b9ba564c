//! The fused CPU version: tiles of distances by products, counts against each anchor's thresholds `d_ap + margin`, and the
//! counts times the rows as a second product. What the docs call c_ap and c_an are `Pairs::count` and a tile's `counts`.
//!
//! Each tile serves both of its sides. Blocks of rows stand in a ring, and in step s block I meets block I + s: so in
//! every half of a step each block is written by one thread alone, and always in the same order: neither the number of
//! threads nor their speed changes a bit.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use pulp::{Simd, WithSimd};

use super::Problem;
use crate::cpu::batch::{Batch, Classes, Products};
use crate::cpu::blocks;
use crate::cpu::gemm::View;
use crate::cpu::simd::V;
use crate::cpu::tiles::{Tiling, add_transposed, transpose};
use crate::{Element, Matrix, Scalar, Stats};

/// Rows of one task where no tiles are involved.
const TASK_ROWS: usize = 32;

/// From how many rows in a class on an anchor's thresholds are sorted and searched instead of compared one by one.
const LARGE: usize = 64;

/// What a batch came to.
pub struct Swept<A> {
    /// The sum of the triplets' losses.
    sum: f64,
    pub(crate) stats: Stats,
    /// `[N, D]` in the given order, not divided; where it was asked for and the batch is not poisoned.
    grad: Vec<A>,
    poisoned: bool,
}

impl<A: Scalar> Swept<A> {
    /// The reduced loss.
    pub(crate) fn loss(&self, problem: &Problem) -> A {
        if self.poisoned {
            return A::NAN;
        }
        A::from_f64(self.sum / problem.divisor(&self.stats))
    }

    fn poisoned(valid: u64) -> Self {
        Self { sum: f64::NAN, stats: Stats { valid, ..Stats::poisoned() }, grad: Vec::new(), poisoned: true }
    }
}

/// Counts the active triplets of a batch.
pub(crate) fn sweep<T: Element>(
    problem: &Problem,
    embeddings: &Matrix<'_, T>,
    labels: &[i64],
    with_grad: bool,
) -> Swept<T::Scalar> {
    let classes = Classes::new(labels);
    let batch = Batch::new(embeddings, &classes.order, problem.metric, problem.normalize);
    T::Scalar::sweep(problem, &batch, &classes, with_grad)
}

/// The gradient times `upstream` (`None`: 1), of a sweep with gradient.
pub(crate) fn gradient<T: Element>(
    problem: &Problem,
    swept: &Swept<T::Scalar>,
    upstream: Option<T::Scalar>,
    grad: &mut [T],
) {
    if swept.poisoned {
        return grad.fill(T::from_f64(f64::NAN));
    }
    let factor = upstream.unwrap_or(T::Scalar::ONE) / T::Scalar::from_f64(problem.divisor(&swept.stats));
    let chunk = TASK_ROWS * problem.dim;
    let parts = grad.chunks_mut(chunk).zip(swept.grad.chunks(chunk)).collect();
    blocks::for_each(parts, |_, (to, from): (&mut [T], &[T::Scalar])| match T::as_scalars_mut(to) {
        Some(to) => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from * factor),
        None => T::narrow(&from.iter().map(|g| *g * factor).collect::<Vec<_>>(), to),
    });
}

/// The sweep for each type of arithmetic. A trait, so that it is compiled once, here.
pub trait Sweep: Sized {
    #[doc(hidden)]
    fn sweep(problem: &Problem, batch: &Batch<Self>, classes: &Classes, with_grad: bool) -> Swept<Self>;
}

macro_rules! sweep {
    ($($t:ident),*) => {$(
        impl Sweep for $t {
            fn sweep(problem: &Problem, batch: &Batch<Self>, classes: &Classes, with_grad: bool) -> Swept<Self> {
                run(problem, batch, classes, with_grad)
            }
        }
    )*};
}
sweep!(f32, f64);

fn run<A: Scalar>(problem: &Problem, batch: &Batch<A>, classes: &Classes, with_grad: bool) -> Swept<A> {
    let rows = problem.rows as u64;
    let of_row = |i: usize| {
        let positives = classes.count_positives(i) as u64;
        positives * (rows - positives - 1)
    };
    let valid = (0..problem.rows).map(of_row).sum();
    if batch.poisoned {
        return Swept::poisoned(valid);
    }
    let grad = vec![A::ZERO; if with_grad { batch.x.len() } else { 0 }];
    if valid == 0 {
        return Swept { sum: 0.0, stats: Stats::default(), grad, poisoned: false };
    }
    let Some(pairs) = Pairs::new(batch, classes, A::from_f64(problem.margin)) else { return Swept::poisoned(valid) };
    let ring = Ring {
        batch,
        classes,
        pairs: &pairs,
        products: Products::new(batch),
        tiling: Tiling::at_most(problem.rows, 128),
        with_grad,
        overflow: AtomicBool::new(false),
    };
    let blocks = ring.sweep();
    if ring.overflow.load(Ordering::Relaxed) {
        return Swept::poisoned(valid);
    }
    let mut total = Swept { sum: 0.0, stats: Stats { valid, ..Stats::default() }, grad, poisoned: false };
    for block in &blocks {
        let first = pairs.start[block.rows.start];
        let counted = &pairs.threshold[first..first + block.counts.len()];
        // One by one in f64: the difference of both sums is what is left of numbers as large as the distances.
        for (threshold, &count) in counted.iter().zip(&block.counts).filter(|(_, count)| **count > 0) {
            total.sum += threshold.to_f64() * f64::from(count);
            total.stats.active += u64::from(count);
        }
        total.sum -= block.active_distances;
        total.stats.mean_negative_distance += block.distances / valid as f64;
    }
    total.sum = total.sum.max(0.0);
    for i in 0..problem.rows {
        let negatives = problem.rows - classes.count_positives(i) - 1;
        let sum: f64 = pairs.distances(i).iter().map(|d| d.to_f64()).sum();
        total.stats.mean_positive_distance += sum * negatives as f64 / valid as f64;
    }
    if with_grad {
        write_gradient(&ring, blocks, &mut total.grad);
    }
    total
}

/// Each anchor with each row of its class.
struct Pairs<A> {
    /// Where a row's pairs start: one for each row of its class, itself included.
    start: Vec<usize>,
    distance: Vec<A>,
    /// `d_ap + margin`, of the row itself -∞; in large classes ascending.
    threshold: Vec<A>,
    /// Whose a threshold is, by its place in the class; empty without large classes.
    owner: Vec<u32>,
    /// The largest threshold of each row.
    reach: Vec<A>,
}

impl<A: Scalar> Pairs<A> {
    /// `None` where a distance overflows.
    fn new(batch: &Batch<A>, classes: &Classes, margin: A) -> Option<Self> {
        let size = |i: usize| classes.count_positives(i) + 1;
        let mut start = Vec::with_capacity(batch.rows + 1);
        start.push(0);
        for i in 0..batch.rows {
            start.push(start[i] + size(i));
        }
        let len = start[batch.rows];
        let any_large = (0..batch.rows).any(|i| size(i) > LARGE);
        let mut pairs = Self {
            distance: vec![A::ZERO; len],
            threshold: vec![-A::INFINITY; len],
            owner: vec![0; if any_large { len } else { 0 }],
            reach: vec![-A::INFINITY; batch.rows],
            start,
        };
        let starts = &pairs.start;
        let (mut distance, mut threshold) = (&mut pairs.distance[..], &mut pairs.threshold[..]);
        let mut owner = any_large.then_some(&mut pairs.owner[..]);
        let mut tasks = Vec::new();
        for (task, reach) in pairs.reach.chunks_mut(TASK_ROWS).enumerate() {
            let rows = task * TASK_ROWS..task * TASK_ROWS + reach.len();
            let len = starts[rows.end] - starts[rows.start];
            tasks.push((rows, take(&mut distance, len), take(&mut threshold, len), cut(&mut owner, len), reach));
        }
        let overflow = AtomicBool::new(false);
        type Task<'a, A> = (Range<usize>, &'a mut [A], &'a mut [A], Option<&'a mut [u32]>, &'a mut [A]);
        blocks::for_each(tasks, |_, (rows, distance, threshold, mut owner, reach): Task<'_, A>| {
            let base = starts[rows.start];
            for (i, reach) in rows.zip(reach) {
                let at = starts[i] - base..starts[i + 1] - base;
                let (distance, threshold) = (&mut distance[at.clone()], &mut threshold[at.clone()]);
                let first = classes.ranges[i].0 as usize;
                for p in classes.positives(i) {
                    distance[p - first] = batch.distance(batch.direct(i, p));
                    threshold[p - first] = distance[p - first] + margin;
                }
                for &t in threshold.iter() {
                    if t > *reach {
                        *reach = t;
                    }
                }
                if !distance.iter().all(|d| d.is_finite()) || *reach == A::INFINITY {
                    overflow.store(true, Ordering::Relaxed);
                }
                if let Some(owner) = owner.as_mut().filter(|_| threshold.len() > LARGE) {
                    let owner = &mut owner[at];
                    (0..).zip(owner.iter_mut()).for_each(|(k, owner)| *owner = k);
                    owner.sort_unstable_by(|&j, &k| {
                        threshold[j as usize].partial_cmp(&threshold[k as usize]).unwrap_or(std::cmp::Ordering::Equal)
                    });
                    let sorted: Vec<A> = owner.iter().map(|&k| threshold[k as usize]).collect();
                    threshold.copy_from_slice(&sorted);
                }
            }
        });
        (!overflow.into_inner()).then_some(pairs)
    }

    fn of(&self, i: usize) -> Range<usize> {
        self.start[i]..self.start[i + 1]
    }

    fn thresholds(&self, i: usize) -> &[A] {
        &self.threshold[self.of(i)]
    }

    fn distances(&self, i: usize) -> &[A] {
        &self.distance[self.of(i)]
    }
}

/// The first `len` numbers, which `slice` loses.
fn take<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    slice.split_off_mut(..len).expect("as long as all parts together")
}

fn cut<'a, T>(slice: &mut Option<&'a mut [T]>, len: usize) -> Option<&'a mut [T]> {
    slice.as_mut().map(|slice| take(slice, len))
}

/// What is known of a block of rows so far.
struct Block<A> {
    rows: Range<usize>,
    /// Of each pair of an anchor with its class: how many negatives are nearer than the threshold; in large classes how
    /// many are above the thresholds before this one and not above it.
    counts: Vec<u32>,
    /// `Σ_n c_an d_an`.
    active_distances: f64,
    /// `Σ d_an` over all triplets.
    distances: f64,
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

struct Ring<'a, A> {
    batch: &'a Batch<A>,
    classes: &'a Classes,
    pairs: &'a Pairs<A>,
    products: Products<A>,
    tiling: Tiling,
    with_grad: bool,
    overflow: AtomicBool,
}

impl<A: Scalar> Ring<'_, A> {
    fn sweep(&self) -> Vec<Block<A>> {
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
                self.count_large(block);
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

    /// In large classes, from how many negatives there are between two thresholds to how many are below each, in the
    /// order of the class.
    fn count_large(&self, block: &mut Block<A>) {
        let base = self.pairs.start[block.rows.start];
        for i in block.rows.clone() {
            let of = self.pairs.of(i);
            if of.len() > LARGE {
                let counts = &mut block.counts[of.start - base..of.end - base];
                let mut below = 0;
                for count in counts.iter_mut() {
                    below += *count;
                    *count = below;
                }
            }
        }
    }
}

/// Counts a tile's distances against the thresholds of its rows.
struct Count<'a, A> {
    pairs: &'a Pairs<A>,
    rows: Range<usize>,
    edge: usize,
    distances: &'a [A],
    counts: &'a mut [A],
    totals: &'a mut [u32],
}

#[derive(Default)]
struct Found {
    active: bool,
    active_distances: f64,
    distances: f64,
}

impl<A: Scalar> WithSimd for Count<'_, A> {
    type Output = Found;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Found {
        let Self { pairs, rows, edge, distances, counts, totals } = self;
        let splat = |x| V::<S, A>::splat(simd, x);
        let load = |register| V::<S, A> { simd, register };
        let base = pairs.start[rows.start];
        let mut found = Found::default();
        let (outside, zero) = (splat(A::MAX), splat(A::ZERO));
        counts[rows.len() * edge..].fill(A::ZERO);
        for (i, (d, counts)) in rows.zip(distances.chunks_exact(edge).zip(counts.chunks_exact_mut(edge))) {
            let thresholds = pairs.thresholds(i);
            counts.fill(A::ZERO);
            let totals = &mut totals[pairs.start[i] - base..][..thresholds.len()];
            // `edge` is a multiple of every register's width.
            let (d_registers, _) = A::registers::<S>(d);
            let (mut least, mut sum) = (outside, zero);
            for &d in d_registers {
                let d = load(d);
                least = least.min(d);
                sum = d.if_below(outside).mul_add(d, sum);
            }
            found.distances += sum.sum().to_f64() * (thresholds.len() - 1) as f64;
            if least.smallest() >= pairs.reach[i] {
                continue;
            }
            found.active = true;
            if thresholds.len() > LARGE {
                for (d, count) in d.iter().zip(counts.iter_mut()).filter(|(d, _)| **d < pairs.reach[i]) {
                    let above = thresholds.partition_point(|t| *t <= *d);
                    totals[above] += 1;
                    *count = A::from_f64((thresholds.len() - above) as f64);
                }
            }
            let (counts, _) = A::registers_mut::<S>(counts);
            if thresholds.len() <= LARGE {
                for (&threshold, total) in thresholds.iter().zip(totals).filter(|(t, _)| t.is_finite()) {
                    let threshold = splat(threshold);
                    let mut active = zero;
                    for (&d, count) in d_registers.iter().zip(counts.iter_mut()) {
                        let one = load(d).if_below(threshold);
                        active = active + one;
                        *count = (load(*count) + one).register;
                    }
                    *total += active.sum().to_f64() as u32;
                }
            }
            let mut sum = zero;
            for (&d, count) in d_registers.iter().zip(counts.iter()) {
                sum = load(d).mul_add(load(*count), sum);
            }
            found.active_distances += sum.sum().to_f64();
        }
        found
    }
}

/// From what each row is pulled by to the gradient with respect to the given rows.
fn write_gradient<A: Scalar>(ring: &Ring<'_, A>, blocks: Vec<Block<A>>, grad: &mut [A]) {
    let Ring { batch, classes, pairs, products, tiling, .. } = ring;
    let dim = batch.dim;
    let blocks = &blocks;
    let count_of = |i: usize, k: usize| {
        let block = &blocks[i / tiling.edge];
        block.counts[pairs.start[i] - pairs.start[block.rows.start] + k]
    };
    // Where the threshold of the k-th row of a large class lies among those of anchor i.
    let mut place = vec![0u32; pairs.owner.len()];
    for i in (0..batch.rows).filter(|&i| pairs.of(i).len() > LARGE) {
        for (k, &owner) in (0..).zip(&pairs.owner[pairs.of(i)]) {
            place[pairs.start[i] + owner as usize] = k;
        }
    }
    let count = |i: usize, k: usize| match pairs.of(i).len() > LARGE {
        true => count_of(i, place[pairs.start[i] + k] as usize),
        false => count_of(i, k),
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
