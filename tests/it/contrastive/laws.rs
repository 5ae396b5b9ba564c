//! What holds of `contrastive` to the last bit, or by its definition.

use half::{bf16, f16};
use tercet::contrastive::oracle;
use tercet::{ContrastiveLoss, Element, Matrix, PairedDistance, Reduction};

use super::property::same;
use crate::support::{Numbers, poison};

/// Every distance, with and without normalisation.
fn options() -> Vec<ContrastiveLoss> {
    let distances = [
        PairedDistance::SquaredEuclidean,
        PairedDistance::Euclidean,
        PairedDistance::Cosine,
        PairedDistance::Lp { p: 2.0, eps: 1e-6 },
        PairedDistance::Lp { p: 1.0, eps: 0.0 },
        PairedDistance::Lp { p: 3.0, eps: 1e-6 },
        PairedDistance::Lp { p: f64::INFINITY, eps: 0.0 },
    ];
    let all = distances.into_iter().flat_map(|distance| {
        [false, true].map(|normalize| ContrastiveLoss { margin: 1.5, distance, normalize, ..Default::default() })
    });
    all.collect()
}

fn both<T: Element>(loss: &ContrastiveLoss, x: [&[T]; 2], dim: usize, same: &[bool]) -> (T::Scalar, [Vec<T>; 2]) {
    let mut grads = x.map(|x| poison::<T>(x.len()));
    let rows = x.map(|x| Matrix::new(x, dim).unwrap());
    let value = loss.loss_and_grad(rows, same, grads.each_mut().map(|g| &mut g[..])).unwrap();
    (value, grads)
}

#[test]
fn the_oracle_agrees_with_finite_differences() {
    let mut numbers = Numbers(3);
    let (rows, dim, h) = (12, 3, 1e-6);
    let same = same(1, rows);
    let x: [Vec<f64>; 2] = [(); 2].map(|()| (0..rows * dim).map(|_| numbers.unit()).collect());
    for loss in options() {
        for reduction in [Reduction::Sum, Reduction::Mean] {
            let loss = ContrastiveLoss { reduction, ..loss };
            let run = |x: &[Vec<f64>; 2]| {
                oracle::run(&loss, x.each_ref().map(|x| Matrix::new(x, dim).unwrap()), &same, &[1.0]).unwrap()
            };
            let expected = run(&x);
            for (k, i) in [0, 1].into_iter().flat_map(|k| (0..rows * dim).map(move |i| (k, i))) {
                let at = |step: f64| {
                    let mut x = x.clone();
                    x[k][i] += step;
                    run(&x).loss
                };
                let (slope, grad) = ((at(h) - at(-h)) / (2.0 * h), expected.grads[k][i]);
                assert!((slope - grad).abs() <= 1e-7 * (1.0 + slope.abs()), "{loss:?} {k} {i}: {slope} {grad}");
            }
        }
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let mut numbers = Numbers(4);
    let (rows, dim) = (3000, 33);
    let same = same(2, rows);
    let x: [Vec<f32>; 2] = [(); 2].map(|()| (0..rows * dim).map(|_| numbers.unit() as f32).collect());
    for loss in options() {
        let run = || both(&loss, x.each_ref().map(|x| &x[..]), dim, &same);
        let first = run();
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for _ in 0..3 {
                assert_eq!(pool.install(run), first, "{threads} threads, {loss:?}");
            }
        }
    }
}

/// Integers, whose squares and sums are exact in every dtype: the formula to the last bit.
#[test]
fn integers_are_exact() {
    fn of<T: Element>() {
        // Distances 5, 5, 13, 13, 0, 0 and 10, the margin.
        let x1 = [[0, 0], [1, -1], [-5, 0], [-5, 0], [3, 4], [3, 4], [6, 0]];
        let x2 = [[3, 4], [4, 3], [0, 12], [0, 12], [3, 4], [3, 4], [0, 8]];
        let same = [true, false, true, false, true, false, false];
        let numbers = |x: [[i32; 2]; 7]| x.map(|x| x.map(|x| T::from_f64(x.into()))).concat();
        let (x1, x2) = (numbers(x1), numbers(x2));
        let loss = ContrastiveLoss { margin: 10.0, reduction: Reduction::Sum, ..Default::default() };
        let (value, [to_x1, to_x2]) = both(&loss, [&x1, &x2], 2, &same);
        // The sixth pair is negative and coincides: its loss is margin² / 2.
        assert_eq!(value.to_f64(), 12.5 + 12.5 + 84.5 + 50.0);
        // With respect to x1: e = x1 - x2 for positive pairs, -(m - d) e / d for negative pairs.
        let expected = [-3, -4, 3, 4, -5, -12, 0, 0, 0, 0, 0, 0, 0, 0].map(f64::from);
        let wide = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        let off = |x: f64, y: f64| (x - y).abs() <= if T::NAME == "bf16" { 0.02 } else { 4e-3 };
        for (k, (x, expected)) in wide(&to_x1).into_iter().zip(expected).enumerate() {
            // The second row divides by d; the others do not.
            assert!(if (2..4).contains(&k) { off(x, expected) } else { x == expected }, "{k}: {x}");
        }
        assert_eq!(wide(&to_x2), wide(&to_x1).iter().map(|x| -x).collect::<Vec<_>>());
    }
    of::<f32>();
    of::<f64>();
    of::<f16>();
    of::<bf16>();
}

/// A positive pair is pulled by the difference itself, even if its square underflows.
#[test]
fn tiny_differences_still_pull() {
    let (x1, x2) = ([3e-30f32, -1e-30, 0.0], [1e-30f32, 0.0, 0.0]);
    let loss = ContrastiveLoss { reduction: Reduction::Sum, ..Default::default() };
    let (_, [to_x1, to_x2]) = both(&loss, [&x1, &x2], 3, &[true]);
    assert_eq!(to_x1, [x1[0] - x2[0], -1e-30, 0.0]);
    assert_eq!(to_x2, [x2[0] - x1[0], 1e-30, 0.0]);
}

#[test]
fn coincident_points_have_no_gradient() {
    for loss in options() {
        let x = [0.25f32, -0.5, 0.75, 0.0, 0.0, 0.0];
        for same in [[true; 2], [false; 2]] {
            let (value, grads) = both(&loss, [&x, &x], 3, &same);
            if !matches!(loss.distance, PairedDistance::Cosine) {
                // `eps` makes coincident rows differ a little.
                let none = !matches!(loss.distance, PairedDistance::Lp { eps, .. } if eps > 0.0);
                assert!(
                    grads.iter().flatten().all(|g| if none { *g == 0.0 } else { g.is_finite() }),
                    "{loss:?} {grads:?}"
                );
            }
            assert!(value.is_finite());
        }
    }
}

#[test]
fn nan_and_infinity_are_seen() {
    for loss in options() {
        for (which, bad) in [0, 1].into_iter().flat_map(|k| [f32::NAN, f32::NEG_INFINITY].map(|bad| (k, bad))) {
            // The bad element is in a whole vector register or in the remainder; all other elements are equal, or not.
            for (at, spread, same) in [(3, 0.0, true), (36, 0.0, false), (3, 1.0, false), (36, 1.0, true)] {
                let mut x =
                    [1.0f32, 2.0].map(|k| (0..2 * 37).map(|i| k * spread * (i as f32).sin()).collect::<Vec<_>>());
                x[which][37 + at] = bad;
                let (value, grads) = both(&loss, [&x[0], &x[1]], 37, &[!same, same]);
                assert!(value.is_nan(), "{loss:?}");
                for grad in grads {
                    assert!(grad[..37].iter().all(|g| g.is_finite()), "{loss:?} {which} {bad} {grad:?}");
                    assert!(grad[37..].iter().all(|g| g.is_nan()), "{loss:?} {which} {bad} {grad:?}");
                }
                let mut losses = [0.0; 2];
                let rows = x.each_ref().map(|x| Matrix::new(x, 37).unwrap());
                loss.losses(rows, &[!same, same], &mut losses).unwrap();
                assert!(losses[0].is_finite() && losses[1].is_nan(), "{losses:?}");
            }
        }
    }
}

#[test]
fn a_distance_that_overflows_is_never_finite() {
    for loss in options().into_iter().filter(|l| l.distance != PairedDistance::Cosine && !l.normalize) {
        for same in [true, false] {
            let x = [3e38f32, 3e38];
            let (value, grads) = both(&loss, [&x, &x.map(|x| -x)], 2, &[same]);
            assert!(!value.is_finite() && grads.iter().flatten().all(|g| g.is_nan()), "{loss:?}: {value} {grads:?}");
        }
    }
    let loss = ContrastiveLoss { normalize: true, ..Default::default() };
    let (value, grads) = both(&loss, [&[1e20f32, 1e20], &[1.0, 0.0]], 2, &[false]);
    assert!(value.is_nan() && grads.iter().flatten().all(|g| g.is_nan()));
}

#[test]
fn far_enough_apart_is_nothing() {
    for loss in options() {
        let loss = ContrastiveLoss { margin: 0.0, ..loss };
        let x = [1.0f32, 0.0, 0.5, -1.0];
        let (value, grads) = both(&loss, [&x, &x.map(|x| 1.0 - x)], 2, &[false, false]);
        assert!(value.to_bits() == 0 && grads.iter().flatten().all(|g| *g == 0.0), "{loss:?}");
    }
}

#[test]
fn a_gradient_that_is_not_wanted_is_skipped() {
    let mut numbers = Numbers(6);
    let (rows, dim) = (70, 33);
    let same = same(5, rows);
    let x: [Vec<f32>; 2] = [(); 2].map(|()| (0..rows * dim).map(|_| numbers.unit() as f32).collect());
    let matrices = x.each_ref().map(|x| Matrix::new(x, dim).unwrap());
    for loss in options() {
        let (_, all) = both(&loss, [&x[0], &x[1]], dim, &same);
        for k in 0..2 {
            let mut one = poison::<f32>(rows * dim);
            let mut to = [None, None];
            to[k] = Some(&mut one[..]);
            loss.grad(matrices, &same, &[1.0], to).unwrap();
            assert_eq!(one, all[k], "{loss:?}");
        }
        loss.grad(matrices, &same, &[1.0], [None, None]).unwrap();
    }
}

#[test]
fn gradients_of_16_bit_embeddings_survive_a_mean_over_many() {
    // A difference of 1e-3 over B is below f16's smallest number; an upstream of 2^16 brings it back.
    let mut numbers = Numbers(5);
    let (rows, dim) = (1 << 15, 2);
    let same = same(3, rows);
    let x: [Vec<f16>; 2] = [(); 2].map(|()| (0..rows * dim).map(|_| f16::from_f64(1e-3 * numbers.unit())).collect());
    let loss = ContrastiveLoss::default();
    let mut grads = [poison::<f16>(rows * dim), poison(rows * dim)];
    let matrices = x.each_ref().map(|x| Matrix::new(x, dim).unwrap());
    loss.grad(matrices, &same, &[65536.0], grads.each_mut().map(|g| Some(&mut g[..]))).unwrap();
    let wide = x.each_ref().map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
    let wide = wide.each_ref().map(|x| Matrix::new(x, dim).unwrap());
    let expected = oracle::run(&loss, wide, &same, &[65536.0]).unwrap();
    for (actual, expected) in grads.iter().flatten().zip(expected.grads.iter().flatten()) {
        assert!((actual.to_f64() - expected).abs() <= 1e-3 * expected.abs() + 6e-8, "{actual} for {expected}");
    }
}

#[test]
fn the_order_of_pairs_and_of_their_sides_does_not_matter() {
    let mut numbers = Numbers(7);
    let (rows, dim) = (100, 20);
    let same = same(4, rows);
    let x: [Vec<f32>; 2] = [(); 2].map(|()| (0..rows * dim).map(|_| numbers.unit() as f32).collect());
    let losses = |loss: &ContrastiveLoss, x: [&[f32]; 2], same: &[bool]| {
        let mut losses = vec![f32::NAN; rows];
        loss.losses(x.map(|x| Matrix::new(x, dim).unwrap()), same, &mut losses).unwrap();
        losses
    };
    for loss in options() {
        let given = losses(&loss, [&x[0], &x[1]], &same);
        // A permutation: 7 and 100 are coprime.
        let from = |i: usize| i * 7 % rows;
        let moved =
            x.each_ref().map(|x| (0..rows).flat_map(|i| x[from(i) * dim..][..dim].to_vec()).collect::<Vec<_>>());
        let moved_same: Vec<bool> = (0..rows).map(|i| same[from(i)]).collect();
        let moved = losses(&loss, [&moved[0], &moved[1]], &moved_same);
        assert!((0..rows).all(|i| moved[i] == given[from(i)]), "{loss:?}");
        // The inputs may be swapped, unless `eps` is added to x1 - x2.
        if !matches!(loss.distance, PairedDistance::Lp { eps, .. } if eps > 0.0) {
            assert_eq!(losses(&loss, [&x[1], &x[0]], &same), given, "{loss:?}");
        }
    }
}
