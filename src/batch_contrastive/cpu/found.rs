//! What the forward pass finds in a batch, and the list of the selected pairs.

use super::Sums;
use super::hardest::Pair;
use crate::batch_contrastive::options::{Negatives, Problem};
use crate::cpu::comparison::Comparison;
use crate::{MeanOver, Reduction, Scalar, Stats};

/// What the pairs of one kind add up to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    pub loss: f64,
    pub active: u64,
    /// How many there are.
    pub count: u64,
}

impl Kind {
    /// The place of the pairs of one class in [`Kinds`].
    pub const POSITIVE: usize = 0;
    /// That of the pairs of different classes.
    pub const NEGATIVE: usize = 1;
}

/// Both kinds of pairs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kinds(pub [Kind; 2]);

impl Kinds {
    /// Those of all anchors, of which there are so many pairs.
    pub(super) fn over(sums: &[Sums], counts: [u64; 2]) -> Self {
        let mut all = Self::default();
        for (which, (all, count)) in all.0.iter_mut().zip(counts).enumerate() {
            all.count = count;
            for of_anchor in sums {
                all.loss += of_anchor.kinds.0[which].loss;
                all.active += of_anchor.kinds.0[which].active;
            }
        }
        all
    }

    /// What the losses of pairs of a kind are divided by.
    pub(super) fn divisor(&self, problem: &Problem, kind: usize) -> f64 {
        let options = &problem.options;
        let terms = |of: &Kind| if options.mean_over == MeanOver::Active { of.active } else { of.count };
        match (options.reduction, options.extra.means_apart) {
            (Reduction::Mean, true) => terms(&self.0[kind]).max(1) as f64,
            (Reduction::Mean, false) => self.0.iter().map(terms).sum::<u64>().max(1) as f64,
            (Reduction::Sum | Reduction::None, _) => 1.0,
        }
    }

    /// What pairs of one class weigh more than pairs of different classes.
    pub(super) fn share(&self, problem: &Problem) -> f64 {
        self.divisor(problem, Kind::NEGATIVE) / self.divisor(problem, Kind::POSITIVE)
    }
}

/// The pairs and losses of a batch, and what its gradients are computed from.
pub struct Found<A> {
    pub(super) comparison: Comparison<A>,
    /// With `Negatives::Hardest` the selected pairs of different classes, in the order of their anchors; else empty.
    pub(super) hardest: Vec<Pair<A>>,
    /// The loss of each anchor, in the order given.
    pub(crate) losses: Vec<A>,
    /// The sum of all pairs' losses.
    pub(crate) sum: f64,
    pub(crate) stats: Stats,
    /// What the pairs of one class, and those of different classes, add up to.
    pub(super) kinds: Kinds,
    /// The gradients with respect to the anchors and to the reference set, in the given order, for an upstream gradient of 1
    /// and not divided, but for the [`share`](Kinds::share); empty where they are computed when asked for.
    pub(super) grads: [Vec<A>; 2],
}

/// The selected pairs of different classes, by anchor and then by negative; both orders of each pair if the batch is
/// its own reference set. Empty if any row holds NaN or infinity.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Selection<A> {
    /// The index of each pair's anchor.
    pub anchor: Vec<u32>,
    /// The index of each pair's other row: in the reference set, if there is one.
    pub negative: Vec<u32>,
    /// The distance of each pair, from the difference of its rows.
    pub distances: Vec<A>,
}

impl<A: Scalar> Found<A> {
    /// The reduced loss.
    pub(crate) fn loss(&self, problem: &Problem) -> A {
        if !problem.options.extra.means_apart || problem.options.reduction != Reduction::Mean {
            return A::from_f64(self.sum / self.kinds.divisor(problem, Kind::NEGATIVE));
        }
        let mean = |kind: usize| self.kinds.0[kind].loss / self.kinds.divisor(problem, kind);
        A::from_f64(mean(Kind::POSITIVE) + mean(Kind::NEGATIVE))
    }

    pub(crate) fn selection(&self, problem: &Problem) -> Selection<A> {
        let comparison = &self.comparison;
        let mut pairs: Vec<(u32, u32, A)> = Vec::new();
        match problem.options.extra.negatives {
            _ if comparison.poisoned() => {}
            Negatives::All => {
                for i in 0..problem.rows {
                    let class = comparison.class(i);
                    let others = (0..class.start).chain(class.end..comparison.others().rows);
                    pairs.extend(
                        others.map(|j| (comparison.classes.order[i], comparison.given(j), comparison.direct(i, j))),
                    );
                }
            }
            Negatives::Hardest => {
                pairs.extend(self.hardest.iter().map(|pair| (pair.anchor, pair.other, pair.compared)));
                if comparison.is_itself() {
                    pairs.extend(self.hardest.iter().map(|pair| (pair.other, pair.anchor, pair.compared)));
                }
            }
        }
        pairs.sort_unstable_by_key(|&(anchor, negative, _)| (anchor, negative));
        Selection {
            anchor: pairs.iter().map(|pair| pair.0).collect(),
            negative: pairs.iter().map(|pair| pair.1).collect(),
            distances: pairs.iter().map(|pair| comparison.anchors.distance(pair.2)).collect(),
        }
    }
}
