//! `batch_all` on the emulator: schedules, lower precision, and what is not finite or too large.

use tercet::batch_all::oracle;
use tercet::{BatchAllTripletLoss, Distance, Matrix, Precision};
use tercet_emulator::{Emulator, Options};

use crate::mined::bounds::Bounds;
use crate::mined::launches::{OnDevice, mine};
use crate::support::Numbers;

fn uniform(rows: usize, dim: usize) -> Vec<f32> {
    let mut numbers = Numbers(3);
    (0..rows * dim).map(|_| 3.0 + numbers.unit() as f32).collect()
}

/// The same bits whatever the order of the blocks and the number of threads that run them.
#[test]
fn the_same_bits_under_every_schedule() {
    let (rows, dim) = (150usize, 20usize);
    let x = uniform(rows, dim);
    // Small classes, whose thresholds are compared one by one, and a large one, in which they are searched.
    let labels: Vec<i64> = (0..rows as i64).map(|i| if i % 3 == 0 { -1 } else { i % 20 }).collect();
    let loss_fn = BatchAllTripletLoss { margin: 1.0, ..Default::default() };
    // A device with room for the wide shape of a sweep, and one for the narrow shape.
    for device in [2, 1] {
        let properties = Emulator::new(Options { seed: device, ..Options::default() }).properties_mut().clone();
        let results = (0..6u64).map(|seed| {
            let mut emulator = Emulator::new(Options { detect: false, seed, os_threads: 1 + seed as usize % 2 });
            *emulator.properties_mut() = properties.clone();
            let batch = OnDevice::itself(&emulator, &x, dim, &labels);
            let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, 0, &[&[1.0]]);
            (mined.loss, mined.stats, mined.grads)
        });
        let results: Vec<_> = results.collect();
        assert!(results[0].0 > 0.0);
        for result in &results {
            assert_eq!(result.0.to_bits(), results[0].0.to_bits(), "loss");
            assert_eq!(result.1, results[0].1, "statistics");
            assert_eq!(result.2, results[0].2, "gradients");
        }
    }
}

/// The loss and the gradient are off by no more than the fewer bits explain.
#[test]
fn lower_precision_is_as_good_as_its_bits() {
    let (rows, dim) = (130usize, 70usize);
    let x = uniform(rows, dim);
    let labels: Vec<i64> = (0..rows as i64).map(|i| i * 7 % 33).collect();
    let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    // All triplets are active, so that the count cannot hide how exact distances are.
    let loss_fn = BatchAllTripletLoss { margin: 200.0, ..Default::default() };
    let expected = oracle::run(&loss_fn, Matrix::new(&exact, dim).expect("whole rows"), &labels, 1.0).expect("valid");
    for precision in [Precision::Highest, Precision::High, Precision::Medium] {
        let loss_fn = BatchAllTripletLoss { precision, ..loss_fn };
        let emulator = Emulator::new(Options::default());
        let batch = OnDevice::itself(&emulator, &x, dim, &labels);
        let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, 0, &[&[1.0]]);
        let (loss, stats) = (mined.loss, mined.stats);
        let error = (f64::from(loss) - expected.loss).abs();
        println!("batch_all on the emulator, {precision:?}: loss {loss} off by {error:.1e}");
        let bounds = Bounds::new::<f32>(&exact, rows, dim, Distance::SquaredEuclidean, false).at::<f32>(precision);
        let pairs = (0..rows).flat_map(|i| (0..rows).map(move |j| (i, j)));
        let of_pair = pairs.map(|(i, j)| bounds.of_product(i, j)).fold(0.0, f64::max);
        assert!(error <= of_pair, "{precision:?}: {error}, more than any pair is off by, {of_pair}");
        assert_eq!(stats.active, stats.valid);
        // The gradient's weights are counts: the positives of both rows. Its rows are those that products see.
        let labels_of = &labels;
        let positives = |i: usize| labels.iter().filter(|&&label| label == labels[i]).count() as f64 - 1.0;
        let negatives = |i: usize| (0..rows).filter(move |&j| labels_of[i] != labels_of[j]);
        let size = expected.grad.iter().fold(0f64, |m, g| m.max(g.abs()));
        for (k, (actual, expected)) in mined.grads[0][0].iter().zip(&expected.grad).enumerate() {
            let i = k / dim;
            let moved: f64 = negatives(i).map(|j| 2.0 * (positives(i) + positives(j)) * bounds.moved(i, j)).sum();
            let bound = 1e-4 * size + moved / stats.active as f64;
            assert!((f64::from(*actual) - expected).abs() <= bound, "{precision:?}: {actual} for {expected}");
        }
    }
}
