//! `Lp` with exponents whose powers overflow or underflow, and Euclidean distances whose squares do, although the
//! distances are ordinary numbers: every backend of every paired loss, row by row against the f64 oracle.

use half::bf16;
use tercet::{Element, PairedDistance, Reduction};

use super::property::{Case, Content, Data, OfRows, Paired};
use crate::support::backends::{Backend, Number};

/// The differences of two pairs of rows, per unit of scale.
const DIFFERENCES: [[&[f64]; 2]; 6] = [
    [&[3.0, 1.0], &[2.0, 2.0]],
    [&[0.5], &[0.25]],
    [&[1.0, 0.0, 0.0], &[0.0, 0.0, 0.0]],
    [&[1.0, -1.0, 1.0, 1.0, -1.0], &[0.5, 0.5, -0.5, 0.0, 0.5]],
    [&[1.0, 0.5, 0.25, 0.125, 0.0625], &[0.75, -0.0078125, 0.75, 0.5, 0.0]],
    [&[1.0, 2e-9, -4e-9, 0.0], &[0.5, 0.5, 1e-6, 0.0]],
];

/// Some are beyond f32's largest number and become infinity there.
const EXPONENTS: [f64; 17] =
    [0.05, 0.3, 0.5, 0.9, 0.999, 1.0, 1.0001, 1.5, 2.0, 2.5, 3.0, 17.0, 40.0, 100.0, 1e4, 1e30, 1e39];

/// Distances and gradients of `L` on this backend are the oracle's, whatever the exponent and the scale.
pub fn stay_in_range<L: Paired<K>, B: Backend, const K: usize>(backend: &B) {
    let f32s = [1e-30, 1e-21, 1e-10, 1e-3, 0.1, 1.0, 10.0, 1e10, 1e18, 1e30];
    of_type::<f32, L, B, K>(backend, &f32s, 3e-5);
    of_type::<bf16, L, B, K>(backend, &f32s, 1e-2);
    of_type::<f64, L, B, K>(backend, &[1e-250, 1e-170, 1e-30, 0.1, 1.0, 10.0, 1e30, 1e170, 1e250], 1e-12);
}

fn of_type<T: Number, L: Paired<K>, B: Backend, const K: usize>(backend: &B, scales: &[f64], close: f64) {
    let euclidean = [PairedDistance::Euclidean, PairedDistance::Lp { p: f64::INFINITY, eps: 0.0 }];
    let powers = EXPONENTS.map(|p| PairedDistance::Lp { p, eps: 0.0 });
    let mut count = 0;
    for distance in powers.into_iter().chain(euclidean) {
        for scale in scales.iter().filter(|scale| L::takes_scale::<T>(**scale)) {
            for differences in DIFFERENCES {
                count += 1;
                one::<T, L, B, K>(backend, distance, *scale, differences, close);
            }
        }
    }
    assert!(count > 500, "{count} cases");
}

fn one<T: Number, L: Paired<K>, B: Backend, const K: usize>(
    backend: &B,
    distance: PairedDistance,
    scale: f64,
    differences: [&[f64]; 2],
    close: f64,
) {
    let dim = differences[0].len();
    // Four rows, so that a contrastive loss has pairs of both kinds; the first matrix is 0.
    let rows = 4;
    let exact: [Vec<f64>; K] = std::array::from_fn(|k| {
        let row = |row: usize| match k {
            0 => vec![0.0; dim],
            _ => differences[(k - 1 + row) % 2].iter().map(|e| T::from_f64(e * scale).to_f64()).collect(),
        };
        (0..rows).flat_map(row).collect()
    });
    let laid_out = exact.each_ref().map(|x| x.iter().map(|x| T::from_f64(*x)).collect());
    let data = Data { laid_out, exact, upstream: vec![1.0; rows] };
    let loss = L::plain(T::Scalar::from_f64(8.0 * scale).to_f64(), distance, Reduction::None);
    let case = Case { loss, rows, dim, gap: 0, offset: 0, content: Content::Uniform { scale }, seed: 5 };
    let oracle = L::oracle(&case, &data, &data.upstream);
    let output = backend.run::<OfRows<L, K>, T>(&case, &data);

    let what =
        |row: usize| format!("{} {}: {distance:?}, {differences:?} times {scale:e}, row {row}", B::NAME, T::NAME);
    // A relative error of the sum is one of its 1/p-th power, times 1/p.
    let steep = if let PairedDistance::Lp { p, .. } = distance { (1.0 / p).max(1.0) } else { 1.0 };
    let largest = if T::Scalar::NAME == "f64" { f64::MAX } else { f64::from(f32::MAX) };
    for row in 0..rows {
        let of = |k: usize| &data.exact[k][row * dim..][..dim];
        let lengths = (1..K).map(|k| length(distance, of(k)));
        let (sum, longest) = lengths.fold((0.0, 0.0f64), |(sum, longest), d| (sum + d, longest.max(d)));
        let (actual, expected) = (output.losses[row].to_f64(), oracle.losses[row]);
        if longest > largest {
            assert!(!actual.is_finite(), "{}: loss {actual} for {expected}", what(row));
            continue;
        }
        let size = L::loss_size(sum + 8.0 * scale);
        if size > largest / 4.0 {
            continue;
        }
        let bound = close * steep * size;
        assert!((actual - expected).abs() <= bound, "{}: loss {actual:e} for {expected:e}", what(row));
        let gradient = |k: usize| &oracle.grads[k][row * dim..][..dim];
        // Compare with the largest element of any gradient: the anchor's is the difference of two, and beside large
        // elements a small one of 2e-9 has a slope of 2e8 for p = 0.05.
        let steepest = (0..K).flat_map(gradient).fold(0.0f64, |m, g| m.max(g.abs()));
        if steepest > largest / 4.0 {
            continue;
        }
        for k in 0..K {
            let actual = output.scaled_grads[k][row * dim..][..dim].iter().map(|g| g.to_f64());
            for (i, (actual, expected)) in actual.zip(gradient(k)).enumerate() {
                let close = (actual - expected).abs() <= 3.0 * close * steep * steepest + f64::from(f32::MIN_POSITIVE);
                assert!(close, "{}: grads[{k}][{i}] {actual:e} for {expected:e}", what(row));
            }
        }
    }
}

fn length(distance: PairedDistance, e: &[f64]) -> f64 {
    let m = e.iter().fold(0.0f64, |m, e| m.max(e.abs()));
    let p = if let PairedDistance::Lp { p, .. } = distance { p } else { 2.0 };
    if m == 0.0 || p.is_infinite() { m } else { m * e.iter().map(|e| (e.abs() / m).powf(p)).sum::<f64>().powf(1.0 / p) }
}
