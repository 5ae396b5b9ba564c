//! Whether a libtorch and a CUDA toolkit can be used as they are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkout::{Libtorch, variable};
use crate::releases;

/// Where pip puts the NVRTC that requirements.txt pins, in an environment's site-packages.
pub const PINNED_NVRTC: &str = "nvidia/cuda_nvrtc";

/// Whether a libtorch is of the release that is wanted and the bindings can link to it; the error says what is wrong.
pub fn check_libtorch(libtorch: &Libtorch, wanted: &str) -> Result<(), String> {
    for dir in [&libtorch.lib, &libtorch.include] {
        if dir.is_relative() {
            // Build scripts run in their own package's folder, where a relative path means something else.
            return Err(format!("it must be an absolute path, and `{}` is not", dir.display()));
        }
        if !dir.is_dir() {
            return Err(format!("there is no folder {}", dir.display()));
        }
    }
    if !libtorch.lib.join("lib/libtorch_cpu.so").is_file() {
        return Err(format!("{} has no lib/libtorch_cpu.so", libtorch.lib.display()));
    }
    match libtorch_version(libtorch) {
        Some(version) if version == wanted || version.starts_with(&format!("{wanted}.")) => Ok(()),
        Some(version) => Err(format!(
            "{} is libtorch {version}, and {wanted} is needed. Pairs that fit: {}.\n\
             Cargo.lock has the first; `cargo xtask setup --torch X` makes a workspace for another one",
            libtorch.lib.display(),
            releases::pairs()
        )),
        None => {
            Err(format!("{} does not say its version (no build-version file, no version.h)", libtorch.lib.display()))
        }
    }
}

/// The version of a libtorch, from `build-version` (the libtorch archive has it), else from the headers.
fn libtorch_version(libtorch: &Libtorch) -> Option<String> {
    if let Ok(text) = fs::read_to_string(libtorch.lib.join("build-version")) {
        return Some(text.trim().split('+').next().unwrap_or_default().to_string());
    }
    releases::release(&libtorch.include.join("include"))
}

/// Whether `dir`, a toolkit or the folder of a package of pip's, holds an NVRTC that knows all architectures of the images.
pub fn check_nvrtc(dir: &Path) -> Result<(), String> {
    let libraries = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"].map(|lib| dir.join(lib));
    // A toolkit has its release in a file's name; pip's package, whose release requirements.txt pins, has the major one alone.
    let fit = ["libnvrtc.so.13", "libnvrtc.so.12.8", "libnvrtc.so.12.9"];
    let pinned = dir.ends_with(PINNED_NVRTC) && libraries.iter().any(|lib| lib.join("libnvrtc.so.12").is_file());
    let names =
        libraries.iter().filter_map(|lib| lib.read_dir().ok()).flatten().flatten().map(|entry| entry.file_name());
    let found = names.into_iter().any(|name| fit.iter().any(|fit| name.to_string_lossy().starts_with(fit)));
    if pinned || found {
        return Ok(());
    }
    Err(format!("{} has no NVRTC of CUDA 12.8 or newer in lib64 or lib", dir.display()))
}

/// The toolkit that `CUDA_HOME` names, checked; `None` if it is not set.
pub fn from_cuda_home() -> Option<Result<PathBuf, String>> {
    let dir = PathBuf::from(variable("CUDA_HOME")?);
    Some(check_nvrtc(&dir).map(|()| dir))
}

/// The NVRTC that pip puts beside a torch: the pinned one, or torch's own.
pub fn beside(libtorch: &Libtorch) -> Option<PathBuf> {
    // `lib` may be a link, or the folder that holds it.
    let site = libtorch.lib.join("lib").canonicalize().ok()?.ancestors().nth(2)?.to_path_buf();
    [PINNED_NVRTC, "nvidia/cu13"].map(|dir| site.join(dir)).into_iter().find(|dir| check_nvrtc(dir).is_ok())
}
