//! Numbers that a backend computed, kept in a file: what has moved beyond its bound is named.
//! `TERCET_REWRITE_RECORDS=1` writes them again. And hashes of all their bits, for `cargo xtask records`.

use std::marker::PhantomData;
use std::path::PathBuf;

use bytemuck::Pod;
use serde_json::{Map, Value, json};
use tercet::Element;

use super::backends::{Backend, Cpu, EachDtype, Number, Operation, each_dtype};
#[cfg(feature = "cuda")]
use super::cuda::Cuda;
#[cfg(feature = "cuda")]
use super::skipped::skipped;

/// One number, and how far it may move.
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub bound: f64,
}

/// What a backend computed for one case.
struct Record {
    name: String,
    /// [`Bits`] of everything that it computed.
    bits: u64,
    figures: Vec<Figure>,
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
fn write_bits<'a>(stem: &str, backend: &str, cases: impl IntoIterator<Item = (u64, &'a str)>) -> bool {
    let Some(folder) = bits_folder() else { return false };
    let file = folder.join(format!("{stem}-{backend}.txt"));
    let lines: String = cases.into_iter().map(|(bits, name)| format!("{bits:016x} {name}\n")).collect();
    std::fs::write(&file, lines).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    true
}

/// Whether there is something to compare with, or something to be written.
#[cfg(feature = "cuda")]
fn wanted(stem: &str, backend: &str) -> bool {
    file(stem, backend).exists() || super::rewrite_records() || bits_folder().is_some()
}

/// The file with what a backend computed.
fn file(stem: &str, backend: &str) -> PathBuf {
    super::data(&format!("{stem}-{backend}.json"))
}

/// A device's name as part of a file name.
#[cfg(feature = "cuda")]
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
fn changes(stem: &str, backend: &str, all: &[Record]) -> Vec<String> {
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

/// An operation with cases that are the same for ever.
pub trait Listed: Operation {
    /// The cases with their names and numbers; those on devices may have lower precision.
    fn listed<T: Number>(on_device: bool) -> Vec<(String, Self::Case, Self::Data<T>)>;
    /// [`Bits`] of everything that a backend returned.
    fn bits<T: Number>(output: &Self::Output<T>) -> u64;
}

/// An operation whose results for its listed cases are in files.
pub trait Recorded: Listed {
    /// What is recorded of a case.
    fn figures<T: Number>(case: &Self::Case, data: &Self::Data<T>, output: &Self::Output<T>) -> Vec<Figure>;
    /// The gradients among the results.
    fn gradients<T: Number>(output: &mut Self::Output<T>) -> &mut [Vec<T>];
}

/// What a backend computes, case by case, with its gradients multiplied by `factor`.
fn all_records<R: Recorded, B: Backend>(backend: &B, factor: f64) -> Vec<Record> {
    struct Records<'a, R, B> {
        backend: &'a B,
        factor: f64,
        operation: PhantomData<R>,
    }
    impl<R: Recorded, B: Backend> EachDtype for Records<'_, R, B> {
        type Result = Vec<Record>;
        fn of<T: Number>(&self) -> Vec<Record> {
            let one = |(name, case, data)| {
                let mut output = self.backend.run::<R, T>(&case, &data);
                if self.factor != 1.0 {
                    let gradients = R::gradients(&mut output).iter_mut().flatten();
                    gradients.for_each(|x| *x = T::from_f64(x.to_f64() * self.factor));
                }
                Record { name, bits: R::bits(&output), figures: R::figures(&case, &data, &output) }
            };
            R::listed(B::IS_DEVICE).into_iter().map(one).collect()
        }
    }
    each_dtype::<R, B, _>(&Records { backend, factor, operation: PhantomData::<R> }).into_iter().flatten().collect()
}

/// Fails if anything has moved since the record `of` a backend was written. With `TERCET_RECORD_BITS` the bits are written
/// in place of that: what differs in them is to be named for all losses, also if the first has moved beyond its bounds.
pub fn unchanged<R: Recorded, B: Backend>(backend: &B, of: &str) {
    let (stem, all) = (R::STEM, all_records::<R, B>(backend, 1.0));
    if write_bits(stem, of, all.iter().map(|record| (record.bits, &*record.name))) {
        return;
    }
    let changes = changes(stem, of, &all);
    let most = &changes[..changes.len().min(20)];
    assert!(changes.is_empty(), "{stem} on {of}, {} changes:\n{}", changes.len(), most.join("\n"));
}

/// As [`unchanged`] on a device, if that was recorded or anything is to be written now.
#[cfg(feature = "cuda")]
pub fn unchanged_on_cuda<R: Recorded>(cuda: &Cuda) {
    let name = slug(&cuda.name());
    if !wanted(R::STEM, &name) {
        skipped(&format!("nothing recorded on {name}: {}: cuda_computes_what_it_did", R::STEM));
        return;
    }
    unchanged::<R, _>(cuda, &name);
}

/// Fails unless every case of the CPU's record shows gradients that are a twentieth too large; `count` of cases.
pub fn finds_what_is_wrong<R: Recorded>(count: Option<usize>) {
    if super::rewrite_records() {
        return; // wrong gradients would be recorded
    }
    let all = all_records::<R, _>(&Cpu, 1.05);
    assert!(count.is_none_or(|count| count == all.len()), "{} cases", all.len());
    all_gradients_moved(&changes(R::STEM, "cpu", &all), &all);
}

/// Fails if a backend computes other bits than another way of running the same code; otherwise they are written where
/// `TERCET_RECORD_BITS` says.
pub fn same_bits<L: Listed, B: Backend, C: Backend>(backend: &B, other_way: &C, of: &str) {
    struct Both<'a, L, B, C> {
        backend: &'a B,
        other_way: &'a C,
        operation: PhantomData<L>,
    }
    impl<L: Listed, B: Backend, C: Backend> EachDtype for Both<'_, L, B, C> {
        type Result = Vec<(u64, String)>;
        fn of<T: Number>(&self) -> Self::Result {
            let one = |(name, case, data)| {
                let bits = L::bits(&self.backend.run::<L, T>(&case, &data));
                let others = L::bits(&self.other_way.run::<L, T>(&case, &data));
                assert_eq!(bits, others, "{} and {}: {name}", B::NAME, C::NAME);
                (bits, name)
            };
            L::listed(B::IS_DEVICE).into_iter().map(one).collect()
        }
    }
    let each = Both { backend, other_way, operation: PhantomData::<L> };
    let cases = each_dtype::<L, B, _>(&each).concat();
    write_bits(L::STEM, of, cases.iter().map(|(bits, name)| (*bits, &**name)));
}

/// As [`same_bits`] on a device that computes everything twice.
#[cfg(feature = "cuda")]
pub fn same_bits_on_cuda<L: Listed>(cuda: &Cuda) {
    same_bits::<L, _, _>(cuda, cuda, &slug(&cuda.name()));
}

/// Numbers as f64.
pub fn wide<A: Element>(numbers: &[A]) -> Vec<f64> {
    numbers.iter().map(|x| x.to_f64()).collect()
}

/// Fails where a case does not show what is wrong with its gradients.
fn all_gradients_moved(changes: &[String], all: &[Record]) {
    let mut found: Vec<&str> = changes.iter().filter_map(|change| Some(change.split_once(": grads")?.0)).collect();
    found.dedup();
    assert!(!all.is_empty() && all.iter().all(|record| found.contains(&&*record.name)), "{}", changes.join("\n"));
}
