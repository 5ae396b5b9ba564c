//! The commands, from options to the run folder.

use crate::bad_input::bad_input;
use crate::batch::BatchShape;
use crate::cli::TrainArgs;
use crate::encoder::Encoder;
use crate::evaluate::Evaluation;
use crate::loss::Loss;
use crate::model::{Calibration, Settings};
use crate::random::{Purpose, stream};
use crate::report::History;
use crate::run_folder::{self, MetricsCsv, Summary};
use crate::run_report::Run;
use crate::train::Plan;
use crate::{model, plot, source, waiting, weights};
use anyhow::Result;
use rand::Rng;
use std::time::{Duration, Instant};
use tch::{Cuda, Device, nn};

/// Seconds for a run on a CPU that has no other limit.
const CPU_SECONDS: f64 = 240.0;
/// Kept free at the end for the weights, the pictures and the report.
const FINISH: Duration = Duration::from_secs(8);

/// `tercet train`.
pub fn train(args: &TrainArgs) -> Result<()> {
    let start = Instant::now();
    let device = device(&args.device)?;
    if device == Device::Cpu {
        waiting::sleep_instead_of_spinning();
    }
    let size = args.image_size.unwrap_or(if device == Device::Cpu { 32 } else { 224 }) as usize;
    let mut source = source::open(args, size)?;
    let forged = source.forged.take();
    let (train, val) = (&source.train, &source.val);
    let mut evaluation = Evaluation::new(val, args.val_images as usize, args.normalize, args.seed, device);
    if let Some(forged) = forged {
        evaluation = evaluation.with_forgeries(forged);
    }

    tch::manual_seed(stream(args.seed, Purpose::Weights, 0, 0).random());
    let vs = nn::VarStore::new(device);
    let encoder = Encoder::new(&vs.root(), args.encoder, args.embedding_dim);
    if let Some(file) = &args.weights {
        weights::load(&vs, file)?;
    }
    let name = format!("{:?}", args.encoder).to_lowercase();
    let folder = run_folder::create(args.out.as_deref())?;
    let mut csv = MetricsCsv::create(&folder)?;
    eprintln!(
        "{name} on {}: {size} px, trained on {} images of {} identities of {}; \
         evaluated on {} images of {} others",
        device_name(device),
        train.images.len(),
        train.members.len(),
        source.description,
        evaluation.len(),
        val.members.len(),
    );
    plot::sheet(&folder.join("samples.png"), &val.images, &val.members[..val.members.len().min(10)], 10)?;

    let clock = Instant::now();
    let before = evaluation.run(&encoder, train, val)?;
    let evaluating = clock.elapsed();
    eprintln!("before: {}", before.scores);

    let plan = Plan {
        shape: BatchShape {
            identities: args.classes_per_batch as usize,
            images: args.samples_per_class as usize,
            triplets: args.batch_triplets as usize,
        },
        // Steps alone are a wish for exactly that many.
        epochs: args.epochs.unwrap_or(if args.steps.is_some() { u64::MAX } else { 30 }),
        steps: args.steps,
        // The last evaluation gets as long as the first one took.
        until: time_limit(args, device).map(|limit| {
            let reserve = FINISH + evaluating;
            (start + limit).checked_sub(reserve).unwrap_or(start)
        }),
        learning_rate: args.learning_rate,
        loss: Loss::new(args.loss, args.margin, args.normalize),
        augment: args.augment as f32,
        seed: args.seed,
    };
    let outcome = plan.run(&encoder, &vs, train, &mut csv)?;
    let after = evaluation.run(&encoder, train, val)?;
    eprintln!("after:  {}", after.scores);

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
        steps: outcome.losses.len() as u64,
        seconds: start.elapsed().as_secs_f64(),
        images_per_second: outcome.images as f64 / outcome.seconds.max(1e-9),
        device: device_name(device),
        seed: args.seed,
        data: source.description,
        encoder: name,
        loss: args.loss.name().into(),
        image_size: size,
        training_identities: train.members.len(),
        validation_identities: val.members.len(),
        validation_images: evaluation.len(),
        ended_by: outcome.ended_by.into(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let measured = vec![was.measured(0), is.measured(summary.steps)];
    Run {
        folder: &folder,
        summary: &summary,
        loss: args.loss.title(),
        history: &History { losses: outcome.losses, active: Vec::new(), measured },
        before: was,
        after: &after,
        evaluation: &evaluation,
        val,
    }
    .write()?;
    summary.seconds = start.elapsed().as_secs_f64();
    summary.write(&folder)?;
    println!(
        "EER {:.4} -> {:.4} in {} steps, {:.0} s",
        summary.eer_before, summary.eer_after, summary.steps, summary.seconds
    );
    println!("{}", folder.display());
    Ok(())
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
