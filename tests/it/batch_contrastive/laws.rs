//! What holds of `batch_contrastive` to the last bit, or by its definition; and what it refuses.

use half::f16;
use tercet::batch_contrastive::oracle;
use tercet::{BatchContrastiveLoss, Distance, Element, Error, Matrix, Negatives, Own, Reduction, Reference, Stats};

use crate::support::{Numbers, poison};

/// A batch of uniform f32 numbers with `each` rows per class.
fn uniform(rows: usize, dim: usize, each: usize) -> (Vec<f32>, Vec<i64>) {
    let mut numbers = Numbers(1);
    let x = (0..rows * dim).map(|_| numbers.unit() as f32).collect();
    (x, (0..rows).map(|i| ((i * 7) % rows / each) as i64).collect())
}

/// Every distance, with and without normalisation, and both kinds of negatives.
fn options(margin: f64) -> Vec<BatchContrastiveLoss> {
    let mut all = Vec::new();
    for distance in [Distance::Euclidean, Distance::SquaredEuclidean, Distance::Cosine] {
        for normalize in [false, true] {
            for negatives in [Negatives::All, Negatives::Hardest] {
                all.push(BatchContrastiveLoss { margin, distance, normalize, negatives, ..Default::default() });
            }
        }
    }
    all
}

fn both<T: Element>(loss: &BatchContrastiveLoss, x: &[T], dim: usize, labels: &[i64]) -> (T::Scalar, Vec<T>) {
    let mut grad = poison(x.len());
    let loss = loss.on(Matrix::new(x, dim).unwrap(), labels).loss_and_grad(&mut grad).unwrap();
    (loss, grad)
}

fn stats(loss: &BatchContrastiveLoss, x: &[f32], dim: usize, labels: &[i64]) -> Stats {
    loss.on(Matrix::new(x, dim).unwrap(), labels).loss_with_stats().unwrap().1
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    for (rows, each) in [(1000, 5), (700, 100)] {
        let (x, labels) = uniform(rows, 33, each);
        for loss in options(3.0) {
            let run = || (both(&loss, &x, 33, &labels), stats(&loss, &x, 33, &labels));
            let first = run();
            for threads in [1, 2, 3, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(run), first, "{threads} threads, {loss:?}");
            }
        }
    }
}

#[test]
fn the_same_bits_a_hundred_times() {
    let (x, labels) = uniform(300, 17, 6);
    for negatives in [Negatives::All, Negatives::Hardest] {
        let loss = BatchContrastiveLoss { margin: 3.0, negatives, ..Default::default() };
        let first = both(&loss, &x, 17, &labels);
        for _ in 0..100 {
            assert_eq!(both(&loss, &x, 17, &labels), first);
        }
    }
}

/// Whether two results differ by no more than f32 sums taken in another order.
fn close((loss, grad): &(f32, Vec<f32>), (other, other_grad): &(f32, Vec<f32>)) -> bool {
    let size = grad.iter().fold(0f32, |m, g| m.max(g.abs()));
    (loss - other).abs() <= 1e-4 * loss && grad.iter().zip(other_grad).all(|(g, o)| (g - o).abs() <= 1e-4 * size)
}

#[test]
fn the_order_of_the_batch_and_the_names_of_its_classes_do_not_matter() {
    let (x, labels) = uniform(300, 20, 4);
    let (rows, dim) = (300, 20);
    for loss in options(3.0) {
        let given = both(&loss, &x, dim, &labels);
        let renamed: Vec<i64> = labels.iter().map(|l| i64::MAX - l * 1_000_000_007).collect();
        assert!(close(&given, &both(&loss, &x, dim, &renamed)), "{loss:?}");

        // A permutation: 7 and 300 are coprime.
        let from = |i: usize| i * 7 % rows;
        let moved: Vec<f32> = (0..rows).flat_map(|i| x[from(i) * dim..][..dim].to_vec()).collect();
        let moved_labels: Vec<i64> = (0..rows).map(|i| labels[from(i)]).collect();
        let (value, grad) = both(&loss, &moved, dim, &moved_labels);
        let mut back = vec![0.0; rows * dim];
        for i in 0..rows {
            back[from(i) * dim..][..dim].copy_from_slice(&grad[i * dim..][..dim]);
        }
        assert!(close(&given, &(value, back)), "{loss:?}");
    }
}

#[test]
fn translation_changes_nothing() {
    // Multiples of 2^-12 below 1, moved by 1024: exact in f32.
    let (x, labels) = uniform(200, 24, 4);
    let x: Vec<f32> = x.iter().map(|x| (x * 4096.0).round() / 4096.0).collect();
    let moved: Vec<f32> = x.iter().map(|x| x + 1024.0).collect();
    for loss in options(3.0).into_iter().filter(|l| l.distance != Distance::Cosine && !l.normalize) {
        assert!(close(&both(&loss, &x, 24, &labels), &both(&loss, &moved, 24, &labels)), "{loss:?}");
    }
}

#[test]
fn scaled_by_a_power_of_two_the_loss_is_too() {
    let (x, labels) = uniform(130, 9, 5);
    let half: Vec<f32> = x.iter().map(|x| x / 2.0).collect();
    for negatives in [Negatives::All, Negatives::Hardest] {
        let loss = BatchContrastiveLoss { margin: 2.0, negatives, ..Default::default() };
        let (value, grad) = both(&loss, &x, 9, &labels);
        let (smaller, smaller_grad) = both(&BatchContrastiveLoss { margin: 1.0, ..loss }, &half, 9, &labels);
        assert_eq!((value, grad), (4.0 * smaller, smaller_grad.iter().map(|g| 2.0 * g).collect()));
    }
}

/// Three parts of the anchors, each against the whole batch, add up to it. Integers make every sum exact.
#[test]
fn shards_of_the_anchors_add_up_exactly() {
    let mut numbers = Numbers(9);
    let (rows, dim) = (150usize, 5usize);
    let x: Vec<f32> = (0..rows * dim).map(|_| numbers.below(5) as f32 - 2.0).collect();
    let labels: Vec<i64> = (0..rows).map(|_| numbers.below(20) as i64).collect();
    let loss = BatchContrastiveLoss {
        margin: 40.0,
        distance: Distance::SquaredEuclidean,
        reduction: Reduction::Sum,
        ..Default::default()
    };
    let (whole, whole_grad) = both(&loss, &x, dim, &labels);
    assert!(whole > 0.0);
    let (mut sum, mut grad) = (0.0, vec![0.0; rows * dim]);
    let mut valid = 0;
    for part in [0..64, 64..65, 65..rows] {
        let of = Reference {
            embeddings: Matrix::new(&x, dim).unwrap(),
            labels: &labels[..],
            own: Own::Offset(part.start as i64),
        };
        let anchors = Matrix::new(&x[part.start * dim..part.end * dim], dim).unwrap();
        let labels = &labels[part.clone()];
        let (mut to_anchors, mut to_all) = (poison::<f32>(part.len() * dim), poison::<f32>(rows * dim));
        let grads = [Some(&mut to_anchors[..]), Some(&mut to_all[..])];
        sum += loss.on(anchors, labels).against(&of).loss_and_grads(grads).unwrap();
        valid += loss.on(anchors, labels).against(&of).loss_with_stats().unwrap().1.valid;
        grad[part.start * dim..part.end * dim].iter_mut().zip(&to_anchors).for_each(|(sum, g)| *sum += g);
        grad.iter_mut().zip(&to_all).for_each(|(sum, g)| *sum += g);
    }
    assert_eq!((sum, grad), (whole, whole_grad));
    assert_eq!(valid, stats(&loss, &x, dim, &labels).valid);
}

#[test]
fn the_oracle_agrees_with_finite_differences() {
    let mut numbers = Numbers(3);
    let (rows, dim) = (10, 3);
    let labels: Vec<i64> = (0..rows as i64).map(|i| i % 3).collect();
    let x: Vec<f64> = (0..rows * dim).map(|_| numbers.unit()).collect();
    for loss in options(1.1) {
        let loss = BatchContrastiveLoss { reduction: Reduction::Sum, ..loss };
        let run = |x: &[f64]| oracle::run(&loss, Matrix::new(x, dim).unwrap(), &labels, &[1.0], None).unwrap();
        let expected = run(&x);
        assert!(expected.stats.active > 0);
        for i in 0..x.len() {
            let h = 1e-6;
            let at = |step: f64| {
                let mut x = x.clone();
                x[i] += step;
                run(&x).loss
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!((slope - expected.grad[i]).abs() <= 1e-5 * (1.0 + slope.abs()), "{loss:?} {i}: {slope}");
        }
    }
}

#[test]
fn ties_take_the_lowest_anchor_and_then_the_lowest_row() {
    // All rows coincide. 7 pairs are positive, so the first 7 negative pairs in the order of (anchor, row) are
    // selected: 0-1, 0-3, 0-4, 0-5, 0-6, 1-2, 1-4.
    let labels = [0, 1, 0, 1, 2, 1, 1];
    let x = [0.5f32; 7];
    for (distance, normalize) in [(Distance::Euclidean, false), (Distance::SquaredEuclidean, true)] {
        let loss = BatchContrastiveLoss {
            margin: 1.0,
            distance,
            normalize,
            negatives: Negatives::Hardest,
            reduction: Reduction::None,
            ..Default::default()
        };
        let mut losses = [f32::NAN; 7];
        loss.on(Matrix::new(&x, 1).unwrap(), &labels).losses(&mut losses).unwrap();
        assert_eq!(losses, [5.0, 3.0, 1.0, 1.0, 2.0, 1.0, 1.0].map(|count| count * 0.5));
    }
}

#[test]
fn nan_and_infinity_are_seen() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for labels in [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]] {
            for loss in options(1.0) {
                let mut x: Vec<f32> = (0..15).map(|i| (i as f32).sin()).collect();
                x[7] = bad;
                let (value, grad) = both(&loss, &x, 3, &labels);
                assert!(value.is_nan() && grad[6..9].iter().all(|g| g.is_nan()), "{loss:?}");
                let mut losses = [0.0; 5];
                loss.on(Matrix::new(&x, 3).unwrap(), &labels).losses(&mut losses).unwrap();
                let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let expected = oracle::run(&loss, Matrix::new(&wide, 3).unwrap(), &labels, &[1.0], None).unwrap();
                assert!(losses[2].is_nan());
                for (actual, expected) in losses.iter().zip(expected.losses) {
                    assert!(actual.is_nan() || !expected.is_nan(), "{losses:?}");
                }
            }
        }
    }
    // All classes differ, so no pair is selected: only the row that is NaN itself has a NaN loss.
    let loss = BatchContrastiveLoss { negatives: Negatives::Hardest, reduction: Reduction::None, ..Default::default() };
    let mut losses = [f32::NAN; 3];
    loss.on(Matrix::new(&[f32::NAN, 1.0, 2.0], 1).unwrap(), &[0, 1, 2]).losses(&mut losses).unwrap();
    assert!(losses[0].is_nan() && losses[1..] == [0.0, 0.0]);
}

#[test]
fn a_distance_that_overflows_gives_nan() {
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
        for negatives in [Negatives::All, Negatives::Hardest] {
            let loss = BatchContrastiveLoss { distance, negatives, ..Default::default() };
            // The distance of the positives, of the negatives, or of both overflows f32.
            for x in [[-1e20f32, 1e20, 0.0, 0.0], [-1e20, -1e20, 1e20, 1e20], [-1e38, 1e38, -3e38, 3e38]] {
                let (value, grad) = both(&loss, &x, 1, &[0, 0, 1, 1]);
                let what = format!("{loss:?} {x:?}: {value} {grad:?}");
                assert!(!value.is_finite() && grad.iter().any(|g| g.is_nan()), "{what}");
            }
            // Squares of the rows overflow, those of the differences do not.
            let x = [0.0, 1e9, 2e9, 4e9].map(|x: f32| x + 3e19);
            let (value, grad) = both(&loss, &x, 1, &[0, 0, 1, 1]);
            assert!(value.is_finite() && grad.iter().all(|g| g.is_finite()), "{loss:?}: {value} {grad:?}");
        }
    }
    // The distance of a pair that is not selected may overflow.
    let loss = BatchContrastiveLoss { negatives: Negatives::Hardest, ..Default::default() };
    let (value, grad) = both(&loss, &[0f32, 0.0, 1.0, 1e30], 1, &[0, 0, 1, 2]);
    assert!(value.is_finite() && grad.iter().all(|g| g.is_finite()), "{value} {grad:?}");
    let loss = BatchContrastiveLoss { margin: f32::MAX.into(), ..Default::default() };
    assert!(!both(&loss, &[0f32, 1.0, 2.0, 3.0], 1, &[0, 0, 1, 1]).0.is_finite());
}

#[test]
fn without_a_pair_everything_is_zero() {
    let (x, _) = uniform(100, 10, 1);
    for loss in options(3.0) {
        assert_eq!(both(&loss, &x[..10], 10, &[1]), (0.0, vec![0.0; 10]));
        if loss.negatives == Negatives::Hardest {
            let labels: Vec<i64> = (0..100).collect();
            let (value, grad) = both(&loss, &x, 10, &labels);
            assert!(value.to_bits() == 0 && grad.iter().all(|g| *g == 0.0));
            assert_eq!(stats(&loss, &x, 10, &labels), Stats::default());
        }
    }
}

#[test]
fn coincident_points_have_finite_gradients() {
    let labels: Vec<i64> = (0..200).map(|i| i % 4).collect();
    for loss in options(1.0) {
        let (value, grad) = both(&loss, &vec![0.7f32; 200 * 130], 130, &labels);
        let negatives = if loss.negatives == Negatives::All { 150.0 / 199.0 } else { 0.5 };
        assert!((value - negatives / 2.0).abs() < 1e-5 && grad.iter().all(|g| g.abs() < 1e-5), "{loss:?}: {value}");
    }
}

#[test]
fn a_class_of_thousands() {
    // On a line each distance is known: a class of 0 .. 1999, and two rows behind it.
    let rows = 2002;
    let x: Vec<f64> = (0..rows).map(|i| if i < 2000 { f64::from(i) } else { f64::from(i + 100) }).collect();
    let labels: Vec<i64> = (0..i64::from(rows)).map(|i| i64::from(i >= 2000)).collect();
    for negatives in [Negatives::All, Negatives::Hardest] {
        let loss = BatchContrastiveLoss { margin: 1000.0, negatives, ..Default::default() };
        let (mut sum, mut active) = (0.0, 0);
        for a in 0..x.len() {
            for j in (0..x.len()).filter(|&j| j != a) {
                let d = (x[a] - x[j]).abs();
                let gap = if labels[a] == labels[j] { d } else { (1000.0 - d).max(0.0) };
                sum += gap * gap / 2.0;
                active += u64::from(gap > 0.0);
            }
        }
        let (value, stats) = loss.on(Matrix::new(&x, 1).unwrap(), &labels).loss_with_stats().unwrap();
        // There are fewer negatives than positives: all of them are selected.
        assert_eq!((stats.valid, stats.active), (2002 * 2001, active), "{negatives:?}");
        let expected = sum / f64::from(2002 * 2001);
        assert!((value - expected).abs() <= 1e-12 * expected, "{negatives:?}: {value} for {expected}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = [1f32, 2.0, 3.0, 4.0];
    let matrix = Matrix::new(&x, 2).unwrap();
    let refused = |loss: BatchContrastiveLoss, matrix: Matrix<'_, f32>, labels: &[i64], argument: &str, got: &str| {
        let all = [
            loss.on(matrix, labels).losses(&mut [0.0; 2]),
            loss.on(matrix, labels).grad(&[1.0], &mut [0.0; 4]),
            loss.on(matrix, labels).loss().map(drop),
            loss.on(matrix, labels).loss_with_stats().map(drop),
            loss.on(matrix, labels).loss_and_grad(&mut [0.0; 4]).map(drop),
        ];
        for result in all {
            let error = result.expect_err("accepted");
            let Error::Argument { argument: named, actual, .. } = &error else { panic!("{error}") };
            assert!(*named == argument && actual.contains(got), "{error}");
        }
    };
    let default = BatchContrastiveLoss::default();
    for margin in [-0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39] {
        let text = if margin == 1e39 { "1e39".into() } else { margin.to_string() };
        refused(BatchContrastiveLoss { margin, ..default }, matrix, &[0, 1], "margin", &text);
    }
    refused(default, matrix, &[0], "labels", "1");
    refused(default, matrix, &[0, 1, 2], "labels", "3");
    refused(default, Matrix::new(&[], 2).unwrap(), &[], "embeddings", "[0, 2]");
    // One row repeated more often than an index can count.
    let many = Matrix::strided(&x, u32::MAX as usize, 1, 0).unwrap();
    refused(default, many, &[0, 1], "embeddings", "4294967295");

    let named = |result: Result<f32, Error>, argument: &str| {
        let error = result.expect_err("accepted");
        assert!(error.to_string().starts_with(argument), "{error}");
    };
    let none = BatchContrastiveLoss { reduction: Reduction::None, ..default };
    named(none.on(matrix, &[0, 1]).loss(), "reduction");
    named(none.on(matrix, &[0, 1]).loss_and_grad(&mut [0.0; 4]), "reduction");
    named(none.on(matrix, &[0, 1]).grad(&[1.0], &mut [0.0; 4]).map(|()| 0.0), "upstream");
    named(default.on(matrix, &[0, 1]).grad(&[1.0; 2], &mut [0.0; 4]).map(|()| 0.0), "upstream");
    named(default.on(matrix, &[0, 1]).grad(&[1.0], &mut [0.0; 3]).map(|()| 0.0), "grad");
    named(default.on(matrix, &[0, 1]).loss_and_grad(&mut [0.0; 5]), "grad");
    named(default.on(matrix, &[0, 1]).losses(&mut [0.0; 3]).map(|()| 0.0), "losses");
    let reference = Reference { embeddings: Matrix::new(&x, 1).unwrap(), labels: &[0, 1, 2, 3][..], own: Own::None };
    named(default.on(matrix, &[0, 1]).against(&reference).loss(), "reference.embeddings");
}

#[test]
fn gradients_of_16_bit_embeddings_survive_a_mean_over_many() {
    // 1 / N² is far below f16's smallest normal number; an upstream of 2^16 brings some of it back.
    let mut numbers = Numbers(5);
    let (rows, dim) = (1024, 2);
    let x: Vec<f16> = (0..rows * dim).map(|_| f16::from_f64(1e-2 * numbers.unit())).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i / 4).collect();
    for negatives in [Negatives::All, Negatives::Hardest] {
        let loss = BatchContrastiveLoss { margin: 0.01, negatives, ..Default::default() };
        let mut grad = vec![f16::NAN; rows * dim];
        loss.on(Matrix::new(&x, dim).unwrap(), &labels).grad(&[65536.0], &mut grad).unwrap();
        let wide: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let expected = oracle::run(&loss, Matrix::new(&wide, dim).unwrap(), &labels, &[65536.0], None).unwrap();
        let size = expected.grad.iter().fold(0f64, |m, g| m.max(g.abs()));
        assert!(size > 0.1, "{size}");
        for (actual, expected) in grad.iter().zip(expected.grad) {
            assert!((actual.to_f64() - expected).abs() <= 1e-3 * size, "{actual} for {expected}");
        }
    }
}
