//! The peers' own tests, run on the package for Python: `python/peers/run.py` does it, with checkouts that the caller names.

use std::path::PathBuf;
use std::process::Command;

use crate::cargo;
use crate::checkout::Checkout;
use crate::error::{Error, Result};
use crate::{setup, wheel};

/// What the command line asks for.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// A checkout of pytorch-metric-learning.
    pml: Option<PathBuf>,
    /// A checkout of sentence-transformers.
    sentence_transformers: Option<PathBuf>,
    /// What `run.py` takes beside.
    rest: Vec<String>,
}

impl Options {
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut left = arguments.iter();
        while let Some(&argument) = left.next() {
            let mut folder = || {
                let folder = left.next().ok_or_else(|| Error::Usage(format!("{argument}: expected a folder")))?;
                std::path::absolute(folder).map(Some).map_err(|error| Error::Usage(format!("{folder}: {error}")))
            };
            match argument {
                "--pml" => options.pml = folder()?,
                "--sentence-transformers" => options.sentence_transformers = folder()?,
                "--record" => options.rest.push(argument.into()),
                "--tests" => {
                    let pattern = left.next().ok_or_else(|| Error::Usage("--tests: expected a pattern".into()))?;
                    options.rest.extend([argument.into(), (*pattern).into()]);
                }
                other => return Err(Error::Usage(format!("unexpected argument `{other}` of `peers`"))),
            }
        }
        if options.pml.is_none() && options.sentence_transformers.is_none() {
            return Err(Error::Usage("peers: expected --pml DIR, --sentence-transformers DIR, or both".into()));
        }
        Ok(options)
    }
}

/// Makes and installs the wheel, and runs the peers' tests on it.
pub fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    let python = setup::python(checkout)?;
    let installed = wheel::install(checkout, &wheel::make(checkout)?, &python)?;
    // The caller's own PYTHONPATH is where the peers' dependencies may be.
    let others = crate::checkout::variable("PYTHONPATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(installed).chain(std::env::split_paths(&others)));
    let path = path.map_err(|error| Error::Failed(error.to_string()))?;
    let mut command = Command::new(python);
    command.arg(checkout.root.join("python/peers/run.py")).args(&options.rest);
    for (name, folder) in [("--pml", &options.pml), ("--sentence-transformers", &options.sentence_transformers)] {
        if let Some(folder) = folder {
            command.arg(name).arg(folder);
        }
    }
    cargo::run(command.env("PYTHONPATH", path).env_remove("TERCET_PYTHON_LIBRARY"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--pml", "/a", "--record", "--sentence-transformers", "/b"]);
        let expected =
            Options { pml: Some("/a".into()), sentence_transformers: Some("/b".into()), rest: vec!["--record".into()] };
        assert_eq!(options.ok(), Some(expected));
        for wrong in [&[][..], &["--pml"], &["--record"], &["/a"]] {
            assert!(matches!(Options::parse(wrong), Err(Error::Usage(_))), "{wrong:?}");
        }
    }
}
