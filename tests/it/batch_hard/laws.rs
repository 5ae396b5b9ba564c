//! What holds of `batch_hard` to the last bit, or by its definition; and what it refuses.

use half::f16;
use tercet::batch_hard::oracle;
use tercet::{BatchHardTripletLoss, Distance, Element, Error, Matrix, Own, Reduction, Reference, Stats};

use crate::support::{Numbers, poison};

/// A batch of uniform f32 numbers with `each` rows per class.
fn uniform(rows: usize, dim: usize, each: usize) -> (Vec<f32>, Vec<i64>) {
    let mut numbers = Numbers(1);
    let x = (0..rows * dim).map(|_| numbers.unit() as f32).collect();
    (x, (0..rows).map(|i| ((i * 7) % rows / each) as i64).collect())
}

fn options() -> Vec<BatchHardTripletLoss> {
    let mut all = Vec::new();
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        for (normalize, soft_margin) in [(false, false), (true, false), (false, true)] {
            all.push(BatchHardTripletLoss { margin: 1.0, distance, normalize, soft_margin, ..Default::default() });
        }
    }
    all
}

fn both<T: Element>(loss: &BatchHardTripletLoss, x: &[T], dim: usize, labels: &[i64]) -> (T::Scalar, Vec<T>) {
    let mut grad = poison(x.len());
    let loss = loss.on(Matrix::new(x, dim).unwrap(), labels).loss_and_grad(&mut grad).unwrap();
    (loss, grad)
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let (x, labels) = uniform(1000, 33, 5);
    for loss in options() {
        let run = || both(&loss, &x, 33, &labels);
        let first = run();
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for _ in 0..3 {
                assert_eq!(pool.install(run), first, "{threads} threads, {loss:?}");
            }
        }
    }
}

#[test]
fn the_same_bits_a_hundred_times() {
    let (x, labels) = uniform(200, 33, 5);
    for loss in options() {
        let first = both(&loss, &x, 33, &labels);
        for _ in 0..100 {
            assert_eq!(both(&loss, &x, 33, &labels), first, "{loss:?}");
        }
    }
}

#[test]
fn the_order_of_the_batch_and_the_names_of_its_classes_do_not_matter() {
    let (x, labels) = uniform(300, 20, 4);
    let (rows, dim) = (300, 20);
    for loss in options() {
        let matrix = Matrix::new(&x, dim).unwrap();
        let given = loss.on(matrix, &labels).select().unwrap();
        let renamed: Vec<i64> = labels.iter().map(|l| i64::MAX - l * 1_000_000_007).collect();
        let other = loss.on(matrix, &renamed).select().unwrap();
        assert_eq!(
            (&given.positive, &given.negative, &given.losses),
            (&other.positive, &other.negative, &other.losses)
        );

        // A permutation: 7 and 300 are coprime.
        let from = |i: usize| i * 7 % rows;
        let moved: Vec<f32> = (0..rows).flat_map(|i| x[from(i) * dim..][..dim].to_vec()).collect();
        let moved_labels: Vec<i64> = (0..rows).map(|i| labels[from(i)]).collect();
        let moved = loss.on(Matrix::new(&moved, dim).unwrap(), &moved_labels).select().unwrap();
        for i in 0..rows {
            assert_eq!(from(moved.positive[i] as usize), given.positive[from(i)] as usize);
            assert_eq!(from(moved.negative[i] as usize), given.negative[from(i)] as usize);
            assert_eq!(moved.losses[i], given.losses[from(i)]);
        }
    }
}

#[test]
fn translation_changes_nothing() {
    // Multiples of 2^-12 below 1, moved by 1024: exact in f32.
    let (x, labels) = uniform(200, 24, 4);
    let x: Vec<f32> = x.iter().map(|x| (x * 4096.0).round() / 4096.0).collect();
    let moved: Vec<f32> = x.iter().map(|x| x + 1024.0).collect();
    for loss in options().into_iter().filter(|l| l.distance != Distance::Cosine && !l.normalize) {
        assert_eq!(both(&loss, &x, 24, &labels), both(&loss, &moved, 24, &labels), "{loss:?}");
    }
}

#[test]
fn the_oracle_agrees_with_finite_differences() {
    let mut numbers = Numbers(3);
    let (rows, dim) = (12, 3);
    let labels: Vec<i64> = (0..rows as i64).map(|i| i % 4).collect();
    let x: Vec<f64> = (0..rows * dim).map(|_| numbers.unit()).collect();
    for loss in options() {
        let loss = BatchHardTripletLoss { reduction: Reduction::Sum, ..loss };
        let run = |x: &[f64]| oracle::run(&loss, Matrix::new(x, dim).unwrap(), &labels, &[1.0], None).unwrap();
        let expected = run(&x);
        for i in 0..x.len() {
            let h = 1e-6;
            let at = |step: f64| {
                let mut x = x.clone();
                x[i] += step;
                run(&x).loss
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!((slope - expected.grad[i]).abs() <= 1e-6 * (1.0 + slope.abs()), "{loss:?} {i}: {slope}");
        }
    }
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
                let mut losses = [0.0; 5];
                loss.on(Matrix::new(&x, 3).unwrap(), &labels).losses(&mut losses).unwrap();
                let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let expected = oracle::run(&loss, Matrix::new(&wide, 3).unwrap(), &labels, &[1.0], None).unwrap();
                for (actual, expected) in losses.iter().zip(expected.losses) {
                    assert_eq!(actual.is_nan(), expected.is_nan(), "{losses:?}");
                }
                assert!(losses[2].is_nan());
            }
        }
    }
}

#[test]
fn a_selected_distance_that_overflows_gives_nan() {
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
        for soft_margin in [false, true] {
            let loss = BatchHardTripletLoss { distance, soft_margin, ..Default::default() };
            // The distance of the positives, of the negatives, or of both overflows f32.
            for x in [[-1e20f32, 1e20, 0.0, 0.0], [-1e20, -1e20, 1e20, 1e20], [-1e38, 1e38, -3e38, 3e38]] {
                let (value, grad) = both(&loss, &x, 1, &[0, 0, 1, 1]);
                assert!(!value.is_finite() && grad.iter().any(|g| g.is_nan()), "{distance:?} {x:?}: {value} {grad:?}");
            }
            // Squares of the rows overflow, those of the selected differences do not.
            let near = [0.0, 1e15, 2e15, 4e15].map(|x: f32| x + 3e19);
            let x = [near, near.map(|x| -x)].concat();
            let (value, grad) = both(&loss, &x, 1, &[0, 0, 1, 1, 2, 2, 3, 3]);
            assert!(value.is_finite() && grad.iter().all(|g| g.is_finite()), "{value} {grad:?}");
        }
    }
    let loss = BatchHardTripletLoss { normalize: true, ..Default::default() };
    let (value, grad) = both(&loss, &[1e20f32, 1e20, 1.0, 0.0, 0.0, 1.0, 0.5, 0.5], 2, &[0, 0, 1, 1]);
    assert!(value.is_nan() && grad[0].is_nan());
}

#[test]
fn without_a_triplet_everything_is_zero() {
    let (x, _) = uniform(100, 10, 1);
    for loss in options() {
        for labels in [vec![3; 100], (0..100).collect::<Vec<i64>>()] {
            let (value, grad) = both(&loss, &x, 10, &labels);
            assert!(value.to_bits() == 0 && grad.iter().all(|g| *g == 0.0));
            let stats = loss.on(Matrix::new(&x, 10).unwrap(), &labels).loss_with_stats().unwrap().1;
            assert_eq!(stats, Stats::default());
        }
        assert_eq!(both(&loss, &x[..10], 10, &[1]), (0.0, vec![0.0; 10]));
    }
}

#[test]
fn soft_margin_does_not_overflow() {
    let loss = BatchHardTripletLoss { soft_margin: true, ..Default::default() };
    // d_ap - d_an is 1e6, then -1e6.
    let (value, grad) = both(&loss, &[0f32, 1000.0, 0.0, 1000.0], 1, &[0, 0, 1, 1]);
    assert_eq!(value, 1e6);
    assert!(grad.iter().all(|g| g.is_finite()));
    let (value, grad) = both(&loss, &[0f32, 0.0, 1000.0, 1000.0], 1, &[0, 0, 1, 1]);
    assert!(value == 0.0 && grad.iter().all(|g| *g == 0.0));
}

#[test]
fn ties_take_the_lowest_index() {
    // All rows coincide, and the classes are interleaved.
    let labels: Vec<i64> = (0..200).map(|i| [3, 1, 2, 1][i % 4] as i64).collect();
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        let loss = BatchHardTripletLoss { distance, ..Default::default() };
        let found = loss.on(Matrix::new(&vec![0.7f32; 200 * 130], 130).unwrap(), &labels).select().unwrap();
        for a in 0..200 {
            let first = |want: &dyn Fn(usize) -> bool| (0..200).find(|&i| i != a && want(i)).unwrap() as u32;
            assert_eq!(found.positive[a], first(&|i| labels[i] == labels[a]));
            assert_eq!(found.negative[a], first(&|i| labels[i] != labels[a]));
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = [1f32, 2.0, 3.0, 4.0];
    let matrix = Matrix::new(&x, 2).unwrap();
    let refused = |loss: BatchHardTripletLoss, matrix: Matrix<'_, f32>, labels: &[i64], argument: &str, got: &str| {
        let all = [
            loss.on(matrix, labels).select().map(drop),
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
    let default = BatchHardTripletLoss::default();
    // 1e39 is finite in f64 and infinite in f32.
    for margin in [-0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39] {
        let text = if margin == 1e39 { "1e39".into() } else { margin.to_string() };
        refused(BatchHardTripletLoss { margin, ..default }, matrix, &[0, 1], "margin", &text);
    }
    refused(default, matrix, &[0], "labels", "1");
    refused(default, matrix, &[0, 1, 2], "labels", "3");
    refused(default, Matrix::new(&[], 2).unwrap(), &[], "embeddings", "[0, 2]");
    // One row repeated more often than an index can count.
    let many = Matrix::strided(&x, u32::MAX as usize, 1, 0).unwrap();
    refused(default, many, &[0, 1], "embeddings", "4294967295");
    let wide = vec![0f32; (1 << 24) + 1];
    refused(default, Matrix::strided(&wide, 2, wide.len(), 0).unwrap(), &[0, 1], "embeddings", "[2, 16777217]");

    let named = |result: Result<f32, Error>, argument: &str| {
        let error = result.expect_err("accepted");
        assert!(error.to_string().starts_with(argument), "{error}");
    };
    let none = BatchHardTripletLoss { reduction: Reduction::None, ..default };
    named(none.on(matrix, &[0, 1]).loss(), "reduction");
    named(none.on(matrix, &[0, 1]).loss_and_grad(&mut [0.0; 4]), "reduction");
    named(none.on(matrix, &[0, 1]).grad(&[1.0], &mut [0.0; 4]).map(|()| 0.0), "upstream");
    named(default.on(matrix, &[0, 1]).grad(&[1.0; 2], &mut [0.0; 4]).map(|()| 0.0), "upstream");
    let both = || default.on(matrix, &[0, 1]);
    named(both().loss_and_grads([None, Some(&mut [0.0; 4])]), "reference_grad: expected None");
    named(both().grads(&[1.0], [None, Some(&mut [0.0; 4])]).map(|()| 0.0), "reference_grad: expected None");
    let set = Reference { embeddings: matrix, labels: &[0, 1][..], own: Own::None };
    named(both().against(&set).loss_and_grads([None, Some(&mut [0.0; 3])]), "reference_grad: expected 4 numbers");
    named(default.on(matrix, &[0, 1]).grad(&[1.0], &mut [0.0; 3]).map(|()| 0.0), "grad");
    named(default.on(matrix, &[0, 1]).loss_and_grad(&mut [0.0; 5]), "grad");
    named(default.on(matrix, &[0, 1]).losses(&mut [0.0; 3]).map(|()| 0.0), "losses");
}

#[test]
fn gradients_of_16_bit_embeddings_survive_a_mean_over_many() {
    // A gradient of 1e-3 over N is far below f16's smallest normal number; an upstream of 2^16 brings it back.
    let mut numbers = Numbers(5);
    let (rows, dim) = (4096, 2);
    let x: Vec<f16> = (0..rows * dim).map(|_| f16::from_f64(1e-3 * numbers.unit())).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i / 4).collect();
    let loss = BatchHardTripletLoss::default();
    let mut grad = vec![f16::NAN; rows * dim];
    loss.on(Matrix::new(&x, dim).unwrap(), &labels).grad(&[65536.0], &mut grad).unwrap();
    let wide: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
    let found = loss.on(Matrix::new(&x, dim).unwrap(), &labels).select().unwrap();
    let own = Some((&found.positive[..], &found.negative[..]));
    let expected = oracle::run(&loss, Matrix::new(&wide, dim).unwrap(), &labels, &[65536.0], own).unwrap();
    for (actual, expected) in grad.iter().zip(expected.grad) {
        assert!((actual.to_f64() - expected).abs() <= 1e-3 * expected.abs() + 1e-4, "{actual} for {expected}");
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
    let loss = BatchHardTripletLoss { margin: 40.0, reduction: Reduction::Sum, ..Default::default() };
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
