//! `contrastive` against the same computation in tch operations: forward, backward and both, in one run.

#[path = "support/paired.rs"]
mod paired;
#[path = "support/mod.rs"]
mod support;

use paired::{Pair, Subject, device};
use tch::{Kind, Tensor};
use tercet::{ContrastiveLoss, PairedDistance};

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

fn main() {
    let ours = ContrastiveLoss { margin: MARGIN, ..Default::default() };
    let torch = ContrastiveLoss { distance: PairedDistance::Lp { p: 2.0, eps: 1e-6 }, ..ours };
    paired::main(|rows, run| {
        let flags: Vec<bool> = (0..rows).map(|b| b % 2 == 0).collect();
        let same = Tensor::from_slice(&flags).to_device(device());
        let floats = same.to_kind(Kind::Float);
        run(Subject {
            pairs: &[
                Pair {
                    op: "contrastive",
                    ours: &|[x1, x2]| ours.forward(x1, x2, &same),
                    peer: "tch operations",
                    theirs: &|x| in_tch_operations(x, &floats),
                },
                Pair {
                    op: "contrastive (torch's distance)",
                    ours: &|[x1, x2]| torch.forward(x1, x2, &same),
                    peer: "pairwise_distance",
                    theirs: &|x| with_pairwise_distance(x, &floats),
                },
            ],
            on_slices: &|rows, grads| ours.loss_and_grad(rows, &flags, grads).unwrap(),
        });
    });
}
