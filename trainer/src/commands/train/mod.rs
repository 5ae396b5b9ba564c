//! `tercet train`, from options to the last step.

mod finish;
mod report;
mod resume;
mod source;
mod summary;

use crate::commands::cli::TrainArgs;
use crate::commands::train::finish::{FINISH, Finished, finish};
use crate::commands::train::source::Source;
use crate::data::workers::Workers;
use crate::evaluation::evaluate::{Evaluated, Evaluation};
use crate::model::device::{self, Job};
use crate::model::encoder::Encoder;
use crate::model::weights;
use crate::process::bad_input::bad_input;
use crate::process::interrupt::{Interrupt, Interrupted};
use crate::process::random::{Purpose, stream};
use crate::process::ranks::Ranks;
use crate::process::say::{note, say_path};
use crate::process::shell;
use crate::report::plot;
use crate::run_folder;
use crate::run_folder::lock::Lock;
use crate::run_folder::metrics_csv::MetricsCsv;
use crate::training::batch::BatchShape;
use crate::training::checkpoint::{self, Checkpoint, Origin};
use crate::training::loss::Loss;
use crate::training::plan::{End, Plan};
use crate::training::room;
use crate::training::steps::{BEFORE, Surroundings, Training};
use anyhow::Result;
use rand::Rng;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tch::{Device, nn};

/// Seconds for a run on a CPU if no other limit is given.
const CPU_SECONDS: f64 = 240.0;

/// A run whose options are settled and whose images are read.
struct Run {
    /// When this process began.
    start: Instant,
    args: TrainArgs,
    plan: Plan,
    device: Device,
    workers: Workers,
    source: Source,
    evaluation: Evaluation,
    origin: Origin,
    interrupt: Interrupt,
    /// The run's processes.
    ranks: Ranks,
    /// The folder of a run that goes on, and in the first process its lock.
    resumed: Option<(PathBuf, Option<Lock>)>,
}

/// The encoder and its variables.
struct Network {
    vs: nn::VarStore,
    encoder: Encoder,
}

/// The evaluation before training.
struct Before {
    evaluated: Evaluated,
    /// The seconds that it took.
    seconds: f64,
}

/// `tercet train`. `given` names the options that are on the command line.
///
/// # Errors
/// Among others [`Interrupted`], if somebody has asked to stop, and the run can go on.
pub fn train(args: TrainArgs, given: &[String]) -> Result<()> {
    let (mut run, mut checkpoint) = open(args, given)?;
    run.ranks.first(|| check(&run, checkpoint.as_ref()))?;
    let network = network(&run)?;
    let (folder, _held_to_the_end) = match run.resumed.take() {
        Some(resumed) => resumed,
        None => claim(&run)?,
    };
    let before = measure(&run, &network, checkpoint.as_mut())?;
    run.plan.until = until(run.start, &run.args, run.device, before.seconds);

    let around = Surroundings {
        folder: &folder,
        origin: &run.origin,
        start: run.start,
        before: (&before.evaluated, before.seconds),
        train: &run.source.train,
        workers: &run.workers,
        evaluate: &|step| {
            let measured = run.evaluate(&network)?.scores.measured(step);
            run.ranks.first(|| Ok(measured)) // what follows from it must not differ by a rounding
        },
        interrupt: &run.interrupt,
        ranks: &run.ranks,
    };
    let mut training = begin(&run, &network, checkpoint, &around)?;
    let earlier = training.state().run_seconds;
    let (csv, ended_by) = steps(&run, &mut training, &around)?;
    if ended_by == End::Interrupted {
        return stopped(&training, &around, "");
    }
    end(&run, &network, training, csv.as_ref(), (ended_by, earlier), &around)
}

impl Run {
    fn evaluate(&self, network: &Network) -> Result<Evaluated> {
        let Source { train, val, .. } = &self.source;
        self.evaluation.run(&network.encoder, &self.workers, [train, val], &self.interrupt, &self.ranks)
    }
}

/// Settles the options, those of the run to resume among them, and reads the images.
fn open(mut args: TrainArgs, given: &[String]) -> Result<(Run, Option<Checkpoint>)> {
    let start = Instant::now();
    let ranks = Ranks::from_env()?;
    let resumed = ranks.first_path(|| resume::folder(&mut args, &ranks))?;
    // Take the lock before anything is read that another process could still write.
    let mut lock = None;
    if let Some(folder) = &resumed {
        args.out = None;
        ranks.first(|| {
            Checkpoint::must_exist(folder)?; // no file is made in a folder without a run
            lock = Some(Lock::take(folder, "--resume")?);
            Ok(())
        })?;
    }
    let read = |folder: &PathBuf| Checkpoint::of(folder, &ranks.first_bytes(|| Checkpoint::bytes(folder))?);
    let checkpoint = resumed.as_ref().map(read).transpose()?;
    if let Some(checkpoint) = &checkpoint {
        let stored = &checkpoint.origin.options;
        if given.iter().any(|option| option == "device") {
            let device = device::of_rank(&args.device, Job::Train, &ranks)?;
            args.device = resume::as_stored(device, stored["device"].as_str(), !ranks.is_alone());
        }
        args = resume::resumed(stored, &args, given)?;
        if !ranks.is_alone() && args.device.starts_with("cuda:") {
            args.device = "cuda".into(); // each process has its own
        }
    }
    let device = device::of_rank(&args.device, Job::Train, &ranks)?;
    let size = args.image_size.unwrap_or(if device == Device::Cpu { 32 } else { 224 }) as usize;
    (args.device, args.image_size) = (device::name(device), Some(size as u64));
    args.loss = args.loss.resolved()?;
    let plan = plan(&args)?;
    plan.check_share(&ranks)?;
    let workers = Workers::new(args.workers.or_else(|| (!ranks.is_alone()).then(|| ranks.threads() as u64)))?;
    let cache = args.image_cache / ranks.on_this_host() as u64;
    let mut source = workers.run(|| source::open(&args, size, cache))?;
    // From here on there may be something to save.
    let interrupt = Interrupt::watch()?;
    let forged = source.forged.take();
    let mut sets = vec![&source.train, &source.val];
    sets.extend(forged.as_ref().filter(|_| args.data.is_some())); // generated ones follow from the seed
    let origin = Origin {
        options: serde_json::to_value(&args)?,
        data: checkpoint::fingerprint(&sets),
        weights: args.weights.as_deref().map(weights::fingerprint).transpose()?,
    };
    ranks.check_same("the images", origin.data)?;
    let comparing = (args.loss.normalize(), args.loss.distance());
    let mut evaluation = Evaluation::new(&source.val, args.val_images as usize, comparing, args.seed, device);
    if let Some(forged) = forged {
        evaluation = evaluation.with_forgeries(forged);
    }
    let resumed = resumed.map(|folder| (folder, lock));
    let run = Run { start, args, plan, device, workers, source, evaluation, origin, interrupt, ranks, resumed };
    Ok((run, checkpoint))
}

/// The folder of a new run, and in the first process its lock.
fn claim(run: &Run) -> Result<(PathBuf, Option<Lock>)> {
    let mut lock = None;
    let folder = run.ranks.first_path(|| {
        let (folder, held) = run_folder::claim(run.args.out.as_deref())?;
        lock = Some(held);
        Ok(Some(folder))
    })?;
    Ok((folder.expect("one is claimed"), lock))
}

/// Refuses a run that cannot go on as it began, one that has nothing left to do, and batches that there is no room for.
fn check(run: &Run, checkpoint: Option<&Checkpoint>) -> Result<()> {
    let Run { plan, source, origin, .. } = run;
    if let (Some(checkpoint), Some((folder, _))) = (checkpoint, &run.resumed) {
        let refused = |why: String| Err(bad_input(format!("--resume {}: {why}", folder.display())));
        if checkpoint.origin.data != origin.data {
            return refused(format!("the images of {} are others than when the run began", source.description));
        }
        if checkpoint.origin.weights != origin.weights {
            return refused("--weights is another file than when the run began".into());
        }
        // A finished training without a summary ended in its last evaluation, which can be done again.
        let complete = run_folder::is_complete(folder);
        if let Some(why) = plan.over(&checkpoint.state, &source.train).filter(|_| complete) {
            return refused(why);
        }
    }
    room::check(&plan.loss, plan.shape, &source.train.members, plan.memory, run.device)
}

/// The encoder with its initial weights.
fn network(run: &Run) -> Result<Network> {
    let Run { args, device, .. } = run;
    tch::manual_seed(stream(args.seed, Purpose::Weights, 0, 0).random());
    let mut vs = nn::VarStore::new(*device);
    let mut encoder = Encoder::new(&vs.root(), args.encoder, args.embedding_dim).train_in(args.precision);
    vs.set_kind(args.precision.of_weights()); // as they are drawn, in f32
    // One process too, so that its numbers are those of several.
    if args.sync_batch_norm {
        encoder.normalise_over(run.ranks.group());
    }
    if let Some(file) = &args.weights {
        weights::load(&vs, file)?;
    }
    if !run.ranks.is_alone() {
        run.ranks.group().broadcast_all(&vs)?;
    }
    Ok(Network { vs, encoder })
}

/// Says what is trained and measured, and evaluates the untrained encoder. That is done once per run: a run that goes
/// on has these embeddings in its checkpoint.
fn measure(run: &Run, network: &Network, checkpoint: Option<&mut Checkpoint>) -> Result<Before> {
    let Run { args, source: Source { train, val, description, .. }, evaluation, .. } = run;
    note(&format!(
        "{} on {}{}: {} px, trained on {} images of {} identities of {description} with {}; \
         evaluated on {} images of {} others",
        format!("{:?}", args.encoder).to_lowercase(),
        if run.device.is_cuda() && !run.ranks.is_alone() { "cuda" } else { &args.device },
        if run.ranks.is_alone() { String::new() } else { format!(", {} processes", run.ranks.size()) },
        train.images.size(),
        train.images.len(),
        train.members.len(),
        args.loss.text(),
        evaluation.len(),
        val.members.len(),
    ));
    let held = train.images.held() + val.images.held();
    let decoded_again = train.images.len() + val.images.len() - held;
    if decoded_again > 0 {
        note(&format!(
            "--image-cache {}: {held} images in memory, {decoded_again} decoded for each batch",
            args.image_cache
        ));
    }
    let before = match checkpoint {
        Some(checkpoint) => {
            let [images, forgeries] = BEFORE.map(|name| checkpoint.take(name));
            let evaluated = evaluation.restored(&images?, &forgeries?)?;
            Before { evaluated, seconds: checkpoint.state.evaluating }
        }
        None => {
            let clock = Instant::now();
            let evaluated = run.evaluate(network).inspect_err(|error| {
                if error.is::<Interrupted>() {
                    note("interrupted before the first step: nothing is saved, and the folder can be used again");
                }
            })?;
            Before { evaluated, seconds: clock.elapsed().as_secs_f64() }
        }
    };
    note(&format!("before: {}", before.evaluated.scores));
    Ok(before)
}

/// The training at its first step, or where the checkpoint has it.
fn begin<'a>(
    run: &'a Run,
    network: &'a Network,
    checkpoint: Option<Checkpoint>,
    around: &Surroundings,
) -> Result<Training<'a>> {
    let (plan, dim, Network { vs, encoder }) = (&run.plan, run.args.embedding_dim, network);
    match checkpoint {
        Some(checkpoint) => {
            let training = Training::resume(plan, encoder, dim, vs, checkpoint)?;
            note(&format!("resumed at step {}", training.state().step));
            Ok(training)
        }
        None => {
            let mut training = Training::new(plan, encoder, dim, vs)?;
            // The folder's first file: from now on the run can go on wherever it is stopped.
            if plan.checkpoint_every > 0 {
                training.save_once(None, around)?;
            }
            Ok(training)
        }
    }
}

/// Trains until the end, or until somebody asks to stop.
fn steps(run: &Run, training: &mut Training, around: &Surroundings) -> Result<(Option<MetricsCsv>, End)> {
    let mut csv = None;
    run.ranks.first(|| {
        csv = Some(MetricsCsv::resume(around.folder, training.state().step)?);
        run_folder::no_longer_complete(around.folder)?;
        let samples = around.folder.join("samples.png");
        if !samples.exists() {
            let val = &run.source.val;
            plot::sheet(&samples, &val.images, &val.members[..val.members.len().min(10)], 10)?;
        }
        Ok(())
    })?;
    let ended_by = training.run(&mut csv, around).inspect_err(|_| {
        if run_folder::checkpoint(around.folder).exists() {
            note(&format!("the last checkpoint is kept; to go on from it: {}", go_on(around.folder)));
        }
    })?;
    Ok((csv, ended_by))
}

/// Measures the trained encoder and writes the results, of which `summary.json` is the last. `ended` is why training
/// ended, and the seconds of the processes before this one.
fn end(
    run: &Run,
    network: &Network,
    mut training: Training,
    csv: Option<&MetricsCsv>,
    (ended_by, earlier): (End, f64),
    around: &Surroundings,
) -> Result<()> {
    let best = training.swap_best()?;
    let finished = run.evaluate(network).and_then(|after| {
        run.ranks.first(|| {
            finish(&Finished {
                start: run.start,
                earlier,
                folder: around.folder,
                args: &run.args,
                plan: &run.plan,
                vs: &network.vs,
                source: &run.source,
                evaluation: &run.evaluation,
                before: around.before.0,
                state: training.state(),
                best,
                ended_by,
                after: &after,
                processes: run.ranks.size(),
                interrupt: &run.interrupt,
            })
        })
    });
    match finished {
        Err(error) if error.is::<Interrupted>() => {
            if let Some(asked) = error.downcast_ref::<Interrupted>() {
                run.interrupt.ask(asked.signal()); // it may be the first process alone that was asked
            }
            training.swap_best()?;
            training.save_once(csv, around)?;
            stopped(&training, around, " after the last step")
        }
        finished => finished.inspect_err(|_| {
            if run_folder::checkpoint(around.folder).exists() {
                note(&format!("training is over and saved; to measure it again: {}", go_on(around.folder)));
            }
        }),
    }
}

/// The end of a run that somebody has stopped, and that can go on.
fn stopped(training: &Training, around: &Surroundings, when: &str) -> Result<()> {
    let step = training.state().step;
    note(&format!("interrupted{when}: step {step} is saved; to go on: {}", go_on(around.folder)));
    say_path(around.folder)?;
    Err(around.interrupt.error().into())
}

/// The command that goes on with a run.
fn go_on(folder: &Path) -> String {
    format!("tercet train --resume {}", shell::word(folder))
}

/// The plan that the options ask for, without the time limit.
fn plan(args: &TrainArgs) -> Result<Plan> {
    let plan = Plan {
        shape: BatchShape {
            identities: args.classes_per_batch as usize,
            images: args.samples_per_class as usize,
            triplets: args.loss.batch_triplets.unwrap_or(0) as usize,
        },
        // If only --steps is given, exactly that many are meant.
        epochs: args.epochs.unwrap_or(if args.steps.is_some() { u64::MAX } else { 30 }),
        steps: args.steps,
        until: None,
        learning_rate: args.learning_rate,
        schedule: args.schedule,
        warmup: args.warmup_steps,
        weight_decay: args.weight_decay,
        precision: args.precision,
        forwards: args.forwards,
        loss: Loss::new(&args.loss, args.seed),
        memory: args.memory as usize,
        augment: args.augment as f32,
        seed: args.seed,
        evaluate_every: args.evaluate_every.unwrap_or(u64::from(args.patience.is_some())),
        patience: args.patience,
        checkpoint_every: args.checkpoint_every,
    };
    plan.check()?;
    Ok(plan)
}

/// When training ends by the clock; `None` for never. The last evaluation gets as long as the first one took.
fn until(start: Instant, args: &TrainArgs, device: Device, evaluating: f64) -> Option<Instant> {
    let unlimited = device != Device::Cpu || args.epochs.is_some() || args.steps.is_some();
    let default = if unlimited { 0.0 } else { CPU_SECONDS };
    let limit = args.time_limit.unwrap_or(default);
    // Limits too long for the clock's type are never reached.
    let limit = Duration::try_from_secs_f64(limit).ok().filter(|limit| !limit.is_zero())?;
    let end = start.checked_add(limit)?;
    let reserve = FINISH + Duration::try_from_secs_f64(evaluating).unwrap_or_default();
    Some(end.checked_sub(reserve).unwrap_or(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn a_time_limit_is_any_number_and_beyond_all_clocks_none() {
        let start = Instant::now();
        let left = |words: &str, device, evaluating| {
            let words = format!("tercet train {words}");
            let Command::Train(args) = Cli::parse_from(words.split_whitespace()).command else { panic!("{words}") };
            until(start, &args, device, evaluating).map(|end| end.saturating_duration_since(start).as_secs_f64())
        };
        let reserve = FINISH.as_secs_f64();
        for limit in ["1e10", "9e15"] {
            let expected = limit.parse::<f64>().unwrap() - reserve - 2.0;
            assert!((left(&format!("--time-limit {limit}"), Device::Cpu, 2.0).unwrap() / expected - 1.0).abs() < 1e-9);
        }
        for limit in ["9.3e18", "1e19", "1.9e19", "1e300", "1.7976931348623157e308", "0", "1e-300"] {
            assert_eq!(left(&format!("--time-limit {limit}"), Device::Cpu, 2.0), None, "{limit}");
        }
        assert_eq!(left("--time-limit 1e-9", Device::Cpu, 2.0), Some(0.0), "over when it begins");
        assert_eq!(left("--time-limit 60", Device::Cpu, f64::INFINITY), Some(60.0 - reserve));
        assert_eq!(left("", Device::Cpu, 0.0), Some(CPU_SECONDS - reserve));
        assert_eq!((left("", Device::Cuda(0), 0.0), left("--steps 3", Device::Cpu, 0.0)), (None, None));
    }
}
