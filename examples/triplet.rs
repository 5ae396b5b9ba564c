//! The triplet loss in a training loop: faces or signatures of one person are drawn together, those of different people
//! pushed apart.
//!
//! Random images stand in for a data set here, so that the example needs no download. In your own program, load batches
//! of anchors, positives (another image of the same identity) and negatives (an image of another one).
//!
//! `cargo run --release --example triplet`

use tch::nn::{self, ModuleT, OptimizerConfig};
use tch::{Device, Kind, Tensor, vision};
use tercet::TripletMarginLoss;

const EPOCHS: usize = 10;
const IDENTITIES: i64 = 32;
const TRIPLETS: i64 = 16;
const SIDE: i64 = 32;

/// Two noisy images of one identity per triplet, and one of another.
fn batch(identities: &Tensor) -> [Tensor; 3] {
    let own = Tensor::randint(IDENTITIES, [TRIPLETS], (Kind::Int64, identities.device()));
    let other = (&own + own.randint_like_low_dtype(1, IDENTITIES)).remainder(IDENTITIES);
    let noisy = |of: &Tensor| identities.index_select(0, of) + 0.5 * identities.index_select(0, of).randn_like();
    [noisy(&own), noisy(&own), noisy(&other)]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tch::manual_seed(0);
    let device = Device::cuda_if_available();
    let vs = nn::VarStore::new(device);
    // An embedding of 128 numbers takes the place of ImageNet's 1000 classes. `resnet152` is used in the same way.
    let identities = Tensor::randn([IDENTITIES, 3, SIDE, SIDE], (Kind::Float, device));
    let encoder = vision::resnet::resnet18(&vs.root(), 128);
    let mut optimiser = nn::Adam::default().build(&vs, 1e-3)?;
    // mean(relu(|a - p|^2 - |a - n|^2 + 0.2)), of rows divided by their norms.
    let loss_fn = TripletMarginLoss { margin: 0.2, normalize: true, ..Default::default() };

    for epoch in 1..=EPOCHS {
        let mut total = 0.0;
        for _ in 0..8 {
            let [anchor, positive, negative] = batch(&identities).map(|images| encoder.forward_t(&images, true));
            let loss = loss_fn.forward(&anchor, &positive, &negative);
            optimiser.backward_step(&loss);
            total += loss.double_value(&[]);
        }
        println!("epoch {epoch:2}  loss {:.4}", total / 8.0);
    }
    Ok(())
}
