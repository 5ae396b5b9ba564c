//! The emulator, for tests that every backend takes.

use std::cell::Cell;
use std::time::Instant;

use bytemuck::Pod;
use tercet_emulator::{Buffer, Emulator, Options};

use super::backends::{Backend, Number, Operation};
use super::devices::TestDevice;

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

/// An emulator for each case, with the detector or without; cases differ in the order of blocks and threads.
#[derive(Default)]
pub struct Emulated<const DETECT: bool> {
    launches: Cell<u64>,
}

impl<const DETECT: bool> Emulated<DETECT> {
    /// Runs a property test, and prints how many kernels it launched in how long.
    pub fn takes<O: Operation>(property: impl FnOnce(&Self)) {
        let (backend, start) = (Self::default(), Instant::now());
        property(&backend);
        let (launches, seconds) = (backend.launches.get(), start.elapsed().as_secs_f64());
        println!("{} on {}: {launches} launches, {seconds:.1} s", O::STEM, Self::NAME);
    }
}

impl<const DETECT: bool> Backend for Emulated<DETECT> {
    const NAME: &'static str = if DETECT { "the emulator with its detector" } else { "the emulator" };
    const IS_DEVICE: bool = true;
    const LARGEST: usize = 130;

    fn run<O: Operation, T: Number>(&self, case: &O::Case, data: &O::Data<T>) -> O::Output<T> {
        let emulator = Emulator::new(Options { detect: DETECT, seed: O::seed(case) % 4, os_threads: 1 });
        let output = O::on_device(&emulator, case, data);
        self.launches.set(self.launches.get() + emulator.launches());
        output
    }
}

/// Blocks and threads in an order of their own: 0 forwards, 1 backwards.
pub struct Ordered(pub u64);

impl Backend for Ordered {
    const NAME: &'static str = "an order on the emulator";
    const IS_DEVICE: bool = true;

    fn run<O: Operation, T: Number>(&self, case: &O::Case, data: &O::Data<T>) -> O::Output<T> {
        O::on_device(&Emulator::new(Options { detect: false, seed: self.0, os_threads: 1 }), case, data)
    }
}
