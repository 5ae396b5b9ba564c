//! The folder of one run: never one with files in it, and never half-written files under their final names.

pub mod lock;
pub mod metrics_csv;

use crate::process::atomic;
use crate::process::bad_input::bad_input;
use anyhow::{Context, Result};
use lock::Lock;
use std::path::{Path, PathBuf};

/// The folder of runs without an `--out`.
pub const RUNS: &str = "runs";

/// The checkpoint's name in a run folder.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

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

/// Where the checkpoint of a run folder is.
pub fn checkpoint(folder: &Path) -> PathBuf {
    folder.join(CHECKPOINT)
}

/// Where the summary of a run folder is. It is written last of all: its presence says that the run is complete.
pub fn summary(folder: &Path) -> PathBuf {
    folder.join("summary.json")
}

/// Whether the run in the folder came to its end.
pub fn is_complete(folder: &Path) -> bool {
    summary(folder).exists()
}

/// Removes `summary.json`, before a run goes on.
pub fn no_longer_complete(folder: &Path) -> Result<()> {
    let file = summary(folder);
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
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
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
