//! `batch_negative` against the best formulation in tch operations: squared distances by one matrix product, and a random
//! number for each candidate of each pair.

use tch::{Kind, Tensor};
use tercet::BatchNegativeTripletLoss;

use crate::support::contest::{self, Contest};
use crate::support::mined::{self, batch, squared_distances, to_positives};

/// A random semi-hard negative for each pair, with squared distances and margin 20, for classes of `mined::EACH` rows.
fn in_tch_operations(x: &Tensor, labels: &Tensor) -> Tensor {
    let d = squared_distances(x);
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let d_ap = to_positives(&d, &same);
    let far = d.masked_fill(&same, f64::INFINITY).detach().unsqueeze(1);
    let pair = d_ap.detach().unsqueeze(2);
    let margin = margin(x.size()[1]);
    let candidate = far.gt_tensor(&pair).logical_and(&far.lt_tensor(&(&pair + margin)));
    let priority = candidate.to_kind(Kind::Float).rand_like() * &candidate;
    let place = priority.argmax(2, false);
    let d_an = d.gather(1, &place, false);
    let found = candidate.any_dim(2, false).to_kind(Kind::Float);
    ((d_ap - d_an + margin).relu() * &found).sum(Kind::Float) / found.sum(Kind::Float).clamp_min(1.0)
}

/// Rows of 128 normal numbers are about 256 apart, give or take 32; of more numbers, by the root of their count more.
fn margin(dim: i64) -> f64 {
    20.0 * (dim as f64 / 128.0).sqrt()
}

pub fn bench() {
    // The peer's numbers of 4096 rows would be 470 MB a tensor.
    let sizes: Vec<[i64; 2]> = mined::SIZES.into_iter().filter(|size| size[0] < 4096).collect();
    contest::bench(&sizes, |size| {
        let ours = BatchNegativeTripletLoss { margin: margin(size[1]), ..Default::default() };
        let both =
            mined::contest("batch_negative", batch(size), move |x, labels| ours.forward(x, labels), in_tch_operations);
        Contest { agree: false, ..both }
    });
}
