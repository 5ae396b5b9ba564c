//! Where libtorch's headers lie, and whether the autograd node and process groups can be compiled against them.

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

/// The releases of libtorch whose own objects have the sizes that the stubs of gloo's headers give them.
#[cfg(feature = "distributed")]
const GLOO_CHECKED: [&str; 3] = ["2.11", "2.12", "2.13"];

/// What to say of a libtorch whose headers in this folder do not serve for process groups; `None` if they do.
#[cfg(feature = "distributed")]
pub fn without_c10d(include: &Path) -> Option<String> {
    if !include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp").is_file() {
        return Some("libtorch was built without c10d: it has no ProcessGroupGloo.hpp".into());
    }
    if include.join("gloo/algorithm.h").is_file() {
        return None;
    }
    match release(include) {
        Some(release) if GLOO_CHECKED.contains(&release.as_str()) => None,
        release => Some(format!(
            "libtorch {} has no gloo headers of its own, and those of Tercet are for {}",
            release.as_deref().unwrap_or("of an unknown release"),
            GLOO_CHECKED.join(", ")
        )),
    }
}

/// The folders of NCCL's header and of the CUDA runtime's, or which of the two was not found. Beside libtorch lie pip's packages.
#[cfg(feature = "distributed")]
pub fn of_nccl(variable: impl Fn(&str) -> Option<OsString>, include: &Path) -> Result<[PathBuf; 2], String> {
    let beside =
        std::fs::canonicalize(include).ok().and_then(|include| Some(include.parent()?.parent()?.join("nvidia")));
    let packages = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path().join("include")).collect();
        folders.sort();
        folders
    };
    let homes = ["NCCL_HOME", "CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    let homes = homes.map(|home| PathBuf::from(home).join("include"));
    let usual = ["/usr/local/cuda/include", "/usr/include"].map(PathBuf::from);
    // First those of the CUDA that libtorch was built with.
    let beside = beside.as_deref().map(packages).unwrap_or_default();
    let folders: Vec<PathBuf> = beside.into_iter().chain(homes).chain(usual).collect();
    let find = |header: &str| {
        let found = folders.iter().find(|folder| folder.join(header).is_file()).cloned();
        found.ok_or_else(|| format!("{header} was not found: not beside libtorch, nor by NCCL_HOME and CUDA_HOME"))
    };
    Ok([find("cuda_runtime.h")?, find("nccl.h")?])
}
