//! `batch_semi_hard` against the best formulation in tch operations: squared distances by one matrix product, each row's
//! negatives sorted, and each pair's place among them searched.

#[path = "support/mod.rs"]
mod support;

use support::mined::{Contest, EACH, squared_distances};
use tch::{Kind, Tensor};
use tercet::BatchSemiHardTripletLoss;

/// TensorFlow-Addons' semi-hard loss with squared distances and margin 0.2, for classes of EACH rows.
fn in_tch_operations(x: &Tensor, labels: &Tensor) -> Tensor {
    let d = squared_distances(x);
    let rows = x.size()[0];
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let own = Tensor::eye(rows, (Kind::Bool, x.device()));
    // The positives of each anchor, EACH - 1 of them.
    let (d_ap, _) = d.masked_fill(&same.logical_and(&own.logical_not()).logical_not(), f64::INFINITY).topk(
        EACH - 1,
        1,
        false,
        true,
    );
    let (sorted, _) = d.masked_fill(&same, f64::INFINITY).sort(1, false);
    let values = d_ap.detach().contiguous();
    let place = values.searchsorted::<Tensor>(&sorted.detach().contiguous(), false, true, "right", None);
    // The last EACH places of a row are no negatives.
    let last = rows - EACH - 1;
    let d_an = sorted.gather(1, &place.clamp_max(last), false);
    (d_ap - d_an + 0.2).relu().mean(Kind::Float)
}

fn main() {
    let ours = BatchSemiHardTripletLoss::default();
    Contest {
        op: "batch_semi_hard",
        sizes: &[(256, 128), (1024, 128), (4096, 128)],
        ours: &|x, labels| ours.forward(x, labels),
        theirs: &in_tch_operations,
        agree: true,
    }
    .run();
}
