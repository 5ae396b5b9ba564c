//! What holds of `triplet_margin` to the last bit, or by its definition.

use tercet::{PairedDistance, TripletMarginLoss};

#[test]
fn nan_and_infinity_reach_all_gradients_of_their_row() {
    let distances = [
        PairedDistance::SquaredEuclidean,
        PairedDistance::Euclidean,
        PairedDistance::Cosine,
        PairedDistance::Lp { p: 2.0, eps: 1e-6 },
        PairedDistance::Lp { p: 1.0, eps: 0.0 },
        PairedDistance::Lp { p: 3.0, eps: 1e-6 },
        PairedDistance::Lp { p: f64::INFINITY, eps: 0.0 },
    ];
    for (distance, normalize, swap) in
        distances.into_iter().flat_map(|d| [(d, false, false), (d, false, true), (d, true, false)])
    {
        for (which, bad) in [0, 1, 2].into_iter().flat_map(|k| [f32::NAN, f32::INFINITY].map(|bad| (k, bad))) {
            let loss = TripletMarginLoss { distance, normalize, swap, ..Default::default() };
            // The bad element is in a whole vector register or in the remainder; all other elements are equal, or not.
            for (at, spread) in [(3, 0.0), (36, 0.0), (3, 1.0), (36, 1.0)] {
                let mut x = [1.0f32, 2.0, 3.0].map(|k| (0..2 * 37).map(|i| k * spread * i as f32).collect::<Vec<_>>());
                x[which][37 + at] = bad;
                let rows = x.each_ref().map(|x| tercet::Matrix::new(x, 37).unwrap());
                let mut grads = [vec![0.0; 74], vec![0.0; 74], vec![0.0; 74]];
                let value = loss.loss_and_grad(rows, grads.each_mut().map(|g| &mut g[..])).unwrap();
                assert!(value.is_nan(), "{loss:?}");
                for grad in grads {
                    assert!(grad[..37].iter().all(|g| g.is_finite()), "{loss:?} {which} {bad} {grad:?}");
                    assert!(grad[37..].iter().all(|g| g.is_nan()), "{loss:?} {which} {bad} {grad:?}");
                }
            }
        }
    }
}

/// Differences of (0.3, 0.1) and (0.2, 0.2): to the power of 100 they are below the smallest number of f32, and ten
/// times as large above its largest. With p = 100 a distance is the largest difference, or 2^(1/100) times that if two
/// are equal.
#[test]
fn a_large_power_of_ordinary_numbers() {
    for (scale, expected) in [(0.1f32, 0.598_608_9), (1.0, 1.486_088_9)] {
        let x = [[0.0, 0.0], [3.0 * scale, scale], [2.0 * scale, 2.0 * scale]];
        let rows = x.each_ref().map(|x| tercet::Matrix::new(x, 2).unwrap());
        let distance = PairedDistance::Lp { p: 100.0, eps: 0.0 };
        let loss = TripletMarginLoss { margin: 0.5, distance, ..Default::default() };
        let mut grads = [[f32::NAN; 2]; 3];
        let value = loss.loss_and_grad(rows, grads.each_mut().map(|g| &mut g[..])).unwrap();
        assert!((value - expected).abs() < 2e-6, "{value}");
        let oracle = tercet::triplet_margin::oracle::run(
            &loss,
            x.map(|x| x.map(f64::from)).each_ref().map(|x| tercet::Matrix::new(x, 2).unwrap()),
            &[1.0],
        );
        // Two equal differences share the gradient, 2^(1/100) / 2 each.
        let share = 0.503_477_8;
        let right = [[share - 1.0, share], [1.0, 0.0], [-share, -share]];
        for (grads, what) in [(grads.map(|g| g.map(f64::from)), "f32"), (flat(oracle.unwrap().grads), "the oracle")] {
            for (actual, expected) in grads.iter().flatten().zip(right.iter().flatten()) {
                assert!((actual - expected).abs() < 2e-5, "{what}, scale {scale}: {grads:?}");
            }
        }
    }
}

fn flat(grads: [Vec<f64>; 3]) -> [[f64; 2]; 3] {
    grads.map(|g| [g[0], g[1]])
}
