//! The commands, from options to the run folder.

use crate::bad_input::bad_input;
use crate::batch::BatchShape;
use crate::checkpoint::{self, Checkpoint, Origin};
use crate::cli::TrainArgs;
use crate::encoder::Encoder;
use crate::evaluate::Evaluation;
use crate::interrupt::Interrupt;
use crate::lock::Lock;
use crate::loss::{self, Loss};
use crate::model::{Calibration, Settings};
use crate::random::{Purpose, stream};
use crate::report::History;
use crate::run_folder::{self, MetricsCsv, Summary};
use crate::run_report::Run;
use crate::say::say;
use crate::train::{End, Plan, Surroundings, Training};
use crate::workers::Workers;
use crate::{model, options, plot, source, waiting, watch, weights};
use anyhow::Result;
use rand::Rng;
use std::time::{Duration, Instant};
use tch::{Cuda, Device, nn};

/// Seconds for a run on a CPU that has no other limit.
const CPU_SECONDS: f64 = 240.0;
/// Kept free at the end for the weights, the pictures and the report.
const FINISH: Duration = Duration::from_secs(8);

/// How `tercet train` ended.
pub enum Ended {
    /// There is a model.
    Complete,
    /// There is a checkpoint.
    Interrupted,
}

/// `tercet train`. `given` names the options that stand on the command line.
pub fn train(mut args: TrainArgs, given: &[String]) -> Result<Ended> {
    let start = Instant::now();
    let resumed = args.resume.take();
    // Before anything is read that another process could still write.
    let mut lock = match &resumed {
        Some(folder) if checkpoint::path(folder).exists() => Some(Lock::take(folder, "--resume")?),
        _ => None, // no file is made where no run is
    };
    let checkpoint = resumed.as_deref().map(Checkpoint::read).transpose()?;
    if let Some(checkpoint) = &checkpoint {
        if given.iter().any(|option| option == "device") {
            args.device = device_name(device(&args.device)?); // as it is stored
        }
        args = options::resumed(&checkpoint.origin.options, &args, given)?;
    }
    let device = device(&args.device)?;
    if device == Device::Cpu {
        waiting::sleep_instead_of_spinning();
    }
    let size = args.image_size.unwrap_or(if device == Device::Cpu { 32 } else { 224 }) as usize;
    (args.device, args.image_size) = (device_name(device), Some(size as u64));
    args.margin = args.margin.or(Some(args.loss.margin()));
    let mut plan = plan(&args)?;
    let workers = Workers::new(args.workers)?;
    let mut source = workers.run(|| source::open(&args, size))?;
    // From here on there is something to save.
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
        // A run whose training is over and that has no summary ended while it measured: it can do that again.
        if let Some(why) = plan.over(&checkpoint.state, train).filter(|_| run_folder::is_complete(folder)) {
            return refused(why);
        }
    }
    let mut evaluation = Evaluation::new(val, args.val_images as usize, args.normalize, args.seed, device);
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
    eprintln!(
        "{name} on {}: {size} px, trained on {} images of {} identities of {}; \
         evaluated on {} images of {} others",
        args.device,
        train.images.len(),
        train.members.len(),
        source.description,
        evaluation.len(),
        val.members.len(),
    );

    let held = train.images.held() + val.images.held();
    let decoded_again = train.images.len() + val.images.len() - held;
    if decoded_again > 0 {
        eprintln!(
            "--image-cache {}: {held} images in memory, {decoded_again} decoded for each batch",
            args.image_cache
        );
    }
    // Of a resumed run too: its initial weights come from the seed, so these are the same numbers again.
    let clock = Instant::now();
    let before = evaluation.run(&encoder, &workers, train, val)?;
    let evaluating = clock.elapsed();
    eprintln!("before: {}", before.scores);
    // The last evaluation gets as long as the first one took.
    plan.until = time_limit(&args, device).map(|limit| {
        let reserve = FINISH + evaluating;
        (start + limit).checked_sub(reserve).unwrap_or(start)
    });

    let (mut training, mut csv) = match checkpoint {
        Some(checkpoint) => {
            let training = Training::resume(&plan, &encoder, args.embedding_dim, &vs, checkpoint)?;
            let csv = MetricsCsv::resume(&folder, training.state().step)?;
            run_folder::no_longer_complete(&folder)?;
            eprintln!("resumed at step {}", training.state().step);
            (training, csv)
        }
        None => {
            plot::sheet(&folder.join("samples.png"), &val.images, &val.members[..val.members.len().min(10)], 10)?;
            (Training::new(&plan, &encoder, args.embedding_dim, &vs)?, MetricsCsv::create(&folder)?)
        }
    };
    let earlier = training.state().run_seconds;
    let go_on = format!("tercet train --resume {}", folder.display());
    let ended_by = training.run(
        &mut csv,
        &Surroundings {
            folder: &folder,
            origin: &origin,
            start,
            train,
            workers: &workers,
            evaluate: &|step| Ok(evaluation.run(&encoder, &workers, train, val)?.scores.measured(step)),
            interrupt: &interrupt,
        },
    );
    let ended_by = ended_by.inspect_err(|_| {
        if checkpoint::path(&folder).exists() {
            eprintln!("the last checkpoint is kept; to go on from it: {go_on}");
        }
    })?;
    let state = training.state();
    if ended_by == End::Interrupted {
        eprintln!("interrupted: step {} is saved; to go on: {go_on}", state.step);
        say(&folder.display().to_string())?;
        return Ok(Ended::Interrupted);
    }
    training.restore_best()?;
    let after = evaluation.run(&encoder, &workers, train, val)?;
    eprintln!("after:  {}", after.scores);
    let slow = state.waited > 0.1 * state.seconds;
    let advice = if slow { "; more --workers or a greater --image-cache may help" } else { "" };
    eprintln!("the encoder waited {:.1} s for images, of {:.1} s of training{advice}", state.waited, state.seconds);
    let level = plan.loss.of_equal_embeddings();

    let calibration = Calibration::new(&after.scores, val.members.len(), evaluation.len());
    let settings =
        Settings::new(args.encoder, args.embedding_dim, size, args.normalize, calibration, &source.description);
    model::save(&folder, &vs, &settings)?;
    let (was, is) = (&before.scores, &after.scores);
    let mut summary = Summary {
        eer_before: was.eer,
        eer_after: is.eer,
        auc_before: was.auc,
        auc_after: is.auc,
        recall_at_1_before: was.recall_at_1,
        recall_at_1_after: is.recall_at_1,
        eer_skilled_before: was.skilled.as_ref().map(|c| c.eer),
        eer_skilled_after: is.skilled.as_ref().map(|c| c.eer),
        map_at_r_before: was.ranking.map_at_r,
        map_at_r_after: is.ranking.map_at_r,
        threshold: is.operating.threshold,
        steps: state.step,
        seconds: earlier + start.elapsed().as_secs_f64(),
        images_per_second: state.images as f64 / state.seconds.max(1e-9),
        seconds_waited: state.waited,
        device: args.device,
        seed: args.seed,
        data: source.description,
        encoder: name,
        loss: args.loss.name().into(),
        image_size: size,
        training_identities: train.members.len(),
        validation_identities: val.members.len(),
        validation_images: evaluation.len(),
        skipped_images: source.skipped,
        collapsed_at: watch::collapsed_at(&state.losses, &state.active, level),
        ended_by: ended_by.name().into(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let mut measured = vec![was.measured(0)];
    measured.extend(&state.measured);
    // Once more only if the weights are not those of the last point.
    if state.measured.last().is_none_or(|last| *last != is.measured(last.step)) {
        measured.push(is.measured(summary.steps));
    }
    Run {
        folder: &folder,
        summary: &summary,
        loss: args.loss.title(),
        equal: level,
        history: &History { losses: state.losses.clone(), active: state.active.clone(), measured },
        before: was,
        after: &after,
        evaluation: &evaluation,
        val,
    }
    .write()?;
    summary.seconds = earlier + start.elapsed().as_secs_f64();
    summary.write(&folder)?;
    say(&format!(
        "EER {:.4} -> {:.4} in {} steps, {:.0} s",
        summary.eer_before, summary.eer_after, summary.steps, summary.seconds
    ))?;
    say(&folder.display().to_string())?;
    Ok(Ended::Complete)
}

/// What the options ask for, but for the time limit.
fn plan(args: &TrainArgs) -> Result<Plan> {
    let plan = Plan {
        shape: BatchShape {
            identities: args.classes_per_batch as usize,
            images: args.samples_per_class as usize,
            triplets: args.batch_triplets as usize,
        },
        // Steps alone are a wish for exactly that many.
        epochs: args.epochs.unwrap_or(if args.steps.is_some() { u64::MAX } else { 30 }),
        steps: args.steps,
        until: None,
        learning_rate: args.learning_rate,
        schedule: args.schedule,
        warmup: args.warmup_steps,
        weight_decay: args.weight_decay,
        precision: args.precision,
        forwards: args.forwards,
        loss: Loss::new(
            args.loss,
            loss::Options {
                margin: args.margin.unwrap_or(args.loss.margin()),
                normalize: args.normalize,
                negative: args.negative,
                seed: args.seed,
            },
        ),
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

/// `None` is no limit.
fn time_limit(args: &TrainArgs, device: Device) -> Option<Duration> {
    let unlimited = device != Device::Cpu || args.epochs.is_some() || args.steps.is_some();
    let default = if unlimited { 0.0 } else { CPU_SECONDS };
    let limit = args.time_limit.unwrap_or(default);
    (limit > 0.0).then(|| Duration::from_secs_f64(limit))
}

/// The device that `--device` names.
pub fn device(name: &str) -> Result<Device> {
    let there = Cuda::device_count().max(0) as usize;
    let number = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => return Ok(Device::cuda_if_available()),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
    };
    match number {
        Some(number) if number < there => Ok(Device::Cuda(number)),
        Some(_) => Err(bad_input(format!("--device {name}: libtorch sees {there} GPUs"))),
        None => Err(bad_input(format!("--device {name}: expected auto, cpu, cuda or cuda:N"))),
    }
}

fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(number) => format!("cuda:{number}"),
        other => format!("{other:?}").to_lowercase(),
    }
}
