//! Where libtorch's headers lie, and whether the autograd node can be compiled against them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::releases::{PAIRS, pairs, release};

/// The folder of headers that torch-sys takes, by the variables that it reads; `lib` is the folder of libraries that it
/// names. `variable` is `std::env::var_os`.
pub fn folder(variable: impl Fn(&str) -> Option<OsString>, lib: &Path) -> PathBuf {
    let beside = lib.parent().unwrap_or(lib).join("include");
    if variable("LIBTORCH_USE_PYTORCH").is_some() {
        return beside; // torch-sys asks Python then, and reads none of the others
    }
    let named = ["LIBTORCH_INCLUDE", "LIBTORCH"].into_iter().find_map(variable);
    named.map_or(beside, |folder| PathBuf::from(folder).join("include"))
}

/// What to say of headers in this folder that Tercet cannot be compiled against; `None` if it can.
pub fn unfit(include: &Path) -> Option<String> {
    let shown = include.display();
    if !include.join("torch/csrc/autograd/function.h").is_file() {
        return Some(format!(
            "no autograd headers in {shown}: LIBTORCH must name a complete libtorch, headers included, or \
             LIBTORCH_INCLUDE the folder that holds its `include`"
        ));
    }
    match release(include) {
        Some(release) if PAIRS.iter().any(|pair| pair.libtorch == release) => None,
        Some(release) => Some(format!(
            "{shown} is of libtorch {release}, which does not fit: Tercet takes {} \
             (LIBTORCH_BYPASS_VERSION_CHECK=1 tries it all the same)",
            pairs()
        )),
        None => Some(format!("{shown} does not say its release: Tercet takes {}", pairs())),
    }
}
