//! The package for Python: a wheel in `target/wheels`, and its own tests on it as it is installed.
//!
//! It is written by python/wheel.py, with Python's standard library: a wheel is a zip archive with its metadata in it, so
//! there is nothing for a build backend to do, and nothing to install or to fetch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::cargo::{self, cargo};
use crate::checkout::Checkout;
use crate::error::{Doing, Error, Result};
use crate::setup;

/// The variable with the architectures that kernels are compiled for.
pub const ARCHITECTURES: &str = "TERCET_CUDA_ARCHS";

/// What the command line asks for.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// Whether to install it and run its tests.
    test: bool,
    /// The Python whose PyTorch the tests run with; `None`: the one of set-up.
    python: Option<PathBuf>,
    /// A release of PyTorch that is installed for the tests.
    torch: Option<String>,
    /// What the tests are given, such as the name of one of them.
    rest: Vec<String>,
}

impl Options {
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut left = arguments.iter();
        while let Some(&argument) = left.next() {
            let mut value =
                || left.next().ok_or_else(|| Error::Usage(format!("{argument}: expected a value, got nothing")));
            match argument {
                "--test" => options.test = true,
                "--python" => options.python = Some(PathBuf::from(*value()?)),
                "--torch" => options.torch = Some((*value()?).to_string()),
                other if options.test && !other.starts_with('-') => options.rest.push(other.into()),
                other => return Err(Error::Usage(format!("unexpected argument `{other}` of `wheel`"))),
            }
        }
        if !options.test && (options.python.is_some() || options.torch.is_some()) {
            return Err(Error::Usage("--python and --torch: expected with --test alone".into()));
        }
        Ok(options)
    }
}

/// Makes the wheel and, if asked to, tests it.
pub fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    let wheel = make(checkout)?;
    if options.test {
        test(checkout, &wheel, options)?;
    }
    Ok(())
}

/// Makes the wheel in `target/wheels`; returns its path.
pub fn make(checkout: &Checkout) -> Result<PathBuf> {
    make_in(checkout, &checkout.root.join("target/wheels"), None)
}

/// Makes a wheel in a folder; returns its path. `architectures`: the devices that it is for, where the environment does not say;
/// `None`: all.
pub fn make_in(checkout: &Checkout, folder: &Path, architectures: Option<&str>) -> Result<PathBuf> {
    let start = Instant::now();
    let mut build = cargo(checkout, &["build", "--release", "-p", "tercet-python"]);
    if let Some(architectures) = architectures.filter(|_| crate::checkout::variable(ARCHITECTURES).is_none()) {
        build.env(ARCHITECTURES, architectures);
    }
    cargo::run(build.current_dir(&checkout.root))?;
    let library = target(checkout).join("release/libtercet_python.so");
    let mut pack = Command::new(setup::python(checkout)?);
    pack.arg(checkout.root.join("python/wheel.py"))
        .args([&library, Path::new(env!("CARGO_PKG_VERSION")), folder])
        .stdout(Stdio::piped());
    let output = pack.spawn().doing("start python/wheel.py")?.wait_with_output().doing("wait for python/wheel.py")?;
    cargo::check(output.status)?;
    let wheel = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let bytes = fs::metadata(&wheel).doing(format_args!("read {}", wheel.display()))?.len();
    println!("{}: {:.1} MB, after {:.0} s", checkout.show(&wheel), bytes as f64 / 1e6, start.elapsed().as_secs_f64());
    Ok(wheel)
}

/// The folder of cargo's builds.
fn target(checkout: &Checkout) -> PathBuf {
    match crate::checkout::variable("CARGO_TARGET_DIR") {
        Some(named) => checkout.root.join(named),
        None => checkout.root.join("target"),
    }
}

/// Installs a wheel into a fresh folder; returns the folder.
pub fn install(checkout: &Checkout, wheel: &Path, python: &Path) -> Result<PathBuf> {
    let folder = checkout.root.join("target/wheels/installed");
    if folder.exists() {
        fs::remove_dir_all(&folder).doing(format_args!("remove {}", folder.display()))?;
    }
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"])
        .args(["--root-user-action", "ignore", "--target"])
        .args([&folder, wheel]);
    cargo::run(&mut pip)?;
    Ok(folder)
}

/// Installs the wheel, and runs its tests on it.
fn test(checkout: &Checkout, wheel: &Path, options: &Options) -> Result<()> {
    let python = match &options.python {
        Some(python) => python.clone(),
        None => setup::python(checkout)?,
    };
    let installed = install(checkout, wheel, &python)?;
    let mut path = vec![installed];
    if let Some(release) = &options.torch {
        path.push(torch(checkout, &python, release)?);
    }
    let tests = checkout.root.join("python/tests");
    let mut unittest = Command::new(&python);
    unittest.args(["-W", "error::DeprecationWarning:tercet", "-m", "unittest"]);
    match options.rest.is_empty() {
        true => unittest.args(["discover", "-t", ".", "-s", "."]),
        false => unittest.args(&options.rest),
    };
    // Nothing of the checkout's own package is to be found: what is installed is tested.
    let path = std::env::join_paths(path).map_err(|error| Error::Failed(error.to_string()))?;
    unittest.current_dir(&tests).env("PYTHONPATH", path).env_remove("TERCET_PYTHON_LIBRARY");
    cargo::run(&mut unittest)
}

/// A folder with a release of PyTorch, for this Python; made if it is missing.
fn torch(checkout: &Checkout, python: &Path, release: &str) -> Result<PathBuf> {
    let version = Command::new(python).args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).output();
    let version = version.doing(format_args!("start {}", python.display()))?;
    cargo::check(version.status)?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_string();
    let folder = checkout.root.join(format!("target/wheels/torch-{release}-python-{version}"));
    if !folder.exists() {
        println!("installing torch {release} for Python {version} into {}, some gigabytes", checkout.show(&folder));
        let unfinished = folder.with_extension("unfinished");
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action", "ignore"])
            .args(["--target".as_ref(), unfinished.as_os_str(), format!("torch=={release}").as_ref()]);
        cargo::run(&mut pip)?;
        fs::rename(&unfinished, &folder).doing(format_args!("name {}", folder.display()))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--test", "--python", "python3.13", "--torch", "2.15.0", "test_ops"]);
        let expected = Options {
            test: true,
            python: Some("python3.13".into()),
            torch: Some("2.15.0".into()),
            rest: vec!["test_ops".into()],
        };
        assert_eq!(options.ok(), Some(expected));
        assert_eq!(Options::parse(&[]).ok(), Some(Options::default()));
        for wrong in [&["--python"][..], &["--torch", "2.15.0"], &["test_ops"], &["--tset"]] {
            assert!(matches!(Options::parse(wrong), Err(Error::Usage(_))), "{wrong:?}");
        }
    }
}
