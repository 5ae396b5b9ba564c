//! A batch against itself or against another in square tiles of distances, each of which serves both of its sides. What
//! a loss makes of a tile is its [`Weigh`]; the distances, the schedule and the gradients are here.
//!
//! Blocks of rows meet in rounds as players of a tournament do, each in one pair of a round, and one thread takes a
//! pair: so each block is written by one thread at a time, and always in the same order. Neither the number of threads
//! nor their speed changes a bit.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use pulp::{Simd, WithSimd};

use super::batch::{Batch, Both, Products};
use super::gemm::View;
use super::simd::V;
use super::tiles::Tiling;
use super::{blocks, pulls};
use crate::{Distance, Scalar};

/// Rows of one task that writes gradients.
pub const TASK_ROWS: usize = 32;

/// Rows and columns of a tile at most: two tiles and their rows are within the second-level cache.
pub const EDGE: usize = 128;

/// Rows and columns of a tile at least, if they are of one batch, and what they are a multiple of: small tiles are much work
/// beside the products.
const LEAST: usize = 64;

/// Columns of a tile at least, if they are not the rows, and what they are a multiple of: of every register's numbers.
const LEAST_COLUMNS: usize = 32;

/// Rows of a tile at least, if they are not the columns.
const LEAST_ROWS: usize = 8;

/// What a loss makes of tiles.
pub trait Weigh<A: Scalar>: Sync {
    /// Whether Euclidean distances are taken as such, or else their squares.
    const ROOTS: bool = true;
    /// What the loss knows of a block of rows.
    type Block: Send;
    /// Room that is used again for every tile.
    type Scratch: Default + Send;

    /// What is known of a block at first. `side`: 0 for rows; 1 for columns, if these are not the rows.
    fn block(&self, side: usize, rows: &Range<usize>) -> Self::Block;

    /// The columns that make no pair with row i, and so are left out: a run of them.
    fn left_out(&self, i: usize) -> Range<usize>;

    /// Whether a tile needs no distances from here: it has no near pairs, and what the loss and the slope of the distance
    /// need of the distances is in the tile already.
    fn knows(&self, tile: &mut Tile<A>) -> bool {
        let _ = tile;
        false
    }

    /// Fills the weights of a tile, the derivatives of the loss with respect to its distances; returns whether any is
    /// not 0. What is left out, and what is outside of the batch, has the distance MAX and must get the weight 0.
    /// `columns`: `None` if these are the rows, of which each pair comes in both orders, and both are weighed.
    fn weigh(
        &self,
        tile: &mut Tile<A>,
        scratch: &mut Self::Scratch,
        rows: &mut Self::Block,
        columns: Option<&mut Self::Block>,
    ) -> bool;
}

/// Room for the distances of a block of rows to a block of columns.
pub struct Tile<A> {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// Numbers in a row of the tile, a multiple of every register's.
    pub edge: usize,
    /// MAX for what is left out and outside of the batch.
    pub distances: Vec<A>,
    /// The loss's derivatives with respect to the distances; for the gradients those of near pairs are taken out, and for
    /// Euclidean distances the rest is divided by them.
    pub weights: Vec<A>,
    /// Pairs too near for products, and their weights.
    near: Vec<(usize, usize, A)>,
    /// The sums of the weights' columns.
    sums: Vec<A>,
}

impl<A: Scalar> Tile<A> {
    fn new([rows, columns]: [Tiling; 2]) -> Self {
        let (edge, len) = (columns.edge, rows.edge * columns.edge);
        Self {
            rows: 0..0,
            columns: 0..0,
            edge,
            distances: vec![A::MAX; len],
            weights: vec![A::ZERO; len],
            near: Vec::new(),
            sums: vec![A::ZERO; edge],
        }
    }

    /// Where row i and column j are in the tile.
    fn at(&self, i: usize, j: usize) -> usize {
        (i - self.rows.start) * self.edge + (j - self.columns.start)
    }
}

/// What is known of a block of rows so far.
pub struct Block<A, B> {
    pub rows: Range<usize>,
    /// What the loss knows.
    pub of_loss: B,
    /// `Σ_j W_ij x_j` of each row i, with the weights W; empty without gradients.
    pulled: Vec<A>,
    /// `Σ_j W_ij` of each row i.
    weight: Vec<f64>,
    /// The gradient of pairs that are too near for these sums, from the differences of their rows; empty without any.
    near: Vec<A>,
}

/// A pair of blocks that meet in a round; `second` is `None` if nobody is left for the first.
struct Meeting<'a, A, B> {
    first: &'a mut Block<A, B>,
    second: Option<&'a mut Block<A, B>>,
}

/// The rows and the columns of tiles, in blocks.
pub struct Rounds<'a, A> {
    sides: [&'a Batch<A>; 2],
    both: &'a Both<A>,
    /// Of the rows, and of the columns.
    pub tilings: [Tiling; 2],
    with_grad: [bool; 2],
    /// Whether each row and column is not finite; empty if all are finite.
    bad: [Vec<bool>; 2],
}

/// The pairs of round `round` among `count` players, the first before the second; `None`: nobody is left for the first.
fn tournament(count: usize, round: usize) -> impl Iterator<Item = (usize, Option<usize>)> {
    // The circle method: one player stays in place, with an odd count nobody (a bye); the others go round in a circle.
    let circle = count.next_multiple_of(2) - 1;
    (0..=circle / 2).map(move |k| {
        let (a, b) = ((round + k) % circle, if k == 0 { circle } else { (round + circle - k) % circle });
        if b == count { (a, None) } else { (a.min(b), Some(a.max(b))) }
    })
}

/// The pairs of round `round` between two teams of `counts` players.
fn match_of_teams(counts: [usize; 2], round: usize) -> impl Iterator<Item = (usize, usize)> {
    let places = counts[0].max(counts[1]);
    (0..counts[0]).map(move |a| (a, (a + round) % places)).filter(move |&(_, b)| b < counts[1])
}

impl<'a, A: Scalar> Rounds<'a, A> {
    /// The columns may be the rows, of which then both gradients are one.
    pub fn new(rows: &'a Batch<A>, columns: &'a Batch<A>, both: &'a Both<A>, with_grad: [bool; 2]) -> Self {
        let sides = [rows, columns];
        let bad = sides.map(|batch| match batch.poisoned {
            true => (0..batch.rows).map(|i| !batch.is_finite(i)).collect(),
            false => Vec::new(),
        });
        let tilings = match std::ptr::eq(rows, columns) {
            true => [Tiling::at_most(rows.rows, EDGE, LEAST, 8); 2],
            false => {
                [Tiling::at_most(rows.rows, EDGE, LEAST_ROWS, 4), Tiling::at_most(columns.rows, EDGE, LEAST_COLUMNS, 4)]
            }
        };
        Self { sides, both, tilings, with_grad, bad }
    }

    fn is_itself(&self) -> bool {
        std::ptr::eq(self.sides[0], self.sides[1])
    }

    fn products(&self, side: usize) -> &'a Products<A> {
        if side == 0 { &self.both.rows } else { self.both.columns() }
    }

    /// Works on all tiles; the blocks of rows, and of columns if these are not the rows.
    pub fn sweep<L: Weigh<A>>(&self, loss: &L) -> [Vec<Block<A, L::Block>>; 2] {
        let counts = self.tilings.map(|tiling| tiling.blocks());
        let itself = self.is_itself();
        let blocks = |side: usize| (0..counts[side]).map(move |index| self.block(loss, side, index));
        let mut all: Vec<Block<A, L::Block>> = blocks(0).collect();
        if !itself {
            all.extend(blocks(1));
        }
        let rounds = if itself { counts[0].next_multiple_of(2) - 1 } else { counts[0].max(counts[1]) };
        let rooms: Mutex<Vec<(Tile<A>, L::Scratch)>> = Mutex::new(Vec::new());
        let lock = || rooms.lock().unwrap_or_else(PoisonError::into_inner);
        for round in 0..rounds {
            let mut free: Vec<Option<&mut Block<A, L::Block>>> = all.iter_mut().map(Some).collect();
            let mut take = |block: usize| free[block].take().expect("each block is in one pair");
            let mut meeting = |a, b: Option<usize>| Meeting { first: take(a), second: b.map(&mut take) };
            let meetings = match itself {
                true => tournament(counts[0], round).map(|(a, b)| meeting(a, b)).collect(),
                false => match_of_teams(counts, round).map(|(a, b)| meeting(a, Some(counts[0] + b))).collect(),
            };
            blocks::for_each(meetings, |_, Meeting { first, second }: Meeting<'_, A, L::Block>| {
                let room = lock().pop();
                let mut room = room.unwrap_or_else(|| (Tile::new(self.tilings), L::Scratch::default()));
                let (tile, scratch) = (&mut room.0, &mut room.1);
                if itself && round == 0 {
                    self.meet_itself(loss, first, tile, scratch);
                }
                if let Some(second) = second {
                    if itself && round == 0 {
                        self.meet_itself(loss, second, tile, scratch);
                    }
                    self.meet(loss, [first, second], tile, scratch);
                }
                lock().push(room);
            });
        }
        let columns = all.split_off(counts[0]);
        [all, columns]
    }

    fn block<L: Weigh<A>>(&self, loss: &L, side: usize, index: usize) -> Block<A, L::Block> {
        let rows = self.tilings[side].range(index);
        let of_grad = if self.with_grad[side] { rows.len() } else { 0 };
        Block {
            of_loss: loss.block(side, &rows),
            pulled: vec![A::ZERO; of_grad * self.sides[side].dim],
            weight: vec![0.0; of_grad],
            near: Vec::new(),
            rows,
        }
    }

    /// Works on the tile of a block with itself. Its columns are its rows, so that each pair comes twice.
    fn meet_itself<L: Weigh<A>>(
        &self,
        loss: &L,
        block: &mut Block<A, L::Block>,
        tile: &mut Tile<A>,
        scratch: &mut L::Scratch,
    ) {
        (tile.rows, tile.columns) = (block.rows.clone(), block.rows.clone());
        if self.fill(loss, tile) && loss.weigh(tile, scratch, &mut block.of_loss, None) && self.with_grad[0] {
            self.weights(tile, &mut block.weight);
            self.pull(0, block, tile, false);
            for &(i, j, weight) in &tile.near {
                self.pull_near(0, block, i, j, weight);
            }
        }
    }

    /// Works on the tile of two blocks.
    fn meet<L: Weigh<A>>(
        &self,
        loss: &L,
        [a, b]: [&mut Block<A, L::Block>; 2],
        tile: &mut Tile<A>,
        scratch: &mut L::Scratch,
    ) {
        (tile.rows, tile.columns) = (a.rows.clone(), b.rows.clone());
        let with_grad = if self.is_itself() { [self.with_grad[0]; 2] } else { self.with_grad };
        if self.fill(loss, tile)
            && loss.weigh(tile, scratch, &mut a.of_loss, Some(&mut b.of_loss))
            && with_grad != [false; 2]
        {
            self.weights(tile, &mut a.weight);
            b.weight.iter_mut().zip(&tile.sums).for_each(|(sum, weight)| *sum += weight.to_f64());
            let second = usize::from(!self.is_itself());
            if with_grad[0] {
                self.pull(0, a, tile, false);
                tile.near.iter().for_each(|&(i, j, weight)| self.pull_near(0, a, i, j, weight));
            }
            if with_grad[1] {
                self.pull(second, b, tile, true);
                tile.near.iter().for_each(|&(i, j, weight)| self.pull_near(second, b, j, i, weight));
            }
        }
    }

    /// Takes the near pairs out of the weights, and makes these what the differences of rows are multiplied by, without the
    /// factor of the distance's slope. Adds their sums over columns to `weight`, which may be empty, and writes those
    /// over rows to the tile.
    fn weights(&self, tile: &mut Tile<A>, weight: &mut [f64]) {
        let root = self.sides[0].is_root();
        let mut near = std::mem::take(&mut tile.near);
        for (i, j, weight) in &mut near {
            let at = tile.at(*i, *j);
            let (of_pair, d) = (std::mem::replace(&mut tile.weights[at], A::ZERO), tile.distances[at]);
            *weight = match root {
                false => of_pair,
                // At 0 there is no direction; NaN stays.
                true if d == A::ZERO => A::ZERO,
                true => of_pair / d,
            };
        }
        near.retain(|(_, _, weight)| !(*weight == A::ZERO));
        tile.near = near;
        let Tile { rows, distances, weights, sums, edge, .. } = tile;
        pulp::Arch::new().dispatch(Sum { distances, weights, edge: *edge, root, rows: rows.len(), weight, sums });
    }

    /// Adds the weights, or with `transposed` their transpose, times the rows of the other side to what the block is
    /// pulled by. `side`: the block's.
    fn pull<B>(&self, side: usize, block: &mut Block<A, B>, tile: &Tile<A>, transposed: bool) {
        let Tile { rows, columns, edge, weights, .. } = tile;
        let dim = self.sides[side].dim;
        let weights = View::new(weights, rows.len(), columns.len(), *edge);
        let (weights, others) = if transposed { (weights.t(), rows) } else { (weights, columns) };
        let other = if self.is_itself() { side } else { 1 - side };
        let others = self.products(other).rows(self.sides[other], others);
        A::product(&mut block.pulled, dim, true, weights, others);
    }

    /// Adds the gradient of the distance of the block's row i and row j of the other side, which is near, times `weight`.
    fn pull_near<B>(&self, side: usize, block: &mut Block<A, B>, i: usize, j: usize, weight: A) {
        let batch = self.sides[side];
        let other = self.sides[if self.is_itself() { side } else { 1 - side }];
        block.near.resize(block.pulled.len(), A::ZERO);
        let to = &mut block.near[(i - block.rows.start) * batch.dim..][..batch.dim];
        pulls::add(to, batch, i, other, j, weight * batch.slope_factor());
    }

    /// Fills the tile with distances; returns whether there are any.
    fn fill<L: Weigh<A>>(&self, loss: &L, tile: &mut Tile<A>) -> bool {
        tile.near.clear();
        let left_out = |tile: &Tile<A>, i: usize| {
            let Range { start, end } = loss.left_out(i);
            let within = |at: usize| at.clamp(tile.columns.start, tile.columns.end) - tile.columns.start;
            within(start)..within(end)
        };
        if tile.rows.clone().all(|i| left_out(tile, i).len() == tile.columns.len()) {
            return false;
        }
        if loss.knows(tile) {
            return true;
        }
        let [rows, columns] = self.sides;
        if !self.both.is_huge() {
            let right = self.both.columns().rows(columns, &tile.columns).t();
            A::product(&mut tile.distances, tile.edge, false, self.both.rows.rows(rows, &tile.rows), right);
        }
        let mut near = std::mem::take(&mut tile.near);
        for (k, i) in tile.rows.clone().enumerate() {
            let out = left_out(tile, i);
            let (to, rest) = tile.distances[k * tile.edge..][..tile.edge].split_at_mut(tile.columns.len());
            rest.fill(A::MAX);
            let first = tile.columns.start;
            self.both.compare(self.sides, i, &tile.columns, &out, to, |k| near.push((i, first + k, A::ZERO)));
            if L::ROOTS && rows.is_root() {
                super::batch::roots(to);
            }
            to[out].fill(A::MAX);
            if self.bad[0].get(i) == Some(&true) {
                to.fill(A::NAN);
            }
            if !self.bad[1].is_empty() {
                let bad = to.iter_mut().zip(&self.bad[1][tile.columns.clone()]).filter(|(_, bad)| **bad);
                bad.for_each(|(d, _)| *d = A::NAN);
            }
        }
        tile.near = near;
        tile.distances[tile.rows.len() * tile.edge..].fill(A::MAX);
        true
    }

    /// Writes the gradients with respect to the given rows of a side, row r being row `place(r)` of the batch, from what
    /// its rows are pulled by; `add(i, gradient)` adds to that of the batch's row i.
    pub fn gradient<B: Sync>(
        &self,
        side: usize,
        blocks: &[Block<A, B>],
        to: &mut [A],
        place: impl Fn(usize) -> usize + Sync,
        add: impl Fn(usize, &mut [A]) + Sync,
    ) {
        let (batch, products) = (self.sides[side], self.products(side));
        let (dim, edge) = (batch.dim, self.tilings[side].edge);
        blocks::for_each(to.chunks_mut(TASK_ROWS * dim).collect(), |task, to: &mut [A]| {
            for (row, to) in to.chunks_exact_mut(dim).enumerate() {
                let i = place(task * TASK_ROWS + row);
                let block = &blocks[i / edge];
                let k = i - block.rows.start;
                let at = k * dim..(k + 1) * dim;
                let pulled = &block.pulled[at.clone()];
                if batch.metric == Distance::Cosine {
                    to.iter_mut().zip(pulled).for_each(|(to, p)| *to = -*p);
                } else {
                    let (slope, weight) = (batch.slope_factor(), A::from_f64(block.weight[k]));
                    let x = &products.x(batch)[i * dim..][..dim];
                    to.iter_mut().zip(pulled).zip(x).for_each(|((to, p), x)| *to = slope * (weight * *x - *p));
                }
                if let Some(near) = block.near.get(at) {
                    to.iter_mut().zip(near).for_each(|(to, near)| *to += *near);
                }
                add(i, to);
                batch.through_normalization(i, to);
                if self.bad[side].get(i) == Some(&true) {
                    to.fill(A::NAN);
                }
            }
        });
    }
}

/// Divides weights by distances, if `root` asks for it, and sums them up.
struct Sum<'a, A> {
    distances: &'a [A],
    weights: &'a mut [A],
    edge: usize,
    root: bool,
    rows: usize,
    /// The sums of the rows are added to these; may be empty.
    weight: &'a mut [f64],
    /// Overwritten with the sums of the columns.
    sums: &'a mut [A],
}

impl<A: Scalar> WithSimd for Sum<'_, A> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { distances, weights, edge, root, rows, weight, sums } = self;
        let (zero, one) = (V::<S, A>::splat(simd, A::ZERO), V::<S, A>::splat(simd, A::ONE));
        sums.fill(A::ZERO);
        let (sums, _) = A::registers_mut::<S>(sums);
        let tile = weights.chunks_exact_mut(edge).zip(distances.chunks_exact(edge));
        for (k, (weights, d)) in tile.take(rows).enumerate() {
            let ((weights, _), (d, _)) = (A::registers_mut::<S>(weights), A::registers::<S>(d));
            let mut of_row = zero;
            for ((register, &d), column) in weights.iter_mut().zip(d).zip(sums.iter_mut()) {
                let mut weight = V::<S, A> { simd, register: *register };
                if root {
                    // At a distance below the normal numbers there is no direction: 0 over 1.
                    let d = V::<S, A> { simd, register: d };
                    let apart = one - d.if_below(V::splat(simd, A::TINY));
                    weight = (weight * apart) / (d * apart + (one - apart));
                    *register = weight.register;
                }
                of_row = of_row + weight;
                *column = (V::<S, A> { simd, register: *column } + weight).register;
            }
            if let Some(to) = weight.get_mut(k) {
                *to += of_row.sum().to_f64();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{match_of_teams, tournament};

    #[test]
    fn each_pair_meets_once_and_nobody_twice_in_a_round() {
        for count in 1..10_usize {
            let mut met = Vec::new();
            for r in 0..count.next_multiple_of(2) - 1 {
                let pairs: Vec<_> = tournament(count, r).collect();
                let mut players: Vec<usize> = pairs.iter().flat_map(|(a, b)| [Some(*a), *b]).flatten().collect();
                players.sort_unstable();
                assert!(players.into_iter().eq(0..count), "{count} players, round {r}: {pairs:?}");
                met.extend(pairs.into_iter().filter_map(|(a, b)| Some((a, b?))));
            }
            met.sort_unstable();
            assert!(met.into_iter().eq((0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)))), "{count}");
        }
    }

    #[test]
    fn players_of_two_teams_meet_once_and_none_twice_in_a_round() {
        for counts in (1..7_usize).flat_map(|a| (1..7).map(move |b| [a, b])) {
            let mut met = Vec::new();
            for r in 0..counts[0].max(counts[1]) {
                let pairs: Vec<_> = match_of_teams(counts, r).collect();
                let mut second: Vec<usize> = pairs.iter().map(|pair| pair.1).collect();
                second.sort_unstable();
                second.dedup();
                assert_eq!(second.len(), pairs.len(), "{counts:?}, round {r}: {pairs:?}");
                met.extend(pairs);
            }
            met.sort_unstable();
            assert!(met.into_iter().eq((0..counts[0]).flat_map(|a| (0..counts[1]).map(move |b| (a, b)))), "{counts:?}");
        }
    }
}
