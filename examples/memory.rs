//! A mined loss with a cross-batch memory: the loss finds its triplets in the batch by itself, and the embeddings of the
//! last batches are kept, so that each anchor meets many more positives and negatives than one batch holds.
//!
//! Random vectors stand in for images here. In your own program a data loader draws a few classes and a few images of
//! each.
//!
//! `cargo run --release --example memory`

use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use tercet::BatchAllTripletLoss;
use tercet::torch::CrossBatchMemory;

const CLASSES: i64 = 64;
const INPUT: i64 = 32;
const DIM: i64 = 16;
const STEPS: usize = 200;

/// Eight classes, four vectors of each: `[32, INPUT]` and their labels `[32]`. The first half of a vector is loud noise,
/// which the encoder has to learn to ignore.
fn batch(centres: &Tensor) -> (Tensor, Tensor) {
    let labels = Tensor::randperm(CLASSES, (Kind::Int64, centres.device())).narrow(0, 0, 8).repeat([4]);
    let rows = centres.index_select(0, &labels);
    let noise = rows.randn_like().split(INPUT / 2, 1);
    (rows + Tensor::cat(&[3.0 * &noise[0], 0.3 * &noise[1]], 1), labels)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tch::manual_seed(0);
    let device = Device::cuda_if_available();
    let centres = Tensor::randn([CLASSES, INPUT], (Kind::Float, device));
    let vs = nn::VarStore::new(device);
    let encoder = nn::linear(vs.root() / "encoder", INPUT, DIM, Default::default());
    let mut optimiser = nn::Adam::default().build(&vs, 1e-2)?;

    // Every triplet of an anchor of the batch; the mean is over those whose loss is above 0. Rows are divided by their norms.
    let loss_fn = BatchAllTripletLoss { margin: 0.2, normalize: true, ..Default::default() };
    // Room for 16 batches. Embeddings of the first steps drift fast: until 256 rows are there the loss is the batch's own.
    let mut memory = CrossBatchMemory::f_new(512, DIM as usize, Kind::Float, device)?.warm_up(256);

    for step in 0..=STEPS {
        let (images, labels) = batch(&centres);
        let embeddings = encoder.forward(&images);
        // Enqueues the batch, then takes its loss against all rows of the memory; no row is its own positive.
        let out = memory.f_forward_with_stats(loss_fn.on(&embeddings, &labels))?;
        optimiser.backward_step(&out.loss);
        if step % 40 == 0 {
            println!(
                "step {step:3}  loss {:.4}  {:3} rows in memory  {:6} triplets, {:4.1} % active",
                f64::try_from(&out.loss)?,
                memory.len(),
                i64::try_from(&out.stats.valid)?,
                100.0 * f64::try_from(out.stats.active / out.stats.valid)?
            );
        }
    }
    Ok(())
}
