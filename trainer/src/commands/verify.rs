//! `tercet verify`: whether two images are of the same identity, or how often that is told rightly on a file of pairs.

use crate::commands::cli::VerifyArgs;
use crate::data::images::OnBadImage;
use crate::data::pairs;
use crate::evaluation::folds::cross_validated;
use crate::evaluation::metrics::{Comparison, at_threshold, text_of};
use crate::evaluation::tally::Tally;
use crate::model::saved::Model;
use crate::process::say::say;
use anyhow::Result;
use serde::Serialize;
use std::path::Path;

/// `tercet verify` of two images or of a file of pairs.
pub fn verify(args: &VerifyArgs) -> Result<()> {
    if let Some(data) = &args.data {
        return verify_pairs(args, data);
    }
    let model = Model::load(&args.model.model, args.model.device()?)?;
    let threshold = args.threshold.unwrap_or(model.threshold());
    let vectors = model.embed(&args.images, OnBadImage::Stop)?.vectors;
    let distance = vectors.distance(0, 1);
    let decision = Decision { distance, threshold, same: distance <= threshold };
    if args.json {
        return say(&serde_json::to_string(&decision)?);
    }
    let chosen = &model.settings.calibration;
    let origin = match args.threshold {
        Some(_) => "given".into(),
        None => {
            let (eer, identities) = (100.0 * chosen.eer, chosen.identities);
            format!("equal error rate {eer:.1} % on {identities} validation identities")
        }
    };
    say(&format!(
        "distance   {} ({})\nthreshold  {} ({origin})\ndecision   {}",
        text_of(distance),
        model.settings.distance,
        text_of(threshold),
        if decision.same { "same" } else { "different" }
    ))
}

#[derive(Serialize)]
struct Decision {
    distance: f32,
    threshold: f32,
    same: bool,
}

/// The scores of a file of pairs.
#[derive(Serialize)]
struct Outcome {
    pairs: usize,
    folds: usize,
    images: usize,
    /// The accuracy at the threshold that is most accurate on the other folds: mean over the folds.
    accuracy: Option<f64>,
    /// The standard error of `accuracy`.
    accuracy_error: Option<f64>,
    auc: f64,
    eer: f64,
    tar_at_far_1e2: f64,
    tar_at_far_1e3: f64,
    /// The model's threshold, or the given one.
    threshold: f32,
    accuracy_at_threshold: f64,
    far_at_threshold: f64,
    frr_at_threshold: f64,
}

fn verify_pairs(args: &VerifyArgs, data: &Path) -> Result<()> {
    let device = args.model.device()?;
    let pairs = pairs::read(&args.pairs, data)?;
    let model = Model::load(&args.model.model, device)?;
    let vectors = model.embed(&pairs.files, OnBadImage::Stop)?.vectors;
    let measured = |line: &pairs::Line| (vectors.distance(line.first, line.second), line.genuine);
    let folds: Vec<Vec<_>> = pairs.folds.iter().map(|fold| fold.iter().map(measured).collect()).collect();
    let threshold = args.threshold.unwrap_or(model.threshold());
    let all = Comparison::new(Tally::of_pairs(folds.iter().flatten().copied()));
    let of_folds = cross_validated(&folds);
    let there = at_threshold(&all.tally, threshold);
    let (genuine, impostor) = all.tally.totals();
    let outcome = Outcome {
        pairs: folds.iter().map(Vec::len).sum(),
        folds: folds.len(),
        images: pairs.files.len(),
        accuracy: of_folds.map(|(mean, _)| mean),
        accuracy_error: of_folds.map(|(_, error)| error),
        auc: all.auc,
        eer: all.eer,
        tar_at_far_1e2: all.tar_at_far(1e-2),
        tar_at_far_1e3: all.tar_at_far(1e-3),
        threshold,
        accuracy_at_threshold: 1.0
            - (genuine as f64 * there.frr + impostor as f64 * there.far) / (genuine + impostor) as f64,
        far_at_threshold: there.far,
        frr_at_threshold: there.frr,
    };
    if args.json {
        return say(&serde_json::to_string_pretty(&outcome)?);
    }
    let mut lines = vec![format!("{} pairs of {} images in {} folds", outcome.pairs, outcome.images, outcome.folds)];
    if let Some((mean, error)) = of_folds {
        lines.push(format!("accuracy         {mean:.4} ± {error:.4}  (threshold chosen on the other folds)"));
    }
    lines.push(format!(
        "accuracy         {:.4}  (at threshold {}: FAR {:.4}, FRR {:.4})",
        outcome.accuracy_at_threshold,
        text_of(threshold),
        there.far,
        there.frr
    ));
    lines.push(format!("AUC              {:.4}", outcome.auc));
    lines.push(format!("EER              {:.4}", outcome.eer));
    lines.push(format!("TAR at FAR 1e-2  {:.4}", outcome.tar_at_far_1e2));
    lines.push(format!("TAR at FAR 1e-3  {:.4}", outcome.tar_at_far_1e3));
    say(&lines.join("\n"))
}
