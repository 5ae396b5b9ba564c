//! `batch_contrastive` against the best formulation in tch operations: distances by one matrix product, and both terms masked.

use tch::{Kind, Tensor};
use tercet::BatchContrastiveLoss;

use crate::support::contest;
use crate::support::mined::{self, batch, squared_distances};

/// About half of the pairs of rows of so many standard normal numbers are nearer than this.
fn margin(dim: i64) -> f64 {
    (2.0 * dim as f64).sqrt()
}

/// The mean over all pairs, with Euclidean distances. A floor below the root keeps the gradient finite.
fn in_tch_operations(x: &Tensor, labels: &Tensor) -> Tensor {
    let squared = squared_distances(x);
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let own = Tensor::eye(x.size()[0], (Kind::Bool, x.device()));
    let positives = squared.masked_fill(&same.logical_xor(&own).logical_not(), 0.0);
    let negatives = (margin(x.size()[1]) - squared.clamp_min(1e-12).sqrt()).relu().square().masked_fill(&same, 0.0);
    let pairs = x.size()[0] * (x.size()[0] - 1);
    (positives + negatives).sum(Kind::Float) / (2 * pairs) as f64
}

pub fn bench() {
    contest::bench(&mined::SIZES, |size| {
        let ours = BatchContrastiveLoss { margin: margin(size[1]), ..Default::default() };
        mined::contest("batch_contrastive", batch(size), move |x, labels| ours.forward(x, labels), in_tch_operations)
    });
}
