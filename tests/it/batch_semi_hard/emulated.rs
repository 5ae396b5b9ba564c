//! `batch_semi_hard` on the emulator: candidates that products cannot tell apart, rows that are nearly equal, and classes of more
//! pairs than registers hold.

use tercet::batch_semi_hard::oracle;
use tercet::{BatchSemiHardTripletLoss, Distance, Matrix, Precision, Reduction};
use tercet_emulator::{CAPABILITIES, Emulator, Options};

use crate::mined::batch::{Batch, Content, Data, Labelling, OwnRows, Set};
use crate::mined::launches::{OnDevice, mine};
use crate::support::Numbers;
use crate::triplets::property::in_order_of_pairs;

/// Groups of an anchor, its positive, a copy of the positive that is of another class, and negatives whose squared distances from
/// the anchor differ from the positive's by `relative` of it, less or more. Groups are far from each other, so that squared norms
/// are hundreds of times the distances.
fn close_calls(groups: usize, dim: usize, relative: f64, numbers: &mut Numbers) -> (Vec<f32>, Vec<i64>) {
    let mut direction = |length: f64| -> Vec<f64> {
        let v: Vec<f64> = (0..dim).map(|_| numbers.unit() - 0.5).collect();
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v.iter().map(|v| v / norm * length).collect()
    };
    let (mut x, mut labels) = (Vec::new(), Vec::new());
    for group in 0..groups as i64 {
        let centre = direction(4.0);
        let positive = direction(0.3);
        let mut offsets = vec![vec![0.0; dim], positive.clone(), positive];
        offsets.extend([-2.0, -1.0, 1.0, 2.0, 3.0].map(|by| direction(0.3 * (1.0 + by * relative).sqrt())));
        for (row, offset) in offsets.into_iter().enumerate() {
            x.extend(centre.iter().zip(offset).map(|(c, o)| (c + o) as f32));
            // Negatives are far from each other in the order of classes, in which products come.
            labels.push(if row < 2 { group } else { 1000 * row as i64 + group });
        }
    }
    (x, labels)
}

/// The negative of each pair is the nearest beyond the positive, but for the rounding of a distance by difference; the copy of
/// the positive is as far as the positive, to the last bit, and so not beyond.
#[test]
fn close_calls_are_right() {
    let mut numbers = Numbers(5);
    for (dim, relative) in [(8, 1e-4), (64, 1e-6), (130, 1e-5), (130, 3e-7)] {
        let (x, labels) = close_calls(20, dim, relative, &mut numbers);
        let rows = labels.len();
        let rounding = 4.0 * (2.0 + (dim as f64).log2()) * 0.5f64.powi(24);
        let d = |i: usize, j: usize| -> f64 {
            (0..dim).map(|c| (f64::from(x[i * dim + c]) - f64::from(x[j * dim + c])).powi(2)).sum()
        };
        let negatives = |a: usize| {
            let labels = &labels;
            (0..rows).filter(move |&j| labels[j] != labels[a])
        };
        let pairs: Vec<[u32; 2]> =
            (0..rows as u32 / 8).flat_map(|g| [[8 * g, 8 * g + 1], [8 * g + 1, 8 * g]]).collect();
        // Each seed is another device: tall strips and narrow ones.
        for seed in 0..CAPABILITIES.len() as u64 {
            let emulator = Emulator::new(Options { seed, ..Options::default() });
            let batch = OnDevice::itself(&emulator, &x, dim, &labels);
            let loss_fn = BatchSemiHardTripletLoss::default();
            // A pair for each row of each row's class.
            let chosen = mine::<f32, _, _>(&emulator, &loss_fn, &batch, rows / 8 * (4 + 6), &[&[1.0]]).chosen;
            let chosen = in_order_of_pairs([&labels, &labels], &pairs, &chosen[0]);
            for (&[a, p], &n) in pairs.iter().zip(&chosen) {
                let [a, p, n] = [a, p, n].map(|row| row as usize);
                assert_ne!(x[n * dim..][..dim], x[p * dim..][..dim], "the negative of {a}, {p} is a copy of {p}");
                let (beyond, least) = (d(a, p) * (1.0 + rounding), d(a, p) * (1.0 - rounding));
                assert!(d(a, n) > least, "{n} is not beyond {p} from {a}: {} and {}", d(a, n), d(a, p));
                let nearer = negatives(a).find(|&m| d(a, m) > beyond && d(a, m) * (1.0 + rounding) < d(a, n));
                assert_eq!(nearer, None, "from {a}, beyond {p} at {}, and not {n} at {}", d(a, p), d(a, n));
            }
        }
    }
}

/// On a lattice every number is exact: the choice is the oracle's, with classes of more pairs than registers hold at a time, many
/// equal distances, in every precision, and with a reference set.
#[test]
fn large_classes_have_the_oracles_choices() {
    let set = Some(Set { rows: 150, own: OwnRows::Rows });
    for (seed, (rows, dim, labelling, reference)) in
        [(140, 5, Labelling::Two, None), (150, 9, Labelling::Random { each: 12 }, None), (90, 7, Labelling::Large, set)]
            .into_iter()
            .enumerate()
    {
        let precisions = [Precision::Highest, Precision::Medium].into_iter().enumerate();
        // Each batch but the first has one of them.
        for (turn, precision) in precisions.filter(|(turn, _)| seed == 0 || *turn == seed % 2) {
            let content = Content::Lattice { offset: 0.0 };
            let batch = Batch { rows, dim, gap: 1, offset: 1, content, labelling, seed: seed as u64, reference };
            let distance = if turn == 0 { Distance::Euclidean } else { Distance::SquaredEuclidean };
            let loss = BatchSemiHardTripletLoss {
                margin: 3.0,
                distance,
                precision,
                reduction: Reduction::Sum,
                ..Default::default()
            };
            let data = Data::<f32>::new(&batch, Reduction::Sum);
            let (embeddings, of_set) = (Matrix::new(&data.exact, dim).unwrap(), data.exact_set(dim));
            let truth = oracle::run_against(&loss, embeddings, &data.labels, of_set.as_ref(), &[1.0], None).unwrap();
            let emulator = Emulator::new(Options { seed: seed as u64 + 2, ..Options::default() });
            let on_device = OnDevice::new(&emulator, &batch, &data);
            let chosen = mine::<f32, _, _>(&emulator, &loss, &on_device, data.pairs_of_a_class(), &[&[1.0]]).chosen;
            let chosen = in_order_of_pairs([&data.labels, data.other_labels()], &truth.pairs, &chosen[0]);
            assert!(chosen == truth.negative, "{batch:?}, {precision:?}");
        }
    }
}

/// Cosines that are all within 1e-4 of 1 differ by less than the rounding of 1 - cos: the negative is the nearest beyond the positive
/// all the same, but for the rounding of rows to unit vectors.
#[test]
fn cosines_near_one_have_the_nearest_beyond() {
    let (rows, dim, of_class) = (150usize, 24usize, 6);
    let mut numbers = Numbers(11);
    let x: Vec<f32> = (0..rows * dim).map(|_| (1.0 + 0.005 * numbers.unit()) as f32).collect();
    let labels: Vec<i64> = (0..rows).map(|i| (i * 7 % (rows / of_class)) as i64).collect();
    let data: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let loss_fn = BatchSemiHardTripletLoss { distance: Distance::Cosine, ..Default::default() };
    let truth = oracle::run_against(&loss_fn, Matrix::new(&data, dim).unwrap(), &labels, None, &[1.0], None).unwrap();
    let unit = |i: usize| -> Vec<f64> {
        let row = &data[i * dim..][..dim];
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter().map(|x| x / norm).collect()
    };
    let units: Vec<Vec<f64>> = (0..rows).map(unit).collect();
    let d = |i: u32, j: u32| -> f64 {
        let pairs = units[i as usize].iter().zip(&units[j as usize]);
        0.5 * pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>()
    };
    for seed in 0..CAPABILITIES.len() as u64 {
        let emulator = Emulator::new(Options { seed, ..Options::default() });
        let batch = OnDevice::itself(&emulator, &x, dim, &labels);
        let chosen = mine::<f32, _, _>(&emulator, &loss_fn, &batch, rows * of_class, &[]).chosen;
        let chosen = in_order_of_pairs([&labels, &labels], &truth.pairs, &chosen[0]);
        for ((&[a, p], &n), &expected) in truth.pairs.iter().zip(&chosen).zip(&truth.negative) {
            let off = (d(a, n) - d(a, expected)).abs() / d(a, expected);
            assert!(off <= 1e-3, "{a}, {p}: {n} at {} and not {expected} at {}", d(a, n), d(a, expected));
        }
    }
}

/// Rows that are nearly equal are no exception: what is read and written is no more than three times that of random rows.
#[test]
fn nearly_equal_rows_cost_little_more() {
    let (rows, dim) = (384usize, 24usize);
    let mut numbers = Numbers(9);
    let random: Vec<f64> = (0..rows * dim).map(|_| (0..12).map(|_| numbers.unit()).sum::<f64>() - 6.0).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i * 5 % (rows as i64 / 8)).collect();
    let accesses = |x: &[f64]| {
        let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let emulator = Emulator::new(Options { detect: true, seed: 1, ..Options::default() });
        let loss_fn = BatchSemiHardTripletLoss { normalize: true, ..Default::default() };
        mine::<f32, _, _>(&emulator, &loss_fn, &OnDevice::itself(&emulator, &x, dim, &labels), 0, &[]);
        let work = emulator.take_work();
        work.iter().map(|work| work.traffic.reads + work.traffic.writes).sum::<u64>()
    };
    let near: Vec<f64> = random.iter().map(|x| 1.0 + 0.05 * x).collect();
    let [of_random, of_near] = [&random, &near].map(|x| accesses(x));
    println!("{of_random} accesses of random rows, {of_near} of nearly equal ones");
    assert!(of_near <= 3 * of_random, "{of_near} accesses, and of random rows {of_random}");
}
