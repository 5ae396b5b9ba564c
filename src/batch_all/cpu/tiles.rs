//! What batch-all makes of tiles of distances: their active triplets are counted, with the rows as anchors and, in a batch
//! by itself, with the columns too.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::count::{Columns, Count, Scratch, Sums};
use super::thresholds::Thresholds;
use crate::Scalar;
use crate::cpu::blocks;
use crate::cpu::comparison::Comparison;
use crate::cpu::pulls;
use crate::cpu::rounds::{Block, Rounds, Tile, Weigh};

/// What is known of the anchors of a block; nothing of rows of a reference set.
struct Anchors {
    /// For each pair of an anchor with a row of its class, how many negatives are nearer than its threshold.
    counts: Vec<u32>,
    /// `Σ c_an d_an` of the tiles that this block met as the first of a pair; see [`RowCount`](super::count::RowCount).
    active_distances: f64,
    /// `Σ d_an` over all triplets of the tiles that this block met as the first of a pair.
    distances: f64,
}

/// The weight of a pair is how many active triplets want it farther apart, so that gradients come out negated.
struct Triplets<'a, A> {
    comparison: &'a Comparison<A>,
    pairs: &'a Thresholds<A>,
    is_huge: bool,
    overflow: AtomicBool,
}

impl<A: Scalar> Weigh<A> for Triplets<'_, A> {
    type Block = Anchors;
    type Scratch = Scratch<A>;

    fn block(&self, side: usize, rows: &Range<usize>) -> Anchors {
        let start = &self.pairs.start;
        let len = if side == 0 { start[rows.end] - start[rows.start] } else { 0 };
        Anchors { counts: vec![0; len], active_distances: 0.0, distances: 0.0 }
    }

    fn left_out(&self, i: usize) -> Range<usize> {
        self.comparison.class(i)
    }

    fn weigh(
        &self,
        tile: &mut Tile<A>,
        scratch: &mut Scratch<A>,
        rows: &mut Anchors,
        columns: Option<&mut Anchors>,
    ) -> bool {
        if self.is_huge && !tile.distances.iter().all(|d| d.is_finite()) {
            self.overflow.store(true, Ordering::Relaxed);
        }
        // The tile of a block with itself has each triplet twice, with its anchor among the rows and among the columns.
        let (mut twice, share) = match columns {
            None => (vec![0; rows.counts.len()], 0.5),
            Some(_) => (Vec::new(), 1.0),
        };
        let totals = columns.map_or(&mut twice[..], |columns| &mut columns.counts[..]);
        let found = pulp::Arch::new().dispatch(Count {
            pairs: self.pairs,
            rows: tile.rows.clone(),
            edge: tile.edge,
            distances: &tile.distances,
            counts: &mut tile.weights,
            totals: &mut rows.counts,
            columns: self.comparison.is_itself().then(|| Columns { range: tile.columns.clone(), totals, scratch }),
        });
        rows.active_distances += share * found.active_distances;
        rows.distances += share * found.distances;
        found.active
    }
}

/// Counts the active triplets, and writes the gradients `with_grad` asks for, in the given order. `None` if a distance
/// overflows.
pub fn count<A: Scalar>(
    comparison: &Comparison<A>,
    pairs: &Thresholds<A>,
    with_grad: [bool; 2],
    grads: &mut [Vec<A>; 2],
) -> Option<Sums> {
    let (anchors, others) = (&comparison.anchors, comparison.others());
    let both = comparison.products();
    let rounds = Rounds::new(anchors, others, &both, with_grad);
    let triplets = Triplets { comparison, pairs, is_huge: both.is_huge(), overflow: AtomicBool::new(false) };
    let mut blocks = rounds.sweep(&triplets);
    if triplets.overflow.into_inner() {
        return None;
    }
    blocks::for_each(blocks[0].iter_mut().collect(), |_, block: &mut Block<A, Anchors>| {
        let base = pairs.start[block.rows.start];
        for i in block.rows.clone() {
            let of = pairs.of(i);
            pairs.in_class_order(i, &mut block.of_loss.counts[of.start - base..of.end - base]);
        }
    });
    let mut sums = Sums { counts: Vec::new(), active_distances: Vec::new(), distances: Vec::new() };
    for Block { of_loss, .. } in &mut blocks[0] {
        sums.counts.append(&mut of_loss.counts);
        sums.active_distances.push(of_loss.active_distances);
        sums.distances.push(of_loss.distances);
    }
    let count = |i: usize, k: usize| u64::from(sums.counts[pairs.start[i] + k]);
    let weight = |count: u64, distance: A| A::from_f64(count as f64) * anchors.slope(distance);
    let negate = |to: &mut [A]| to.iter_mut().for_each(|g| *g = -*g);
    if with_grad[0] {
        let place = |given: usize| comparison.classes.position[given] as usize;
        rounds.gradient(0, &blocks[0], &mut grads[0], place, |i, to| {
            negate(to);
            let first = comparison.class(i).start;
            for p in comparison.positives(i) {
                let both = count(i, p - first) + if comparison.is_itself() { count(p, i - first) } else { 0 };
                if both > 0 {
                    pulls::add(to, anchors, i, others, p, weight(both, pairs.distances(i)[p - first]));
                }
            }
        });
    }
    if with_grad[1] {
        let of_class = comparison.anchors_of_others();
        let place = |given: usize| comparison.other_classes().position[given] as usize;
        rounds.gradient(1, &blocks[1], &mut grads[1], place, |j, to| {
            negate(to);
            for i in of_class[j].clone() {
                let k = j - comparison.class(i).start;
                if count(i, k) > 0 {
                    pulls::add(to, others, j, anchors, i, weight(count(i, k), pairs.distances(i)[k]));
                }
            }
        });
    }
    Some(sums)
}
