//! The pairs of anchors and positives, and their thresholds.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Scalar;
use crate::cpu::blocks;
use crate::cpu::comparison::Comparison;

/// Rows of one task that needs no tiles.
pub const TASK_ROWS: usize = 32;

/// In classes of more rows than this an anchor's thresholds are sorted and searched instead of compared one by one.
pub const LARGE: usize = 64;

/// Each anchor with each row of its class.
pub struct Thresholds<A> {
    /// Where an anchor's pairs start: one for each row of its class, itself included.
    pub start: Vec<usize>,
    distance: Vec<A>,
    /// `d_ap + margin`, -∞ for the row itself; in large classes ascending.
    threshold: Vec<A>,
    /// For each threshold of a large class, the index within the class of its pair; empty without large classes.
    owner: Vec<u32>,
    /// The largest threshold of each anchor.
    pub reach: Vec<A>,
    /// How many positives each anchor has.
    pub positives: Vec<usize>,
}

impl<A: Scalar> Thresholds<A> {
    /// `None` if a distance or a threshold overflows.
    pub fn new(comparison: &Comparison<A>, margin: A) -> Option<Self> {
        let batch = &comparison.anchors;
        let size = |i: usize| comparison.class(i).len();
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
            positives: (0..batch.rows).map(|i| comparison.count_positives(i)).collect(),
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
                let first = comparison.class(i).start;
                for p in comparison.positives(i) {
                    distance[p - first] = batch.distance(comparison.direct(i, p));
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

    pub fn of(&self, i: usize) -> Range<usize> {
        self.start[i]..self.start[i + 1]
    }

    pub fn thresholds(&self, i: usize) -> &[A] {
        &self.threshold[self.of(i)]
    }

    /// The distances of anchor i's pairs, in the order of the class.
    pub fn distances(&self, i: usize) -> &[A] {
        &self.distance[self.of(i)]
    }

    /// Turns the totals that [`Count`](super::count::Count) has counted for anchor i into how many negatives are nearer
    /// than each threshold, in the order of the class.
    pub fn in_class_order(&self, i: usize, counts: &mut [u32]) {
        if counts.len() <= LARGE {
            return;
        }
        let mut below = 0;
        let ranked: Vec<u32> = counts
            .iter()
            .map(|count| {
                below += *count;
                below
            })
            .collect();
        for (&owner, rank) in self.owner[self.of(i)].iter().zip(ranked) {
            counts[owner as usize] = rank;
        }
    }
}

/// Takes the first `len` numbers off `slice`.
fn take<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    slice.split_off_mut(..len).expect("as long as all parts together")
}

/// Takes the first `len` numbers off `slice`, if there is one.
fn cut<'a, T>(slice: &mut Option<&'a mut [T]>, len: usize) -> Option<&'a mut [T]> {
    slice.as_mut().map(|slice| take(slice, len))
}
