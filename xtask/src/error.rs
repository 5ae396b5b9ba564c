//! How a task ends badly.

use std::fmt::Display;

/// Why a task stopped. `main` turns it into a message and an exit code.
#[derive(Debug)]
pub enum Error {
    /// The command line is wrong: exit code 2.
    Usage(String),
    /// The work failed: exit code 1.
    Failed(String),
    /// A program that the task started failed and has said why itself: its exit code is ours.
    Exit(i32),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }
}

/// Names what was being done when an I/O error came: `No such file` alone helps nobody.
pub trait Doing<T> {
    fn doing(self, what: impl Display) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|error| Error::Failed(format!("cannot {what}: {error}")))
    }
}
