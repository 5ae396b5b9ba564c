//! The C++ compiler that libtorch's bindings need.

use std::path::Path;

use crate::checkout::variable;
use crate::error::{Error, Result};

/// Finds the compiler that the build will use: `$CXX`, else `c++`.
///
/// `g++` and `clang++` alone are not enough: the build scripts ask for `c++` unless `CXX` says otherwise.
pub fn check() -> Result<()> {
    if let Some(cxx) = variable("CXX") {
        let cxx = cxx.to_string_lossy().into_owned();
        // CXX may hold a wrapper and options, as in `ccache g++`.
        let program = cxx.split_whitespace().next().unwrap_or_default();
        return if on_path(program) {
            Ok(())
        } else {
            Err(Error::Failed(format!("the C++ compiler that CXX names was not found: {cxx}")))
        };
    }
    if on_path("c++") {
        return Ok(());
    }
    Err(Error::Failed(match ["g++", "clang++"].into_iter().find(|name| on_path(name)) {
        Some(other) => format!("no `c++` on PATH, but {other} is there: set CXX={other}"),
        None => "no C++ compiler found (c++, g++, clang++ or CXX): libtorch's bindings need one.\n\
                 Install it, for example with `apt-get install g++` (Debian, Ubuntu) or `dnf install gcc-c++` (Fedora)."
            .into(),
    }))
}

fn on_path(program: &str) -> bool {
    if program.contains('/') {
        return executable(Path::new(program));
    }
    let path = variable("PATH").unwrap_or_default();
    !program.is_empty() && std::env::split_paths(&path).any(|dir| executable(&dir.join(program)))
}

fn executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
