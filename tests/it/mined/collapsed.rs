//! Embeddings of an encoder that is not trained yet: the cosines of all rows are near 1.

use std::fmt::Debug;

use tercet::{BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, Distance};
use tercet_emulator::{Emulator, Options};

use super::Mined;
use super::launches::{OnDevice, mine};
use crate::support::Numbers;

const ROWS: usize = 320;
const DIM: usize = 16;

/// `mean` + `spread` times a normal number, for each element.
fn rows(mean: f64, spread: f64) -> Vec<f32> {
    let mut numbers = Numbers(5);
    let mut normal = || (0..12).map(|_| numbers.unit()).sum::<f64>() - 6.0;
    (0..ROWS * DIM).map(|_| (mean + spread * normal()) as f32).collect()
}

/// The accesses to shared and to global memory of a step, and those of the kernel that takes what a sweep leaves.
fn accesses<L: Mined + Debug>(loss: &L, x: &[f32]) -> [u64; 2] {
    // A device of compute capability 9.0.
    let emulator = Emulator::new(Options { detect: true, seed: 2, ..Options::default() });
    let labels: Vec<i64> = (0..ROWS as i64).map(|i| i * 7 % (ROWS as i64 / 8)).collect();
    let batch = OnDevice::itself(&emulator, x, DIM, &labels);
    let mined = mine::<f32, _, _>(&emulator, loss, &batch, 0, &[&[1.0]]);
    assert!(mined.loss.is_finite() && mined.grads[0][0].iter().all(|g| g.is_finite()), "{loss:?}");
    let (mut all, mut left) = (0, 0);
    for work in emulator.take_work() {
        let accesses = work.traffic.reads + work.traffic.writes;
        all += accesses;
        left += if work.kernel.is_some_and(|kernel| kernel.contains("_left_")) { accesses } else { 0 };
    }
    [all, left]
}

fn at_most_three_times<L: Mined + Debug>(loss: &L) {
    let [random, of_left] = accesses(loss, &rows(0.0, 1.0));
    let [collapsed, left] = accesses(loss, &rows(1.0, 0.05));
    println!(
        "{}: {collapsed} accesses of collapsed rows, {random} of random ones: {:.2}; by what a sweep leaves {left} and {of_left}",
        L::STEM,
        collapsed as f64 / random as f64
    );
    assert!(collapsed <= 3 * random && left <= 3 * of_left, "{loss:?}");
}

/// They take no path of their own: the time of a step is that of any other rows.
#[test]
fn collapsed_rows_are_ordinary() {
    let normalize = true;
    at_most_three_times(&BatchAllTripletLoss { normalize, ..Default::default() });
    let distance = Distance::Cosine;
    at_most_three_times(&BatchAllTripletLoss { distance, ..Default::default() });
    at_most_three_times(&BatchContrastiveLoss { distance, ..Default::default() });
    at_most_three_times(&BatchHardTripletLoss { normalize, ..Default::default() });
}
