//! `pairwise_distance` on the emulator: lower precision, and rows far from each other.

use tercet::internal::{self, Input, Launcher, Memory};
use tercet::pairwise_distance::oracle;
use tercet::{Distance, Matrix, PairwiseDistance, Precision};
use tercet_emulator::{Emulator, Options};

use super::property::Case;
use crate::mined::batch::{Batch, Content, Data, Labelling};
use crate::mined::bounds::Bounds;
use crate::support::Numbers;
use crate::support::backends::Operation;
use crate::support::property::Worst;

/// Distances are off by no more than the fewer bits explain, whatever the schedule and whatever the rows are like.
#[test]
fn lower_precision_is_as_good_as_its_bits() {
    type Kind = (&'static str, bool, fn(&mut Numbers, f64) -> f64);
    // Whether rows are normalised, and an element of a row, given how far along the row it is, from 0 to 1.
    const KINDS: [Kind; 5] = [
        ("uniform", false, |numbers, _| numbers.unit()),
        ("uniform, away from 0", false, |numbers, _| 3.0 + numbers.unit()),
        ("unit vectors", true, |numbers, _| numbers.unit()),
        ("heavy tails", false, |numbers, _| (std::f64::consts::FRAC_PI_2 * numbers.unit()).tan()),
        ("six decades in a row", false, |numbers, along| numbers.unit() * 10f64.powf(-6.0 * along)),
    ];
    let (rows, dim) = ([70usize, 90], 40usize);
    for precision in [Precision::Highest, Precision::High, Precision::Medium] {
        for (kind, normalize, element) in KINDS {
            let mut numbers = Numbers(3);
            let mut row = || (0..dim).map(|c| element(&mut numbers, c as f64 / (dim - 1) as f64) as f32).collect();
            let x: Vec<f32> = (0..rows[0] + rows[1]).map(|_| row()).collect::<Vec<Vec<f32>>>().concat();
            let exact: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
                let op = PairwiseDistance { distance, normalize, precision };
                let found = on_emulator(&op, &x, rows, dim);
                let bounds = Bounds::new::<f32>(&exact, rows[0], dim, distance, normalize).at::<f32>(precision);
                let (mut worst, mut squares) = (Worst::default(), 0.0);
                for (at, &d) in found.iter().enumerate() {
                    let (i, j) = (at / rows[1], rows[0] + at % rows[1]);
                    let (expected, bound) = (bounds.d(i, j), bounds.of_product(i, j));
                    let what = || format!("{precision:?}, {kind}, {distance:?}: d[{i}, {j}]");
                    worst.check(what, d.into(), expected, bound).unwrap_or_else(|e| panic!("{e}"));
                    squares += ((f64::from(d) - expected) / bound).powi(2);
                }
                let (largest, rms) = (worst.ratio(), (squares / found.len() as f64).sqrt());
                println!("{precision:?}, {kind}, {distance:?}: error / bound at most {largest:.4}, rms {rms:.4}");
            }
        }
    }
}

/// The distances of the first rows of `x` to the others, which are the same under several schedules.
fn on_emulator(op: &PairwiseDistance, x: &[f32], rows: [usize; 2], dim: usize) -> Vec<f32> {
    let mut results = (0..3u64).map(|seed| {
        let emulator = Emulator::new(Options { detect: false, seed, os_threads: 1 + seed as usize % 2 });
        let on_device = emulator.upload(x);
        let at = |row: usize| Input { x: on_device.address() + (row * dim * 4) as u64, stride: dim, labels: 0 };
        let out = emulator.allocate(rows[0] * rows[1] * 4).expect("memory");
        let (shapes, inputs) = (rows.map(|rows| [rows, dim]), [at(0), at(rows[0])]);
        let op = (op, op.precision.into());
        // SAFETY: buffers of the emulator, of the shapes that the call expects.
        unsafe { internal::pairwise_distance::<f32, _>(op, &emulator, shapes, &inputs, out.address()) }
            .unwrap_or_else(|e| panic!("{e}"));
        out.read::<f32>()
    });
    let first = results.next().expect("three");
    assert!(results.all(|other| other == first), "{op:?} depends on the schedule");
    first
}

/// Three rows at 1000, by which all are moved for the product, and two near the origin that are 1e-6 apart: moved, both would
/// be -999.9.
#[test]
fn rows_far_from_the_others_keep_their_distance() {
    let x = [1000.0f32, 1000.0, 1000.0, 0.1, 0.100_001];
    let exact = x.map(f64::from).to_vec();
    let batch = Batch {
        rows: 5,
        dim: 1,
        gap: 0,
        offset: 0,
        content: Content::Far,
        labelling: Labelling::Singletons,
        seed: 0,
        reference: None,
    };
    let data =
        Data { laid_out: x.to_vec(), exact: exact.clone(), labels: vec![0; 5], upstream: vec![1.0], reference: None };
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
        let op = PairwiseDistance { distance, ..Default::default() };
        let case = Case { op, batch: batch.clone(), split: None, sparse: false, plain: false };
        let emulator = Emulator::new(Options { detect: false, seed: 0, os_threads: 1 });
        let output = PairwiseDistance::on_device(&emulator, &case, &data);
        let rows = Matrix::new(&exact, 1).unwrap();
        let truth = oracle::run(&op, rows, rows, &case.upstream::<f32>()).unwrap();
        assert!(truth.distances[3 * 5 + 4] > 9e-13 && truth.distances[3 * 5 + 4] < 1e-6);
        let near = |actual: f32, expected: f64| (f64::from(actual) - expected).abs() <= 1e-5 * expected.abs();
        for (actual, expected) in output.distances.iter().zip(&truth.distances) {
            assert!(near(*actual, *expected), "{distance:?}: {actual} for {expected}");
        }
        for (actual, expected) in output.grads.iter().flatten().zip(truth.grads.iter().flatten()) {
            assert!(near(*actual, *expected), "{distance:?}: {actual} for {expected}");
        }
    }
}

/// Weights become f16 times a power of two for each row: that must fit upstream gradients of many decades in a row, tiny ones,
/// and ones for whose largest there is no such power.
#[test]
fn upstream_gradients_of_any_size() {
    type Kind = (&'static str, fn(&mut Numbers) -> f64);
    const KINDS: [Kind; 4] = [
        ("sixty decades", |numbers| numbers.unit() * 10f64.powf(30.0 * numbers.unit())),
        ("subnormal numbers", |numbers| numbers.unit() * 1e-37),
        ("the largest numbers", |numbers| numbers.unit() * 2f64.powi(120)),
        ("few of all", |numbers| if numbers.below(70) == 0 { 1.0 } else { 0.0 }),
    ];
    let (rows, dim) = ([70usize, 90], 40usize);
    for (kind, number) in KINDS {
        let mut numbers = Numbers(7);
        let x: Vec<f32> = (0..(rows[0] + rows[1]) * dim).map(|_| numbers.unit() as f32).collect();
        let upstream: Vec<f32> = (0..rows[0] * rows[1]).map(|_| number(&mut numbers) as f32).collect();
        let [exact, exact_upstream] = [&x, &upstream].map(|numbers| numbers.iter().map(|&x| f64::from(x)).collect());
        let (exact, exact_upstream): (Vec<f64>, Vec<f64>) = (exact, exact_upstream);
        let of_x = rows[0] * dim;
        let sides = [&exact[..of_x], &exact[of_x..]].map(|side| Matrix::new(side, dim).unwrap());
        for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
            let op = PairwiseDistance { distance, ..Default::default() };
            let truth = oracle::run(&op, sides[0], sides[1], &exact_upstream).unwrap();
            let emulator = Emulator::new(Options { seed: 2, ..Options::default() });
            let (on_device, of_upstream) = (emulator.upload(&x), emulator.upload(&upstream));
            let at = |row: usize| Input { x: on_device.address() + (row * dim * 4) as u64, stride: dim, labels: 0 };
            let grads = rows.map(|rows| emulator.allocate(rows * dim * 4).expect("memory"));
            let (shapes, inputs) = (rows.map(|rows| [rows, dim]), [at(0), at(rows[0])]);
            let (op, to) = ((&op, op.precision.into()), grads.each_ref().map(Memory::address));
            // SAFETY: buffers of the emulator, of the shapes that the call expects.
            unsafe {
                internal::pairwise_distance_backward::<f32, _>(
                    op,
                    &emulator,
                    shapes,
                    &inputs,
                    of_upstream.address(),
                    to,
                )
            }
            .unwrap_or_else(|e| panic!("{e}"));
            for which in 0..2 {
                let found = grads[which].read::<f32>();
                for (at, (found, expected)) in found.iter().zip(&truth.grads[which]).enumerate() {
                    let row = at / dim;
                    let of_row = |k: usize| if which == 0 { row * rows[1] + k } else { k * rows[1] + row };
                    let total: f64 = (0..rows[1 - which]).map(|k| exact_upstream[of_row(k)].abs()).sum();
                    // No slope of a distance is larger than these.
                    let slope = match distance {
                        Distance::SquaredEuclidean => 4.0,
                        Distance::Euclidean => 1.0,
                        _ => 2.0,
                    };
                    let bound = 1e-6 * total * slope + 1e-43;
                    let what = format!("{kind}, {distance:?}: grads[{which}][{row}, {}]", at % dim);
                    assert!((f64::from(*found) - expected).abs() <= bound, "{what}: {found} for {expected}");
                }
            }
        }
    }
}
