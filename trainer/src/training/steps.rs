//! The training loop: batches, Adam, the loss; until epochs, steps or time are over, nothing improves, or somebody
//! stops it.

use crate::data::dataset::Dataset;
use crate::data::workers::Workers;
use crate::evaluation::evaluate::Evaluated;
use crate::evaluation::metrics::Measured;
use crate::model::encoder::{Encoder, Pass, Precision};
use crate::model::vectors::Vectors;
use crate::process::bad_input::bad_input;
use crate::process::interrupt::{Interrupt, Interrupted};
use crate::process::ranks::Ranks;
use crate::run_folder::metrics_csv::{Line, MetricsCsv};
use crate::training::batch::{Forwards, OwnBatch, TripletBatch};
use crate::training::checkpoint::{self, Checkpoint, Origin, State};
use crate::training::loss::Lost;
use crate::training::optimiser::Adam;
use crate::training::overwritten::Overwritten;
use crate::training::plan::{End, Plan};
use crate::training::progress::{self, Progress};
use crate::training::room;
use crate::training::schedule::Rate;
use crate::training::watch;
use anyhow::{Result, bail, ensure};
use std::path::Path;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor, nn};
use tercet::Reference;
use tercet::torch::CrossBatchMemory;

/// The memory's tensors in a checkpoint.
const MEMORY: [&str; 2] = ["memory/embeddings", "memory/labels"];

/// The embeddings before training in a checkpoint: of the validation images and of their forgeries.
pub const BEFORE: [&str; 2] = ["before/images", "before/forgeries"];

/// What the loop needs from the run around it.
pub struct Surroundings<'a> {
    /// The run folder.
    pub folder: &'a Path,
    /// What the run is made of, for its checkpoints.
    pub origin: &'a Origin,
    /// When this process began.
    pub start: Instant,
    /// The evaluation before training, and the seconds that it took.
    pub before: (&'a Evaluated, f64),
    /// The set that is trained on.
    pub train: &'a Dataset,
    /// The threads that read and bend the images.
    pub workers: &'a Workers,
    /// Evaluates the encoder; the step is for the record.
    pub evaluate: &'a dyn Fn(u64) -> Result<Measured>,
    /// Tells whether to stop.
    pub interrupt: &'a Interrupt,
    /// The run's processes.
    pub ranks: &'a Ranks,
}

/// A run in progress.
pub struct Training<'a> {
    plan: &'a Plan,
    encoder: &'a Encoder,
    vs: &'a nn::VarStore,
    adam: Adam,
    memory: Option<CrossBatchMemory>,
    state: State,
    /// The weights with the lowest EER, if patience may come back to them.
    best: Option<Vec<(String, Tensor)>>,
    /// The step of the last checkpoint.
    saved: Option<u64>,
    /// The longest time that saving a checkpoint took.
    saving: Duration,
}

impl<'a> Training<'a> {
    /// Starts from the encoder as it is, with embeddings of `dim` numbers and its variables in `vs`.
    pub fn new(plan: &'a Plan, encoder: &'a Encoder, dim: i64, vs: &'a nn::VarStore) -> Result<Self> {
        let memory = match plan.memory {
            0 => None,
            // The memory is used once it is full: until then it has rows of the first steps, which are soon unlike
            // later ones.
            rows => {
                let memory = CrossBatchMemory::f_new(rows, dim as usize, plan.precision.of_weights(), vs.device());
                let no_room = || bad_input(format!("--memory {rows}: no room for as many embeddings of {dim} numbers"));
                Some(memory.map_err(|_| no_room())?.warm_up(rows))
            }
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

    /// Goes on from a checkpoint.
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
        if new.state.updates > 0 {
            new.adam.restore(new.state.updates, |name| checkpoint.take(name))?;
        }
        // Before the first step the memory is empty.
        if let (Some(memory), 1..) = (&mut new.memory, new.state.step) {
            let [embeddings, labels] = MEMORY.map(|name| checkpoint.take(name));
            memory.f_restore(&embeddings?, &labels?, new.state.memory)?;
        }
        let _guard = tch::no_grad_guard();
        let mut best = Vec::new();
        for (name, mut variable) in vs.variables() {
            let shape = variable.size();
            variable.f_copy_(&checkpoint.take_shaped(&format!("encoder/{name}"), &shape)?)?;
            let kept = format!("best/{name}");
            if checkpoint.has(&kept) {
                best.push((name, checkpoint.take_shaped(&kept, &shape)?));
            }
        }
        new.best = (!best.is_empty()).then_some(best);
        Ok(new)
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Runs the loop until training ends, and says why it did.
    pub fn run(&mut self, csv: &mut Option<MetricsCsv>, around: &Surroundings) -> Result<End> {
        let (plan, ranks) = (self.plan, around.ranks);
        let per_epoch = plan.steps_per_epoch(around.train);
        let (total, mut end) = plan.total(per_epoch);
        let rate = Rate { base: plan.learning_rate, schedule: plan.schedule, warmup: plan.warmup, total };

        let mut progress = Progress::start();
        // The run may have been interrupted in the middle of an evaluation.
        let (step, every) = (self.state.step, plan.evaluate_every.saturating_mul(per_epoch));
        let missed = every > 0 && step > 0 && step.is_multiple_of(every) && !self.state.is_measured();
        if missed && !self.evaluate(around, &progress)? {
            return Ok(End::Interrupted);
        }
        if plan.given_up(&self.state) {
            return Ok(End::Patience);
        }
        let first = self.state.step;
        let before = (self.state.seconds, self.state.run_seconds, self.state.waited);
        let collapsed = plan.loss.of_equal_embeddings();
        let mut warned = watch::collapsed_at(&self.state.losses, &self.state.active, collapsed).is_some();
        let start = Instant::now();
        let mut paused = Duration::ZERO; // for evaluations and checkpoints
        let mut said = self.state.skipped() > 0;
        let (device, train) = (self.vs.device(), around.train);
        let share = ranks.share();
        let make = |n: u64| plan.batch(train, device, (n / per_epoch, n % per_epoch), share);
        std::thread::scope(|scope| -> Result<()> {
            let mut batches = around.workers.ahead(scope, first..total, &make);
            let mut over = false;
            // An error or a break drops the batches that are ahead, and no more are made.
            for n in first.. {
                let Some(batch) = batches.next() else { break };
                let (batch, xs) = batch?;
                // All processes end before the same step, whichever of them was asked.
                match ranks.asked(around.interrupt, over)? {
                    [true, _] => {
                        end = End::Interrupted;
                        break;
                    }
                    [_, true] => {
                        end = End::TimeLimit;
                        break;
                    }
                    _ => {}
                }
                let Stepped { loss, active, skipped } = self.step(&batch, &xs, rate.at(n), ranks)?;
                let batch = &batch.whole;
                ensure!(skipped || loss.is_finite(), "the loss is {loss} at step {}", n + 1);
                if skipped && !said {
                    said = true;
                    progress.note(&format!(
                        "step {}: a number overflows f16: the step is left out, and the loss scaled by half as much; how \
                         often that was is said at the end",
                        n + 1
                    ));
                }
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
                if let Some(csv) = csv {
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
                }
                if !warned && watch::collapsed(&self.state.losses, &self.state.active, collapsed) {
                    warned = true;
                    progress.note(&format!("warning: {}", watch::collapse(n + 1, collapsed)));
                }

                let due = |every: u64| every > 0 && (n + 1) % per_epoch == 0 && epoch.is_multiple_of(every);
                let pause = Instant::now();
                if due(plan.evaluate_every) && !self.evaluate(around, &progress)? {
                    end = End::Interrupted;
                    break;
                }
                if due(plan.checkpoint_every) {
                    self.state.run_seconds = before.1 + around.start.elapsed().as_secs_f64();
                    self.save(csv.as_ref(), around)?;
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
                over = left.is_zero();
            }
            Ok(())
        })?;
        progress.finish();
        self.state.run_seconds = before.1 + around.start.elapsed().as_secs_f64();
        if plan.checkpoint_every > 0 || end == End::Interrupted {
            self.save_once(csv.as_ref(), around)?;
        }
        Ok(end)
    }

    /// Swaps the best weights, if they are kept, with the present ones; a second call swaps them back. Returns whether
    /// they are kept. A checkpoint must be written with the last weights in place.
    pub fn swap_best(&mut self) -> Result<bool> {
        let _guard = tch::no_grad_guard();
        let mut variables = self.vs.variables();
        for (name, best) in self.best.iter_mut().flatten() {
            if let Some(variable) = variables.get_mut(name) {
                let last = variable.copy();
                variable.f_copy_(best)?;
                *best = last;
            }
        }
        Ok(self.best.is_some())
    }

    /// One update. An overflow in 16 bits leaves it out; it is an error if it repeats whatever the scale.
    fn step(&mut self, batch: &OwnBatch, xs: &Tensor, rate: f64, ranks: &Ranks) -> Result<Stepped> {
        let rows = batch.whole.labels.len();
        let overwritten = match &self.memory {
            Some(memory) if self.plan.precision == Precision::F16 => Some(Overwritten::by(rows, memory)?),
            _ => None,
        };
        let Lost { loss, active, too_many_pairs } = self.loss(batch, xs, ranks)?;
        let scaling = self.plan.precision == Precision::F16;
        let scaled = if scaling { &loss * self.state.scaler.scale() } else { loss.shallow_clone() };
        let mut gradients = self.adam.gradients(&scaled)?;
        // From here on all processes have the same numbers, and make the same of them.
        ranks.average(&mut gradients)?;
        let mut scalars = vec![loss.detach(), active, too_many_pairs];
        if scaling {
            let sums: Vec<Tensor> = gradients.iter().map(|g| g.isfinite().all()).collect();
            scalars.push(Tensor::f_stack(&sums, 0)?.all());
        } else {
            self.update(&gradients, rate)?;
        }
        // One wait for the device: with a scaler before the update, which depends on it, else after it.
        let scalars: Vec<Tensor> = scalars.iter().map(|scalar| scalar.to_kind(Kind::Double)).collect();
        let mut values = [Tensor::f_stack(&scalars, 0)?];
        if self.plan.forwards == Forwards::Three {
            ranks.average(&mut values)?; // each process has the loss of its own triplets
        }
        let [values] = values;
        let values: Vec<f64> = values.try_into()?;
        let (loss, active) = (values[0], values[1]);
        self.check_room(&batch.whole, values[2] != 0.0)?;
        let mut skipped = false;
        if let Some(&finite) = values.get(3) {
            let scale = self.state.scaler.scale();
            skipped = finite != 1.0 || !loss.is_finite();
            self.state.scaler.observe(!skipped);
            if !skipped {
                let _guard = tch::no_grad_guard();
                gradients.iter_mut().try_for_each(|g| g.f_mul_scalar_(1.0 / scale).map(drop))?;
                self.update(&gradients, rate)?;
            } else {
                // Rows of infinity in the memory would make every loss NaN until they are overwritten.
                if let (Some(before), Some(memory), false) = (overwritten, &mut self.memory, loss.is_finite()) {
                    before.put_back(memory)?;
                }
                let (step, what) = (self.state.step + 1, if loss.is_finite() { "gradients" } else { "activations" });
                ensure!(
                    !self.state.scaler.exhausted(),
                    "{what} overflow f16 at step {step} and at those before it, whatever the loss's scale; --precision bf16 has \
                     the range of f32"
                );
            }
        }
        Ok(Stepped { loss, active, skipped })
    }

    /// An error if a device had no room for the pairs of this batch.
    fn check_room(&self, batch: &TripletBatch, too_many_pairs: bool) -> Result<()> {
        if !too_many_pairs {
            return Ok(());
        }
        let others = match self.memory.as_ref().filter(|memory| memory.is_warm()) {
            Some(memory) => Vec::try_from(memory.reference().labels)?,
            None => batch.labels.clone(),
        };
        let why = room::too_many(&self.plan.loss, &batch.labels, &others);
        bail!("the loss is NaN at step {}: {why}", self.state.step + 1)
    }

    fn update(&mut self, gradients: &[Tensor], rate: f64) -> Result<()> {
        self.adam.step(gradients, rate)?;
        self.state.updates = self.adam.steps();
        Ok(())
    }

    fn loss(&mut self, batch: &OwnBatch, xs: &Tensor, ranks: &Ranks) -> Result<Lost> {
        let encode = |xs: &Tensor| self.encoder.forward(xs, Pass::Train);
        let OwnBatch { whole, roles, .. } = batch;
        match self.plan.forwards {
            Forwards::One => self.plan.loss.of(&encode(xs)?, whole, self.state.step, self.memory.as_mut(), ranks),
            Forwards::Three => {
                let pick = |rows: &Vec<i64>| xs.index_select(0, &Tensor::from_slice(rows).to_device(xs.device()));
                let [a, p, n] = [&roles[0], &roles[1], &roles[2]].map(|rows| encode(&pick(rows)));
                let lost = self.plan.loss.of_roles(&a?, &p?, &n?)?;
                // The mean over processes is then that of all triplets, or their sum.
                let (own, all) = (roles[0].len() as f64, whole.anchor.len() as f64);
                Ok(if ranks.is_alone() { lost } else { lost.weighed(ranks.size() as f64, own / all, &self.plan.loss) })
            }
        }
    }

    /// Evaluates the encoder. Returns `false` if somebody has asked to stop before the end.
    fn evaluate(&mut self, around: &Surroundings, progress: &Progress) -> Result<bool> {
        let measured = match (around.evaluate)(self.state.step) {
            Err(error) if error.is::<Interrupted>() => return Ok(false),
            measured => measured?,
        };
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
        Ok(true)
    }

    /// Saves a checkpoint, unless there is one of this step. `csv` is given from the first step on.
    pub fn save_once(&mut self, csv: Option<&MetricsCsv>, around: &Surroundings) -> Result<()> {
        if self.saved == Some(self.state.step) { Ok(()) } else { self.save(csv, around) }
    }

    fn save(&mut self, csv: Option<&MetricsCsv>, around: &Surroundings) -> Result<()> {
        let clock = Instant::now();
        let (before, evaluating) = around.before;
        self.state.evaluating = evaluating;
        let embeddings = [&before.vectors, &before.forged].map(Vectors::to_tensor);
        let variables: Vec<_> = self.vs.variables().into_iter().collect();
        let encoder = variables.iter().map(|(name, variable)| (format!("encoder/{name}"), variable));
        let best = self.best.iter().flatten().map(|(name, tensor)| (format!("best/{name}"), tensor));
        let filled = self.memory.iter().filter(|memory| !memory.is_empty()).flat_map(|memory| {
            let Reference { embeddings, labels, .. } = memory.reference();
            MEMORY.map(str::to_owned).into_iter().zip([embeddings, labels])
        });
        self.state.memory = self.memory.as_ref().map_or(0, CrossBatchMemory::position);
        let moments = self.adam.moments().filter(|_| self.state.updates > 0); // they are zeros before
        let before = BEFORE.map(str::to_owned).into_iter().zip(&embeddings);
        let tensors = encoder.chain(moments).chain(best).chain(filled).chain(before);
        around.ranks.first(|| {
            csv.map_or(Ok(()), MetricsCsv::sync)?; // a checkpoint never has steps that metrics.csv has not
            checkpoint::write(around.folder, around.origin, &self.state, tensors)
        })?;
        self.saved = Some(self.state.step);
        self.saving = self.saving.max(clock.elapsed());
        Ok(())
    }
}

/// The results of one step.
struct Stepped {
    loss: f64,
    /// The step's active fraction.
    active: f64,
    /// Whether an overflow left the update out.
    skipped: bool,
}

/// The mean of the last ten values, without those that an overflow left out.
fn recent(values: &[f64]) -> f64 {
    let last = &values[values.len().saturating_sub(10)..];
    let (sum, count) = last.iter().filter(|v| v.is_finite()).fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
    sum / f64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::encoder::Architecture;
    use crate::process::ranks::Share;
    use crate::training::batch::BatchShape;
    use crate::training::loss::Loss;
    use crate::training::schedule::Schedule;
    use tch::Device;
    use tercet::BatchAllTripletLoss;

    fn plan() -> Plan {
        Plan {
            shape: BatchShape { identities: 2, images: 2, triplets: 0 },
            epochs: 1,
            steps: None,
            until: None,
            learning_rate: 1e-3,
            schedule: Schedule::Constant,
            warmup: 0,
            weight_decay: 0.0,
            precision: Precision::F16,
            forwards: Forwards::One,
            loss: Loss::BatchAll(BatchAllTripletLoss { margin: 1.0, normalize: true, ..Default::default() }),
            memory: 8,
            augment: 0.0,
            seed: 0,
            evaluate_every: 0,
            patience: None,
            checkpoint_every: 0,
        }
    }

    /// The CPU has room for all, and what a device would say ends the run with what to do.
    #[test]
    fn too_many_pairs_end_the_run_with_what_to_do() {
        let (plan, vs) = (plan(), nn::VarStore::new(Device::Cpu));
        let encoder = Encoder::new(&vs.root(), Architecture::Resnet18, 4);
        let training = Training::new(&plan, &encoder, 4, &vs).unwrap();
        let batch = TripletBatch { images: (0..4).collect(), labels: vec![0, 0, 1, 1], ..Default::default() };
        let xs = Tensor::randn([4, 4], (Kind::Float, Device::Cpu));
        let lost = plan.loss.of(&xs, &batch, 0, None, &Ranks::alone()).unwrap();
        assert!(!bool::try_from(lost.too_many_pairs).unwrap());
        training.check_room(&batch, false).unwrap();
        let text = training.check_room(&batch, true).unwrap_err().to_string();
        for words in ["the loss is NaN at step 1: the batch has 8 pairs", "room for", "--pairs-at-once 8"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn an_overflow_in_f16_is_a_step_left_out_until_it_repeats() {
        tch::manual_seed(3);
        let (plan, vs) = (plan(), nn::VarStore::new(Device::Cpu));
        let encoder = Encoder::new(&vs.root(), Architecture::Resnet18, 4).train_in(plan.precision);
        let mut training = Training::new(&plan, &encoder, 4, &vs).unwrap();
        let batch = TripletBatch { images: (0..4).collect(), labels: vec![0, 0, 1, 1], ..Default::default() };
        let batch = OwnBatch::new(batch, Forwards::One, Share::ALL);
        let xs = Tensor::randn([4, 3, 8, 8], (Kind::Float, Device::Cpu));
        let step = |training: &mut Training, xs: &Tensor| {
            let stepped = training.step(&batch, xs, 1e-3, &Ranks::alone());
            training.state.step += u64::from(stepped.is_ok());
            stepped
        };
        // Start near the least scale: f16 is slow on CPUs, and the scaler has a test of its own for the way there.
        (0..31).for_each(|_| training.state.scaler.observe(false));
        assert!(!step(&mut training, &xs).unwrap().skipped);
        let held = |training: &Training| {
            let memory = training.memory.as_ref().unwrap();
            (memory.position(), memory.reference().embeddings.copy(), vs.variables()["fc.weight"].copy())
        };
        let (scale, before) = (training.state.scaler.scale(), held(&training));
        // 65504 is the largest number of f16.
        let far = &xs * 1e9;
        let stepped = step(&mut training, &far).unwrap();
        assert!(stepped.skipped && !stepped.loss.is_finite());
        assert_eq!(training.state.scaler.scale(), scale / 2.0);
        assert!(held(&training) == before, "neither weights nor the memory have changed");
        let stepped = step(&mut training, &xs).unwrap();
        assert!(!stepped.skipped && stepped.loss.is_finite(), "{}", stepped.loss);
        assert_eq!((training.state.updates, training.state.skipped()), (2, training.state.step - 2));
        // Statistics are estimated anew, whatever the overflow has left in them.
        let sum = tch::no_grad(|| {
            let _ = encoder.forward(&xs, Pass::Estimate { before: 0 }).unwrap();
            encoder.forward(&xs, Pass::Evaluate).unwrap().sum(Kind::Double)
        });
        assert!(f64::try_from(sum).unwrap().is_finite());
        // If the overflow does not end, the run does.
        let error = (0..5).find_map(|_| step(&mut training, &far).err()).unwrap();
        let text = error.to_string();
        assert!(text.contains("activations overflow f16") && text.contains("--precision bf16"), "{text}");
    }
}
