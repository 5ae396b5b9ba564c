//! Whether a libtorch and a CUDA toolkit can be used as they are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkout::{Libtorch, variable};
use crate::releases;

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

/// Whether `dir` holds an NVRTC of CUDA 13 and the headers that kernels include.
pub fn check_toolkit(dir: &Path) -> Result<(), String> {
    let libraries = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    if !libraries.iter().any(|lib| dir.join(lib).join("libnvrtc.so.13").is_file()) {
        return Err(format!("{} has no libnvrtc.so.13 in lib64 or lib", dir.display()));
    }
    let includes = ["include", "targets/x86_64-linux/include", "targets/sbsa-linux/include"];
    if !includes.iter().any(|include| dir.join(include).join("cuda_fp16.h").is_file()) {
        return Err(format!("{} has no include/cuda_fp16.h", dir.display()));
    }
    Ok(())
}

/// The toolkit that `CUDA_HOME` names, checked; `None` if it is not set.
pub fn from_cuda_home() -> Option<Result<PathBuf, String>> {
    let dir = PathBuf::from(variable("CUDA_HOME")?);
    Some(check_toolkit(&dir).map(|()| dir))
}

/// The toolkit that pip puts beside a torch.
pub fn beside(libtorch: &Libtorch) -> Option<PathBuf> {
    // `lib` may be a link, or the folder that holds it.
    let site = libtorch.lib.join("lib").canonicalize().ok()?.ancestors().nth(2)?.to_path_buf();
    Some(site.join("nvidia/cu13")).filter(|dir| check_toolkit(dir).is_ok())
}
