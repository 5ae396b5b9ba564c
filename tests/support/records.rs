//! Numbers that a backend computed, kept in a file: what has moved beyond its bound is named.
//! `TERCET_REWRITE_RECORDS=1` writes them again. And hashes of all their bits, for `cargo xtask records`.
#![allow(dead_code, reason = "each test uses its share")]

use std::path::PathBuf;

use bytemuck::Pod;
use serde_json::{Map, Value, json};

/// One number, and how far it may move.
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub bound: f64,
}

/// What a backend computed for one case.
pub struct Record {
    pub name: String,
    /// [`Bits`] of everything that it computed.
    pub bits: u64,
    pub figures: Vec<Figure>,
}

/// A hash of numbers to the last bit: FNV-1a of 64 bits, the same with every release of Rust.
pub struct Bits(u64);

impl Default for Bits {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Bits {
    /// With these numbers after those before. Their count counts too: none passes unseen from the end of one list to the
    /// start of the next.
    pub fn and<T: Pod>(self, numbers: &[T]) -> Self {
        self.bytes(&(numbers.len() as u64).to_le_bytes()).bytes(bytemuck::cast_slice(numbers))
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
    }

    pub fn hash(&self) -> u64 {
        self.0
    }
}

/// The folder that `TERCET_RECORD_BITS` names, where `cargo xtask records` wants the hash of each case.
fn bits_folder() -> Option<PathBuf> {
    std::env::var_os("TERCET_RECORD_BITS").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Writes `<stem>-<backend>.txt` to the folder that `TERCET_RECORD_BITS` names: a line for each case, its hash and its
/// name. `false`, and nothing written, without that variable.
pub fn write_bits<'a>(stem: &str, backend: &str, cases: impl IntoIterator<Item = (u64, &'a str)>) -> bool {
    let Some(folder) = bits_folder() else { return false };
    let file = folder.join(format!("{stem}-{backend}.txt"));
    let lines: String = cases.into_iter().map(|(bits, name)| format!("{bits:016x} {name}\n")).collect();
    std::fs::write(&file, lines).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    true
}

/// Whether there is something to compare with, or something to be written.
pub fn wanted(stem: &str, backend: &str) -> bool {
    file(stem, backend).exists() || super::rewrite_records() || bits_folder().is_some()
}

/// The file with what a backend computed.
pub fn file(stem: &str, backend: &str) -> PathBuf {
    let package = super::package();
    // The emulator's package is a folder within that of the losses.
    let losses = if package.ends_with("emulator") { package.join("..") } else { package };
    losses.join(format!("tests/data/{stem}-{backend}.json"))
}

/// A device's name as part of a file name.
pub fn slug(device: &str) -> String {
    device.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

/// Which elements of a gradient of `len` numbers are recorded.
pub fn elements(len: usize) -> [usize; 3] {
    [0, len / 2, len - 1]
}

/// What is recorded of a gradient: the norm, the sum with alternating signs, and three elements.
pub fn of_gradient(which: usize, grad: &[f64]) -> [(String, f64); 5] {
    let norm = grad.iter().map(|x| x * x).sum::<f64>().sqrt();
    let sign = |at: usize| if (at * 0x9e37) >> 7 & 1 == 0 { 1.0 } else { -1.0 };
    let signed = grad.iter().enumerate().map(|(at, x)| sign(at) * x).sum();
    let [first, middle, last] = elements(grad.len()).map(|at| (format!("grads[{which}][{at}]"), grad[at]));
    [(format!("grads[{which}] norm"), norm), (format!("grads[{which}] signed"), signed), first, middle, last]
}

/// What has moved since the record of a backend was written. `TERCET_REWRITE_RECORDS=1` writes it first.
pub fn changes(stem: &str, backend: &str, all: &[Record]) -> Vec<String> {
    let file = &file(stem, backend);
    if super::rewrite_records() {
        let lines = all.iter().map(|Record { name: id, figures, .. }| {
            let figures: Map<String, Value> = figures.iter().map(|f| (f.name.clone(), json!(f.value))).collect();
            format!("{}: {}", json!(id), Value::from(figures))
        });
        std::fs::write(file, format!("{{\n{}\n}}\n", lines.collect::<Vec<_>>().join(",\n"))).unwrap();
        println!("{stem} on {backend}: {} cases written to {}", all.len(), file.display());
    }
    let text = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let record: Map<String, Value> = serde_json::from_slice(&text).unwrap();
    let mut changes = Vec::new();
    if record.len() != all.len() {
        changes.push(format!("{} has {} cases, not {}", file.display(), record.len(), all.len()));
    }
    for Record { name: id, figures, .. } in all {
        for Figure { name, value, bound } in figures {
            let Some(recorded) = record.get(id).and_then(|case| case[name].as_f64()) else {
                changes.push(format!("{id}: {name} is not in {}", file.display()));
                continue;
            };
            let moved = (value - recorded).abs();
            let still = moved <= *bound; // false for NaN
            if !still {
                changes.push(format!("{id}: {name} was {recorded:e}, is {value:e}: moved {moved:e}, bound {bound:e}"));
            }
        }
    }
    println!("{stem} on {backend}: {} cases compared with {}", all.len(), file.display());
    changes
}

/// Fails if anything has moved. With `TERCET_RECORD_BITS` the bits are written in place of that: what differs in them is to
/// be named for all losses, also if the first has moved beyond its bounds.
pub fn unchanged(stem: &str, backend: &str, all: &[Record]) {
    if write_bits(stem, backend, all.iter().map(|record| (record.bits, &*record.name))) {
        return;
    }
    let changes = changes(stem, backend, all);
    let most = &changes[..changes.len().min(20)];
    assert!(changes.is_empty(), "{stem} on {backend}, {} changes:\n{}", changes.len(), most.join("\n"));
}

/// Fails where a case does not show what is wrong with its gradients.
pub fn all_gradients_moved(changes: &[String], all: &[Record]) {
    let mut found: Vec<&str> = changes.iter().filter_map(|change| Some(change.split_once(": grads")?.0)).collect();
    found.dedup();
    assert!(!all.is_empty() && all.iter().all(|record| found.contains(&&*record.name)), "{}", changes.join("\n"));
}
