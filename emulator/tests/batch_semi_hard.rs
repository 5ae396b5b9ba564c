//! `batch_semi_hard`'s kernels, run by the emulator through the crate's own launches: the property test that every
//! backend takes.

use std::cell::Cell;

use tercet::Element;
use tercet_emulator::{Emulator, Options};

mod emulated;
#[path = "../../tests/support/launches.rs"]
mod launches;
#[path = "../../tests/support/triplets_device.rs"]
mod on_device;
#[path = "../../tests/support/triplets_property.rs"]
mod property;
#[path = "../../tests/support/mod.rs"]
mod support;

use on_device::run_case;
use property::{Backend, Case, Output, property, semi_hard_cases};
use support::mined::Data;

/// The emulator as a backend, with the detector or without.
#[derive(Default)]
struct Emulated<const DETECT: bool> {
    launches: Cell<u64>,
}

impl<const DETECT: bool> Backend for Emulated<DETECT> {
    const NAME: &'static str = if DETECT { "the emulator with its detector" } else { "the emulator" };
    const TAKES_F64: bool = false;

    fn run<T: Element>(&self, case: &Case, data: &Data<T>, pairs: &[[u32; 2]]) -> Output<T> {
        let emulator = Emulator::new(Options { detect: DETECT, seed: case.batch.seed % 4, os_threads: 1 });
        let output = run_case(&emulator, case, data, pairs);
        self.launches.set(self.launches.get() + emulator.launches());
        output
    }
}

fn shared_property<const DETECT: bool>(count: u32) {
    let start = std::time::Instant::now();
    let backend = Emulated::<DETECT>::default();
    property(&backend, semi_hard_cases(support::mined::PRECISIONS, 130), count);
    let (name, seconds) = (Emulated::<DETECT>::NAME, start.elapsed().as_secs_f64());
    println!("batch_semi_hard on {name}: {} launches, {seconds:.1} s", backend.launches.get());
}

#[test]
fn the_emulator_agrees_with_the_oracle() {
    shared_property::<false>(30);
}
#[test]
fn the_detector_agrees_with_the_oracle() {
    shared_property::<true>(3);
}
