//! Shared libraries that a test makes up: drivers with other devices, a compiler of another release.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Compiles C to the shared library `folder/name`, whose name is also its soname.
pub fn shared_object(folder: &Path, name: &str, source: &str) {
    let file = folder.join(format!("{name}.c"));
    fs::write(&file, source).unwrap();
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut words = compiler.split_whitespace();
    let output = Command::new(words.next().expect("a compiler"))
        .args(words)
        .args(["-x", "c", "-shared", "-fPIC", "-w"])
        .arg(format!("-Wl,-soname,{name}"))
        .arg("-o")
        .arg(folder.join(name))
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The source of a driver for this release of CUDA, with devices of these compute capabilities.
pub fn driver(version: u32, capabilities: &[(u32, u32)]) -> String {
    let list = |of: fn(&(u32, u32)) -> u32| {
        let numbers: Vec<String> = capabilities.iter().map(|capability| of(capability).to_string()).collect();
        format!("{{{}, 0}}", numbers.join(", "))
    };
    format!(
        "
        static int major[] = {}, minor[] = {};
        int cuInit(unsigned flags) {{ return 0; }}
        int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
        int cuDeviceGetCount(int *count) {{ *count = {}; return 0; }}
        int cuDeviceGet(int *device, int ordinal) {{ *device = ordinal; return 0; }}
        int cuDeviceGetName(char *name, int size, int device) {{ __builtin_strcpy(name, \"GPU A\"); return 0; }}
        int cuDeviceGetAttribute(int *value, int what, int device) {{
            *value = what == 75 ? major[device] : what == 76 ? minor[device] : 0;
            return 0;
        }}",
        list(|capability| capability.0),
        list(|capability| capability.1),
        capabilities.len(),
    )
}

/// The source of a driver without a device: each call returns `status`.
pub fn refusing(status: u32) -> String {
    ["cuInit", "cuDeviceGetCount", "cuDriverGetVersion", "cuGetErrorString", "cuGetErrorName", "cuDeviceGet"]
        .iter()
        .map(|name| format!("int {name}() {{ return {status}; }}\n"))
        .collect()
}

/// Compiles `source` as the driver of programs that look for libraries in `folder` first.
pub fn as_driver(folder: &Path, source: &str) {
    // The second name is the driver's own; cudarc tries the first one before.
    for name in ["libcuda.so", "libcuda.so.1"] {
        shared_object(folder, name, source);
    }
}
