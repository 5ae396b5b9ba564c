//! The functions whose backward passes the tests run.

use tch::{Device, Kind, Tensor};
use tercet::torch::{Backward, BackwardError, CustomFunction};
use tercet::{PairedDistance, Reduction, TripletMarginLoss};

use crate::support::graph::numbers;

/// Three leaf tensors that require gradients.
pub fn leaves(shape: &[i64], seed: u64, kind: Kind, device: Device) -> [Tensor; 3] {
    [0, 1, 2].map(|i| numbers(shape, 3 * seed + i, kind, device).set_requires_grad(true))
}

/// The loss of `loss_fn` composed of tensor operations; only its margin and reduction may differ from the default.
pub fn composed(loss_fn: &TripletMarginLoss, a: &Tensor, p: &Tensor, n: &Tensor) -> Tensor {
    assert_eq!((loss_fn.distance, loss_fn.normalize, loss_fn.swap), (PairedDistance::SquaredEuclidean, false, false));
    let d = |x: &Tensor, y: &Tensor| (x - y).square().sum_dim_intlist([1i64].as_slice(), false, None);
    let losses = (d(a, p) - d(a, n) + loss_fn.margin).relu();
    match loss_fn.reduction {
        Reduction::None => losses,
        Reduction::Mean => losses.mean(None),
        Reduction::Sum => losses.sum(None),
        _ => unreachable!("a reduction without a formula here"),
    }
}

pub fn with(reduction: Reduction) -> TripletMarginLoss {
    TripletMarginLoss { reduction, ..Default::default() }
}

pub type Gradients = Result<Vec<Option<Tensor>>, BackwardError>;

/// `x` itself, with the given backward pass.
pub fn custom(x: &Tensor, backward: impl FnMut(&Backward<'_>) -> Gradients + Send + 'static) -> Tensor {
    CustomFunction::new("Custom").inputs(&[x]).saved(&[x]).attach(x, backward).unwrap()
}

/// `x²`, with a backward pass written in Rust.
pub fn square(x: &Tensor) -> Tensor {
    let value = tch::no_grad(|| x * x);
    let backward = |ctx: &Backward<'_>| Ok(vec![Some(2.0 * ctx.saved(0) * ctx.upstream())]);
    CustomFunction::new("Square").inputs(&[x]).saved(&[x]).attach(&value, backward).unwrap()
}

pub fn leaf(numbers: &[f64]) -> Tensor {
    Tensor::from_slice(numbers).set_requires_grad(true)
}
