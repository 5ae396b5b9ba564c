//! `triplet_margin` against the same computation in tch operations: forward, backward and both, in one run.

use tch::{Kind, Tensor};
use tercet::TripletMarginLoss;

use crate::support::contest::{self, Pair};
use crate::support::paired;

/// The tutorial's formula in tch operations: the peer that computes exactly the same.
fn in_tch_operations([a, p, n]: &[Tensor; 3]) -> Tensor {
    let squared = |x: &Tensor, y: &Tensor| (x - y).square().sum_dim_intlist(1, false, Kind::Float);
    (squared(a, p) - squared(a, n) + 0.2).relu().mean(Kind::Float)
}

/// libtorch's own loss, with its Euclidean distance.
fn of_libtorch([a, p, n]: &[Tensor; 3]) -> Tensor {
    Tensor::triplet_margin_loss(a, p, n, 0.2, 2.0, 1e-6, false, tch::Reduction::Mean)
}

pub fn bench() {
    let ours = TripletMarginLoss::default();
    let torch = TripletMarginLoss { margin: 0.2, ..TripletMarginLoss::torch() };
    contest::bench(&paired::SIZES, |size| {
        let pairs = vec![
            Pair {
                op: "triplet_margin",
                ours: Box::new(|[a, p, n]| ours.forward(a, p, n)),
                peer: "tch operations",
                theirs: Box::new(in_tch_operations),
            },
            Pair {
                op: "triplet_margin (torch's options)",
                ours: Box::new(|[a, p, n]| torch.forward(a, p, n)),
                peer: "triplet_margin_loss",
                theirs: Box::new(of_libtorch),
            },
        ];
        paired::contest(size, pairs, |rows, grads| ours.loss_and_grad(rows, grads).unwrap())
    });
}
