//! `tercet eval`: how well a model tells the identities of a folder apart.

use crate::commands::cli::EvalArgs;
use crate::data::collections::Patterns;
use crate::data::dataset::split_folders;
use crate::data::doubles::{Doubles, Place};
use crate::data::folders::{self, Found, Identities};
use crate::data::images::{Budget, OnBadImage, Reader};
use crate::evaluation::evaluate::skilled;
use crate::evaluation::metrics::{Comparison, Verification, at_threshold, text_of};
use crate::evaluation::open_set::{OpenSet, open_set};
use crate::evaluation::ranking::{OneShot, Ranking, one_shot, rank};
use crate::evaluation::tally::Tally;
use crate::model::calibration::Operating;
use crate::model::saved::{Embedded, Model};
use crate::model::vectors::Vectors;
use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::fingerprint::Fingerprint;
use crate::process::say::{say, say_path};
use crate::process::shell;
use crate::report::chart;
use crate::report::page::{Compare, Number, Page, data_title};
use crate::report::plot::thumbnail;
use crate::run_folder;
use anyhow::Result;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What is measured, as `--json` and `eval.json` have it.
#[derive(Serialize)]
struct Outcome {
    data: String,
    model: String,
    images: usize,
    identities: usize,
    genuine_pairs: u64,
    impostor_pairs: u64,
    eer: f64,
    auc: f64,
    tar_at_far_1e2: f64,
    tar_at_far_1e3: f64,
    at_threshold: Operating,
    #[serde(skip_serializing_if = "Option::is_none")]
    skilled: Option<Skilled>,
    ranking: Ranking,
    one_shot: Vec<OneShot>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_set: Option<OpenSet>,
    version: &'static str,
}

/// The scores against skilled forgeries.
#[derive(Serialize)]
struct Skilled {
    forgeries: usize,
    pairs: u64,
    eer: f64,
    auc: f64,
    at_threshold: Operating,
}

/// The images of a folder, embedded.
struct Set {
    /// Each row's file.
    files: Vec<PathBuf>,
    /// Each row's identity: an index into `names`.
    identity: Vec<usize>,
    vectors: Vectors,
    /// The hash of each row's pixels.
    hashes: Vec<Fingerprint>,
}

impl Set {
    /// Reads and embeds the images; the identities' numbers are their places in `names`.
    fn read(model: &Model, found: &Identities, names: &[String], on_bad: OnBadImage) -> Result<Self> {
        let number = |name: &str| names.iter().position(|n| n == name).expect("checked by the caller");
        let all = found.iter().map(|(name, files)| (number(name), files));
        let (owners, files): (Vec<usize>, Vec<PathBuf>) =
            all.flat_map(|(owner, files)| files.iter().map(move |file| (owner, file.clone()))).unzip();
        let Embedded { vectors, kept, hashes } = model.embed(&files, on_bad)?;
        Ok(Self {
            hashes,
            identity: kept.iter().map(|&index| owners[index]).collect(),
            files: kept.iter().map(|&index| files[index].clone()).collect(),
            vectors,
        })
    }
}

/// Measures, prints, and writes a report if there is an `--out`.
pub fn eval(args: &EvalArgs) -> Result<()> {
    let device = args.model.device()?;
    if let Some(out) = &args.out {
        run_folder::check("--out", out)?;
    }
    let patterns = Patterns::new(&args.patterns)?;
    let Found { genuine: all, forged } = folders::find(&args.folder, &patterns)?;
    let found = if args.only.is_empty() { all } else { split_folders(all, &args.only, "--only")?.1 };
    let names: Vec<String> = found.keys().cloned().collect();
    let forged = match &args.forgeries {
        Some(folder) => Some(forgeries(folder, &found, &patterns)?),
        None => {
            patterns.has_forged().then(|| forged.into_iter().filter(|(name, _)| found.contains_key(name)).collect())
        }
    };
    let model = Model::load(&args.model.model, device)?;

    let set = Set::read(&model, &found, &names, args.on_bad_image)?;
    check(&args.folder, &set.identity)?;
    let forged = forged.map(|found| Set::read(&model, &found, &names, args.on_bad_image)).transpose()?;
    let mut doubles = Doubles::default();
    for (set, forged) in std::iter::once((&set, false)).chain(forged.iter().map(|set| (set, true))) {
        for ((&hash, &owner), file) in set.hashes.iter().zip(&set.identity).zip(&set.files) {
            doubles.add(hash, Place { set: "", identity: &names[owner], forged }, Some(file));
        }
    }
    doubles.say(model.settings.image_size);
    if let Some(out) = &args.out {
        run_folder::create("--out", out)?;
    }

    let distance = |i: usize, j: usize| set.vectors.distance(i, j);
    let random = Comparison::new(Tally::of_all(&set.identity, distance));
    let ranking = rank(&set.identity, &set.vectors, &args.recall_at);
    let one_shot = args.ways.iter().filter_map(|&ways| one_shot(&set.identity, distance, ways, args.trials, args.seed));
    let one_shot: Vec<_> = one_shot.collect();
    let skilled = forged.as_ref().and_then(|f| skilled(&set.vectors, &set.identity, &f.vectors, &f.identity));
    let open_set = match args.gallery {
        true => Some(recognised(args, &set, &model)?),
        false => None,
    };
    let threshold = model.threshold();
    let (genuine_pairs, impostor_pairs) = random.tally.totals();
    let mut owners = set.identity.clone();
    owners.dedup();
    let outcome = Outcome {
        data: args.folder.display().to_string(),
        model: args.model.model.display().to_string(),
        images: set.files.len(),
        identities: owners.len(),
        genuine_pairs,
        impostor_pairs,
        eer: random.eer,
        auc: random.auc,
        tar_at_far_1e2: random.tar_at_far(1e-2),
        tar_at_far_1e3: random.tar_at_far(1e-3),
        at_threshold: at_threshold(&random.tally, threshold),
        skilled: skilled.as_ref().zip(forged.as_ref()).map(|(c, f)| Skilled {
            forgeries: f.files.len(),
            pairs: c.tally.totals().1,
            eer: c.eer,
            auc: c.auc,
            at_threshold: at_threshold(&c.tally, threshold),
        }),
        ranking,
        one_shot,
        open_set,
        version: env!("CARGO_PKG_VERSION"),
    };
    match args.json {
        true => say(&serde_json::to_string_pretty(&outcome)?)?,
        false => say(&text(&outcome, &model))?,
    }
    if let Some(folder) = &args.out {
        let scores = Verification {
            operating: outcome.at_threshold,
            eer: random.eer,
            auc: random.auc,
            recall_at_1: outcome.ranking.recall.first().map_or(0.0, |r| r.1),
            ranking: outcome.ranking.clone(),
            random,
            skilled,
        };
        let (none, nobody) = (Vectors::default(), Vec::new());
        let picture = |file: &PathBuf| {
            let (size, one) = (model.settings.image_size, std::slice::from_ref(file));
            let (images, _) = Reader::new(size, OnBadImage::Stop, Budget::unlimited()).read(one)?;
            thumbnail(&images, 0)
        };
        let compare = Compare {
            scores: &scores,
            vectors: &set.vectors,
            identity: &set.identity,
            names: &names,
            forged: forged.as_ref().map_or((&none, &nobody[..]), |f| (&f.vectors, &f.identity[..])),
            picture: &|row| picture(&set.files[row]),
            forgery: &|row| picture(&forged.as_ref().expect("there are forgeries").files[row]),
        };
        page(args, &outcome, &model, &compare)?.write(folder)?;
        let mut text = serde_json::to_string_pretty(&outcome)?;
        text.push('\n');
        atomic::write(&folder.join("eval.json"), text.as_bytes())?;
        if !args.json {
            say_path(folder)?;
        }
    }
    Ok(())
}

/// How well people of a gallery are recognised, and strangers are not.
fn recognised(args: &EvalArgs, set: &Set, model: &Model) -> Result<OpenSet> {
    let between = |i: usize, j: usize| set.vectors.distance(i, j);
    let thresholds = model.settings.calibration.identification.as_ref();
    let threshold = |people| thresholds.map(|thresholds| thresholds.threshold(people).0);
    open_set(&set.identity, between, args.enrolled, &args.recall_at, threshold, args.seed).ok_or_else(|| {
        bad_input(format!(
            "--gallery: {} has too few identities with more than {} readable images; needed are one of them to enrol, and \
             another identity of strangers",
            args.folder.display(),
            args.enrolled
        ))
    })
}

/// Refuses a set without two identities and one pair: it has no ROC curve. `identity` is sorted.
fn check(folder: &Path, identity: &[usize]) -> Result<()> {
    let images: Vec<usize> = identity.chunk_by(|a, b| a == b).map(<[usize]>::len).collect();
    if images.len() < 2 || images.iter().all(|&n| n < 2) {
        return Err(bad_input(format!(
            "{}: {} identities with readable images, {} of them with more than one; needed are two identities, one of \
             them with two images",
            folder.display(),
            images.len(),
            images.iter().filter(|&&n| n > 1).count()
        )));
    }
    Ok(())
}

/// The images in the folder of `--forgeries`; its folders must have the names of the identities that they imitate.
fn forgeries(folder: &Path, genuine: &Identities, patterns: &Patterns) -> Result<Identities> {
    let forged = folders::find(folder, patterns)?.genuine;
    let mut found = Found { genuine: genuine.clone(), forged };
    folders::keep_forgeries_of_known(&mut found, &format!("--forgeries {}: ", folder.display()));
    match found.forged.is_empty() {
        true => Err(bad_input(format!(
            "--forgeries {}: no folder there has the name of an identity, such as {}",
            folder.display(),
            genuine.keys().next().map_or("", |name| name)
        ))),
        false => Ok(found.forged),
    }
}

/// The outcome as text for people.
fn text(outcome: &Outcome, model: &Model) -> String {
    let mut lines = Vec::new();
    let mut line = |text: String| lines.push(text);
    line(format!("{} images of {} identities", outcome.images, outcome.identities));
    line(format!("verification, {} genuine and {} impostor pairs", outcome.genuine_pairs, outcome.impostor_pairs));
    line(format!("  EER              {:.4}", outcome.eer));
    line(format!("  AUC              {:.4}", outcome.auc));
    line(format!("  TAR at FAR 1e-2  {:.4}", outcome.tar_at_far_1e2));
    line(format!("  TAR at FAR 1e-3  {:.4}", outcome.tar_at_far_1e3));
    let there = outcome.at_threshold;
    line(format!("  at threshold {}: FAR {:.4}, FRR {:.4}", text_of(model.threshold()), there.far, there.frr));
    if let Some(skilled) = &outcome.skilled {
        line(format!("skilled forgeries, {} of them in {} pairs", skilled.forgeries, skilled.pairs));
        line(format!("  EER              {:.4}", skilled.eer));
        line(format!("  AUC              {:.4}", skilled.auc));
        let there = skilled.at_threshold;
        line(format!("  at threshold {}: FAR {:.4}, FRR {:.4}", text_of(model.threshold()), there.far, there.frr));
    }
    line(format!("retrieval, {} queries", outcome.ranking.queries));
    for (k, recall) in &outcome.ranking.recall {
        line(format!("  recall@{k:<9} {recall:.4}"));
    }
    line(format!("  R-precision      {:.4}", outcome.ranking.r_precision));
    line(format!("  MAP@R            {:.4}", outcome.ranking.map_at_r));
    for shot in &outcome.one_shot {
        line(format!(
            "one-shot, {}-way: {:.4} ± {:.4} in {} trials",
            shot.ways, shot.accuracy, shot.standard_error, shot.trials
        ));
    }
    if let Some(open) = &outcome.open_set {
        line(format!(
            "recognition, {} people of {} samples; {} searches for them and {} of strangers",
            open.people, open.samples, open.mated, open.strangers
        ));
        for (k, share) in &open.cmc {
            line(format!("  among the {k:<6} {share:.4}"));
        }
        for point in &open.fnir_at_fpir {
            line(format!("  FNIR at FPIR {:<4} {:.4}  (threshold {})", point.at, point.fnir, text_of(point.threshold)));
        }
        if let Some(at) = &open.at_threshold {
            let threshold = text_of(at.threshold);
            line(format!("  at the model's threshold {threshold}: FPIR {:.4}, FNIR {:.4}", at.fpir, at.fnir));
        }
    }
    lines.join("\n")
}

fn page(args: &EvalArgs, outcome: &Outcome, model: &Model, compare: &Compare) -> Result<Page> {
    let settings = &model.settings;
    let mut numbers = vec![
        Number::share("equal error rate", None, outcome.eer),
        Number::share("true accepts at 1 % false ones", None, outcome.tar_at_far_1e2),
        Number::share("recall@1", None, compare.scores.recall_at_1),
        Number::share("MAP@R", None, outcome.ranking.map_at_r),
    ];
    numbers.extend(outcome.skilled.as_ref().map(|s| Number::share("EER, skilled forgeries", None, s.eer)));
    let shots = outcome.one_shot.iter();
    let shots = shots.map(|s| format!("{}-way {:.1} ± {:.1} %", s.ways, 100.0 * s.accuracy, 100.0 * s.standard_error));
    let recall = outcome.ranking.recall.iter().map(|(k, recall)| format!("@{k} {:.1} %", 100.0 * recall));
    let there = outcome.at_threshold;
    let searches = outcome.open_set.as_ref().map(|open| compare.hardest_searches(open)).transpose()?;
    Ok(Page {
        title: format!("Evaluation of {}", data_title(&outcome.data)),
        context: data_title(&outcome.data),
        lead: format!(
            "{} images of {} identities; model {}, {} trained on {}",
            outcome.images, outcome.identities, outcome.model, settings.encoder, settings.trained_on
        ),
        warning: None,
        numbers,
        charts: compare.charts(None)?.into_iter().chain(outcome.open_set.as_ref().map(chart::open_set)).collect(),
        hardest: compare.hardest()?.into_iter().chain(searches.into_iter().flatten()).collect(),
        settings: vec![
            ("folder", outcome.data.clone()),
            ("pairs", format!("{} genuine, {} impostor", outcome.genuine_pairs, outcome.impostor_pairs)),
            ("AUC", format!("{:.4}", outcome.auc)),
            ("true accepts at 0.1 % false ones", format!("{:.1} %", 100.0 * outcome.tar_at_far_1e3)),
            (
                "at the model's threshold",
                format!(
                    "{}: {:.1} % false accepts, {:.1} % false rejects",
                    text_of(there.threshold),
                    100.0 * there.far,
                    100.0 * there.frr
                ),
            ),
            ("recall", recall.collect::<Vec<_>>().join(", ")),
            ("R-precision", format!("{:.1} %", 100.0 * outcome.ranking.r_precision)),
            ("one-shot", shots.collect::<Vec<_>>().join(", ")),
            ("distance", settings.distance.clone()),
            ("image size", format!("{} px", settings.image_size)),
            ("version", outcome.version.into()),
        ],
        commands: vec![format!("tercet verify A.png B.png --model {}", shell::word(&args.model.model))],
    })
}
