//! The folder of one run: never an existing one, and never half-written files under final names.

use crate::bad_input::bad_input;
use crate::lock::{self, Lock};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Makes the folder of a new run: `--out`, which must be absent or empty, or the first free
/// `runs/0001`, `runs/0002`, ...
pub fn create(wanted: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = wanted {
        std::fs::create_dir_all(folder).map_err(|e| bad_input(format!("--out {}: {e}", folder.display())))?;
        if Lock::is_taken(folder) {
            return Err(bad_input(format!("--out {}: another process is at work in it", folder.display())));
        }
        refuse_used(folder)?;
        return Ok(folder.to_owned());
    }
    let runs = Path::new("runs");
    std::fs::create_dir_all(runs).context("cannot make the folder runs")?;
    for number in 1.. {
        let folder = runs.join(format!("{number:04}"));
        // `create_dir` decides between two runs that start at the same time.
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("cannot make {}", folder.display())),
        }
    }
    unreachable!("numbers do not end")
}

/// The same, with the lock that a run holds to its end.
pub fn claim(wanted: Option<&Path>) -> Result<(PathBuf, Lock)> {
    let folder = create(wanted)?;
    let lock = Lock::take(&folder, "--out")?;
    refuse_used(&folder)?; // another run may have come and gone since it was looked at
    Ok((folder, lock))
}

/// A run that was killed before it wrote anything leaves the file of its lock, which is no use of the folder.
fn refuse_used(folder: &Path) -> Result<()> {
    let wrong = |what: &dyn std::fmt::Display| bad_input(format!("--out {}: {what}", folder.display()));
    for entry in std::fs::read_dir(folder).map_err(|error| wrong(&error))? {
        if entry.map_err(|error| wrong(&error))?.file_name() != lock::NAME {
            return Err(wrong(&"not empty"));
        }
    }
    Ok(())
}

/// `summary.json`.
#[derive(Serialize)]
pub struct Summary {
    /// Equal error rate before training, on identities never trained on.
    pub eer_before: f64,
    /// The same after training.
    pub eer_after: f64,
    /// Area under the ROC curve.
    pub auc_before: f64,
    /// The same after training.
    pub auc_after: f64,
    /// Share of images whose nearest other image has the same identity.
    pub recall_at_1_before: f64,
    /// The same after training.
    pub recall_at_1_after: f64,
    /// Equal error rate against skilled forgeries, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eer_skilled_before: Option<f64>,
    /// The same after training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eer_skilled_after: Option<f64>,
    /// Mean average precision at R.
    pub map_at_r_before: f64,
    /// The same after training.
    pub map_at_r_after: f64,
    /// The calibrated threshold, a distance: where the error rates after training are equal.
    pub threshold: f32,
    /// Optimiser steps done.
    pub steps: u64,
    /// Of the whole run, evaluations included.
    pub seconds: f64,
    /// Training images per second, without evaluations.
    pub images_per_second: f64,
    /// Seconds that the encoder waited for images in training.
    pub seconds_waited: f64,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// The run's seed.
    pub seed: u64,
    /// `generated signatures`, or the folder.
    pub data: String,
    /// The encoder's name.
    pub encoder: String,
    /// The loss's name, as `--loss` takes it.
    pub loss: String,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Identities trained on.
    pub training_identities: usize,
    /// Identities evaluated on; none of them is trained on.
    pub validation_identities: usize,
    /// Images evaluated on.
    pub validation_images: usize,
    /// Image files that could not be read.
    pub skipped_images: usize,
    /// The step at which the run was warned of a collapse of its embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collapsed_at: Option<u64>,
    /// Why training ended: `epochs`, `steps` or `time limit`.
    pub ended_by: String,
    /// The version of Tercet.
    pub version: String,
}

impl Summary {
    /// Writes `summary.json`, last of all: its presence says that the run is complete.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        atomically(&folder.join("summary.json"), text.as_bytes())
    }
}

/// Whether the run in the folder came to its end.
pub fn is_complete(folder: &Path) -> bool {
    folder.join("summary.json").exists()
}

/// Before a run goes on.
pub fn no_longer_complete(folder: &Path) -> Result<()> {
    let file = folder.join("summary.json");
    match std::fs::remove_file(&file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Writes beside the final name and renames.
pub fn atomically(file: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = file.with_extension("partial");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// `metrics.csv`: one line per step, written at once, so that a stopped run keeps its curve.
pub struct MetricsCsv(File);

/// A line of `metrics.csv`.
pub struct Line {
    /// From 1.
    pub epoch: u64,
    /// From 1, over the whole run.
    pub step: u64,
    /// The batch's.
    pub loss: f64,
    /// Training time.
    pub seconds: f64,
    /// Since training began.
    pub images_per_second: f64,
    /// Share of the batch's triplets with a loss.
    pub active: f64,
    /// The step's.
    pub learning_rate: f64,
    /// Of `seconds`: for images that were not ready.
    pub waited: f64,
}

/// The first line.
const HEADER: &str = "epoch,step,loss,seconds,images_per_second,active,learning_rate,waited";

impl MetricsCsv {
    /// Starts the file with its header.
    pub fn create(folder: &Path) -> Result<Self> {
        let file = folder.join("metrics.csv");
        let mut csv = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        writeln!(csv, "{HEADER}")?;
        Ok(Self(csv))
    }

    /// Goes on after the lines of so many steps; later ones, and one that was cut off, are dropped.
    pub fn resume(folder: &Path, steps: u64) -> Result<Self> {
        let file = folder.join("metrics.csv");
        let wrong = |what: String| bad_input(format!("--resume: {}: {what}", file.display()));
        let text = std::fs::read_to_string(&file).map_err(|e| wrong(e.to_string()))?;
        let mut lines = text.split_inclusive('\n');
        if lines.next().map(str::trim_end) != Some(HEADER) {
            return Err(wrong(format!("does not start with {HEADER}")));
        }
        let mut length = HEADER.len() + 1;
        for step in 1..=steps {
            let line = lines.next().unwrap_or_default();
            if line.split(',').nth(1) != Some(step.to_string().as_str()) || !line.ends_with('\n') {
                return Err(wrong(format!("the checkpoint is of step {steps}, and step {step} is not in its place")));
            }
            length += line.len();
        }
        let open = || -> std::io::Result<File> {
            let mut csv = File::options().write(true).open(&file)?;
            csv.set_len(length as u64)?;
            csv.seek(SeekFrom::End(0))?;
            Ok(csv)
        };
        open().map(Self).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Adds a line.
    pub fn line(&mut self, line: &Line) -> Result<()> {
        let Line { epoch, step, loss, seconds, images_per_second, active, learning_rate, waited } = line;
        // In one piece: a full disk leaves no half of a line that a resumed run would not find the end of.
        let text = format!(
            "{epoch},{step},{loss:.6},{seconds:.3},{images_per_second:.2},{active:.4},{learning_rate:.3e},{waited:.3}\n"
        );
        self.0.write_all(text.as_bytes()).context("cannot write metrics.csv")
    }

    /// Returns when the lines are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.0.sync_data().context("cannot write metrics.csv")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/run");
        assert_eq!(create(Some(&folder)).unwrap(), folder);
        assert_eq!(create(Some(&folder)).unwrap(), folder, "empty: may be used");
        atomically(&folder.join("x.json"), b"{}").unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        let refused = |folder: &Path, words: &str| {
            let error = create(Some(folder)).unwrap_err();
            assert_eq!(crate::bad_input::exit_code(&error), 2);
            assert!(error.to_string().contains(words), "{error}");
        };
        refused(&folder, "not empty");
        refused(&folder.join("x.json"), "x.json");
        refused(&folder.join("x.json/run"), "x.json");

        let other = dir.path().join("other");
        create(Some(&other)).unwrap();
        let lock = Lock::take(&other, "--out").unwrap();
        refused(&other, "another process");
        drop(lock);
        assert_eq!(create(Some(&other)).unwrap(), other, "a lock that nobody holds");
    }

    fn line(step: u64) -> Line {
        let (loss, seconds, images_per_second) = (0.5, step as f64, 9.0);
        Line { epoch: 1, step, loss, seconds, images_per_second, active: 0.25, learning_rate: 1e-3, waited: 0.125 }
    }

    #[test]
    fn metrics_are_cut_back_to_the_checkpoint_and_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics.csv");
        let text = || std::fs::read_to_string(&file).unwrap();
        let mut csv = MetricsCsv::create(dir.path()).unwrap();
        (1..=3).for_each(|step| csv.line(&line(step)).unwrap());
        let three = text();
        assert_eq!(three.lines().last(), Some("1,3,0.500000,3.000,9.00,0.2500,1.000e-3,0.125"));

        // Two steps more than the checkpoint has, the second one torn.
        csv.line(&line(4)).unwrap();
        std::fs::write(&file, text() + "1,5,0.5").unwrap();
        let mut csv = MetricsCsv::resume(dir.path(), 3).unwrap();
        assert_eq!(text(), three);
        csv.line(&line(4)).unwrap();
        csv.sync().unwrap();
        assert_eq!(text().lines().count(), 5);

        // Fewer than it has.
        let error = MetricsCsv::resume(dir.path(), 5).map(|_| ()).unwrap_err();
        assert_eq!(crate::bad_input::exit_code(&error), 2);
        assert!(error.to_string().contains("step 5 is not in its place"), "{error}");
        assert_eq!(text().lines().count(), 5, "nothing is cut from a file that does not fit");
    }
}
