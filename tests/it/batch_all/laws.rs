//! What holds of `batch_all` to the last bit, or by its definition; and what it refuses.

use half::f16;
use tercet::batch_all::oracle;
use tercet::{BatchAllTripletLoss, Distance, Element, Error, Matrix, MeanOver, Own, Reduction, Reference, Stats};

use crate::support::{Numbers, poison};

/// A batch of uniform f32 numbers with `each` rows per class.
fn uniform(rows: usize, dim: usize, each: usize) -> (Vec<f32>, Vec<i64>) {
    let mut numbers = Numbers(1);
    let x = (0..rows * dim).map(|_| numbers.unit() as f32).collect();
    (x, (0..rows).map(|i| ((i * 7) % rows / each) as i64).collect())
}

fn options() -> Vec<BatchAllTripletLoss> {
    let mut all = Vec::new();
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        for (normalize, mean_over) in [(false, MeanOver::Active), (true, MeanOver::Active), (false, MeanOver::Valid)] {
            all.push(BatchAllTripletLoss { margin: 1.0, distance, normalize, mean_over, ..Default::default() });
        }
    }
    all
}

fn both<T: Element>(loss: &BatchAllTripletLoss, x: &[T], dim: usize, labels: &[i64]) -> (T::Scalar, Vec<T>) {
    let mut grad = poison(x.len());
    let loss = loss.on(Matrix::new(x, dim).unwrap(), labels).loss_and_grad(&mut grad).unwrap();
    (loss, grad)
}

fn stats(loss: &BatchAllTripletLoss, x: &[f32], dim: usize, labels: &[i64]) -> Stats {
    loss.on(Matrix::new(x, dim).unwrap(), labels).loss_with_stats().unwrap().1
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    // Small classes and large ones, an odd number of blocks and an even one.
    for (rows, each) in [(1000, 5), (1000, 125), (520, 4)] {
        let (x, labels) = uniform(rows, 33, each);
        for loss in options() {
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
    let loss = BatchAllTripletLoss { margin: 1.0, ..Default::default() };
    let first = both(&loss, &x, 17, &labels);
    for _ in 0..100 {
        assert_eq!(both(&loss, &x, 17, &labels), first);
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
    for loss in options() {
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
    for loss in options().into_iter().filter(|l| l.distance != Distance::Cosine && !l.normalize) {
        assert!(close(&both(&loss, &x, 24, &labels), &both(&loss, &moved, 24, &labels)), "{loss:?}");
    }
}

#[test]
fn scaled_by_a_power_of_two_the_loss_is_too() {
    let (x, labels) = uniform(130, 9, 5);
    let (half, loss) = (x.iter().map(|x| x / 2.0).collect::<Vec<_>>(), BatchAllTripletLoss::default());
    let (value, grad) = both(&BatchAllTripletLoss { margin: 1.0, ..loss }, &x, 9, &labels);
    let (smaller, smaller_grad) = both(&BatchAllTripletLoss { margin: 0.25, ..loss }, &half, 9, &labels);
    assert_eq!((value, grad), (4.0 * smaller, smaller_grad.iter().map(|g| 2.0 * g).collect()));
}

#[test]
fn the_oracle_agrees_with_finite_differences() {
    let mut numbers = Numbers(3);
    let (rows, dim) = (10, 3);
    let labels: Vec<i64> = (0..rows as i64).map(|i| i % 3).collect();
    let x: Vec<f64> = (0..rows * dim).map(|_| numbers.unit()).collect();
    for loss in options() {
        let loss = BatchAllTripletLoss { margin: 0.4, reduction: Reduction::Sum, ..loss };
        let run = |x: &[f64]| oracle::run(&loss, Matrix::new(x, dim).unwrap(), &labels, 1.0).unwrap();
        let expected = run(&x);
        assert!(expected.stats.active > 0 && expected.stats.active < expected.stats.valid);
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
fn the_number_of_triplets_is_that_of_their_list() {
    let (x, labels) = uniform(97, 2, 6);
    let stats = stats(&BatchAllTripletLoss { margin: 1e6, ..Default::default() }, &x, 2, &labels);
    assert_eq!(stats.valid, oracle::triplets(&labels).count() as u64);
    assert_eq!(stats.active, stats.valid, "all of them with so large a margin");
}

#[test]
fn nan_and_infinity_are_seen() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for labels in [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]] {
            for loss in options() {
                let mut x: Vec<f32> = (0..15).map(|i| (i as f32).sin()).collect();
                x[7] = bad;
                let (value, grad) = both(&loss, &x, 3, &labels);
                assert!(value.is_nan() && grad[6..9].iter().all(|g| g.is_nan()), "{loss:?}");
            }
        }
    }
}

#[test]
fn a_distance_that_overflows_gives_nan() {
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
        let loss = BatchAllTripletLoss { distance, ..Default::default() };
        // The distance of the positives, of the negatives, or of both overflows f32.
        for x in [[-1e20f32, 1e20, 0.0, 0.0], [-1e20, -1e20, 1e20, 1e20], [-1e38, 1e38, -3e38, 3e38]] {
            let (value, grad) = both(&loss, &x, 1, &[0, 0, 1, 1]);
            assert!(!value.is_finite() && grad.iter().any(|g| g.is_nan()), "{distance:?} {x:?}: {value} {grad:?}");
        }
        // Squares of the rows overflow, those of the differences do not.
        let x = [0.0, 1e15, 2e15, 4e15].map(|x: f32| x + 3e19);
        let (value, grad) = both(&loss, &x, 1, &[0, 0, 1, 1]);
        assert!(value.is_finite() && grad.iter().all(|g| g.is_finite()), "{value} {grad:?}");
    }
    // Distances are finite, but not once the margin is added.
    let loss = BatchAllTripletLoss { margin: f32::MAX.into(), ..Default::default() };
    assert!(both(&loss, &[0f32, 1e18, 2e18, 3e18], 1, &[0, 0, 1, 1]).0.is_nan());
}

#[test]
fn without_a_triplet_everything_is_zero() {
    let (x, _) = uniform(100, 10, 1);
    for loss in options() {
        for labels in [vec![3; 100], (0..100).collect::<Vec<i64>>()] {
            let (value, grad) = both(&loss, &x, 10, &labels);
            assert!(value.to_bits() == 0 && grad.iter().all(|g| *g == 0.0));
            assert_eq!(stats(&loss, &x, 10, &labels), Stats::default());
        }
        assert_eq!(both(&loss, &x[..10], 10, &[1]), (0.0, vec![0.0; 10]));
    }
}

#[test]
fn coincident_points_have_finite_gradients() {
    let labels: Vec<i64> = (0..200).map(|i| i % 4).collect();
    for loss in options() {
        let (value, grad) = both(&loss, &vec![0.7f32; 200 * 130], 130, &labels);
        assert!((value - 1.0).abs() < 1e-5 && grad.iter().all(|g| g.abs() < 1e-5), "{loss:?}: {value}");
    }
}

#[test]
fn a_class_of_thousands() {
    // On a line each distance is known: a class of 0 .. 2999 and one far away.
    let rows = 3002;
    let x: Vec<f32> = (0..rows).map(|i| if i < 3000 { i as f32 } else { 1e4 + i as f32 }).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i64::from(i >= 3000)).collect();
    let loss = BatchAllTripletLoss { distance: Distance::Euclidean, margin: 8000.0, ..Default::default() };
    let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let (mut sum, mut active) = (0.0, 0u64);
    for (a, p, n) in oracle::triplets(&labels) {
        let t = (exact[a] - exact[p]).abs() - (exact[a] - exact[n]).abs() + 8000.0;
        if t > 0.0 {
            sum += t;
            active += 1;
        }
    }
    let (value, stats) = loss.on(Matrix::new(&x, 1).unwrap(), &labels).loss_with_stats().unwrap();
    assert_eq!(stats.active, active);
    assert!((f64::from(value) - sum / active as f64).abs() <= 1e-5 * sum / active as f64);
}

#[test]
fn wrong_arguments_are_named() {
    let x = [1f32, 2.0, 3.0, 4.0];
    let matrix = Matrix::new(&x, 2).unwrap();
    let refused = |loss: BatchAllTripletLoss, matrix: Matrix<'_, f32>, labels: &[i64], argument: &str, got: &str| {
        let all = [
            loss.on(matrix, labels).loss().map(drop),
            loss.on(matrix, labels).loss_with_stats().map(drop),
            loss.on(matrix, labels).loss_and_grad(&mut [0.0; 4]).map(drop),
            loss.on(matrix, labels).grad(&[1.0], &mut [0.0; 4]),
        ];
        for result in all {
            let error = result.expect_err("accepted");
            let Error::Argument { argument: named, actual, .. } = &error else { panic!("{error}") };
            assert!(*named == argument && actual.contains(got), "{error}");
        }
    };
    let default = BatchAllTripletLoss::default();
    for margin in [-0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39] {
        let text = if margin == 1e39 { "1e39".into() } else { margin.to_string() };
        refused(BatchAllTripletLoss { margin, ..default }, matrix, &[0, 1], "margin", &text);
    }
    refused(BatchAllTripletLoss { reduction: Reduction::None, ..default }, matrix, &[0, 1], "reduction", "None");
    refused(default, matrix, &[0], "labels", "1");
    refused(default, matrix, &[0, 1, 2], "labels", "3");
    refused(default, Matrix::new(&[], 2).unwrap(), &[], "embeddings", "[0, 2]");
    // One row repeated more often than an index can count.
    let many = Matrix::strided(&x, u32::MAX as usize, 1, 0).unwrap();
    refused(default, many, &[0, 1], "embeddings", "4294967295");
    for error in [default.on(matrix, &[0, 1]).grad(&[1.0], &mut [0.0; 3]), {
        default.on(matrix, &[0, 1]).loss_and_grad(&mut [0.0; 5]).map(drop)
    }] {
        assert!(error.expect_err("accepted").to_string().starts_with("grad"));
    }
}

#[test]
fn gradients_of_16_bit_embeddings_survive_a_mean_over_many() {
    // 1 / M is far below f16's smallest normal number; an upstream of 2^16 brings some of it back.
    let mut numbers = Numbers(5);
    let (rows, dim) = (512, 2);
    let x: Vec<f16> = (0..rows * dim).map(|_| f16::from_f64(numbers.unit())).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i / 4).collect();
    let loss = BatchAllTripletLoss { mean_over: MeanOver::Valid, ..Default::default() };
    let mut grad = vec![f16::NAN; rows * dim];
    loss.on(Matrix::new(&x, dim).unwrap(), &labels).grad(&[65536.0], &mut grad).unwrap();
    let wide: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
    let expected = oracle::run(&loss, Matrix::new(&wide, dim).unwrap(), &labels, 65536.0).unwrap();
    let size = expected.grad.iter().fold(0f64, |m, g| m.max(g.abs()));
    assert!(size > 1.0);
    for (actual, expected) in grad.iter().zip(expected.grad) {
        assert!((actual.to_f64() - expected).abs() <= 1e-3 * size, "{actual} for {expected}");
    }
}

/// Losses and gradients of shards of the anchors, each against the whole batch, add up to those of the whole batch.
#[test]
fn shards_add_up() {
    let (rows, dim) = (120, 12);
    let mut numbers = Numbers(5);
    // Integers: sums are exact in any order.
    let x: Vec<f64> = (0..rows * dim).map(|_| numbers.below(9) as f64 - 4.0).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i * 7 % 30).collect();
    let loss = BatchAllTripletLoss { margin: 40.0, reduction: Reduction::Sum, ..Default::default() };
    let (whole, grad) = both(&loss, &x, dim, &labels);
    assert!(whole > 0.0);
    let (mut sum, mut summed) = (0.0, vec![0.0; x.len()]);
    for (start, end) in [(0, 50), (50, 51), (51, 120)] {
        let embeddings = Matrix::new(&x, dim).unwrap();
        let set = Reference { embeddings, labels: &labels[..], own: Own::Offset(start as i64) };
        let shard = Matrix::new(&x[start * dim..end * dim], dim).unwrap();
        let (mut own, mut others) = (vec![f64::NAN; (end - start) * dim], vec![f64::NAN; x.len()]);
        let grads = [Some(&mut own[..]), Some(&mut others[..])];
        sum += loss.on(shard, &labels[start..end]).against(&set).loss_and_grads(grads).unwrap();
        summed[start * dim..end * dim].iter_mut().zip(&own).for_each(|(sum, g)| *sum += g);
        summed.iter_mut().zip(&others).for_each(|(sum, g)| *sum += g);
    }
    assert!(sum == whole && summed == grad, "{sum} for {whole}");
}
