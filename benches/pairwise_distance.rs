//! `pairwise_distance` against the same computation in tch operations: norms and one matrix product, which cancels if
//! rows are near, and against `cdist`.
//!
//! The floor is the matrix product `X Y^T` alone, as libtorch computes it.

use tch::{Kind, Tensor};
use tercet::{Distance, PairwiseDistance};

use crate::support::contest::{self, Contest, Pair};
use crate::support::{device, mined, product_ms};

fn in_tch_operations([x, y]: &[Tensor; 2]) -> Tensor {
    let norms = |x: &Tensor| x.square().sum_dim_intlist(1, true, Kind::Float);
    norms(x) + norms(y).tr() - x.matmul(&y.tr()) * 2.0
}

pub fn bench() {
    let squared = PairwiseDistance { distance: Distance::SquaredEuclidean, ..Default::default() };
    let euclidean = PairwiseDistance { distance: Distance::Euclidean, ..Default::default() };
    contest::bench(&mined::SIZES, |[rows, dim]| Contest {
        size: format!("{rows}x{rows}x{dim}"),
        inputs: [(); 2].map(|()| Tensor::randn([rows, dim], (Kind::Float, device())).set_requires_grad(true)),
        pairs: vec![
            Pair {
                op: "pairwise_distance",
                ours: Box::new(|[x, y]| squared.forward(x, y)),
                peer: "tch operations",
                theirs: Box::new(in_tch_operations),
            },
            Pair {
                op: "pairwise_distance",
                ours: Box::new(|[x, y]| euclidean.forward(x, y)),
                peer: "cdist",
                theirs: Box::new(|[x, y]| Tensor::cdist(x, y, 2.0, None)),
            },
        ],
        agree: true,
        floors: |clock, [x, y]| [product_ms(clock, x, y); 2],
        more: Box::new(|_, _| Vec::new()),
    });
}
