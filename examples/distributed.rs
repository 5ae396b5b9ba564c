//! A batch over several processes: one step of data-parallel training, and how near its gradient is to that of one process with
//! the whole batch.
//!
//! `cargo build --release --example distributed`, then
//! `torchrun --no-python --nproc-per-node 4 target/release/examples/distributed`, or without torchrun as one process.
//! benches/peers/distributed.py does the same with other libraries, on the same batch.

use std::error::Error;

use tch::{Device, Kind, Tensor};
use tercet::BatchAllTripletLoss;
use tercet::torch::distributed::{ProcessGroup, average};

/// The rows of each process.
const ROWS: i64 = 24;
/// The numbers in an input, in a hidden row, and in an embedding.
const SIZES: [i64; 3] = [20, 64, 32];

fn encode(inputs: &Tensor, [first, last]: &[Tensor; 2]) -> Tensor {
    inputs.matmul(first).tanh().matmul(last)
}

fn main() -> Result<(), Box<dyn Error>> {
    let group = ProcessGroup::from_env()?;
    let (rank, processes) = (group.rank() as i64, group.size() as i64);

    // Every process makes the whole batch, to compare with; it trains on its own rows alone.
    tch::manual_seed(5);
    let random = |size: [i64; 2]| Tensor::randn(size, (Kind::Double, Device::Cpu));
    let [input, hidden, dim] = SIZES;
    let inputs = random([ROWS * processes, input]);
    let weights = [random([input, hidden]) * 0.2, random([hidden, dim]) * 0.2];
    let labels: Vec<i64> = (0..ROWS * processes).map(|i| (i * 7 + i / 5) % 9).collect();
    let labels = Tensor::from_slice(&labels);
    if std::env::var("LAYOUT").is_ok_and(|layout| layout == "unlike") {
        // The rows of the first process have no positive.
        let alone = Tensor::arange(ROWS, (Kind::Int64, Device::Cpu)) + 1000;
        labels.narrow(0, 0, ROWS).copy_(&alone);
    }

    let loss_fn = BatchAllTripletLoss { margin: 1.0, ..Default::default() };
    let exact = weights.each_ref().map(|weight| weight.copy().set_requires_grad(true));
    let whole = loss_fn.f_forward(&encode(&inputs, &exact), &labels)?;
    let expected = flat(&Tensor::f_run_backward(&[&whole], &exact, false, false)?);

    // What each process does in a step: its rows, the loss of all rows, and the mean of the gradients.
    let here = |of: &Tensor| of.to_kind(Kind::Float).to_device(group.device());
    let weights = weights.each_ref().map(|weight| here(weight).set_requires_grad(true));
    let shards = group.shards(ROWS as usize)?;
    let own = |of: &Tensor| of.narrow(0, ROWS * rank, ROWS);
    let (embeddings, labels) = (encode(&here(&own(&inputs)), &weights), own(&labels).to_device(group.device()));
    let loss = loss_fn.on(&embeddings, &labels).over(&shards).f_forward()?;
    let mut gradients = Tensor::f_run_backward(&[&loss], &weights, false, false)?;
    average(&mut gradients, &group)?;

    if rank == 0 {
        let got = flat(&gradients);
        let number = |tensor: Tensor| tensor.double_value(&[]);
        let [length, of_whole] = [&got, &expected].map(|gradient| number(gradient.norm()));
        let cosine = number(got.dot(&expected)) / (length * of_whole);
        let error = number((&got - &expected).abs().max() / expected.abs().max());
        println!(
            "| Tercet | x {:.3} | x {:.3} | {cosine:.4} | {error:.1e} |",
            number(loss) / number(whole),
            length / of_whole
        );
    }
    Ok(())
}

fn flat(tensors: &[Tensor]) -> Tensor {
    let flat: Vec<Tensor> =
        tensors.iter().map(|tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double).reshape([-1])).collect();
    Tensor::cat(&flat, 0)
}
