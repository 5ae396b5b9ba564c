//! Contests of mined losses.

use tch::{Kind, Tensor};

use super::contest::{Contest, Pair};
use super::{device, product_ms};

/// Next to nothing, so that the host's own share is all: checks, the node of the graph, memory. Then small batches, large ones, and
/// wide rows.
pub const SIZES: [[i64; 2]; 9] =
    [[16, 1], [32, 128], [64, 128], [128, 128], [256, 128], [1024, 128], [4096, 128], [1024, 512], [1024, 1024]];

/// The number of rows in a class: each anchor has seven positives.
pub const EACH: i64 = 8;

/// Embeddings and labels on the device that is benched.
pub fn batch([rows, dim]: [i64; 2]) -> (Tensor, Tensor) {
    let x = Tensor::randn([rows, dim], (Kind::Float, device())).set_requires_grad(true);
    (x, Tensor::arange(rows, (Kind::Int64, device())).remainder((rows / EACH).max(1)))
}

/// `|x_i - x_j|²` by one matrix product, as one writes it in tensor operations.
pub fn squared_distances(x: &Tensor) -> Tensor {
    let norms = x.square().sum_dim_intlist(1, true, Kind::Float);
    &norms + norms.tr() - x.matmul(&x.tr()) * 2.0
}

/// Of `d`, each row's distances to its positives, EACH - 1 of them.
pub fn to_positives(d: &Tensor, same: &Tensor) -> Tensor {
    let own = Tensor::eye(d.size()[0], (Kind::Bool, d.device()));
    let others = same.logical_and(&own.logical_not()).logical_not();
    d.masked_fill(&others, f64::INFINITY).topk(EACH - 1, 1, false, true).0
}

/// A loss of rows and labels against operations in tch. The floor of both passes is the matrix product `X X^T` alone.
pub fn contest<'a>(
    op: &'a str,
    (x, labels): (Tensor, Tensor),
    ours: impl Fn(&Tensor, &Tensor) -> Tensor + 'a,
    theirs: impl Fn(&Tensor, &Tensor) -> Tensor + 'a,
) -> Contest<'a, 1> {
    let (rows, dim) = x.size2().expect("a matrix");
    let to_peer = labels.shallow_clone();
    Contest {
        size: format!("{rows}x{dim}"),
        inputs: [x],
        pairs: vec![Pair {
            op,
            ours: Box::new(move |[x]| ours(x, &labels)),
            peer: "tch operations",
            theirs: Box::new(move |[x]| theirs(x, &to_peer)),
        }],
        agree: true,
        floors: |clock, [x]| [product_ms(clock, x, x); 2],
        more: Box::new(|_, _| Vec::new()),
    }
}
