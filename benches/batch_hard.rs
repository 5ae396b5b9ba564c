//! `batch_hard` against the best formulation in tch operations: squared distances by one matrix product, masked maximum
//! and minimum.

use tch::{Kind, Tensor};
use tercet::BatchHardTripletLoss;

use crate::support::contest;
use crate::support::mined::{self, batch, squared_distances};

/// Batch hard of Hermans et al. with squared distances and margin 0.2.
fn in_tch_operations(x: &Tensor, labels: &Tensor) -> Tensor {
    let d = squared_distances(x);
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let farthest = d.masked_fill(&same.logical_not(), f64::NEG_INFINITY).amax([1], false);
    let nearest = d.masked_fill(&same, f64::INFINITY).amin([1], false);
    (farthest - nearest + 0.2).relu().mean(Kind::Float)
}

pub fn bench() {
    let ours = BatchHardTripletLoss::default();
    contest::bench(&mined::SIZES, |size| {
        mined::contest("batch_hard", batch(size), |x, labels| ours.forward(x, labels), in_tch_operations)
    });
}
