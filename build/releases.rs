//! Which releases of libtorch and tch go together, and which release some headers are of. Also part of xtask.

use std::fs;
use std::path::Path;

/// A release of libtorch, and the release of tch whose bindings compile against it.
pub struct Pair {
    pub libtorch: &'static str,
    pub tch: &'static str,
}

/// The pairs that Tercet works with, first the one in `Cargo.lock`. tch 0.24 is made for libtorch 2.11 and 0.26 for
/// 2.13; 0.25 was never released, and both compile against 2.12.
pub const PAIRS: [Pair; 3] = [
    Pair { libtorch: "2.11", tch: "0.24" },
    Pair { libtorch: "2.12", tch: "0.24" },
    Pair { libtorch: "2.13", tch: "0.26" },
];

/// [`PAIRS`] as a message has them.
pub fn pairs() -> String {
    let pairs: Vec<String> =
        PAIRS.iter().map(|pair| format!("libtorch {} with tch {}", pair.libtorch, pair.tch)).collect();
    pairs.join(", ")
}

/// The release of libtorch that the headers in this folder are of, such as `2.11`.
pub fn release(include: &Path) -> Option<String> {
    // Newer releases moved the numbers; the old place then only includes the new one.
    ["torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"]
        .iter()
        .filter_map(|header| fs::read_to_string(include.join(header)).ok())
        .find_map(|header| {
            let number = |name: &str| {
                let definition = format!("#define TORCH_VERSION_{name} ");
                header.lines().find_map(|line| Some(line.strip_prefix(&definition)?.trim().to_string()))
            };
            Some(format!("{}.{}", number("MAJOR")?, number("MINOR")?))
        })
}
