//! The folder of one run: never an existing one, and never half-written files under final names.

use crate::bad_input::bad_input;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Makes the folder of a new run: `--out`, which must be absent or empty, or the first free
/// `runs/0001`, `runs/0002`, ...
pub fn create(wanted: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = wanted {
        std::fs::create_dir_all(folder).map_err(|e| bad_input(format!("--out {}: {e}", folder.display())))?;
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

/// A folder with something in it is refused, before any work is done for it.
pub fn refuse_used(folder: &Path) -> Result<()> {
    let used = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(bad_input(format!("--out {}: {e}", folder.display()))),
    };
    if used {
        return Err(bad_input(format!("--out {}: not empty", folder.display())));
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

/// Writes beside the final name and renames.
pub fn atomically(file: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = file.with_extension("partial");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// `metrics.csv`: one line per step, written at once, so that a stopped run keeps its curve.
pub struct MetricsCsv(File);

impl MetricsCsv {
    /// Starts the file with its header.
    pub fn create(folder: &Path) -> Result<Self> {
        let file = folder.join("metrics.csv");
        let mut csv = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        writeln!(csv, "epoch,step,loss,seconds,images_per_second")?;
        Ok(Self(csv))
    }

    /// `step` counts over the whole run; `seconds` are training time.
    pub fn line(&mut self, epoch: u64, step: u64, loss: f64, seconds: f64, rate: f64) -> Result<()> {
        Ok(writeln!(self.0, "{epoch},{step},{loss:.6},{seconds:.3},{rate:.2}")?)
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
        let error = create(Some(&folder)).unwrap_err();
        assert_eq!(crate::bad_input::exit_code(&error), 2);
    }
}
