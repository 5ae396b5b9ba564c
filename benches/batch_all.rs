//! `batch_all` against the best formulation in tch operations: squared distances by one matrix product, and the terms of
//! every anchor-positive pair with every row, masked.

use tch::{Kind, Tensor};
use tercet::BatchAllTripletLoss;

use crate::support::contest;
use crate::support::mined::{self, batch, squared_distances};

/// The mean over the active triplets, with squared distances and margin 0.2. The pairs are given: a loader knows them.
fn in_tch_operations(x: &Tensor, labels: &Tensor, pairs: &(Tensor, Tensor)) -> Tensor {
    let d = squared_distances(x);
    let (a, p) = pairs;
    let same = labels.unsqueeze(0).eq_tensor(&labels.index_select(0, a).unsqueeze(1));
    let positive = d.index(&[Some(a), Some(p)]).unsqueeze(1);
    let terms = (positive - d.index_select(0, a) + 0.2).masked_fill(&same, 0.0).relu();
    let active = terms.greater(0.0).sum(Kind::Float).clamp_min(1.0);
    terms.sum(Kind::Float) / active
}

/// The pairs of every anchor with each of its positives.
fn pairs(labels: &Tensor) -> (Tensor, Tensor) {
    let mut same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let found = same.fill_diagonal_(0.0, false).nonzero();
    (found.select(1, 0), found.select(1, 1))
}

pub fn bench() {
    let ours = BatchAllTripletLoss::default();
    contest::bench(&mined::SIZES, |size| {
        let batch = batch(size);
        let pairs = pairs(&batch.1);
        let theirs = move |x: &Tensor, labels: &Tensor| in_tch_operations(x, labels, &pairs);
        mined::contest("batch_all", batch, |x, labels| ours.forward(x, labels), theirs)
    });
}
