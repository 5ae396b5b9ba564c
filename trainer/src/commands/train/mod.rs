//! `tercet train`, from options to the last step.

mod finish;
mod report;
mod resume;
mod source;
mod summary;

use crate::commands::cli::TrainArgs;
use crate::commands::train::finish::{FINISH, Finished, finish};
use crate::data::workers::Workers;
use crate::evaluation::evaluate::Evaluation;
use crate::model::device::{self, Job};
use crate::model::encoder::Encoder;
use crate::model::weights;
use crate::process::bad_input::bad_input;
use crate::process::interrupt::{Interrupt, Interrupted};
use crate::process::random::{Purpose, stream};
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
use std::path::Path;
use std::time::{Duration, Instant};
use tch::{Device, nn};

/// Seconds for a run on a CPU if no other limit is given.
const CPU_SECONDS: f64 = 240.0;

/// `tercet train`. `given` names the options that are on the command line.
///
/// # Errors
/// Among others [`Interrupted`], if somebody has asked to stop, and the run can go on.
pub fn train(mut args: TrainArgs, given: &[String]) -> Result<()> {
    let start = Instant::now();
    let resumed = args.resume.take();
    // Take the lock before anything is read that another process could still write.
    let mut lock = match &resumed {
        Some(folder) if run_folder::checkpoint(folder).exists() => Some(Lock::take(folder, "--resume")?),
        Some(_) => None, // no file is made in a folder without a run
        None => {
            run_folder::check("--out", args.out.as_deref().unwrap_or(Path::new(run_folder::RUNS)))?;
            None
        }
    };
    let mut checkpoint = resumed.as_deref().map(Checkpoint::read).transpose()?;
    if let Some(checkpoint) = &checkpoint {
        if given.iter().any(|option| option == "device") {
            args.device = device::name(device::device(&args.device, Job::Train)?); // the form in which it is stored
        }
        args = resume::resumed(&checkpoint.origin.options, &args, given)?;
    }
    let device = device::device(&args.device, Job::Train)?;
    let size = args.image_size.unwrap_or(if device == Device::Cpu { 32 } else { 224 }) as usize;
    (args.device, args.image_size) = (device::name(device), Some(size as u64));
    args.loss = args.loss.resolved()?;
    let mut plan = plan(&args)?;
    let workers = Workers::new(args.workers)?;
    let mut source = workers.run(|| source::open(&args, size))?;
    // From here on there may be something to save.
    let interrupt = Interrupt::watch()?;
    let forged = source.forged.take();
    let (train, val) = (&source.train, &source.val);
    let mut sets = vec![train, val];
    sets.extend(forged.as_ref().filter(|_| args.data.is_some())); // generated ones follow from the seed
    let origin = Origin {
        options: serde_json::to_value(&args)?,
        data: checkpoint::fingerprint(&sets),
        weights: args.weights.as_deref().map(weights::fingerprint).transpose()?,
    };
    if let (Some(checkpoint), Some(folder)) = (&checkpoint, &resumed) {
        let refused = |why: String| Err(bad_input(format!("--resume {}: {why}", folder.display())));
        if checkpoint.origin.data != origin.data {
            return refused(format!("the images of {} are others than when the run began", source.description));
        }
        if checkpoint.origin.weights != origin.weights {
            return refused("--weights is another file than when the run began".into());
        }
        // A finished training without a summary ended in its last evaluation, which can be done again.
        if let Some(why) = plan.over(&checkpoint.state, train).filter(|_| run_folder::is_complete(folder)) {
            return refused(why);
        }
    }
    room::check(&plan.loss, plan.shape, &train.members, plan.memory, device)?;
    let mut evaluation = Evaluation::new(
        val,
        args.val_images as usize,
        (args.loss.normalize(), args.loss.distance()),
        args.seed,
        device,
    );
    if let Some(forged) = forged {
        evaluation = evaluation.with_forgeries(forged);
    }

    tch::manual_seed(stream(args.seed, Purpose::Weights, 0, 0).random());
    let vs = nn::VarStore::new(device);
    let encoder = Encoder::new(&vs.root(), args.encoder, args.embedding_dim).train_in(args.precision);
    if let Some(file) = &args.weights {
        weights::load(&vs, file)?;
    }
    let name = format!("{:?}", args.encoder).to_lowercase();
    let folder = match &resumed {
        Some(folder) => folder.clone(),
        None => {
            let (folder, taken) = run_folder::claim(args.out.as_deref())?;
            lock = Some(taken);
            folder
        }
    };
    let _held_to_the_end = lock;
    note(&format!(
        "{name} on {}: {size} px, trained on {} images of {} identities of {} with {}; \
         evaluated on {} images of {} others",
        args.device,
        train.images.len(),
        train.members.len(),
        source.description,
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
    let evaluate = || evaluation.run(&encoder, &workers, [train, val], &interrupt);
    // Evaluated once per run: a run that goes on has these embeddings in its checkpoint.
    let (before, evaluating) = match &mut checkpoint {
        Some(checkpoint) => {
            let [images, forgeries] = BEFORE.map(|name| checkpoint.take(name));
            (evaluation.restored(&images?, &forgeries?)?, checkpoint.state.evaluating)
        }
        None => {
            let clock = Instant::now();
            let before = evaluate().inspect_err(|error| {
                if error.is::<Interrupted>() {
                    note("interrupted before the first step: nothing is saved, and the folder can be used again");
                }
            })?;
            (before, clock.elapsed().as_secs_f64())
        }
    };
    note(&format!("before: {}", before.scores));
    plan.until = until(start, &args, device, evaluating);

    let around = Surroundings {
        folder: &folder,
        origin: &origin,
        start,
        before: (&before, evaluating),
        train,
        workers: &workers,
        evaluate: &|step| Ok(evaluate()?.scores.measured(step)),
        interrupt: &interrupt,
    };
    let mut training = match checkpoint {
        Some(checkpoint) => {
            let training = Training::resume(&plan, &encoder, args.embedding_dim, &vs, checkpoint)?;
            note(&format!("resumed at step {}", training.state().step));
            training
        }
        None => {
            let mut training = Training::new(&plan, &encoder, args.embedding_dim, &vs)?;
            // The folder's first file: from now on the run can go on wherever it is stopped.
            if plan.checkpoint_every > 0 {
                training.save_once(None, &around)?;
            }
            training
        }
    };
    let mut csv = MetricsCsv::resume(&folder, training.state().step)?;
    run_folder::no_longer_complete(&folder)?;
    let samples = folder.join("samples.png");
    if !samples.exists() {
        plot::sheet(&samples, &val.images, &val.members[..val.members.len().min(10)], 10)?;
    }
    let earlier = training.state().run_seconds;
    let go_on = format!("tercet train --resume {}", shell::word(&folder));
    let stopped = |step: u64, what: &str| -> Result<()> {
        note(&format!("interrupted{what}: step {step} is saved; to go on: {go_on}"));
        say_path(&folder)?;
        Err(interrupt.error().into())
    };
    let ended_by = training.run(&mut csv, &around).inspect_err(|_| {
        if run_folder::checkpoint(&folder).exists() {
            note(&format!("the last checkpoint is kept; to go on from it: {go_on}"));
        }
    })?;
    if ended_by == End::Interrupted {
        return stopped(training.state().step, "");
    }

    let best = training.swap_best()?;
    let finished = finish(&Finished {
        start,
        earlier,
        folder: &folder,
        args: &args,
        plan: &plan,
        vs: &vs,
        source: &source,
        evaluation: &evaluation,
        before: &before,
        state: training.state(),
        best,
        ended_by,
        evaluate: &evaluate,
        interrupt: &interrupt,
    });
    match finished {
        Err(error) if error.is::<Interrupted>() => {
            training.swap_best()?;
            training.save_once(Some(&csv), &around)?;
            stopped(training.state().step, " after the last step")
        }
        finished => finished.inspect_err(|_| {
            if run_folder::checkpoint(&folder).exists() {
                note(&format!("training is over and saved; to measure it again: {go_on}"));
            }
        }),
    }
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
