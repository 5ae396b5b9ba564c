//! The folder of one run: never one with files in it, and never half-written files under their final names.

use crate::atomic;
use crate::bad_input::bad_input;
use crate::lock::{self, Lock};
use crate::loss_options::LossOptions;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The folder of runs without an `--out`.
pub const RUNS: &str = "runs";

/// Refuses a folder that could not be made or used, before any work is done for it. Makes nothing.
pub fn check(option: &str, wanted: &Path) -> Result<()> {
    if wanted.exists() {
        refuse_used(option, wanted)?;
    }
    let mut there = wanted;
    while !there.as_os_str().is_empty() && !there.exists() {
        there = there.parent().unwrap_or(Path::new(""));
    }
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    atomic::check_folder(there).map_err(|error| {
        bad_input(format!("{option} {}: cannot write to {}: {error}", wanted.display(), there.display()))
    })
}

/// Makes the folder, which must be absent or empty.
pub fn create(option: &str, wanted: &Path) -> Result<()> {
    std::fs::create_dir_all(wanted).map_err(|e| bad_input(format!("{option} {}: {e}", wanted.display())))?;
    refuse_used(option, wanted)?;
    if wanted.join(lock::NAME).exists() {
        drop(Lock::take(wanted, option)?); // refused if a run has just begun in it
    }
    atomic::sync_folder(wanted);
    Ok(())
}

/// Makes the folder of a new run: `--out`, which must be absent or empty, or the first free `runs/0001`, `runs/0002`,
/// ... The run holds the lock to its end.
pub fn claim(wanted: Option<&Path>) -> Result<(PathBuf, Lock)> {
    let folder = match wanted {
        Some(folder) => {
            create("--out", folder)?;
            folder.to_owned()
        }
        None => numbered(Path::new(RUNS))?,
    };
    let lock = Lock::take(&folder, "--out")?;
    refuse_used("--out", &folder)?; // another run may have come and gone since the folder was looked at
    Ok((folder, lock))
}

fn numbered(runs: &Path) -> Result<PathBuf> {
    let wrong = |folder: &Path, error| bad_input(format!("--out: cannot make {}: {error}", folder.display()));
    std::fs::create_dir_all(runs).map_err(|error| wrong(runs, error))?;
    for number in 1.. {
        let folder = runs.join(format!("{number:04}"));
        // `create_dir` decides between two runs that start at the same time.
        match std::fs::create_dir(&folder) {
            Ok(()) => {
                atomic::sync_folder(&folder);
                return Ok(folder);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(wrong(&folder, e)),
        }
    }
    unreachable!("numbers do not end")
}

/// Refuses a folder with files in it. A lock's file and a part of a checkpoint do not count: a run that was killed
/// before its first checkpoint leaves them.
fn refuse_used(option: &str, folder: &Path) -> Result<()> {
    let wrong = |what: &dyn std::fmt::Display| bad_input(format!("{option} {}: {what}", folder.display()));
    for entry in std::fs::read_dir(folder).map_err(|error| wrong(&error))? {
        let name = entry.map_err(|error| wrong(&error))?.file_name();
        if name != lock::NAME && !atomic::is_left_over(&name) {
            return Err(wrong(&"not empty"));
        }
    }
    Ok(())
}

/// The content of `summary.json`.
#[derive(Serialize)]
pub struct Summary {
    /// Equal error rate before training, on identities never trained on.
    pub eer_before: f64,
    /// Equal error rate after training, on identities never trained on.
    pub eer_after: f64,
    /// Area under the ROC curve before training.
    pub auc_before: f64,
    /// Area under the ROC curve after training.
    pub auc_after: f64,
    /// Share of images whose nearest other image has the same identity, before training.
    pub recall_at_1_before: f64,
    /// Share of images whose nearest other image has the same identity, after training.
    pub recall_at_1_after: f64,
    /// Equal error rate against skilled forgeries before training, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eer_skilled_before: Option<f64>,
    /// Equal error rate against skilled forgeries after training, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eer_skilled_after: Option<f64>,
    /// Mean average precision at R before training.
    pub map_at_r_before: f64,
    /// Mean average precision at R after training.
    pub map_at_r_after: f64,
    /// The calibrated threshold: the distance at which the error rates after training are equal.
    pub threshold: f32,
    /// Optimiser steps done.
    pub steps: u64,
    /// Steps that were left out because a number overflowed f16.
    pub skipped_steps: u64,
    /// Seconds of the whole run, evaluations included.
    pub seconds: f64,
    /// Training images per second, without evaluations.
    pub images_per_second: f64,
    /// Seconds that the encoder waited for images in training.
    pub seconds_waited: f64,
    /// The device, as `cpu` or `cuda:0`.
    pub device: String,
    /// The run's seed.
    pub seed: u64,
    /// What was trained on: `generated signatures`, or the folder.
    pub data: String,
    /// The encoder's name.
    pub encoder: String,
    /// The loss's name, as `--loss` takes it.
    pub loss: String,
    /// All options of the loss; null for one that it does not have.
    pub loss_options: LossOptions,
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
    /// Why training ended: `epochs`, `steps`, `time limit` or `patience`.
    pub ended_by: String,
    /// The version of Tercet that made the run.
    pub version: String,
}

impl Summary {
    /// Writes `summary.json`, last of all: its presence says that the run is complete.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        atomic::write(&folder.join("summary.json"), text.as_bytes())
    }
}

/// Whether the run in the folder came to its end.
pub fn is_complete(folder: &Path) -> bool {
    folder.join("summary.json").exists()
}

/// Removes `summary.json`, before a run goes on.
pub fn no_longer_complete(folder: &Path) -> Result<()> {
    let file = folder.join("summary.json");
    match std::fs::remove_file(&file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(result: Result<()>, words: &str) {
        let error = result.unwrap_err();
        assert_eq!(crate::bad_input::exit_code(&error), 2);
        assert!(error.to_string().starts_with("--out ") && error.to_string().contains(words), "{error}");
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/run");
        check("--out", &folder).unwrap();
        assert!(!dir.path().join("deep").exists(), "a check makes nothing");
        create("--out", &folder).unwrap();
        create("--out", &folder).unwrap(); // empty: may be used
        check("--out", &folder).unwrap();
        atomic::write(&folder.join("x.json"), b"{}").unwrap();
        for make in [check, create] {
            refused(make("--out", &folder), "not empty");
            refused(make("--out", &folder.join("x.json")), "x.json");
            refused(make("--out", &folder.join("x.json/run")), "x.json");
        }
        #[cfg(target_os = "linux")]
        refused(check("--out", Path::new("/proc/a/run")), "cannot write to /proc");
    }

    #[test]
    fn a_folder_whose_run_has_just_begun_is_refused_and_one_whose_run_was_killed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), "--out").unwrap();
        refused(create("--out", dir.path()), "in use by process");
        refused(claim(Some(dir.path())).map(drop), "in use by process");
        drop(lock);
        let left = dir.path().join(".tercet-x.partial");
        std::fs::write(&left, b"half a checkpoint").unwrap();
        let (folder, _lock) = claim(Some(dir.path())).unwrap();
        assert!(folder == dir.path() && !left.exists());
    }
}
