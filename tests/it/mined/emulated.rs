//! What holds for every mined loss on the emulator: the same bits under any schedule, NaN for a distance that is no
//! number, and a refused allocation harms nothing.

use std::fmt::Debug;

use tercet::internal::OnDevice as Mined;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Distance, Negative, Negatives,
};
use tercet_emulator::{Emulator, Options};

use super::launches::{OnDevice, mine};
use super::refusing;
use crate::support::Numbers;

#[test]
fn a_refused_allocation_harms_nothing() {
    let emulator = Emulator::new(Options { detect: true, ..Options::default() });
    let refused = [
        refusing::at_each_allocation(&emulator, &BatchAllTripletLoss::default()),
        refusing::at_each_allocation(&emulator, &BatchHardTripletLoss::default()),
        refusing::at_each_allocation(&emulator, &BatchSemiHardTripletLoss::default()),
        refusing::at_each_allocation(&emulator, &BatchNegativeTripletLoss::default()),
        refusing::at_each_allocation(&emulator, &BatchContrastiveLoss::default()),
    ];
    assert!(refused.iter().all(|&refused| refused > 2), "{refused:?}");
}

fn uniform(rows: usize, dim: usize) -> Vec<f32> {
    let mut numbers = Numbers(3);
    (0..rows * dim).map(|_| 3.0 + numbers.unit() as f32).collect()
}

/// The same bits whatever the order of the blocks and the number of threads, also of what is drawn at random.
fn same_bits<L: Mined + Debug>(loss: &L) {
    let (rows, dim) = (150usize, 20usize);
    let x = uniform(rows, dim);
    // Small classes and a large one.
    let labels: Vec<i64> = (0..rows as i64).map(|i| if i % 3 == 0 { -1 } else { i % 20 }).collect();
    let run = |seed: u64| {
        let emulator = Emulator::new(Options { detect: false, seed, os_threads: 1 + seed as usize % 2 });
        let mined = mine::<f32, _, _>(&emulator, loss, &OnDevice::itself(&emulator, &x, dim, &labels), 0, &[&[1.0]]);
        (mined.loss, mined.stats, mined.grads)
    };
    let first = run(0);
    assert!(first.0 > 0.0 && first.2[0][0].iter().any(|g| *g != 0.0), "{loss:?}: {}", first.0);
    for seed in 1..6 {
        assert!(run(seed) == first, "{loss:?}: other bits with seed {seed}");
    }
}

#[test]
fn the_same_bits_under_every_schedule() {
    let margin = 1.0;
    same_bits(&BatchHardTripletLoss { margin, ..Default::default() });
    same_bits(&BatchAllTripletLoss { margin, ..Default::default() });
    same_bits(&BatchSemiHardTripletLoss { margin, ..Default::default() });
    for negative in [Negative::Hardest, Negative::Random, Negative::SemiHard] {
        same_bits(&BatchNegativeTripletLoss { margin, negative, seed: 1, ..Default::default() });
    }
    for negatives in [Negatives::All, Negatives::Hardest] {
        same_bits(&BatchContrastiveLoss { margin: 2.0, negatives, ..Default::default() });
    }
}

fn not_a_number<L: Mined + Debug>(loss: &L) {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for labels in [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]] {
            let mut x: Vec<f32> = (0..15).map(|i| (i as f32).sin()).collect();
            x[7] = bad;
            let emulator = Emulator::new(Options::default());
            let mined = mine::<f32, _, _>(&emulator, loss, &OnDevice::itself(&emulator, &x, 3, &labels), 0, &[&[1.0]]);
            let grad = &mined.grads[0][0];
            assert!(mined.loss.is_nan() && grad[6..9].iter().all(|g| g.is_nan()), "{loss:?}, {bad}, {labels:?}");
        }
    }
}

/// The distances of a positive and of all negatives overflow f32.
fn overflow<L: Mined + Debug>(loss: &L) {
    let emulator = Emulator::new(Options::default());
    let batch = OnDevice::itself(&emulator, &[-1e20f32, 1e20, 0.0, 0.0], 1, &[0, 0, 1, 1]);
    let mined = mine::<f32, _, _>(&emulator, loss, &batch, 0, &[&[1.0]]);
    assert!(!mined.loss.is_finite(), "{loss:?}: {}", mined.loss);
}

#[test]
fn nan_infinity_and_overflow_are_seen() {
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        let overflows = distance == Distance::SquaredEuclidean;
        macro_rules! check {
            ($($loss:expr),*) => {$(
                let loss = $loss;
                not_a_number(&loss);
                if overflows {
                    overflow(&loss);
                }
            )*};
        }
        check!(
            BatchHardTripletLoss { distance, ..Default::default() },
            BatchAllTripletLoss { distance, ..Default::default() },
            BatchSemiHardTripletLoss { distance, ..Default::default() },
            BatchNegativeTripletLoss { distance, negative: Negative::Hardest, ..Default::default() },
            BatchNegativeTripletLoss { distance, negative: Negative::Random, ..Default::default() },
            BatchNegativeTripletLoss { distance, ..Default::default() },
            BatchContrastiveLoss { distance, ..Default::default() },
            BatchContrastiveLoss { distance, negatives: Negatives::Hardest, ..Default::default() }
        );
    }
}
