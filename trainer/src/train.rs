//! The training loop: batches, Adam, the loss; until epochs, steps or time are over.

use crate::batch::{self, BatchShape, TripletBatch};
use crate::dataset::Dataset;
use crate::encoder::{Encoder, Pass};
use crate::loss::Loss;
use crate::progress::{Progress, State};
use crate::random::{Purpose, stream};
use crate::run_folder::MetricsCsv;
use crate::view::{Affine, tensor};
use anyhow::{Result, ensure};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Tensor};

/// How to train.
pub struct Plan {
    /// The batches.
    pub shape: BatchShape,
    /// Passes over the training images.
    pub epochs: u64,
    /// At most this many steps.
    pub steps: Option<u64>,
    /// Training ends at this moment.
    pub until: Option<Instant>,
    /// Adam's.
    pub learning_rate: f64,
    /// The loss.
    pub loss: Loss,
    /// Strength of the random views.
    pub augment: f32,
    /// Of every draw.
    pub seed: u64,
}

/// What came of it.
pub struct Outcome {
    /// The loss of each step.
    pub losses: Vec<f64>,
    /// Seconds spent.
    pub seconds: f64,
    /// Images encoded.
    pub images: usize,
    /// `epochs`, `steps` or `time limit`.
    pub ended_by: &'static str,
}

impl Plan {
    /// An epoch has as many batches as it takes to draw each training image once on average.
    fn steps_per_epoch(&self, train: &Dataset) -> u64 {
        let batch = self.shape.identities * self.shape.images;
        train.images.len().div_ceil(batch).max(1) as u64
    }

    /// Runs the loop on the encoder whose variables are in `vs`.
    pub fn run(&self, encoder: &Encoder, vs: &nn::VarStore, train: &Dataset, csv: &mut MetricsCsv) -> Result<Outcome> {
        let mut optimiser = nn::Adam::default().build(vs, self.learning_rate)?;
        let per_epoch = self.steps_per_epoch(train);
        let of_epochs = self.epochs.saturating_mul(per_epoch);
        let total = self.steps.unwrap_or(of_epochs).min(of_epochs);
        let mut ended_by = if total < of_epochs { "steps" } else { "epochs" };

        let start = Instant::now();
        let mut progress = Progress::start();
        let (mut losses, mut images) = (Vec::new(), 0);
        std::thread::scope(|scope| -> Result<()> {
            // Two batches ahead, so that the encoder does not wait for views.
            let (send, receive) = sync_channel(2);
            let device = vs.device();
            scope.spawn(move || self.produce(train, device, per_epoch, total, &send));
            for (n, (batch, xs)) in receive.iter().enumerate().map(|(n, b)| (n as u64, b)) {
                let loss = self.step(encoder, &mut optimiser, &batch, &xs)?;
                ensure!(loss.is_finite(), "the loss is {loss} at step {}", n + 1);
                losses.push(loss);
                images += batch.images.len();
                let spent = start.elapsed();
                let rate = images as f64 / spent.as_secs_f64();
                let epoch = n / per_epoch;
                csv.line(epoch + 1, n + 1, loss, spent.as_secs_f64(), rate)?;
                let (fraction, left) = self.left(n + 1, total, start);
                progress.show(&State {
                    epoch: epoch + 1,
                    step: n + 1,
                    loss: recent(&losses),
                    images_per_second: rate,
                    fraction,
                    left,
                });
                if left.is_zero() && n + 1 < total {
                    ended_by = "time limit";
                    break;
                }
            }
            drop(receive); // the producer's next send fails, and it ends
            Ok(())
        })?;
        progress.finish();
        Ok(Outcome { losses, seconds: start.elapsed().as_secs_f64(), images, ended_by })
    }

    /// One forward and backward pass and one update.
    fn step(&self, encoder: &Encoder, optimiser: &mut nn::Optimizer, batch: &TripletBatch, xs: &Tensor) -> Result<f64> {
        let embeddings = encoder.forward(xs, Pass::Train);
        let loss = self.loss.of(&embeddings, batch)?;
        optimiser.zero_grad();
        loss.f_backward()?;
        optimiser.step();
        Ok(loss.f_double_value(&[])?)
    }

    /// Sends the batches of all steps, each a function of (seed, epoch, step within the epoch).
    fn produce(
        &self,
        train: &Dataset,
        device: Device,
        per_epoch: u64,
        total: u64,
        send: &SyncSender<(TripletBatch, Tensor)>,
    ) {
        for n in 0..total {
            let (epoch, step) = (n / per_epoch, n % per_epoch);
            let batch = batch::draw(&train.members, self.shape, self.seed, epoch, step);
            let mut rng = stream(self.seed, Purpose::Augment, epoch, step);
            let view = |&image: &usize| (image, Affine::random(&mut rng, self.augment));
            let views: Vec<_> = batch.images.iter().map(view).collect();
            let xs = tensor(&train.images, &views, device);
            if send.send((batch, xs)).is_err() {
                return;
            }
        }
    }

    /// The fraction done and the time left, by steps or by the clock, whichever ends first. Time
    /// is over when another step of average length would not end in time.
    fn left(&self, done: u64, total: u64, start: Instant) -> (f64, Duration) {
        let spent = start.elapsed();
        let one = spent.div_f64(done as f64);
        let by_steps = one.mul_f64((total - done) as f64);
        let by_clock = self.until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            if left < one { Duration::ZERO } else { left }
        });
        let left = by_clock.map_or(by_steps, |by_clock| by_clock.min(by_steps));
        (spent.as_secs_f64() / (spent + left).as_secs_f64().max(1e-9), left)
    }
}

/// The mean of the last ten.
fn recent(losses: &[f64]) -> f64 {
    let last = &losses[losses.len().saturating_sub(10)..];
    last.iter().sum::<f64>() / last.len() as f64
}
