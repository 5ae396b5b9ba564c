//! Where a libtorch and a CUDA toolkit can be used as they are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkout::variable;

/// The release of libtorch that the bindings are made for.
const LIBTORCH: &str = "2.11";

/// Whether `dir` is a libtorch that the bindings can link to; the error says what is wrong with it.
pub fn check_libtorch(dir: &Path) -> Result<(), String> {
    if dir.is_relative() {
        // Build scripts run in their own package's folder, where a relative path means something else.
        return Err(format!("it must be an absolute path, and `{}` is not", dir.display()));
    }
    if !dir.is_dir() {
        return Err(format!("there is no folder {}", dir.display()));
    }
    if !dir.join("lib/libtorch_cpu.so").is_file() {
        return Err(format!("{} has no lib/libtorch_cpu.so", dir.display()));
    }
    match libtorch_version(dir) {
        Some(version) if version == LIBTORCH || version.starts_with(&format!("{LIBTORCH}.")) => Ok(()),
        Some(version) => Err(format!("{} is libtorch {version}, and {LIBTORCH} is needed", dir.display())),
        None => Err(format!("{} does not say its version (no build-version file, no version.h)", dir.display())),
    }
}

/// From `build-version` (the libtorch archive), else from the headers.
fn libtorch_version(dir: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(dir.join("build-version")) {
        return Some(text.trim().split('+').next().unwrap_or_default().to_string());
    }
    // Newer releases moved the numbers; the old place then only includes the new one.
    ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"]
        .iter()
        .filter_map(|header| fs::read_to_string(dir.join(header)).ok())
        .find_map(|header| {
            let number = |name: &str| {
                let definition = format!("#define TORCH_VERSION_{name} ");
                header.lines().find_map(|line| Some(line.strip_prefix(&definition)?.trim().to_string()))
            };
            Some(format!("{}.{}", number("MAJOR")?, number("MINOR")?))
        })
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

/// The toolkit that `CUDA_HOME` names, checked; `None` where it is not set.
pub fn from_cuda_home() -> Option<Result<PathBuf, String>> {
    let dir = PathBuf::from(variable("CUDA_HOME")?);
    Some(check_toolkit(&dir).map(|()| dir))
}

/// The toolkit that pip puts beside a torch.
pub fn beside(torch: &Path) -> Option<PathBuf> {
    let site = torch.canonicalize().ok()?.parent()?.to_path_buf();
    Some(site.join("nvidia/cu13")).filter(|dir| check_toolkit(dir).is_ok())
}
