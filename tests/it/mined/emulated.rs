//! What holds for every mined loss on the emulator: the same bits under any schedule, NaN for a distance that is no
//! number, and a refused allocation harms nothing.

use std::fmt::Debug;

use tercet::internal::OnDevice as Mined;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Distance, MinedLoss, Negative, Negatives, Reduction,
};
use tercet_emulator::{Emulator, Options};

use super::batch::{Batch, Content, Data, Labelling, OwnRows, Set};
use super::launches::{OnDevice, mine};
use super::{OnSlices, refusing};
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
    assert_eq!(refused, [2, 2, 2, 2, 2]);
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
    // Of one device: others may add up in another order.
    let run = |seed: u64| {
        let mut emulator = Emulator::new(Options { detect: false, seed, os_threads: 1 + seed as usize % 2 });
        *emulator.properties_mut() = Emulator::new(Options::default()).properties_mut().clone();
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

/// The same loss and gradients as on the CPU, for batches of more rows than one block scans, ranks or counts.
fn as_on_the_cpu<L: MinedLoss + Mined + Copy + Debug>(loss: L, references: &[Option<Set>]) {
    for &reference in references {
        let (content, labelling) = (Content::Lattice { offset: 0.0 }, Labelling::Random { each: 8 });
        let batch = Batch { rows: 1030, dim: 9, gap: 1, offset: 1, content, labelling, seed: 5, reference };
        let data = Data::<f32>::new(&batch, Reduction::Mean);
        let (expected, expected_grads) = OnSlices::new(loss, &batch, &data).reduced();
        let emulator = Emulator::new(Options { seed: 2, ..Options::default() });
        let mined = mine::<f32, _, _>(&emulator, &loss, &OnDevice::new(&emulator, &batch, &data), 0, &[&[1.0]]);
        assert!((mined.loss - expected).abs() <= 1e-6 * expected, "{loss:?}: {} for {expected}", mined.loss);
        for (grad, expected) in mined.grads[0].iter().zip(&expected_grads) {
            let largest = expected.iter().fold(0f32, |largest, g| largest.max(g.abs()));
            let error = grad.iter().zip(expected).map(|(g, e)| (g - e).abs()).fold(0f32, f32::max);
            assert!(error <= 1e-5 * largest, "{loss:?}: a gradient is off by {error} of {largest}");
        }
    }
}

#[test]
fn many_rows_are_as_on_the_cpu() {
    let (margin, itself, set) = (3.0, [None], [Some(Set { rows: 1100, own: OwnRows::Rows })]);
    as_on_the_cpu(BatchAllTripletLoss { margin, ..Default::default() }, &itself);
    as_on_the_cpu(BatchSemiHardTripletLoss { margin, ..Default::default() }, &set);
    as_on_the_cpu(BatchNegativeTripletLoss { margin, negative: Negative::Hardest, ..Default::default() }, &itself);
    as_on_the_cpu(BatchContrastiveLoss { margin, negatives: Negatives::Hardest, ..Default::default() }, &itself);
}

/// What is launched for rows of two numbers, in pairs of one class; and no memory is filled, because kernels that run
/// anyway write the zeros.
fn launched<L: Mined + Debug>(loss: &L, rows: usize) -> Vec<String> {
    let emulator = Emulator::new(Options::default());
    let labels: Vec<i64> = (0..rows as i64).map(|i| i / 2).collect();
    let batch = OnDevice::itself(&emulator, &uniform(rows, 2), 2, &labels);
    mine::<f32, _, _>(&emulator, loss, &batch, 0, &[&[1.0]]);
    let work = emulator.take_work().into_iter().map(|work| work.kernel.expect("no fill"));
    let mut kernels: Vec<String> = work.collect();
    // `mine` ends with a forward pass without gradients.
    let first = ["batch_order", "batch_runs", "batch_prepare"];
    let second = kernels.iter().rposition(|kernel| first.iter().any(|first| kernel.starts_with(first)));
    kernels.truncate(second.expect("a second pass"));
    kernels
}

#[test]
fn launches_are_few_and_nothing_is_filled() {
    let prepared = ["batch_order", "batch_survey_f32", "batch_nearest_f32", "batch_gather_f32_highest"];
    let hard = BatchHardTripletLoss::default();
    let (mined, backward) =
        (["batch_hard_negatives_highest_narrow", "batch_hard_finish_f32"], "batch_hard_backward_f32");
    let forward = [&prepared[..], &mined].concat();
    assert_eq!(launched(&hard, 1024), [&["batch_prepare_f32_highest"], &mined[..], &[backward]].concat());
    assert_eq!(launched(&hard, 2048), [&forward[..], &[backward]].concat());
    assert_eq!(
        launched(&hard, 2049),
        [&forward[..], &["batch_hard_runs", "batch_hard_links", "batch_hard_hubs_f32", backward]].concat()
    );
    let counts = [
        launched(&BatchAllTripletLoss::default(), 64).len(),
        launched(&BatchSemiHardTripletLoss::default(), 64).len(),
        launched(&BatchNegativeTripletLoss::default(), 64).len(),
        launched(&BatchContrastiveLoss::default(), 64).len(),
        launched(&BatchContrastiveLoss { negatives: Negatives::Hardest, ..Default::default() }, 64).len(),
    ];
    assert_eq!(counts, [5, 5, 6, 6, 16]);
}
