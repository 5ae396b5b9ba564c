//! Starts cargo from within a program that cargo started.

use std::env;
use std::process::{Command, ExitStatus};

use crate::checkout::{Checkout, named_libtorch, variable};
use crate::error::{Doing, Error, Result};
use crate::setup::toolkit;

/// Whether a variable is one by which `cargo run` tells the program about *its* package. A nested cargo must not hand
/// these on to other packages' tests and build scripts.
fn about_our_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || name.starts_with("CARGO_BIN_")
        || matches!(name, "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE")
}

/// A cargo command in the caller's folder, with the environment that cargo would have if the user had typed it.
pub fn cargo(checkout: &Checkout, arguments: &[&str]) -> Command {
    let mut command = Command::new(variable("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(about_our_package) {
            command.env_remove(name);
        }
    }
    if named_libtorch(checkout).is_none() {
        command.env_remove("LIBTORCH"); // cargo sets it again, from .cargo/config.toml
    }
    if toolkit::from_cuda_home().is_some_and(|found| found.is_err()) {
        command.env_remove("CUDA_HOME"); // set-up has said that it is of no use and has got the pinned NVRTC
    }
    command
}

/// A cargo command in the workspace of another torch, which is the only libtorch that it sees.
pub fn cargo_in(workspace: &Checkout, arguments: &[&str]) -> Command {
    let mut command = cargo(workspace, arguments);
    for name in ["LIBTORCH", "LIBTORCH_LIB", "LIBTORCH_INCLUDE", "LIBTORCH_USE_PYTORCH"] {
        command.env_remove(name);
    }
    command.current_dir(&workspace.root);
    command
}

/// Runs a command to its end; fails with its exit code.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().doing(format_args!("start {}", command.get_program().display()))?;
    check(status)
}

/// Fails with the exit code of a program that failed.
pub fn check(status: ExitStatus) -> Result<()> {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Error::Exit(code)),
        (None, signal) => Err(Error::Exit(128 + signal.unwrap_or(0))), // as shells report it
    }
}

#[cfg(test)]
mod tests {
    use super::about_our_package;

    #[test]
    fn only_what_describes_our_package_is_dropped() {
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_BIN_NAME", "CARGO_PRIMARY_PACKAGE"] {
            assert!(about_our_package(name), "{name}");
        }
        for name in ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_PROFILE_RELEASE_DEBUG", "PATH"] {
            assert!(!about_our_package(name), "{name}");
        }
    }
}
