//! Results on standard output, notes on standard error.

use anyhow::Result;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Prints lines to standard output. Whoever reads them may stop reading (`| head`): that is no error.
pub fn say(text: &str) -> Result<()> {
    say_bytes(text.trim_end().as_bytes())
}

/// Prints a path as it is, UTF-8 or not, so that a script can use it.
pub fn say_path(path: &Path) -> Result<()> {
    say_bytes(path.as_os_str().as_encoded_bytes())
}

fn say_bytes(line: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error. `eprintln!` panics if nobody reads it any more, and a run of days must not end
/// because its terminal or its `| tee` has.
pub fn note(text: &str) {
    if cfg!(test) {
        eprintln!("{text}"); // the test runner keeps it, and shows it if the test fails
    } else {
        let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
    }
}
