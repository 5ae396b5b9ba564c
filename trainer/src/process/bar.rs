//! How far a command has come, for those that take long: a bar on a terminal, and a line every ten seconds elsewhere.

use crate::process::say::{self, note};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// A count of things that are done. It disappears when it is dropped.
pub struct Bar {
    /// What is counted, for lines.
    what: &'static str,
    of: usize,
    done: usize,
    shown: bool,
    printed: Instant,
}

impl Bar {
    /// Nothing done yet of so many; `what` are they, such as "images".
    pub fn new(of: usize, what: &'static str) -> Self {
        let shown = std::io::stderr().is_terminal() && !say::is_silent();
        if shown {
            let style = ProgressStyle::with_template("{bar:24} {pos} of {len} {msg}  {eta} left");
            let bar = ProgressBar::new(of as u64).with_style(style.expect("the template is valid"));
            say::show(Some(bar.with_message(what)));
        }
        Self { what, of, done: 0, shown, printed: Instant::now() }
    }

    /// So many more are done.
    pub fn add(&mut self, count: usize) {
        self.done += count;
        if self.shown {
            say::shown(|bar| bar.set_position(self.done as u64));
        } else if self.printed.elapsed() >= LINE_EVERY {
            self.printed = Instant::now();
            note(&format!("{} of {} {}", self.done, self.of, self.what));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown {
            say::shown(ProgressBar::finish_and_clear);
            say::show(None);
        }
    }
}
