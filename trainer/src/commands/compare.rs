//! `tercet compare`: finished runs beside each other, as a table and as one picture.

use crate::commands::cli::CompareArgs;
use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::say::{note, say, say_path};
use crate::report::plot::{self, Bars};
use crate::run_folder::is_complete;
use anyhow::Result;
use serde::Deserialize;
use std::fmt::Write as _;
use std::path::Path;

/// The fields of `summary.json` that are compared, and those that have to be alike.
#[derive(Clone, Debug, Deserialize)]
struct Run {
    loss: String,
    steps: u64,
    seconds: f64,
    eer_before: f64,
    eer_after: f64,
    recall_at_1_before: f64,
    recall_at_1_after: f64,
    map_at_r_after: f64,
    data: String,
    encoder: String,
    image_size: usize,
    validation_identities: usize,
    validation_images: usize,
    seed: u64,
    /// The folder's name; not in the file.
    #[serde(skip)]
    name: String,
}

impl Run {
    fn read(folder: &Path) -> Result<Self> {
        let wrong = |what: String| bad_input(format!("{}: {what}", folder.display()));
        if !is_complete(folder) {
            return Err(wrong("no summary.json: no run folder, or its run has not come to its end".into()));
        }
        let text = std::fs::read(folder.join("summary.json")).map_err(|e| wrong(format!("summary.json: {e}")))?;
        let run: Self = serde_json::from_slice(&text).map_err(|e| wrong(format!("summary.json: {e}")))?;
        Ok(Self { name: folder.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()), ..run })
    }

    /// What must be equal in all runs for their figures to be compared.
    fn conditions(&self) -> [(&'static str, String); 6] {
        [
            ("data", self.data.clone()),
            ("encoder", self.encoder.clone()),
            ("image size", self.image_size.to_string()),
            ("validation identities", self.validation_identities.to_string()),
            ("validation images", self.validation_images.to_string()),
            ("seed", self.seed.to_string()),
        ]
    }
}

/// Prints the table, and draws the picture if one is asked for.
pub fn compare(args: &CompareArgs) -> Result<()> {
    if let Some(out) = &args.out {
        if out.extension().is_none_or(|extension| extension != "png") {
            return Err(bad_input(format!("--out {}: expected a name that ends in .png", out.display())));
        }
        atomic::check_writable("--out", out)?;
    }
    let mut runs = args.runs.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>>>()?;
    runs.sort_by(|a, b| a.eer_after.total_cmp(&b.eer_after));
    say(&table(&runs))?;
    for differing in differences(&runs) {
        note(&format!("warning: {differing}"));
    }
    let Some(out) = &args.out else { return Ok(()) };
    plot::bars(out, &title(&runs), &labels(&runs), &panels(&runs))?;
    say_path(out)
}

fn table(runs: &[Run]) -> String {
    let labels = labels(runs);
    let width = labels.iter().map(|label| label.chars().count()).chain([4]).max().unwrap_or(4);
    let mut text = format!(
        "{:<width$}  {:>6}  {:>8}  {:>8}  {:>8}  {:>8}\n",
        "loss", "steps", "seconds", "EER", "recall@1", "MAP@R"
    );
    for (label, run) in labels.iter().zip(runs) {
        let Run { steps, seconds, eer_after, recall_at_1_after, map_at_r_after, .. } = run;
        let _ = writeln!(
            text,
            "{label:<width$}  {steps:>6}  {seconds:>8.1}  {eer_after:>8.4}  {recall_at_1_after:>8.4}  {map_at_r_after:>8.4}"
        );
    }
    if let Some(run) = runs.first() {
        let _ = write!(
            text,
            "before training: EER {:.4}, recall@1 {:.4} (of the first)",
            run.eer_before, run.recall_at_1_before
        );
    }
    text
}

/// The losses' names; if several runs have the same loss, with their folders' names.
fn labels(runs: &[Run]) -> Vec<String> {
    let same = |run: &Run| runs.iter().filter(|other| other.loss == run.loss).count();
    runs.iter()
        .map(|run| if same(run) > 1 { format!("{} ({})", run.loss, run.name) } else { run.loss.clone() })
        .collect()
}

/// The conditions that are not alike.
fn differences(runs: &[Run]) -> Vec<String> {
    let Some(first) = runs.first() else { return Vec::new() };
    let mut differences = Vec::new();
    for (i, (what, of_first)) in first.conditions().into_iter().enumerate() {
        if let Some(other) = runs.iter().find(|run| run.conditions()[i].1 != of_first) {
            let value = &other.conditions()[i].1;
            differences.push(format!("not alike in {what}: {of_first} of {}, {value} of {}", first.name, other.name));
        }
    }
    differences
}

fn title(runs: &[Run]) -> String {
    let seconds = runs.iter().map(|run| run.seconds).fold(0.0, f64::max);
    let identities = runs.first().map_or(0, |run| run.validation_identities);
    let encoder = runs.first().map_or("", |run| &run.encoder);
    let encoder = if runs.iter().all(|run| run.encoder == encoder) { encoder } else { "different encoders" };
    format!("{encoder}, at most {seconds:.0} s each, {identities} identities never trained on")
}

fn panels(runs: &[Run]) -> [Bars; 2] {
    let of = |figure: fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
    let before = |figure: fn(&Run) -> f64| runs.first().map(figure);
    [
        Bars {
            title: "equal error rate (less is better)".into(),
            values: of(|run| run.eer_after),
            mark: before(|run| run.eer_before),
        },
        Bars {
            title: "recall@1 (more is better)".into(),
            values: of(|run| run.recall_at_1_after),
            mark: before(|run| run.recall_at_1_before),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(dir: &Path, name: &str, loss: &str, eer: f64, seed: u64) -> std::path::PathBuf {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        let summary = serde_json::json!({
            "loss": loss, "steps": 100, "seconds": 76.5, "eer_before": 0.5, "eer_after": eer,
            "recall_at_1_before": 0.02, "recall_at_1_after": 1.0 - eer, "map_at_r_after": 0.3, "data": "omniglot",
            "encoder": "resnet18", "image_size": 32, "validation_identities": 64, "validation_images": 400, "seed": seed,
            "threshold": 1.5,
        });
        std::fs::write(folder.join("summary.json"), summary.to_string()).unwrap();
        folder
    }

    #[test]
    fn runs_are_sorted_named_and_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let runs = [
            folder(dir.path(), "a", "triplet", 0.25, 0),
            folder(dir.path(), "b", "batch-all", 0.125, 0),
            folder(dir.path(), "c", "batch-all", 0.5, 0),
        ];
        let mut read: Vec<Run> = runs.iter().map(|folder| Run::read(folder).unwrap()).collect();
        assert!(differences(&read).is_empty());
        read.sort_by(|a, b| a.eer_after.total_cmp(&b.eer_after));
        assert_eq!(labels(&read), ["batch-all (b)", "triplet", "batch-all (c)"]);
        let text = table(&read);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[1], "batch-all (b)     100      76.5    0.1250    0.8750    0.3000");

        let out = dir.path().join("compared.png");
        compare(&CompareArgs { runs: runs.to_vec(), out: Some(out.clone()) }).unwrap();
        let picture = image::open(&out).unwrap().to_rgb8();
        let blue = picture.pixels().filter(|p| p.0 == [20, 90, 170]).count();
        assert!(blue > 10_000, "{blue}");
    }

    #[test]
    fn what_is_no_finished_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let good = folder(dir.path(), "good", "triplet", 0.25, 0);
        let refused = |runs: &[&Path], out: Option<&str>, words: &str| {
            let runs = runs.iter().map(|run| run.to_path_buf()).collect();
            let error = compare(&CompareArgs { runs, out: out.map(Into::into) }).unwrap_err();
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
            assert!(error.to_string().contains(words), "{error}");
        };
        refused(&[&good, dir.path()], None, "no summary.json");
        refused(&[&good], Some("picture.svg"), ".png");
        std::fs::write(good.join("summary.json"), "{\"loss\": 1}").unwrap();
        refused(&[&good], None, "summary.json: ");

        let other = folder(dir.path(), "other", "triplet", 0.25, 1);
        let third = folder(dir.path(), "third", "triplet", 0.25, 2);
        let runs = [other, third].map(|folder| Run::read(&folder).unwrap());
        assert_eq!(differences(&runs), ["not alike in seed: 1 of other, 2 of third"]);
    }
}
