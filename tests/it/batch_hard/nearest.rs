//! Negatives that products cannot tell apart: in `Highest` the one that is taken is as near as the nearest, but for the
//! rounding of a distance.

use tercet::{BatchHardTripletLoss, Matrix};

use crate::support::Numbers;

/// The chosen distance over the least, at most, in `Highest`.
pub fn limit(dim: usize) -> f64 {
    1.0 + 4.0 * (2.0 + (dim as f64).log2()) * 0.5f64.powi(24)
}

/// Groups of four rows: an anchor, its positive, and two negatives whose squared distances from the anchor differ by
/// `relative` of themselves, before they are rounded to f32. Groups are far from each other, so that squared norms are
/// hundreds of times the distances. With 0 both negatives are the same row.
fn close_calls(groups: usize, dim: usize, relative: f64, numbers: &mut Numbers) -> (Vec<f32>, Vec<i64>) {
    let mut direction = |length: f64| -> Vec<f64> {
        let v: Vec<f64> = (0..dim).map(|_| numbers.unit() - 0.5).collect();
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v.iter().map(|v| v / norm * length).collect()
    };
    let (mut x, mut labels) = (Vec::new(), Vec::new());
    for group in 0..groups as i64 {
        let centre = direction(4.0);
        let (positive, first, second) = (direction(0.3), direction(0.2), direction(0.2 * (1.0 + relative).sqrt()));
        let second = if relative == 0.0 { first.clone() } else { second };
        for (row, offset) in [vec![0.0; dim], positive, second, first].into_iter().enumerate() {
            x.extend(centre.iter().zip(offset).map(|(c, o)| (c + o) as f32));
            // The two negatives are far from each other in the order of classes, in which products come.
            labels.push(if row < 2 { group } else { 1000 * row as i64 + group });
        }
    }
    (x, labels)
}

/// How many anchors' negatives are not the nearest by more than the limit, and how many are not the row of the lowest index
/// among those that are equally near.
fn missed(x: &[f32], dim: usize, labels: &[i64], negative: &[u32]) -> (usize, usize) {
    let squared = |i: usize, j: usize| -> f64 {
        (0..dim).map(|c| (f64::from(x[i * dim + c]) - f64::from(x[j * dim + c])).powi(2)).sum()
    };
    let mut missed = (0, 0);
    for (a, &n) in negative.iter().enumerate().filter(|(_, n)| **n != u32::MAX) {
        let negatives = || (0..labels.len()).filter(|&j| labels[j] != labels[a]);
        let least = negatives().map(|j| squared(a, j)).fold(f64::MAX, f64::min);
        missed.0 += usize::from(squared(a, n as usize) > limit(dim) * least);
        missed.1 += usize::from(
            negatives().any(|j| j < n as usize && (0..dim).all(|c| x[j * dim + c] == x[n as usize * dim + c])),
        );
    }
    missed
}

/// f(what, x, labels, dim): called for each set of close calls; returns the negatives that were taken.
fn each_set(groups: usize, mut negatives: impl FnMut(&[f32], &[i64], usize) -> Vec<u32>) {
    let mut numbers = Numbers(11);
    for dim in [8, 64, 130, 300] {
        for relative in [1e-6, 1e-7, 0.0] {
            let (x, labels) = close_calls(groups, dim, relative, &mut numbers);
            let taken = negatives(&x, &labels, dim);
            assert_eq!(taken.iter().filter(|&&n| n != u32::MAX).count(), 2 * groups, "anchors and their positives");
            let (nearer, lower) = missed(&x, dim, &labels, &taken);
            assert_eq!(
                (nearer, lower),
                (0, 0),
                "{dim} numbers, distances that differ by {relative}: nearer, equal and lower"
            );
        }
    }
}

#[test]
fn close_calls_are_right_on_the_cpu() {
    let loss_fn = BatchHardTripletLoss::default();
    each_set(40, |x, labels, dim| {
        let matrix = Matrix::new(x, dim).expect("whole rows");
        loss_fn.on(matrix, labels).select().expect("valid input").negative
    });
}

#[cfg(feature = "emulator")]
#[test]
fn close_calls_are_right_on_the_emulator() {
    use tercet_emulator::{CAPABILITIES, Emulator, Options};

    use super::triangle::halving;
    use crate::mined::launches::{OnDevice, mine};

    // Each seed is another device: wide strips and narrow ones. All tiles of few rows, and half of those of three blocks.
    let (loss_fn, devices) = (BatchHardTripletLoss::default(), CAPABILITIES.len() as u64);
    for (make, groups, seeds) in [(Emulator::new as fn(Options) -> Emulator, 24, 0..devices), (halving, 66, 1..3)] {
        for seed in seeds {
            each_set(groups, |x, labels, dim| {
                let emulator = make(Options { seed, ..Options::default() });
                let batch = OnDevice::itself(&emulator, x, dim, labels);
                let [_, negative] = mine::<f32, _, _>(&emulator, &loss_fn, &batch, labels.len(), &[&[1.0]]).chosen;
                negative
            });
        }
    }
}
