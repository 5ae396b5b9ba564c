//! One process at a time works in a run folder.
//!
//! The operating system holds the lock for as long as the process has the file open, so a process that is killed
//! leaves none behind. The file itself stays: removing it would let two processes hold locks on two files of one
//! name.

use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::say::note;
use anyhow::Result;
use fs4::fs_std::FileExt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

/// The file's name in a run folder.
pub const NAME: &str = "lock";

/// A held lock. It ends with the value, or with the process.
pub struct Lock(File);

impl Lock {
    /// Takes the lock of a folder. `option` is how the user named the folder. If the file system has no locks, there is
    /// only a warning.
    pub fn take(folder: &Path, option: &str) -> Result<Self> {
        let file = folder.join(NAME);
        let wrong = |what: String| bad_input(format!("{option} {}: {what}", folder.display()));
        let mut options = OpenOptions::new();
        let mut lock = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(|error| wrong(format!("cannot write {NAME}: {error}")))?;
        match try_lock(&lock) {
            Ok(true) => atomic::remove_left_over(folder)?,
            Ok(false) => {
                let mut owner = String::new();
                let _ = lock.read_to_string(&mut owner);
                let owner = owner.trim();
                let who = if owner.is_empty() { "another process".into() } else { format!("process {owner}") };
                return Err(wrong(format!("in use by {who}; a folder has one run at a time")));
            }
            Err(error) => {
                note(&format!("warning: {}: cannot lock, so take care of it yourself: {error}", file.display()));
            }
        }
        // Names this process to the next one that tries. On a full disk the name is missing.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self(lock))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.set_len(0);
    }
}

fn try_lock(file: &File) -> std::io::Result<bool> {
    FileExt::try_lock_exclusive(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), "--out").unwrap();
        let error = Lock::take(dir.path(), "--resume").map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        let process = format!("in use by process {}", std::process::id());
        assert!(
            text.contains(&process) && text.starts_with("--resume") && text.contains("one run at a time"),
            "{text}"
        );
        drop(lock);
        drop(Lock::take(dir.path(), "--resume").unwrap());
        assert_eq!(std::fs::read(dir.path().join(NAME)).unwrap(), b"", "no process is named that is gone");
    }
}
