//! One set-up at a time per environment, also across checkouts.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{self, Stdio};

use crate::error::{Doing, Result};

const LOCK_EX: i32 = 2;
const LOCK_NB: i32 = 4;

unsafe extern "C" {
    /// flock(2). Called directly because `File::lock` is newer than the Rust that this workspace asks for.
    safe fn flock(fd: i32, operation: i32) -> i32;
}

/// A lock on a file beside the environment. The kernel gives it back however the holder ends, kill -9 included;
/// the file itself stays, because removing it would let a third process lock a file that has no name any more.
pub struct Lock(File);

impl Lock {
    /// Waits for the lock, and says so if another set-up has it.
    pub fn take(path: &Path, environment: &str) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).doing(format_args!("make the folder {}", parent.display()))?;
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .doing(format_args!("open the lock {}", path.display()))?;
        if !locked(&file, LOCK_EX | LOCK_NB)? {
            let mut holder = String::new();
            file.read_to_string(&mut holder).ok();
            println!(
                "set-up: waiting for another set-up of {environment} (process {}, or the pip that it started)",
                holder.trim()
            );
            locked(&file, LOCK_EX)?;
        }
        // The holder's process, for the message above; the lock works without it.
        file.rewind().and_then(|()| file.set_len(0)).and_then(|()| write!(file, "{}", process::id())).ok();
        Ok(Self(file))
    }

    /// Standard input for a child that writes into the environment: empty, and it shares the lock. So when this
    /// process is killed and pip lives on, the next set-up waits for that pip instead of working against it.
    pub fn as_stdin(&self) -> Result<Stdio> {
        Ok(Stdio::from(self.0.try_clone().doing("share the lock")?))
    }
}

/// Whether the lock was got; false only with `LOCK_NB`.
fn locked(file: &File, operation: i32) -> Result<bool> {
    loop {
        if flock(file.as_raw_fd(), operation) == 0 {
            return Ok(true);
        }
        let error = std::io::Error::last_os_error();
        match error.kind() {
            ErrorKind::Interrupted => {}
            ErrorKind::WouldBlock => return Ok(false),
            _ => return Err(error).doing("lock the environment against a second set-up"),
        }
    }
}
