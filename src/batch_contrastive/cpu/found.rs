//! What the forward pass finds in a batch, and the list of the selected pairs.

use super::hardest::Pair;
use crate::batch_contrastive::options::{Negatives, Problem};
use crate::cpu::comparison::Comparison;
use crate::{Scalar, Stats};

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
    /// The gradients with respect to the anchors and to the reference set, in the given order, for an upstream gradient of 1
    /// and not divided; empty where they are computed when asked for.
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
    pub(crate) fn selection(&self, problem: &Problem) -> Selection<A> {
        let comparison = &self.comparison;
        let mut pairs: Vec<(u32, u32, A)> = Vec::new();
        match problem.options.extra {
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
