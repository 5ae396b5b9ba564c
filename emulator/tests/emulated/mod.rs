//! The emulator, for tests that every backend takes.
#![allow(dead_code, reason = "each test uses its share")]

use std::cell::Cell;
use std::time::Instant;

use bytemuck::Pod;
use tercet_emulator::{Buffer, Emulator, Options};

use super::launches::TestDevice;

impl TestDevice for Emulator {
    type Launcher = Self;

    fn launcher(&self) -> &Self {
        self
    }

    fn upload<T: Pod>(&self, data: &[T]) -> Buffer {
        Emulator::upload(self, data)
    }

    fn read<T: Pod>(&self, memory: &Buffer, len: usize) -> Vec<T> {
        let mut all = memory.read::<T>();
        assert!(all.len() >= len, "{len} numbers of {}", all.len());
        all.truncate(len);
        all
    }
}

/// The emulator as the backend of a property test, with the detector or without.
#[derive(Default)]
pub struct Emulated<const DETECT: bool> {
    launches: Cell<u64>,
}

impl<const DETECT: bool> Emulated<DETECT> {
    pub const NAMED: &'static str = if DETECT { "the emulator with its detector" } else { "the emulator" };

    /// Runs a case on an emulator of its own; cases differ in the order of blocks and threads.
    pub fn on_its_own<R>(&self, seed: u64, run: impl FnOnce(&Emulator) -> R) -> R {
        let emulator = Emulator::new(Options { detect: DETECT, seed: seed % 4, os_threads: 1 });
        let result = run(&emulator);
        self.launches.set(self.launches.get() + emulator.launches());
        result
    }

    /// Runs a property test, and prints how many kernels it launched in how long.
    pub fn takes(what: &str, property: impl FnOnce(&Self)) {
        let (backend, start) = (Self::default(), Instant::now());
        property(&backend);
        let (launches, seconds) = (backend.launches.get(), start.elapsed().as_secs_f64());
        println!("{what} on {}: {launches} launches, {seconds:.1} s", Self::NAMED);
    }
}
