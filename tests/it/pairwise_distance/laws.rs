//! What holds of `pairwise_distance` to the last bit, or by its definition.

use tercet::pairwise_distance::oracle;
use tercet::{Distance, Error, Matrix, PairwiseDistance};

use crate::support::{Numbers, poison};

fn uniform(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    (0..rows * dim).map(|_| numbers.unit() as f32).collect()
}

fn options() -> Vec<PairwiseDistance> {
    let mut all = Vec::new();
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        for normalize in [false, true] {
            all.push(PairwiseDistance { distance, normalize, ..Default::default() });
        }
    }
    all
}

/// Distances and both gradients, for an upstream gradient of sines.
fn run(op: &PairwiseDistance, x: &[f32], y: &[f32], dim: usize) -> (Vec<f32>, [Vec<f32>; 2]) {
    let (a, b) = (Matrix::new(x, dim).unwrap(), Matrix::new(y, dim).unwrap());
    let mut d = poison(a.rows() * b.rows());
    op.distances(a, b, &mut d).unwrap();
    let upstream: Vec<f32> = (0..d.len()).map(|i| (i as f32).sin()).collect();
    let mut grads = [poison(x.len()), poison(y.len())];
    op.grad(a, b, &upstream, grads.each_mut().map(|g| Some(&mut g[..]))).unwrap();
    (d, grads)
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let (x, y) = (uniform(300, 33, 1), uniform(700, 33, 2));
    for op in options() {
        let first = run(&op, &x, &y, 33);
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| run(&op, &x, &y, 33)), first, "{threads} threads, {op:?}");
        }
    }
}

#[test]
fn the_same_bits_a_hundred_times() {
    let (x, y) = (uniform(70, 33, 1), uniform(90, 33, 2));
    for op in options() {
        let first = run(&op, &x, &y, 33);
        for _ in 0..100 {
            assert_eq!(run(&op, &x, &y, 33), first, "{op:?}");
        }
    }
}

#[test]
fn the_transposed_matrix_is_that_of_the_sides_exchanged() {
    let (x, y) = (uniform(70, 12, 1), uniform(90, 12, 2));
    for op in options() {
        let (there, _) = run(&op, &x, &y, 12);
        let (back, _) = run(&op, &y, &x, 12);
        for i in 0..70 {
            for j in 0..90 {
                let (d, e) = (there[i * 90 + j], back[j * 70 + i]);
                assert!((d - e).abs() <= 1e-6 * (1.0 + d), "{op:?}: {d} and {e}");
            }
        }
    }
}

/// Rows so close to each other or so far from the origin that `cdist` by products loses every digit.
#[test]
fn near_rows_keep_their_distance() {
    let (rows, dim) = (40, 64);
    for (offset, spread) in [(1e3, 1.0), (1.0, 1e-3), (0.0, 1e-12)] {
        let x: Vec<f32> = uniform(rows, dim, 3).iter().map(|x| offset + spread * x).collect();
        // A copy of each row, with one element changed by 1e-6 of its size.
        let y: Vec<f32> = x.iter().enumerate().map(|(i, x)| if i % dim == 5 { x * (1.0 + 1e-6) } else { *x }).collect();
        for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
            let op = PairwiseDistance { distance, ..Default::default() };
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let (d, grads) = run(&op, &x, &y, dim);
            let upstream: Vec<f64> = (0..d.len()).map(|i| f64::from((i as f32).sin())).collect();
            let (a, b) = (wide(&x), wide(&y));
            let truth =
                oracle::run(&op, Matrix::new(&a, dim).unwrap(), Matrix::new(&b, dim).unwrap(), &upstream).unwrap();
            for (actual, expected) in d.iter().zip(&truth.distances) {
                let bound = 1e-4 * expected + 1e-37;
                assert!((f64::from(*actual) - expected).abs() <= bound, "{actual} for {expected}, offset {offset}");
            }
            for (actual, expected) in grads.iter().zip(&truth.grads) {
                let size = expected.iter().fold(0f64, |m, g| m.max(g.abs()));
                for (actual, expected) in actual.iter().zip(expected) {
                    assert!((f64::from(*actual) - expected).abs() <= 1e-3 * size, "{actual} for {expected}");
                }
            }
        }
    }
}

#[test]
fn coincident_rows_are_at_zero_and_pull_nowhere() {
    let x = vec![0.7f32; 100 * 130];
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
        let (d, grads) = run(&PairwiseDistance { distance, ..Default::default() }, &x, &x[..30 * 130], 130);
        assert!(d.iter().all(|d| *d == 0.0) && grads.iter().flatten().all(|g| *g == 0.0), "{distance:?}");
    }
}

#[test]
fn the_oracle_agrees_with_finite_differences() {
    let mut numbers = Numbers(3);
    let dim = 3;
    let mut random = |count: usize| -> Vec<f64> { (0..count).map(|_| numbers.unit()).collect() };
    let (x, y, upstream) = (random(4 * dim), random(5 * dim), random(20));
    for op in options() {
        let run = |x: &[f64], y: &[f64]| {
            oracle::run(&op, Matrix::new(x, dim).unwrap(), Matrix::new(y, dim).unwrap(), &upstream).unwrap()
        };
        let total =
            |x: &[f64], y: &[f64]| -> f64 { run(x, y).distances.iter().zip(&upstream).map(|(d, u)| d * u).sum() };
        let expected = run(&x, &y).grads;
        let h = 1e-6;
        for which in 0..2 {
            for i in 0..[x.len(), y.len()][which] {
                let at = |step: f64| {
                    let (mut x, mut y) = (x.clone(), y.clone());
                    [&mut x, &mut y][which][i] += step;
                    total(&x, &y)
                };
                let slope = (at(h) - at(-h)) / (2.0 * h);
                assert!((slope - expected[which][i]).abs() <= 1e-6 * (1.0 + slope.abs()), "{op:?} {which} {i}");
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for op in options() {
            let (mut x, y) = (uniform(9, 3, 1), uniform(7, 3, 2));
            x[7] = bad;
            let (d, grads) = run(&op, &x, &y, 3);
            for (at, d) in d.iter().enumerate() {
                assert_eq!(d.is_nan(), at / 7 == 2, "{op:?}: d[{}, {}] = {d}", at / 7, at % 7);
            }
            assert!(grads[0][6..9].iter().all(|g| g.is_nan()), "{op:?}");
            assert!(grads[0][..6].iter().chain(&grads[0][9..]).all(|g| g.is_finite()), "{op:?}");
            let (d, _) = run(&op, &y, &x, 3);
            assert!(d.iter().enumerate().all(|(at, d)| d.is_nan() == (at % 9 == 2)), "{op:?}");
        }
    }
}

/// A NaN or infinite distance must not hide that another pair of its tile is near, or that products overflow.
#[test]
fn nan_and_infinity_change_no_other_distance() {
    let (rows, dim) = (64, 37);
    let x = uniform(rows, dim, 5);
    let huge: Vec<f32> = x.iter().enumerate().map(|(i, x)| if i / dim == 3 { x * 1e19 + 3e19 } else { *x }).collect();
    for op in options().into_iter().filter(|op| op.distance != Distance::Cosine && !op.normalize) {
        for x in [&x, &huge] {
            let (clean, _) = run(&op, x, x, dim);
            assert!((0..rows).all(|i| clean[i * rows + i] == 0.0), "{op:?}");
            for bad in [f32::NAN, f32::INFINITY] {
                for row in [0, 5, 31, 60, 63] {
                    let mut y = x.clone();
                    y[row * dim] = bad;
                    let (d, _) = run(&op, x, &y, dim);
                    for i in (0..rows).filter(|&i| i != row) {
                        assert_eq!(d[i * rows + i], 0.0, "{op:?}: d[{i}, {i}] beside {bad} in row {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_distance_that_overflows_is_no_number() {
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
        let op = PairwiseDistance { distance, ..Default::default() };
        let (d, _) = run(&op, &[-1e20f32, 3e19], &[1e20, 3e19 + 4e15], 1);
        assert!(!d[0].is_finite() && d[3].is_finite() && d[3] > 0.0, "{d:?}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let numbers = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let (x, y) = (Matrix::new(&numbers[..4], 2).unwrap(), Matrix::new(&numbers, 2).unwrap());
    let default = PairwiseDistance::default();
    let refused = |op: PairwiseDistance, x: Matrix<'_, f32>, y: Matrix<'_, f32>, argument: &str, got: &str| {
        for result in [op.distances(x, y, &mut [0.0; 6]), op.grad(x, y, &[0.0; 6], [None, None])] {
            let error = result.expect_err("accepted");
            let Error::Argument { argument: named, actual, .. } = &error else { panic!("{error}") };
            assert!(*named == argument && actual.contains(got), "{error}");
        }
    };
    refused(default, x, Matrix::new(&numbers, 3).unwrap(), "y", "[2, 3]");
    refused(default, Matrix::new(&[], 2).unwrap(), y, "x", "[0, 2]");
    refused(default, x, Matrix::new(&[], 2).unwrap(), "y", "[0, 2]");
    let many = Matrix::strided(&numbers, u32::MAX as usize, 2, 0).unwrap();
    refused(default, many, y, "x", "4294967295");
    let many = Matrix::strided(&numbers, u32::MAX as usize - 256, 2, 0).unwrap();
    refused(default, many, many, "x and y", "4294967039");

    let named = |result: Result<(), Error>, argument: &str| {
        let error = result.expect_err("accepted");
        assert!(error.to_string().starts_with(argument), "{error}");
    };
    named(default.distances(x, y, &mut [0.0; 5]), "to");
    named(default.grad(x, y, &[0.0; 7], [None, None]), "upstream");
    named(default.grad(x, y, &[0.0; 6], [Some(&mut [0.0; 3]), None]), "grads[0]");
    named(default.grad(x, y, &[0.0; 6], [None, Some(&mut [0.0; 4])]), "grads[1]");
}
