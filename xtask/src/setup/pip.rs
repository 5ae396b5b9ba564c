//! Runs pip with something to look at, and explains its failures.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::lock::Lock;
use super::python;
use crate::error::{Doing, Error, Result};

/// Without a terminal, a sign of life is printed at least this often.
const QUIET: Duration = Duration::from_secs(20);
/// How many of pip's last lines a failure shows.
const LAST_LINES: usize = 12;

enum Line {
    Out(String),
    Err(String),
}

/// Installs `requirements` into the environment.
///
/// On a terminal pip draws its own progress bars; elsewhere one line per stage is printed, with the time.
pub fn install(environment: &Path, requirements: &Path, lock: &Lock, start: Instant) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let mut command = Command::new(environment.join("bin/python"));
    python::clean(&mut command)
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"])
        .args(["--progress-bar", if terminal { "on" } else { "off" }, "-r"])
        .arg(requirements)
        .stdin(lock.as_stdin()?)
        .stdout(if terminal { Stdio::inherit() } else { Stdio::piped() })
        .stderr(Stdio::piped());
    let mut child = command.spawn().doing("start pip in the environment")?;
    let (sender, lines) = mpsc::channel();
    if let Some(out) = child.stdout.take() {
        forward(out, sender.clone(), Line::Out);
    }
    if let Some(err) = child.stderr.take() {
        forward(err, sender, Line::Err);
    }
    let mut last = VecDeque::new();
    loop {
        let line = match lines.recv_timeout(QUIET) {
            Ok(Line::Out(line)) => {
                if let Some(stage) = stage(&line) {
                    say(start, &stage);
                }
                line
            }
            Ok(Line::Err(line)) => {
                eprintln!("{line}");
                line
            }
            Err(RecvTimeoutError::Timeout) if !terminal => {
                say(start, "pip is at work");
                continue;
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        last.push_back(line);
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    }
    let status = child.wait().doing("wait for pip")?;
    if status.success() {
        return Ok(());
    }
    let last: Vec<String> = last.into();
    Err(Error::Failed(format!(
        "pip failed ({status}). Its last lines:\n  {}\n{}",
        last.join("\n  "),
        advice(&last.join("\n"))
    )))
}

/// One line of progress, with the time since set-up began.
pub fn say(start: Instant, text: &str) {
    println!("set-up: {:4.0} s  {text}", start.elapsed().as_secs_f64());
}

/// Sends each line of a stream, on a thread of its own.
fn forward(stream: impl Read + Send + 'static, sender: Sender<Line>, kind: fn(String) -> Line) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        // Bytes, because a line that is not UTF-8 must not end the reading: pip would block on a full pipe.
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            line.clear();
            if sender.send(kind(text)).is_err() {
                break;
            }
        }
    });
}

/// The line of progress that a line of pip's output is worth, if any.
fn stage(line: &str) -> Option<String> {
    let line = line.trim();
    let (first, rest) = line.split_once(' ')?;
    match first {
        "Downloading" if !line.contains(".metadata") => Some(format!("downloading {}", short(rest))),
        "Using" => {
            rest.strip_prefix("cached ").filter(|r| !r.contains(".metadata")).map(|r| format!("cached {}", short(r)))
        }
        "Installing" => Some(format!("unpacking {} packages", line.split_once(": ")?.1.split(", ").count())),
        _ => None,
    }
}

/// `torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl (530.7 MB)` without the tags.
fn short(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    let (name, size) = file.split_once(' ').unwrap_or((file, ""));
    let name: Vec<&str> = name.split('-').take(2).collect();
    format!("{} {size}", name.join(" ")).trim().to_string()
}

/// What to do about a failure, from pip's output.
fn advice(output: &str) -> &'static str {
    let says = |needles: &[&str]| needles.iter().any(|needle| output.contains(needle));
    if says(&["No space left on device", "Disk quota exceeded"]) {
        "The disk is full (the environment's, or the one of TMPDIR or of pip's cache): free some space and run the same \
         command again."
    } else if says(&[
        "resolution",
        "Connection",
        "connection",
        "Retrying",
        "timed out",
        "Network is unreachable",
        "SSL",
    ]) {
        "The package index could not be reached: check the network and pip's settings (HTTPS_PROXY, PIP_INDEX_URL), then \
         run the same command again."
    } else if says(&["from versions: ", "No matching distribution"]) {
        "The package index has no such package for this machine: check the network and pip's settings (PIP_INDEX_URL), \
         then run the same command again."
    } else {
        "Once the cause is mended, run the same command again: it starts afresh."
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_stage() {
        let shown = |line: &str| stage(line);
        let torch = "  Downloading torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl (530.7 MB)";
        assert_eq!(shown(torch), Some("downloading torch 2.11.0 (530.7 MB)".into()));
        let cached = "  Using cached https://host/path/sympy-1.14.0-py3-none-any.whl (6.3 MB)";
        assert_eq!(shown(cached), Some("cached sympy 1.14.0 (6.3 MB)".into()));
        assert_eq!(shown("Installing collected packages: mpmath, triton, torch"), Some("unpacking 3 packages".into()));
        assert_eq!(shown("  Downloading torch-2.11.0-cp311.whl.metadata (29 kB)"), None);
        assert_eq!(shown("Collecting torch==2.11.0"), None);
        assert_eq!(shown(""), None);
    }

    #[test]
    fn advice_fits_the_failure() {
        assert!(advice("OSError: [Errno 28] No space left on device").contains("disk is full"));
        assert!(advice("WARNING: Retrying (Retry(total=0))\nERROR: (from versions: none)").contains("network"));
        assert!(advice("ERROR: No matching distribution found for torch==2.11.0").contains("no such package"));
        assert!(advice("Segmentation fault").contains("starts afresh"));
    }
}
