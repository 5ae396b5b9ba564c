//! How to train, and when training ends.

use crate::data::dataset::Dataset;
use crate::data::view::{Affine, tensor};
use crate::model::encoder::Precision;
use crate::process::bad_input::bad_input;
use crate::process::random::{Purpose, stream};
use crate::process::ranks::{Ranks, Share};
use crate::training::batch::{self, BatchShape, Forwards, OwnBatch};
use crate::training::checkpoint::State;
use crate::training::loss::Loss;
use crate::training::schedule::Schedule;
use anyhow::Result;
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// How to train.
pub struct Plan {
    /// The shape of the batches.
    pub shape: BatchShape,
    /// Passes over the training images.
    pub epochs: u64,
    /// The most steps.
    pub steps: Option<u64>,
    /// The moment at which training ends.
    pub until: Option<Instant>,
    /// Adam's highest learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Steps in which the learning rate rises.
    pub warmup: u64,
    /// Adam's weight decay.
    pub weight_decay: f64,
    /// The encoder's precision while training.
    pub precision: Precision,
    /// Forward passes per step.
    pub forwards: Forwards,
    /// The loss.
    pub loss: Loss,
    /// How many embeddings of earlier batches the loss looks at too; 0 for none.
    pub memory: usize,
    /// Strength of the random views.
    pub augment: f32,
    /// The seed of every draw.
    pub seed: u64,
    /// Epochs between two evaluations; 0 for none.
    pub evaluate_every: u64,
    /// Evaluations without a better EER that end the training.
    pub patience: Option<u64>,
    /// Epochs between two checkpoints; 0 for none.
    pub checkpoint_every: u64,
}

impl Plan {
    /// Refuses options that contradict each other.
    pub fn check(&self) -> Result<()> {
        if self.forwards == Forwards::Three && !self.loss.takes_roles() {
            return Err(bad_input(
                "--forwards three: only --loss triplet and --loss contrastive have anchors, positives and negatives to \
                 encode apart",
            ));
        }
        if self.memory > 0 && self.loss.takes_roles() {
            return Err(bad_input(format!(
                "--memory {}: only a loss that mines the batch (--loss batch-all and so on) can look for triplets in a \
                 memory too",
                self.memory
            )));
        }
        Ok(())
    }

    /// Refuses batches of which a process would have too little: batch norm needs two images to normalise.
    pub fn check_share(&self, ranks: &Ranks) -> Result<()> {
        let processes = ranks.size();
        let (have, what, least) = match self.forwards {
            Forwards::One => (self.shape.identities.saturating_mul(self.shape.images), "images", 2),
            Forwards::Three => (self.shape.triplets, "triplets", 2),
        };
        if ranks.is_alone() || have / processes >= least {
            return Ok(());
        }
        Err(bad_input(format!(
            "a batch has {have} {what} for {processes} processes; each needs {least}: a greater --classes-per-batch, \
             --samples-per-class or --batch-triplets"
        )))
    }

    /// Why there is nothing left to do at `state`; `None` if there is.
    pub fn over(&self, state: &State, train: &Dataset) -> Option<String> {
        if self.given_up(state) {
            return Some(format!("{} evaluations had no better EER; a greater --patience goes on", state.stale));
        }
        let (total, _) = self.total(self.steps_per_epoch(train));
        (state.step >= total).then(|| format!("its {} steps are done; more --epochs or --steps go on", state.step))
    }

    /// Whether patience is at its end.
    pub fn given_up(&self, state: &State) -> bool {
        self.patience.is_some_and(|patience| state.stale >= patience)
    }

    /// The batches of an epoch: as many as draw each training image once on average.
    pub fn steps_per_epoch(&self, train: &Dataset) -> u64 {
        let batch = self.shape.identities.saturating_mul(self.shape.images);
        train.images.len().div_ceil(batch).max(1) as u64
    }

    /// The steps of the whole run, and what ends it there.
    pub fn total(&self, per_epoch: u64) -> (u64, End) {
        let of_epochs = self.epochs.saturating_mul(per_epoch);
        match self.steps {
            Some(steps) if steps < of_epochs => (steps, End::Steps),
            _ => (of_epochs, End::Epochs),
        }
    }

    /// A batch, and the views of this process's share of it: a function of (seed, epoch, step within the epoch), whatever the
    /// number of processes.
    pub fn batch(
        &self,
        train: &Dataset,
        device: Device,
        (epoch, step): (u64, u64),
        share: Share,
    ) -> Result<(OwnBatch, Tensor)> {
        let forgeries = train.forgeries.as_deref();
        let forged = forgeries.map_or(&[][..], |forgeries| &forgeries.members);
        let batch = batch::draw(&train.members, forged, self.shape, self.seed, epoch, step);
        let mut rng = stream(self.seed, Purpose::Augment, epoch, step);
        let mut view = |&image: &usize| (image, Affine::random(&mut rng, self.augment));
        // The views of all rows are drawn, so that each is the same in whichever process.
        let genuine: Vec<_> = batch.images.iter().map(&mut view).collect();
        let forged: Vec<_> = batch.forged.iter().map(view).collect();
        let own = OwnBatch::new(batch, self.forwards, share);
        let at = own.rows.partition_point(|row| *row < genuine.len());
        let (of_genuine, of_forged) = own.rows.split_at(at);
        let views: Vec<_> = of_genuine.iter().map(|&row| genuine[row]).collect();
        let mut xs = tensor(&train.images, &views, device)?;
        if let Some(forgeries) = forgeries.filter(|_| !of_forged.is_empty()) {
            let views: Vec<_> = of_forged.iter().map(|&row| forged[row - genuine.len()]).collect();
            // Joined along the first dimension, the rows keep their layout, channels last.
            xs = Tensor::f_cat(&[xs, tensor(&forgeries.images, &views, device)?], 0)?;
        }
        Ok((own, xs))
    }

    /// The fraction done and the time left, by steps or by the clock, whichever ends first. Time
    /// is over when another step of average length, and the checkpoint after it, would not end in time.
    pub fn left(&self, done: u64, total: u64, start: Instant, saving: Duration) -> (f64, Duration) {
        let spent = start.elapsed();
        let one = spent.div_f64(done as f64);
        // Without an end the time is longer than a duration can be.
        let by_steps = Duration::try_from_secs_f64(one.as_secs_f64() * (total - done) as f64).unwrap_or(Duration::MAX);
        let by_clock = self.until.map(|until| {
            let left = until.saturating_duration_since(Instant::now() + saving);
            if left < one { Duration::ZERO } else { left }
        });
        let left = by_clock.map_or(by_steps, |by_clock| by_clock.min(by_steps));
        let (spent, ahead) = (spent.as_secs_f64(), left.as_secs_f64());
        (spent / (spent + ahead).max(1e-9), left)
    }
}

/// Why training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Epochs,
    Steps,
    TimeLimit,
    Patience,
    Interrupted,
}

impl End {
    /// The name in `summary.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epochs => "epochs",
            Self::Steps => "steps",
            Self::TimeLimit => "time limit",
            Self::Patience => "patience",
            Self::Interrupted => "interrupted",
        }
    }
}
