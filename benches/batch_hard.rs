//! `batch_hard` against the best formulation in tch operations: squared distances by one matrix product, masked maximum
//! and minimum.

#[path = "support/mod.rs"]
mod support;

use support::mined::{Contest, squared_distances};
use tch::{Kind, Tensor};
use tercet::BatchHardTripletLoss;

/// Batch hard of Hermans et al. with squared distances and margin 0.2.
fn in_tch_operations(x: &Tensor, labels: &Tensor) -> Tensor {
    let d = squared_distances(x);
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let farthest = d.masked_fill(&same.logical_not(), f64::NEG_INFINITY).amax([1], false);
    let nearest = d.masked_fill(&same, f64::INFINITY).amin([1], false);
    (farthest - nearest + 0.2).relu().mean(Kind::Float)
}

fn main() {
    let ours = BatchHardTripletLoss::default();
    Contest {
        op: "batch_hard",
        sizes: &[(256, 128), (1024, 128), (4096, 128)],
        ours: &|x, labels| ours.forward(x, labels),
        theirs: &in_tch_operations,
        agree: true,
    }
    .run();
}
