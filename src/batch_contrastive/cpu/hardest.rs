//! The pairs of different classes with the smallest distances, as many as are asked for. All threads share a list of at
//! most about twice as many, which is cut whenever it is full, and the distance that it was cut at, to leave out what
//! is farther. In any order the same pairs are chosen.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::Scalar;
use crate::cpu::blocks;
use crate::cpu::comparison::{Comparison, around_class};
use crate::cpu::distance_matrix::TASK_ROWS;

/// A pair of an anchor and another row, by given indices; in a batch by itself the lower one is the anchor.
#[derive(Clone, Copy)]
pub struct Pair<A> {
    /// What the distance is compared by, see [`Batch::direct`](crate::cpu::batch::Batch::direct).
    pub compared: A,
    pub anchor: u32,
    pub other: u32,
}

impl<A: Scalar> Pair<A> {
    fn order(&self, other: &Self) -> Ordering {
        // Nothing is NaN: the batch is not poisoned.
        let by_distance = self.compared.partial_cmp(&other.compared).unwrap_or(Ordering::Equal);
        by_distance.then((self.anchor, self.other).cmp(&(other.anchor, other.other)))
    }
}

/// The hardest pairs so far.
struct Hardest<A> {
    count: usize,
    pairs: Mutex<Vec<Pair<A>>>,
    /// The distance that the list was last cut at, as the bits of an f64: what is farther is left out.
    cut: AtomicU64,
}

/// The list is not cut before it has so many pairs.
const FEW: usize = 1 << 14;

impl<A: Scalar> Hardest<A> {
    fn reaches(&self) -> A {
        A::from_f64(f64::from_bits(self.cut.load(Relaxed)))
    }

    fn offer(&self, offered: &mut Vec<Pair<A>>) {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.append(offered);
        if pairs.len() >= (2 * self.count).max(FEW) {
            self.cut(&mut pairs);
        }
    }

    fn cut(&self, pairs: &mut Vec<Pair<A>>) {
        if pairs.len() > self.count {
            let (_, last, _) = pairs.select_nth_unstable_by(self.count - 1, Pair::order);
            self.cut.store(last.compared.to_f64().to_bits(), Relaxed);
            pairs.truncate(self.count);
        }
    }
}

/// The `count` hardest pairs, of as many or more, in the order of their anchors. A batch by itself has each pair once.
pub fn select<A: Scalar>(comparison: &Comparison<A>, count: u64) -> Vec<Pair<A>> {
    let count = usize::try_from(count).expect("no more pairs than there is memory for");
    let cut = AtomicU64::new(f64::INFINITY.to_bits());
    let hardest = Hardest { count, pairs: Mutex::new(Vec::new()), cut };
    let itself = comparison.is_itself();
    // In a batch by itself the columns behind the class of a row: each pair once.
    let wanted = |rows: &Range<usize>, columns: &Range<usize>| {
        let behind = if itself { comparison.class(rows.start).end } else { 0 };
        let class = comparison.class(rows.start);
        let one_class =
            class == comparison.class(rows.end - 1) && class.start <= columns.start && columns.end <= class.end;
        columns.end > behind && !one_class
    };
    let visit = |offered: &mut Vec<Pair<A>>, i: usize, columns: Range<usize>, compared: &mut [A]| {
        let (before, after) = around_class(&comparison.class(i), &columns);
        let reaches = hardest.reaches();
        let a = comparison.classes.order[i];
        for run in [if itself { 0..0 } else { 0..before }, after..compared.len()] {
            for (&compared, j) in compared[run.clone()].iter().zip(columns.start + run.start..) {
                if compared <= reaches {
                    let j = comparison.given(j);
                    let (anchor, other) = if itself && j < a { (j, a) } else { (a, j) };
                    offered.push(Pair { compared, anchor, other });
                }
            }
        }
        if !offered.is_empty() {
            hardest.offer(offered);
        }
    };
    let states = vec![Vec::new(); comparison.anchors.rows.div_ceil(TASK_ROWS)];
    comparison.matrix(&comparison.products()).sweep_where(states, wanted, visit);
    let mut pairs = std::mem::take(&mut *hardest.pairs.lock().unwrap_or_else(PoisonError::into_inner));
    hardest.cut(&mut pairs);
    pairs.sort_unstable_by_key(|pair| (pair.anchor, pair.other));
    // Products decided which pairs; the loss is taken from the rows themselves.
    blocks::for_each(pairs.chunks_mut(1024).collect(), |_, pairs: &mut [Pair<A>]| {
        for pair in pairs {
            let (i, j) = pair.places(comparison);
            pair.compared = comparison.direct(i, j);
        }
    });
    pairs
}

impl<A: Scalar> Pair<A> {
    /// The places of both rows in the order of classes.
    pub fn places(&self, comparison: &Comparison<A>) -> (usize, usize) {
        let anchor = comparison.classes.position[self.anchor as usize];
        (anchor as usize, comparison.other_classes().position[self.other as usize] as usize)
    }
}
