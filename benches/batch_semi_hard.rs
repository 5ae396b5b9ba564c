//! `batch_semi_hard` against the best formulation in tch operations: squared distances by one matrix product, each row's
//! negatives sorted, and each pair's place among them searched.

use tch::{Kind, Tensor};
use tercet::BatchSemiHardTripletLoss;

use crate::support::contest;
use crate::support::mined::{self, EACH, batch, squared_distances, to_positives};

/// TensorFlow-Addons' semi-hard loss with squared distances and margin 0.2, for classes of EACH rows.
fn in_tch_operations(x: &Tensor, labels: &Tensor) -> Tensor {
    let d = squared_distances(x);
    let rows = x.size()[0];
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let d_ap = to_positives(&d, &same);
    let (sorted, _) = d.masked_fill(&same, f64::INFINITY).sort(1, false);
    let values = d_ap.detach().contiguous();
    let place = values.searchsorted::<Tensor>(&sorted.detach().contiguous(), false, true, "right", None);
    // The last EACH places of a row are no negatives.
    let last = rows - EACH - 1;
    let d_an = sorted.gather(1, &place.clamp_max(last), false);
    (d_ap - d_an + 0.2).relu().mean(Kind::Float)
}

pub fn bench() {
    let ours = BatchSemiHardTripletLoss::default();
    contest::bench(&mined::SIZES, |size| {
        mined::contest("batch_semi_hard", batch(size), |x, labels| ours.forward(x, labels), in_tch_operations)
    });
}
