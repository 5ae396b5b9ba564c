//! `batch_hard`'s kernels, run by the emulator through the crate's own launches: the property test that every backend
//! takes.

use std::cell::Cell;

use tercet::batch_hard::cuda::Output as Places;
use tercet::cuda::batch::Input;
use tercet::cuda::{Address, Launcher, Memory};
use tercet::{BatchHardTripletLoss, Element, Reduction, Stats};
use tercet_emulator::{Emulator, Options};

#[path = "../../tests/support/batch_hard_property.rs"]
mod property;
#[path = "../../tests/support/mod.rs"]
mod support;

use property::{Backend, Case, Output, property};
use support::mined::Data;

/// With the detector or without.
#[derive(Default)]
struct Emulated<const DETECT: bool> {
    launches: Cell<u64>,
}

impl<const DETECT: bool> Backend for Emulated<DETECT> {
    const NAME: &'static str = if DETECT { "the emulator with its detector" } else { "the emulator" };
    const TAKES_F64: bool = false;

    fn run<T: Element>(&self, case: &Case, data: &Data<T>) -> Output<T> {
        let (rows, dim) = (case.batch.rows, case.batch.dim);
        let emulator = Emulator::new(Options { detect: DETECT, seed: case.batch.seed % 4, os_threads: 1 });
        let (x, labels) = (emulator.upload(&data.laid_out), emulator.upload(&data.labels));
        let input = Input {
            x: x.address() + (case.batch.offset * size_of::<T>()) as Address,
            stride: dim + case.batch.gap,
            labels: labels.address(),
        };
        // Fresh memory is NaN.
        let memory = |bytes: usize| emulator.allocate(bytes).expect("memory");
        let (losses, loss, stats) = (memory(rows * 4), memory(4), memory(5 * 8));
        let (positive, negative) = (memory(rows * 4), memory(rows * 4));
        let per_row = case.loss.reduction == Reduction::None;
        let places = Places {
            losses: losses.address(),
            loss: if per_row { 0 } else { loss.address() },
            positive: positive.address(),
            negative: negative.address(),
            stats: stats.address(),
        };
        let shape = [rows, dim];
        // SAFETY: buffers of the emulator, of the shapes that the call expects.
        let mined = unsafe { case.loss.forward_on::<T, _>(&emulator, shape, &input, &places) };
        let mined = mined.unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        let backward = |upstream: &[f64]| {
            let grad = memory(rows * dim * size_of::<T>());
            let upstream = emulator.upload(&upstream.iter().map(|&u| u as f32).collect::<Vec<_>>());
            let loss_fn: &BatchHardTripletLoss = &case.loss;
            // SAFETY: as above.
            let done = unsafe {
                loss_fn.backward_on::<T, _>(&emulator, shape, &mined, &input, upstream.address(), grad.address())
            };
            done.unwrap_or_else(|e| panic!("{e}\n{case:?}"));
            grad.read::<T>()
        };
        let scaled_grad = backward(&data.upstream);
        let reduced = (!per_row).then(|| (loss.read::<T::Scalar>()[0], backward(&[1.0])));
        self.launches.set(self.launches.get() + emulator.launches());
        let [valid, active, positives, negatives, _] = stats.read::<f64>()[..] else { unreachable!("five") };
        Output {
            positive: positive.read(),
            negative: negative.read(),
            losses: losses.read(),
            stats: Stats {
                valid: valid as u64,
                active: active as u64,
                mean_positive_distance: positives / valid.max(1.0),
                mean_negative_distance: negatives / valid.max(1.0),
            },
            reduced,
            scaled_grad,
        }
    }
}

fn shared_property<const DETECT: bool>(count: u32) {
    let start = std::time::Instant::now();
    let backend = Emulated::<DETECT>::default();
    property(&backend, count);
    let (name, seconds) = (Emulated::<DETECT>::NAME, start.elapsed().as_secs_f64());
    println!("batch_hard on {name}: {} launches, {seconds:.1} s", backend.launches.get());
}

#[test]
fn the_emulator_agrees_with_the_oracle() {
    shared_property::<false>(100);
}
#[test]
fn the_detector_agrees_with_the_oracle() {
    shared_property::<true>(12);
}
