//! `contrastive` against the same computation in tch operations: forward, backward and both, in one run.

use tch::{Kind, Tensor};
use tercet::{ContrastiveLoss, PairedDistance};

use crate::support::contest::{self, Pair};
use crate::support::{device, paired};

/// Random rows of 128 numbers are 16 apart, of 512 numbers 32: all pairs have work to do, as early in training.
const MARGIN: f64 = 64.0;

/// The loss of pairs, from their distances and the squares of these; `same` is 1 or 0.
fn of_distances(same: &Tensor, squared: &Tensor, d: Tensor) -> Tensor {
    let apart: Tensor = MARGIN - d;
    let different: Tensor = 1.0 - same;
    (same * squared + different * apart.relu().square()).mean(Kind::Float) * 0.5
}

/// siamese-triplet's formula, which takes the square of the distance without its root.
fn in_tch_operations([x1, x2]: &[Tensor; 2], same: &Tensor) -> Tensor {
    let squared = (x1 - x2).square().sum_dim_intlist(1, false, Kind::Float);
    let d = (&squared + 1e-9).sqrt();
    of_distances(same, &squared, d)
}

/// The loss with the distance that libtorch has.
fn with_pairwise_distance([x1, x2]: &[Tensor; 2], same: &Tensor) -> Tensor {
    let d = Tensor::pairwise_distance(x1, x2, 2.0, 1e-6, false);
    of_distances(same, &d.square(), d)
}

fn pair(
    op: &'static str,
    loss: ContrastiveLoss,
    same: &Tensor,
    peer: &'static str,
    theirs: fn(&[Tensor; 2], &Tensor) -> Tensor,
) -> Pair<'static, 2> {
    let (same, floats) = (same.shallow_clone(), same.to_kind(Kind::Float));
    Pair {
        op,
        ours: Box::new(move |[x1, x2]| loss.forward(x1, x2, &same)),
        peer,
        theirs: Box::new(move |x| theirs(x, &floats)),
    }
}

pub fn bench() {
    let ours = ContrastiveLoss { margin: MARGIN, ..Default::default() };
    let torch = ContrastiveLoss { distance: PairedDistance::Lp { p: 2.0, eps: 1e-6 }, ..ours };
    contest::bench(&paired::SIZES, |size| {
        let flags: Vec<bool> = (0..size[0]).map(|b| b % 2 == 0).collect();
        let same = Tensor::from_slice(&flags).to_device(device());
        let pairs = vec![
            pair("contrastive", ours, &same, "tch operations", in_tch_operations),
            pair("contrastive (torch's distance)", torch, &same, "pairwise_distance", with_pairwise_distance),
        ];
        paired::contest(size, pairs, move |rows, grads| ours.loss_and_grad(rows, &flags, grads).unwrap())
    });
}
