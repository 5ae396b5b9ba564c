//! `batch_contrastive` on the emulator: schedules, lower precision, and what is not finite or too large.

use tercet::batch_contrastive::oracle;
use tercet::{BatchContrastiveLoss, Distance, Matrix, Negatives, Precision, Reduction};
use tercet_emulator::{Emulator, Options};

use crate::mined::bounds::Bounds;
use crate::mined::launches::{OnDevice, mine};
use crate::support::Numbers;
use crate::support::property::Worst;

fn uniform(rows: usize, dim: usize) -> Vec<f32> {
    let mut numbers = Numbers(3);
    (0..rows * dim).map(|_| 3.0 + numbers.unit() as f32).collect()
}

/// The same bits whatever the order of the blocks and the number of threads that run them.
#[test]
fn the_same_bits_under_every_schedule() {
    let (rows, dim) = (150usize, 20usize);
    let labels: Vec<i64> = (0..rows as i64).map(|i| if i % 3 == 0 { -1 } else { i % 20 }).collect();
    // Integers too: most of their distances are shared by several pairs.
    let integers: Vec<f32> = uniform(rows, dim).iter().map(|x| x.round()).collect();
    for (x, negatives) in
        [(uniform(rows, dim), Negatives::All), (uniform(rows, dim), Negatives::Hardest), (integers, Negatives::Hardest)]
    {
        let loss_fn = BatchContrastiveLoss { margin: 3.0, negatives, ..Default::default() };
        // Of one device: others may add up in another order.
        let results = (0..6u64).map(|seed| {
            let mut emulator = Emulator::new(Options { detect: false, seed, os_threads: 1 + seed as usize % 2 });
            *emulator.properties_mut() = Emulator::new(Options::default()).properties_mut().clone();
            let batch = OnDevice::itself(&emulator, &x, dim, &labels);
            let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, 0, &[&[1.0]]);
            (mined.loss, mined.losses, mined.stats, mined.grads)
        });
        let results: Vec<_> = results.collect();
        assert!(results[0].0 > 0.0);
        assert!(results.iter().all(|result| *result == results[0]), "{negatives:?}");
    }
}

/// Many pairs tie with the last of the hardest: those of the lowest anchors are taken, then those with the lowest rows.
#[test]
fn ties_are_taken_in_the_given_order() {
    // Batches with different numbers of positive pairs, so that the last of the hardest pairs differs.
    for rows in [70usize, 100, 131] {
        let mut numbers = Numbers(rows as u64);
        let x: Vec<f32> = (0..rows).map(|_| numbers.below(3) as f32).collect();
        let labels: Vec<i64> = (0..rows).map(|_| numbers.below(rows / 3) as i64).collect();
        let loss_fn = BatchContrastiveLoss {
            margin: 1.0,
            negatives: Negatives::Hardest,
            reduction: Reduction::None,
            ..Default::default()
        };
        let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let matrix = Matrix::new(&exact, 1).expect("whole rows");
        let expected = oracle::run(&loss_fn, matrix, &labels, &[1.0], None).expect("valid");
        let emulator = Emulator::new(Options { detect: true, ..Options::default() });
        let batch = OnDevice::itself(&emulator, &x, 1, &labels);
        let upstream = vec![1.0; rows];
        let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, 0, &[&upstream]);
        let losses: Vec<f64> = mined.losses.iter().map(|&loss| f64::from(loss)).collect();
        assert_eq!(losses, expected.losses, "{rows}");
        assert_eq!(mined.stats.valid, expected.stats.valid);
    }
}

/// With NaN, infinity or distances that overflow the loss is not finite, and the gradients of their rows are NaN.
#[test]
fn what_is_not_finite_is_seen() {
    let labels: Vec<i64> = (0..70).map(|i| i % 9).collect();
    for negatives in [Negatives::All, Negatives::Hardest] {
        let loss_fn = BatchContrastiveLoss { negatives, ..Default::default() };
        for (bad, lost) in [(f32::NAN, true), (f32::INFINITY, true), (1e30, false)] {
            let mut x = uniform(70, 3);
            x[3 * 17 + 1] = bad;
            let emulator = Emulator::new(Options::default());
            let batch = OnDevice::itself(&emulator, &x, 3, &labels);
            let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, 0, &[&[1.0]]);
            let of_row = &mined.grads[0][0][3 * 17..3 * 18];
            // Row 17 has positives, whose distances overflow.
            assert!(!mined.loss.is_finite() && of_row.iter().all(|g| g.is_nan()), "{negatives:?} {bad}: {of_row:?}");
            assert_eq!(mined.stats.mean_negative_distance.is_nan(), lost);
        }
        // Row 69 has no positive, and with `Hardest` none of its pairs is selected.
        let mut x = uniform(70, 3);
        x[3 * 69] = 1e30;
        let labels: Vec<i64> = (0..70).map(|i| if i == 69 { -1 } else { i % 9 }).collect();
        let emulator = Emulator::new(Options::default());
        let batch = OnDevice::itself(&emulator, &x, 3, &labels);
        let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, 0, &[&[1.0]]);
        let finite = mined.loss.is_finite() && mined.grads[0][0].iter().all(|g| g.is_finite());
        assert_eq!(finite, negatives == Negatives::Hardest);
    }
}

/// The loss and the gradient are off by no more than the fewer bits explain.
#[test]
fn lower_precision_is_as_good_as_its_bits() {
    let (rows, dim) = (130usize, 70usize);
    let x = uniform(rows, dim);
    let labels: Vec<i64> = (0..rows as i64).map(|i| i * 7 % 33).collect();
    let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    // All pairs are active.
    let loss_fn = BatchContrastiveLoss { margin: 20.0, ..Default::default() };
    let expected =
        oracle::run(&loss_fn, Matrix::new(&exact, dim).expect("whole rows"), &labels, &[1.0], None).expect("valid");
    for precision in [Precision::Highest, Precision::High, Precision::Medium] {
        let loss_fn = BatchContrastiveLoss { precision, ..loss_fn };
        let emulator = Emulator::new(Options::default());
        let batch = OnDevice::itself(&emulator, &x, dim, &labels);
        let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, 0, &[&[1.0]]);
        let error = (f64::from(mined.loss) - expected.loss).abs();
        println!("batch_contrastive on the emulator, {precision:?}: loss {} off by {error:.1e}", mined.loss);
        let bounds = Bounds::new::<f32>(&exact, rows, dim, Distance::Euclidean, false).at::<f32>(precision);
        let pairs = || (0..rows).flat_map(|i| (0..rows).map(move |j| (i, j))).filter(|(i, j)| i != j);
        let of_pair = pairs().map(|(i, j)| bounds.of_product(i, j)).fold(0.0, f64::max);
        // The derivative of a pair's loss is at most the margin.
        assert!(error <= 20.0 * of_pair, "{precision:?}: {error}, more than any pair is off by, {of_pair}");
        assert_eq!(mined.stats.active, mined.stats.valid);
        // A negative pair pulls at its rows by `(margin / d - 1)` times their difference, once from either side.
        let off = |i: usize, j: usize| 1.01 * 20.0 / bounds.d(i, j).powi(2) * bounds.of_product(i, j);
        let size = expected.grad.iter().fold(0f64, |m, g| m.max(g.abs()));
        let mut worst = Worst::default();
        for (at, (actual, expected)) in mined.grads[0][0].iter().zip(&expected.grad).enumerate() {
            let (i, c) = (at / dim, at % dim);
            let negatives = (0..rows).filter(|&j| labels[j] != labels[i]);
            let moved = negatives.map(|j| off(i, j) * (exact[at] - exact[j * dim + c]).abs()).sum::<f64>();
            let bound = 2.0 * moved / mined.stats.valid as f64 + 1e-4 * size;
            let what = || format!("{precision:?}: the gradient of row {i}, {c}");
            worst.check(what, (*actual).into(), *expected, bound).unwrap_or_else(|e| panic!("{e}"));
        }
        println!(
            "batch_contrastive on the emulator, {precision:?}: gradient, worst error / bound {:.3}",
            worst.ratio()
        );
    }
}
