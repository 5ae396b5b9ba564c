//! The fused CPU version. Positives by difference; negatives are filtered by tiles of products, and what the products'
//! error leaves open is computed by difference too: the selected pair is the exact minimum, so neither the number of
//! threads nor the order of the tiles changes a bit.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use pulp::{Simd, WithSimd};

use super::Problem;
use crate::cpu::batch::{Batch, Classes, Products};
use crate::cpu::blocks;
use crate::cpu::simd::V;
use crate::cpu::tiles::Tiling;
use crate::{Element, Matrix, Reduction, Scalar, Stats};

/// No row.
const NONE: u32 = u32::MAX;

/// Rows of one task.
const TASK_ROWS: usize = 32;

/// The triplets of a batch: of each anchor, in the order given.
#[derive(Clone, Debug)]
pub struct Selection<A> {
    /// The farthest positive; `u32::MAX` for an anchor without a positive or without a negative.
    pub positive: Vec<u32>,
    /// The nearest negative; `u32::MAX` for an anchor without a positive or without a negative.
    pub negative: Vec<u32>,
    /// How far the positive is, else 0.
    pub positive_distances: Vec<A>,
    /// How far the negative is, else 0.
    pub negative_distances: Vec<A>,
    /// The anchors' losses.
    pub losses: Vec<A>,
    /// As of [`loss_with_stats`](super::BatchHardTripletLoss::loss_with_stats).
    pub stats: Stats,
    /// Whether the embeddings hold NaN or infinity: nothing is selected then.
    pub poisoned: bool,
}

impl<A: Scalar> Selection<A> {
    /// The reduced loss.
    pub(crate) fn loss(&self, problem: &Problem) -> A {
        if self.poisoned {
            return A::NAN;
        }
        let sum: f64 = self.losses.iter().map(|loss| loss.to_f64()).sum();
        A::from_f64(sum / problem.divisor(self.stats.valid))
    }
}

/// Finds the triplets. What is returned beside them serves [`gradient`].
pub(crate) fn select<T: Element>(
    problem: &Problem,
    embeddings: &Matrix<'_, T>,
    labels: &[i64],
) -> (Batch<T::Scalar>, Classes, Selection<T::Scalar>) {
    let classes = Classes::new(labels);
    let batch = Batch::new(embeddings, &classes.order, problem.metric, problem.normalize);
    let selection = T::Scalar::select(problem, &batch, &classes);
    (batch, classes, selection)
}

/// The gradient times `upstream` (one number, or one an anchor; `None`: 1), for the triplets of `selection`. Row r is row
/// `position[r]` of `batch`, without `position` row r.
pub(crate) fn gradient<T: Element>(
    problem: &Problem,
    batch: &Batch<T::Scalar>,
    position: Option<&[u32]>,
    selection: &Selection<T::Scalar>,
    upstream: Option<&[T::Scalar]>,
    grad: &mut [T],
) {
    let dim = problem.dim;
    let pulls = T::Scalar::pulls(problem, batch, position, selection, upstream);
    blocks::for_each(grad.chunks_mut(TASK_ROWS * dim).collect(), |block, grad: &mut [T]| {
        let mut wide = vec![T::Scalar::ZERO; if T::as_scalars(&[]).is_some() { 0 } else { dim }];
        for (i, grad) in grad.chunks_exact_mut(dim).enumerate() {
            let row = block * TASK_ROWS + i;
            match T::as_scalars_mut(grad) {
                Some(grad) => T::Scalar::gradient_row(&pulls, row, grad),
                None => {
                    T::Scalar::gradient_row(&pulls, row, &mut wide);
                    T::narrow(&wide, grad);
                }
            }
        }
    });
}

/// The parts of the loss for each type of arithmetic. A trait, so that they are compiled once, here.
pub trait Sweep: Sized {
    #[doc(hidden)]
    fn select(problem: &Problem, batch: &Batch<Self>, classes: &Classes) -> Selection<Self>;
    #[doc(hidden)]
    fn pulls<'a>(
        problem: &Problem,
        batch: &'a Batch<Self>,
        position: Option<&'a [u32]>,
        selection: &'a Selection<Self>,
        upstream: Option<&[Self]>,
    ) -> Pulls<'a, Self>;
    #[doc(hidden)]
    fn gradient_row(pulls: &Pulls<'_, Self>, row: usize, to: &mut [Self]);
}

macro_rules! sweep {
    ($($t:ident),*) => {$(
        impl Sweep for $t {
            fn select(problem: &Problem, batch: &Batch<Self>, classes: &Classes) -> Selection<Self> {
                find(problem, batch, classes)
            }
            fn pulls<'a>(
                problem: &Problem,
                batch: &'a Batch<Self>,
                position: Option<&'a [u32]>,
                selection: &'a Selection<Self>,
                upstream: Option<&[Self]>,
            ) -> Pulls<'a, Self> {
                Pulls::new(problem, batch, position, selection, upstream)
            }
            fn gradient_row(pulls: &Pulls<'_, Self>, row: usize, to: &mut [Self]) {
                pulls.gradient_row(row, to);
            }
        }
    )*};
}
sweep!(f32, f64);

fn find<A: Scalar>(problem: &Problem, batch: &Batch<A>, classes: &Classes) -> Selection<A> {
    let rows = problem.rows;
    let mut selection = Selection {
        positive: vec![NONE; rows],
        negative: vec![NONE; rows],
        positive_distances: vec![A::ZERO; rows],
        negative_distances: vec![A::ZERO; rows],
        losses: vec![A::ZERO; rows],
        stats: Stats::default(),
        poisoned: batch.poisoned,
    };
    let valid = (0..rows).filter(|&i| classes.is_valid(i)).count() as u64;
    if batch.poisoned {
        // Every anchor with a triplet looks at every row.
        for i in 0..rows {
            if classes.is_valid(i) || batch.row(i).iter().any(|x| !x.is_finite()) {
                selection.losses[classes.order[i] as usize] = A::NAN;
            }
        }
        selection.stats = Stats { valid, ..Stats::poisoned() };
        return selection;
    }
    if valid == 0 {
        return selection;
    }
    let positives = farthest_positives(batch, classes);
    let negatives = nearest_negatives(batch, classes);
    let (mut positive_sum, mut negative_sum, mut active) = (0.0, 0.0, 0);
    for a in 0..rows {
        let i = classes.position[a] as usize;
        if !classes.is_valid(i) {
            continue;
        }
        let d = [positives.compared[i], negatives.compared[i]].map(|compared| batch.distance(compared));
        let loss = loss(problem, d);
        selection.positive[a] = classes.order[positives.row[i] as usize];
        selection.negative[a] = classes.order[negatives.row[i] as usize];
        selection.positive_distances[a] = d[0];
        selection.negative_distances[a] = d[1];
        selection.losses[a] = loss;
        positive_sum += d[0].to_f64();
        negative_sum += d[1].to_f64();
        active += u64::from(loss > A::ZERO);
    }
    selection.stats = Stats {
        valid,
        active,
        mean_positive_distance: positive_sum / valid as f64,
        mean_negative_distance: negative_sum / valid as f64,
    };
    selection
}

/// The loss of an anchor with distances `d_ap` and `d_an`.
fn loss<A: Scalar>(problem: &Problem, [d_ap, d_an]: [A; 2]) -> A {
    if !(d_ap.is_finite() && d_an.is_finite()) {
        return A::NAN;
    }
    if problem.soft_margin {
        // ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|)
        let x = d_ap.to_f64() - d_an.to_f64();
        return A::from_f64(x.max(0.0) + (-x.abs()).exp().ln_1p());
    }
    let t = d_ap - d_an + A::from_f64(problem.margin);
    if t > A::ZERO { t } else { A::ZERO }
}

/// The derivative of the loss with respect to `d_ap - d_an`.
fn weight<A: Scalar>(problem: &Problem, [d_ap, d_an]: [A; 2], loss: A) -> A {
    if loss.is_nan() {
        A::NAN
    } else if problem.soft_margin {
        A::from_f64(1.0 / (1.0 + (d_an.to_f64() - d_ap.to_f64()).exp()))
    } else if loss > A::ZERO {
        A::ONE
    } else {
        A::ZERO
    }
}

/// A sorted row for each sorted row, and how far it is in terms of [`Batch::direct`].
struct Found<A> {
    compared: Vec<A>,
    row: Vec<u32>,
}

fn farthest_positives<A: Scalar>(batch: &Batch<A>, classes: &Classes) -> Found<A> {
    let rows = batch.rows;
    let mut found = Found { compared: vec![A::ZERO; rows], row: vec![NONE; rows] };
    let parts = found.compared.chunks_mut(TASK_ROWS).zip(found.row.chunks_mut(TASK_ROWS)).collect();
    blocks::for_each(parts, |block, (compared, row): (&mut [A], &mut [u32])| {
        for (k, (compared, row)) in compared.iter_mut().zip(row).enumerate() {
            let i = block * TASK_ROWS + k;
            for p in classes.positives(i) {
                let d = batch.direct(i, p);
                if *row == NONE || d > *compared {
                    (*compared, *row) = (d, p as u32);
                }
            }
        }
    });
    found
}

fn nearest_negatives<A: Scalar>(batch: &Batch<A>, classes: &Classes) -> Found<A> {
    let products = Products::new(batch);
    let tiling = Tiling::new(batch.rows);
    // What a distance by products exceeds its exact value by is at most the sum of what the norms are lowered by.
    let half_tiny = products.tiny / (A::ONE + A::ONE);
    let lowered: Vec<A> = products.norms.iter().map(|&n| n - products.error * n - half_tiny).collect();
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Vec::new());
    let workers = rayon::current_num_threads().min(tiling.tiles());
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

/// The nearest negatives so far.
struct Nearest<'a, A> {
    batch: &'a Batch<A>,
    classes: &'a Classes,
    found: Found<A>,
}

impl<'a, A: Scalar> Nearest<'a, A> {
    fn new(batch: &'a Batch<A>, classes: &'a Classes) -> Self {
        // Nothing is nearer to an anchor without positives.
        let start = |i| if classes.is_valid(i) { A::INFINITY } else { -A::INFINITY };
        let found = Found { compared: (0..batch.rows).map(start).collect(), row: vec![NONE; batch.rows] };
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

/// Elements of a row that are looked at together.
const GROUP: usize = 64;

/// Offers what a tile of products does not rule out.
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
                // Only whole registers are ruled out at once.
                let ruled_out = if least.smallest() > A::ZERO { products.len() - rest.len() } else { 0 };
                for (j, product) in group.zip(products).skip(ruled_out) {
                    let bound = lowered[i] + lowered[j] - factor * *product;
                    if bound <= nearest.found.compared[i] || bound <= nearest.found.compared[j] {
                        nearest.meet(i, j);
                    }
                }
            }
        }
    }
}

/// Which anchors pull at each row.
pub struct Pulls<'a, A> {
    batch: &'a Batch<A>,
    position: Option<&'a [u32]>,
    selection: &'a Selection<A>,
    /// What each anchor's pairs weigh, upstream included where there is one for each.
    weights: Vec<A>,
    /// What every gradient is multiplied by at last.
    scale: A,
    /// `anchors[starts[r]..starts[r + 1]]` have selected row r.
    starts: Vec<usize>,
    anchors: Vec<u32>,
}

impl<'a, A: Scalar> Pulls<'a, A> {
    fn new(
        problem: &Problem,
        batch: &'a Batch<A>,
        position: Option<&'a [u32]>,
        selection: &'a Selection<A>,
        upstream: Option<&[A]>,
    ) -> Self {
        let rows = problem.rows;
        let each = problem.reduction == Reduction::None;
        let weights = (0..rows).map(|a| {
            if selection.positive[a] == NONE {
                return A::ZERO;
            }
            let distances = [selection.positive_distances[a], selection.negative_distances[a]];
            let weight = weight(problem, distances, selection.losses[a]);
            match upstream {
                Some(upstream) if each && !(weight == A::ZERO) => weight * upstream[a],
                _ => weight,
            }
        });
        let weights: Vec<A> = weights.collect();
        let scale = match upstream {
            Some(upstream) if !each => upstream[0],
            _ => A::ONE,
        } / A::from_f64(problem.divisor(selection.stats.valid));

        let selected = || {
            let pulling = (0..rows).filter(|&a| !(weights[a] == A::ZERO));
            pulling.flat_map(|a| [(selection.positive[a], a as u32), (selection.negative[a], a as u32)])
        };
        let mut starts = vec![0; rows + 1];
        for (row, _) in selected() {
            starts[row as usize + 1] += 1;
        }
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        let mut anchors = vec![0; starts[rows]];
        let mut filled = starts.clone();
        for (row, anchor) in selected() {
            anchors[filled[row as usize]] = anchor;
            filled[row as usize] += 1;
        }
        Self { batch, position, selection, weights, scale, starts, anchors }
    }

    /// First the row's own two pairs, then those that it was selected for, by anchor.
    fn gradient_row(&self, row: usize, to: &mut [A]) {
        let Self { batch, selection, weights, .. } = self;
        if selection.poisoned {
            return to.fill(A::NAN);
        }
        to.fill(A::ZERO);
        let anchors = &self.anchors[self.starts[row]..self.starts[row + 1]];
        if weights[row] == A::ZERO && anchors.is_empty() {
            return;
        }
        let at = |row: u32| self.position.map_or(row, |position| position[row as usize]) as usize;
        let i = at(row as u32);
        let mut pull = |anchor: usize, positive: bool, other: u32| {
            let (distances, sign) = match positive {
                true => (&selection.positive_distances, A::ONE),
                false => (&selection.negative_distances, -A::ONE),
            };
            let slope = batch.slope(distances[anchor]);
            batch.pull(to, sign * weights[anchor] * slope, i, at(other));
        };
        if !(weights[row] == A::ZERO) {
            pull(row, true, selection.positive[row]);
            pull(row, false, selection.negative[row]);
        }
        for &anchor in anchors {
            pull(anchor as usize, selection.positive[anchor as usize] == row as u32, anchor);
        }
        batch.through_normalization(i, to);
        to.iter_mut().for_each(|g| *g = *g * self.scale);
    }
}
