//! The training loop: batches, Adam, the loss; until epochs, steps or time are over, nothing improves, or
//! somebody stops it.

use crate::bad_input::bad_input;
use crate::batch::{self, BatchShape, TripletBatch};
use crate::chart::Measured;
use crate::checkpoint::{self, Checkpoint, Origin, State};
use crate::dataset::Dataset;
use crate::encoder::{Encoder, Pass, Precision};
use crate::interrupt::Interrupt;
use crate::loss::{Loss, Lost};
use crate::optimiser::Adam;
use crate::progress::{self, Progress};
use crate::random::{Purpose, stream};
use crate::run_folder::{Line, MetricsCsv};
use crate::schedule::{Rate, Schedule};
use crate::view::{Affine, tensor};
use crate::watch;
use crate::workers::Workers;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor, nn};
use tercet::Reference;
use tercet::torch::CrossBatchMemory;

/// The memory's tensors in a checkpoint.
const MEMORY: [&str; 2] = ["memory/embeddings", "memory/labels"];

/// Forward passes per step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum Forwards {
    /// One for the batch's images
    One,
    /// Anchors, positives and negatives each for themselves
    Three,
}

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
    /// Adam's, at its highest.
    pub learning_rate: f64,
    /// How it falls.
    pub schedule: Schedule,
    /// Steps that it rises in.
    pub warmup: u64,
    /// Adam's.
    pub weight_decay: f64,
    /// The encoder's while training.
    pub precision: Precision,
    /// Forward passes.
    pub forwards: Forwards,
    /// The loss.
    pub loss: Loss,
    /// Embeddings of earlier batches that it looks at too; 0 is none.
    pub memory: usize,
    /// Strength of the random views.
    pub augment: f32,
    /// Of every draw.
    pub seed: u64,
    /// Epochs between two evaluations; 0 is none.
    pub evaluate_every: u64,
    /// Evaluations without a better EER that end the training.
    pub patience: Option<u64>,
    /// Epochs between two checkpoints; 0 is none.
    pub checkpoint_every: u64,
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
    /// As `summary.json` says it.
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

/// What surrounds the loop.
pub struct Surroundings<'a> {
    /// The run folder.
    pub folder: &'a Path,
    /// What the run is made of, for its checkpoints.
    pub origin: &'a Origin,
    /// When this process began.
    pub start: Instant,
    /// Trained on.
    pub train: &'a Dataset,
    /// Read and bend the images.
    pub workers: &'a Workers,
    /// Measures the encoder; the step is for the record.
    pub evaluate: &'a dyn Fn(u64) -> Result<Measured>,
    /// Whether to stop.
    pub interrupt: &'a Interrupt,
}

/// A run in progress.
pub struct Training<'a> {
    plan: &'a Plan,
    encoder: &'a Encoder,
    vs: &'a nn::VarStore,
    adam: Adam,
    memory: Option<CrossBatchMemory>,
    state: State,
    /// The weights with the lowest EER, where patience may come back to them.
    best: Option<Vec<(String, Tensor)>>,
    /// The step of the last checkpoint.
    saved: Option<u64>,
    /// The longest time that one took.
    saving: Duration,
}

impl<'a> Training<'a> {
    /// From the encoder as it is, of embeddings of `dim` numbers; its variables are in `vs`.
    pub fn new(plan: &'a Plan, encoder: &'a Encoder, dim: i64, vs: &'a nn::VarStore) -> Result<Self> {
        let memory = match plan.memory {
            0 => None,
            // Looked at once it is full: rows of the first steps are soon unlike those of now.
            rows => Some(CrossBatchMemory::f_new(rows, dim as usize, Kind::Float, vs.device())?.warm_up(rows)),
        };
        Ok(Self {
            plan,
            encoder,
            vs,
            adam: Adam::new(vs, plan.weight_decay),
            memory,
            state: State::default(),
            best: None,
            saved: None,
            saving: Duration::ZERO,
        })
    }

    /// From a checkpoint.
    pub fn resume(
        plan: &'a Plan,
        encoder: &'a Encoder,
        dim: i64,
        vs: &'a nn::VarStore,
        mut checkpoint: Checkpoint,
    ) -> Result<Self> {
        let mut new = Self::new(plan, encoder, dim, vs)?;
        new.state = std::mem::take(&mut checkpoint.state);
        new.saved = Some(new.state.step);
        new.adam.restore(new.state.updates, |name| checkpoint.take(name))?;
        // Before the first step there is nothing in it.
        if let (Some(memory), 1..) = (&mut new.memory, new.state.step) {
            let [embeddings, labels] = MEMORY.map(|name| checkpoint.take(name));
            memory.f_restore(&embeddings?, &labels?, new.state.memory)?;
        }
        let _guard = tch::no_grad_guard();
        let mut best = Vec::new();
        for (name, mut variable) in vs.variables() {
            variable.f_copy_(&checkpoint.take(&format!("encoder/{name}"))?)?;
            let kept = format!("best/{name}");
            if checkpoint.has(&kept) {
                best.push((name, checkpoint.take(&kept)?));
            }
        }
        new.best = (!best.is_empty()).then_some(best);
        Ok(new)
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Runs the loop.
    pub fn run(&mut self, csv: &mut MetricsCsv, around: &Surroundings) -> Result<End> {
        let plan = self.plan;
        let per_epoch = plan.steps_per_epoch(around.train);
        let (total, mut end) = plan.total(per_epoch);
        let rate = Rate { base: plan.learning_rate, schedule: plan.schedule, warmup: plan.warmup, total };

        if plan.given_up(&self.state) {
            return Ok(End::Patience);
        }
        let first = self.state.step;
        let before = (self.state.seconds, self.state.run_seconds, self.state.waited);
        let collapsed = plan.loss.of_equal_embeddings();
        let mut warned = watch::collapsed_at(&self.state.losses, &self.state.active, collapsed).is_some();
        let start = Instant::now();
        let mut paused = Duration::ZERO; // for evaluations and checkpoints
        let mut progress = Progress::start();
        let (device, train) = (self.vs.device(), around.train);
        let make = |n: u64| plan.batch(train, device, n / per_epoch, n % per_epoch);
        std::thread::scope(|scope| -> Result<()> {
            let mut batches = around.workers.ahead(scope, first..total, &make);
            // An error or a break drops the batches that are ahead, and no more are made.
            for n in first.. {
                let Some(batch) = batches.next() else { break };
                let (batch, xs) = batch?;
                if around.interrupt.asked() {
                    end = End::Interrupted;
                    break;
                }
                let (loss, active) = self.step(&batch, &xs, rate.at(n))?;
                ensure!(loss.is_finite(), "the loss is {loss} at step {}", n + 1);
                let spent = start.elapsed() - paused;
                self.state.step = n + 1;
                self.state.images += batch.encoded(plan.forwards) as u64;
                self.state.seconds = before.0 + spent.as_secs_f64();
                self.state.waited = before.2 + batches.waited().as_secs_f64();
                self.state.losses.push(loss);
                self.state.active.push(active);
                let epoch = n / per_epoch + 1;
                let images_per_second = self.state.images as f64 / self.state.seconds;
                let (seconds, waited, learning_rate) = (self.state.seconds, self.state.waited, rate.at(n));
                csv.line(&Line {
                    epoch,
                    step: n + 1,
                    loss,
                    seconds,
                    images_per_second,
                    active,
                    learning_rate,
                    waited,
                })?;
                if !warned && watch::collapsed(&self.state.losses, &self.state.active, collapsed) {
                    warned = true;
                    progress.note(&format!("warning: {}", watch::collapse(n + 1, collapsed)));
                }

                let due = |every: u64| every > 0 && (n + 1) % per_epoch == 0 && epoch.is_multiple_of(every);
                let pause = Instant::now();
                if due(plan.evaluate_every) {
                    self.evaluate(around, &progress)?;
                }
                if due(plan.checkpoint_every) {
                    self.state.run_seconds = before.1 + around.start.elapsed().as_secs_f64();
                    self.save(csv, around)?;
                }
                paused += pause.elapsed();
                let (fraction, left) = plan.left(n + 1 - first, total - first, start, self.saving);
                progress.show(&progress::State {
                    epoch,
                    step: n + 1,
                    loss: recent(&self.state.losses),
                    active: recent(&self.state.active),
                    images_per_second,
                    waited: waited / seconds.max(1e-9),
                    fraction,
                    left,
                });
                if plan.given_up(&self.state) {
                    end = End::Patience;
                    break;
                }
                if left.is_zero() && n + 1 < total {
                    end = End::TimeLimit;
                    break;
                }
            }
            Ok(())
        })?;
        progress.finish();
        self.state.run_seconds = before.1 + around.start.elapsed().as_secs_f64();
        let wanted = plan.checkpoint_every > 0 || end == End::Interrupted;
        if wanted && self.saved != Some(self.state.step) {
            self.save(csv, around)?;
        }
        Ok(end)
    }

    /// Puts the best weights back, where they are kept. The checkpoint has the last ones.
    pub fn restore_best(&self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let mut variables = self.vs.variables();
        for (name, best) in self.best.iter().flatten() {
            if let Some(variable) = variables.get_mut(name) {
                variable.f_copy_(best)?;
            }
        }
        Ok(())
    }

    /// One update. Returns the loss and the active fraction.
    fn step(&mut self, batch: &TripletBatch, xs: &Tensor, rate: f64) -> Result<(f64, f64)> {
        let Lost { loss, active } = self.loss(batch, xs)?;
        let scaling = self.plan.precision == Precision::F16;
        let scaled = if scaling { &loss * self.state.scaler.scale() } else { loss.shallow_clone() };
        let mut gradients = self.adam.gradients(&scaled)?;
        let mut scalars = vec![loss.detach(), active];
        if scaling {
            let sums: Vec<Tensor> = gradients.iter().map(|g| g.isfinite().all()).collect();
            scalars.push(Tensor::f_stack(&sums, 0)?.all());
        } else {
            self.update(&gradients, rate)?;
        }
        // One wait for the device: with a scaler before the update, which depends on it, else after it.
        let scalars: Vec<Tensor> = scalars.iter().map(|scalar| scalar.to_kind(Kind::Double)).collect();
        let values: Vec<f64> = Tensor::f_stack(&scalars, 0)?.try_into()?;
        if let Some(&finite) = values.get(2) {
            let scale = self.state.scaler.scale();
            self.state.scaler.observe(finite == 1.0);
            if finite == 1.0 {
                let _guard = tch::no_grad_guard();
                gradients.iter_mut().try_for_each(|g| g.f_mul_scalar_(1.0 / scale).map(drop))?;
                self.update(&gradients, rate)?;
            } else {
                let step = self.state.step + 1;
                ensure!(
                    !self.state.scaler.exhausted(),
                    "gradients overflow f16 at step {step}, whatever the loss's scale"
                );
            }
        }
        Ok((values[0], values[1]))
    }

    fn update(&mut self, gradients: &[Tensor], rate: f64) -> Result<()> {
        self.adam.step(gradients, rate)?;
        self.state.updates = self.adam.steps();
        Ok(())
    }

    fn loss(&mut self, batch: &TripletBatch, xs: &Tensor) -> Result<Lost> {
        let encode = |xs: &Tensor| self.encoder.forward(xs, Pass::Train);
        match self.plan.forwards {
            Forwards::One => self.plan.loss.of(&encode(xs), batch, self.state.step, self.memory.as_mut()),
            Forwards::Three => {
                let pick = |rows: &[i64]| xs.index_select(0, &Tensor::from_slice(rows).to_device(xs.device()));
                let [a, p, n] = batch.roles().map(|rows| encode(&pick(rows)));
                self.plan.loss.of_roles(&a, &p, &n)
            }
        }
    }

    fn evaluate(&mut self, around: &Surroundings, progress: &Progress) -> Result<()> {
        let measured = (around.evaluate)(self.state.step)?;
        let better = self.state.best().is_none_or(|best| measured.eer < best);
        progress.note(&format!(
            "step {}: EER {:.4}{}",
            measured.step,
            measured.eer,
            if better { "" } else { ", not better" }
        ));
        self.state.measured.push(measured);
        self.state.stale = if better { 0 } else { self.state.stale + 1 };
        if better && self.plan.patience.is_some() {
            let copy = |(name, variable): (String, Tensor)| (name, variable.detach().copy());
            self.best = Some(self.vs.variables().into_iter().map(copy).collect());
        }
        Ok(())
    }

    fn save(&mut self, csv: &MetricsCsv, around: &Surroundings) -> Result<()> {
        let clock = Instant::now();
        csv.sync()?; // a checkpoint never has steps that metrics.csv has not
        let variables: Vec<_> = self.vs.variables().into_iter().collect();
        let encoder = variables.iter().map(|(name, variable)| (format!("encoder/{name}"), variable));
        let best = self.best.iter().flatten().map(|(name, tensor)| (format!("best/{name}"), tensor));
        let filled = self.memory.iter().filter(|memory| !memory.is_empty()).flat_map(|memory| {
            let Reference { embeddings, labels, .. } = memory.reference();
            MEMORY.map(str::to_owned).into_iter().zip([embeddings, labels])
        });
        self.state.memory = self.memory.as_ref().map_or(0, CrossBatchMemory::position);
        let tensors = encoder.chain(self.adam.moments()).chain(best).chain(filled);
        checkpoint::write(around.folder, around.origin, &self.state, tensors)?;
        self.saved = Some(self.state.step);
        self.saving = self.saving.max(clock.elapsed());
        Ok(())
    }
}

impl Plan {
    /// Refuses what contradicts itself.
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

    /// Why there is nothing left to do at `state`, if there is not.
    pub fn over(&self, state: &State, train: &Dataset) -> Option<String> {
        if self.given_up(state) {
            return Some(format!("{} evaluations had no better EER; a greater --patience goes on", state.stale));
        }
        let (total, _) = self.total(self.steps_per_epoch(train));
        (state.step >= total).then(|| format!("its {} steps are done; more --epochs or --steps go on", state.step))
    }

    fn given_up(&self, state: &State) -> bool {
        self.patience.is_some_and(|patience| state.stale >= patience)
    }

    /// An epoch has as many batches as it takes to draw each training image once on average.
    fn steps_per_epoch(&self, train: &Dataset) -> u64 {
        let batch = self.shape.identities * self.shape.images;
        train.images.len().div_ceil(batch).max(1) as u64
    }

    /// The steps of the whole run, and what ends it there.
    fn total(&self, per_epoch: u64) -> (u64, End) {
        let of_epochs = self.epochs.saturating_mul(per_epoch);
        match self.steps {
            Some(steps) if steps < of_epochs => (steps, End::Steps),
            _ => (of_epochs, End::Epochs),
        }
    }

    /// A batch and its views: a function of (seed, epoch, step within the epoch).
    fn batch(&self, train: &Dataset, device: Device, epoch: u64, step: u64) -> Result<(TripletBatch, Tensor)> {
        let forgeries = train.forgeries.as_deref();
        let forged = forgeries.map_or(&[][..], |forgeries| &forgeries.members);
        let batch = batch::draw(&train.members, forged, self.shape, self.seed, epoch, step);
        let mut rng = stream(self.seed, Purpose::Augment, epoch, step);
        let mut view = |&image: &usize| (image, Affine::random(&mut rng, self.augment));
        let views: Vec<_> = batch.images.iter().map(&mut view).collect();
        let mut xs = tensor(&train.images, &views, device)?;
        if let Some(forgeries) = forgeries.filter(|_| !batch.forged.is_empty()) {
            let views: Vec<_> = batch.forged.iter().map(view).collect();
            // Along the first dimension the rows' layout, channels last, stays.
            xs = Tensor::f_cat(&[xs, tensor(&forgeries.images, &views, device)?], 0)?;
        }
        Ok((batch, xs))
    }

    /// The fraction done and the time left, by steps or by the clock, whichever ends first. Time
    /// is over when another step of average length, and the checkpoint after it, would not end in time.
    fn left(&self, done: u64, total: u64, start: Instant, saving: Duration) -> (f64, Duration) {
        let spent = start.elapsed();
        let one = spent.div_f64(done as f64);
        // Without an end the time is not a duration that there is.
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

/// The mean of the last ten.
fn recent(values: &[f64]) -> f64 {
    let last = &values[values.len().saturating_sub(10)..];
    last.iter().sum::<f64>() / last.len() as f64
}
