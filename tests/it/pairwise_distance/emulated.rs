//! `pairwise_distance` on the emulator: lower precision, and rows far from each other.

use tercet::internal::{self, Input, Launcher, Memory};
use tercet::pairwise_distance::oracle;
use tercet::{Distance, Matrix, PairwiseDistance, Precision};
use tercet_emulator::{Emulator, Options};

use super::property::Case;
use crate::mined::batch::{Batch, Content, Data, Labelling};
use crate::support::Numbers;
use crate::support::backends::Operation;

/// Distances are off by no more than the fewer bits explain, whatever the schedule.
#[test]
fn lower_precision_is_as_good_as_its_bits() {
    let (rows, dim) = ([70usize, 90], 40usize);
    let mut numbers = Numbers(3);
    let x: Vec<f32> = (0..(rows[0] + rows[1]) * dim).map(|_| numbers.unit() as f32).collect();
    let exact = |i: usize, j: usize| -> f64 {
        let row = |i: usize| x[i * dim..(i + 1) * dim].iter().map(|x| f64::from(*x));
        row(i).zip(row(rows[0] + j)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()
    };
    for (precision, unit) in
        [(Precision::Highest, 0.5f64.powi(24)), (Precision::High, 0.5f64.powi(11)), (Precision::Medium, 0.5f64.powi(9))]
    {
        let op = PairwiseDistance { distance: Distance::SquaredEuclidean, precision, ..Default::default() };
        let results: Vec<Vec<f32>> = (0..3u64)
            .map(|seed| {
                let emulator = Emulator::new(Options { detect: false, seed, os_threads: 1 + seed as usize % 2 });
                let on_device = emulator.upload(&x);
                let at = |row: usize| Input { x: on_device.address() + (row * dim * 4) as u64, stride: dim, labels: 0 };
                let out = emulator.allocate(rows[0] * rows[1] * 4).expect("memory");
                // SAFETY: buffers of the emulator, of the shapes that the call expects.
                unsafe {
                    internal::pairwise_distance::<f32, _>(
                        (&op, op.precision.into()),
                        &emulator,
                        rows.map(|rows| [rows, dim]),
                        &[at(0), at(rows[0])],
                        out.address(),
                    )
                }
                .unwrap_or_else(|e| panic!("{e}"));
                out.read::<f32>()
            })
            .collect();
        assert!(results.iter().all(|result| *result == results[0]), "{precision:?}");
        let mut worst = 0.0f64;
        for (at, d) in results[0].iter().enumerate() {
            worst = worst.max((f64::from(*d) - exact(at / rows[1], at % rows[1])).abs());
        }
        println!("pairwise_distance on the emulator, {precision:?}: off by {worst:.1e} of about {}", dim * 2 / 3);
        assert!(worst <= 4.0 * unit * (dim as f64), "{precision:?}: {worst}");
    }
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
