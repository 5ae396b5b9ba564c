//! Batches for the benches of mined losses.

use tch::{Device, Kind, Tensor};

/// Rows of a class: each anchor has seven positives.
const EACH: i64 = 8;

/// Embeddings and labels on the device that is benched.
pub fn batch((rows, dim): (i64, i64)) -> (Tensor, Tensor) {
    let device = Device::cuda_if_available();
    let x = Tensor::randn([rows, dim], (Kind::Float, device)).set_requires_grad(true);
    (x, Tensor::arange(rows, (Kind::Int64, device)).remainder((rows / EACH).max(1)))
}

pub fn gradient(loss: &Tensor, x: &Tensor) -> Vec<Tensor> {
    Tensor::run_backward(&[loss], &[x], false, false)
}
