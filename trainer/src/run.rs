//! The commands, from options to the run folder.

use crate::bad_input::bad_input;
use crate::batch::BatchShape;
use crate::cli::TrainArgs;
use crate::encoder::Encoder;
use crate::evaluate::Evaluation;
use crate::loss::Loss;
use crate::random::{Purpose, stream};
use crate::run_folder::{self, MetricsCsv, Summary};
use crate::train::Plan;
use crate::{plot, source, waiting, weights};
use anyhow::Result;
use rand::Rng;
use std::time::{Duration, Instant};
use tch::{Cuda, Device, nn};

/// Seconds for a run on a CPU that has no other limit.
const CPU_SECONDS: f64 = 240.0;
/// Kept free at the end for the pictures and the weights.
const FINISH: Duration = Duration::from_secs(5);

/// `tercet train`.
pub fn train(args: &TrainArgs) -> Result<()> {
    let start = Instant::now();
    let device = device(&args.device)?;
    if device == Device::Cpu {
        waiting::sleep_instead_of_spinning();
    }
    let size = args.image_size.unwrap_or(if device == Device::Cpu { 32 } else { 224 }) as usize;
    let source = source::open(args, size)?;
    let (train, val) = (&source.train, &source.val);
    let evaluation = Evaluation::new(val, args.val_images as usize, args.normalize, args.seed, device);

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
    eprintln!("before: EER {:.4}  AUC {:.4}  recall@1 {:.4}", before.eer, before.auc, before.recall_at_1);

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
    eprintln!("after:  EER {:.4}  AUC {:.4}  recall@1 {:.4}", after.eer, after.auc, after.recall_at_1);

    let title = |what: &str| format!("{what}: {name}, {}", data_title(&source.description));
    plot::loss_curve(&folder.join("loss.png"), &outcome.losses, &title(args.loss.title()))?;
    plot::roc_curves(&folder.join("roc.png"), &before, &after, &title("Verification of unseen identities"))?;
    weights::save(&vs, &folder.join("encoder.safetensors"))?;
    Summary {
        eer_before: before.eer,
        eer_after: after.eer,
        auc_before: before.auc,
        auc_after: after.auc,
        recall_at_1_before: before.recall_at_1,
        recall_at_1_after: after.recall_at_1,
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
    }
    .write(&folder)?;
    println!(
        "EER {:.4} -> {:.4} in {} steps, {:.0} s",
        before.eer,
        after.eer,
        outcome.losses.len(),
        start.elapsed().as_secs_f64()
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

fn device(name: &str) -> Result<Device> {
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

/// A folder's own name: a title has no room for a path.
fn data_title(description: &str) -> String {
    let name = std::path::Path::new(description).file_name();
    name.map_or(description.into(), |name| name.to_string_lossy().into_owned())
}
