//! A backward pass of your own: PyTorch's `torch.autograd.Function`, for tch.
//!
//! The function is `round`, whose derivative is 0 nearly everywhere, with the straight-through estimator of Bengio et
//! al. (2013): the backward pass takes it for the identity, and so numbers behind it can be learned.
//!
//! `cargo run --release --example custom_function`

use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use tercet::torch::CustomFunction;

/// Rounds to whole numbers; the gradient passes where `x` is between `low` and `high`, and is 0 elsewhere.
fn round_straight_through(x: &Tensor, low: f64, high: f64) -> Result<Tensor, tercet::Error> {
    // Forward: any computation at all, outside of the graph.
    let rounded = tch::no_grad(|| x.clamp(low, high).round());
    // `inputs`: what the result depends on. `saved`: what the backward pass reads; PyTorch watches that nobody changes
    // it in between.
    CustomFunction::new("RoundStraightThrough").inputs(&[x]).saved(&[x]).attach(&rounded, move |ctx| {
        let x = ctx.saved(0);
        let inside = x.ge(low).logical_and(&x.le(high));
        // One gradient for each input: the upstream gradient times the derivative.
        Ok(vec![Some(ctx.upstream() * inside)])
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The last number is beyond what may be reached: its weight stops at 5, where the gradient ends.
    let target = Tensor::from_slice(&[3f32, -2.0, 1.0, 9.0]);
    let vs = nn::VarStore::new(Device::Cpu);
    let weights = vs.root().zeros("weights", &[4]);
    let mut optimiser = nn::Sgd::default().build(&vs, 0.05)?;
    for step in 0..=60 {
        let rounded = round_straight_through(&weights, -5.0, 5.0)?;
        let loss = (&rounded - &target).square().sum(Kind::Float);
        optimiser.backward_step(&loss);
        if step % 15 == 0 {
            println!("step {step:2}  loss {:2}  rounded {:?}", f32::try_from(&loss)?, Vec::<f32>::try_from(&rounded)?);
        }
    }
    Ok(())
}
