//! Results on standard output, notes on standard error.

use anyhow::Result;
use indicatif::ProgressBar;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

/// This process among several, if there are several.
static RANK: OnceLock<(usize, usize)> = OnceLock::new();

/// From now on this is one process of several: only the first one says anything but its errors.
pub fn as_rank(rank: usize, size: usize) {
    let _ = RANK.set((rank, size)); // it is the same one
}

/// Whether what is said comes from another process.
pub fn is_silent() -> bool {
    RANK.get().is_some_and(|(rank, _)| *rank > 0)
}

/// Prints lines to standard output. Whoever reads them may stop reading (`| head`): that is no error.
pub fn say(text: &str) -> Result<()> {
    say_bytes(text.trim_end().as_bytes())
}

/// Prints a path as it is, UTF-8 or not, so that a script can use it.
pub fn say_path(path: &Path) -> Result<()> {
    say_bytes(path.as_os_str().as_encoded_bytes())
}

fn say_bytes(line: &[u8]) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The bar that lines of text must not be written into.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shows this bar, or none any more.
pub fn show(bar: Option<ProgressBar>) {
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// Changes the bar that is shown, if there is one.
pub fn shown(change: impl FnOnce(&ProgressBar)) {
    if let Some(bar) = &*SHOWN.lock().unwrap_or_else(PoisonError::into_inner) {
        change(bar);
    }
}

/// Writes a line to standard error, above a bar that is shown. `eprintln!` panics if nobody reads it any more, and a run of
/// days must not end because its terminal or its `| tee` has.
pub fn note(text: &str) {
    if !is_silent() {
        write_error_line(text);
    }
}

/// Says why the program ends. One process of several names itself, unless the text does.
pub fn error(text: &str) {
    let name = RANK.get().filter(|(rank, _)| *rank > 0).map(|(rank, size)| format!("process {rank} of {size}: "));
    let name = name.filter(|name| !text.starts_with(name)).unwrap_or_default();
    write_error_line(&format!("error: {name}{text}"));
}

fn write_error_line(text: &str) {
    let write = || {
        if cfg!(test) {
            eprintln!("{text}"); // the test runner keeps it, and shows it if the test fails
        } else {
            let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
        }
    };
    match &*SHOWN.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}
