//! What all tests share: the backends, property tests and records, numbers from a seed, and where files are.

pub mod backends;
pub mod cases;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub mod devices;
#[cfg(feature = "emulator")]
pub mod emulated;
#[cfg(feature = "torch")]
pub mod graph;
#[cfg(feature = "cuda")]
pub mod made_up;
#[cfg(feature = "cuda")]
pub mod process;
#[cfg(feature = "distributed")]
pub mod processes;
pub mod property;
pub mod records;
pub mod skipped;

use std::path::PathBuf;

use tercet::Element;

/// The checkout that the tests run in, which need not be where they were built.
pub fn checkout() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().expect("the package of the tests is a folder of the checkout").into()
}

/// The file `tests/data/<name>`.
pub fn data(name: &str) -> PathBuf {
    checkout().join("tests/data").join(name)
}

/// Whether records of numbers are to be written again instead of compared.
pub fn rewrite_records() -> bool {
    std::env::var_os("TERCET_REWRITE_RECORDS").is_some_and(|value| value == "1")
}

/// Room for results, filled with NaN: a number that is not written is seen.
pub fn poison<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// SplitMix64: numbers that depend on the seed alone.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
