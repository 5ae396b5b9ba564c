//! How far a computation in f32 or f64 may be from the oracle: first-order error analysis of the kernel's formulas.
//!
//! u is the unit roundoff. A sum of D terms, D/32 or fewer a lane and a tree of at most 5 steps over lanes, is off by
//! at most (D/32 + 24) u times the sum of the terms' sizes; the 24 also covers the few roundings of each term. For a
//! normalised row each element is off by `eta = (D/64 + 16) u` relative: half of the norm's sum, and the division.

use tercet::{Distance, Element, TripletMarginLoss};

pub struct Row {
    pub loss: f64,
    /// Of the difference of the two negative distances.
    pub swap: f64,
    pub grads: [Vec<f64>; 3],
}

/// The unit roundoff.
pub fn unit<T: Element>() -> f64 {
    match T::NAME {
        "f64" => 0.5f64.powi(53),
        "f32" => 0.5f64.powi(24),
        "f16" => 0.5f64.powi(11),
        _ => 0.5f64.powi(8),
    }
}

/// Of storing `x` in the inputs' type: half a unit in the last place, or of the least subnormal.
pub fn rounding<T: Element>(x: f64) -> f64 {
    let least = match T::NAME {
        "f16" => 0.5f64.powi(25),
        "f64" => f64::MIN_POSITIVE,
        _ => 0.5f64.powi(134),
    };
    if size_of::<T>() == 2 { (x.abs() * unit::<T>() * 1.001).max(least) } else { least }
}

fn norm(x: impl IntoIterator<Item = f64>, p: f64) -> f64 {
    let x: Vec<f64> = x.into_iter().map(f64::abs).collect();
    match p.is_infinite() {
        true => x.iter().fold(0.0, |m, &x| m.max(x)),
        false => x.iter().map(|x| x.powf(p)).sum::<f64>().powf(1.0 / p),
    }
}

/// A distance's value and error, and of each element of its gradient the size and the error.
struct Pair {
    d: f64,
    error: f64,
    slope: Vec<(f64, f64)>,
}

fn pair(distance: Distance, x: &[f64], y: &[f64], eta: f64, u: f64, sum: f64) -> Pair {
    let (p, eps) = match distance {
        Distance::Lp { p, eps } => (p, eps),
        _ => (2.0, 0.0),
    };
    let e: Vec<f64> = x.iter().zip(y).map(|(x, y)| x - y + eps).collect();
    // Of each e: from its rows, and from two roundings and that of eps.
    let off: Vec<f64> =
        x.iter().zip(y).map(|(x, y)| eta * (x.abs() + y.abs()) + 3.0 * u * ((x - y).abs() + eps.abs())).collect();
    let d = norm(e.iter().copied(), p);
    let moved = norm(off.iter().copied(), p);
    if distance == Distance::SquaredEuclidean {
        let slope = e.iter().zip(&off).map(|(e, off)| (2.0 * e.abs(), 2.0 * off)).collect();
        return Pair { d: d * d, error: moved * (2.0 * d + moved) + sum * d * d, slope };
    }
    // A power x^p is off by p u |log x| relative where it is exp(p log x), its root by a p-th of that.
    let log = e.iter().filter(|e| **e != 0.0).fold(d.ln().abs().min(800.0), |m, e| m.max(e.abs().ln().abs()));
    let powers = if p == 1.0 || p == 2.0 || p.is_infinite() { 0.0 } else { (8.0 + 4.0 * log) * u };
    let error = moved + (sum + powers) * d;
    let slope = e.iter().zip(&off).map(|(e, off)| {
        let e = e.abs();
        if d <= error {
            return (1.0, 2.0); // even the direction is rounding
        }
        if p.is_infinite() {
            // Whether this element, or any other, reaches the maximum.
            let near = |e: f64| e < d && d - e <= 2.0 * moved + 4.0 * u * d;
            let unsure = near(e) || e == d && x.iter().zip(y).any(|(x, y)| near((x - y + eps).abs()));
            let split = e == d && moved > 0.0; // a tie of the oracle's may be none here
            return (1.0, if unsure || split { 1.0 } else { 4.0 * u });
        }
        if p == 1.0 {
            return (1.0, if e <= *off && *off > 0.0 { 2.0 } else { 0.0 });
        }
        let ratio = e / d;
        let ratio_error = off / d + ratio * (error / d + 2.0 * u);
        let size = ratio.powf(p - 1.0);
        let log = if ratio > 0.0 { ratio.ln().abs() } else { 0.0 };
        let change = (p - 1.0) * (ratio + ratio_error).powf(p - 2.0) * ratio_error;
        (size, change + size * (4.0 + 4.0 * log * p) * u)
    });
    let slope = slope.collect();
    Pair { d, error, slope }
}

/// Of one row; `weight` is upstream times the mean's factor.
pub fn row<T: Element>(loss: &TripletMarginLoss, x: [&[f64]; 3], weight: f64) -> Row {
    let u = unit::<T::Scalar>();
    let dim = x[0].len();
    let sum = (dim as f64 / 32.0 + 24.0) * u;
    let cosine = loss.distance == Distance::Cosine;
    let normalize = loss.normalize || cosine;
    let eta = if normalize { (dim as f64 / 64.0 + 16.0) * u } else { 0.0 };
    let norms = x.map(|x| norm(x.iter().copied(), 2.0).max(1e-12));
    let unit_rows: Vec<Vec<f64>> =
        (0..3).map(|k| x[k].iter().map(|x| if normalize { x / norms[k] } else { *x }).collect()).collect();
    let dot = |i: usize, j: usize| unit_rows[i].iter().zip(&unit_rows[j]).map(|(x, y)| (x * y).abs()).sum::<f64>();

    let measure = |i: usize, j: usize| {
        if cosine {
            // Its gradient with respect to the unit row is the other unit row.
            let slope = unit_rows[j].iter().map(|y| (y.abs(), (eta + 2.0 * u) * y.abs())).collect();
            let cosine = dot(i, j);
            return Pair { d: 1.0 + cosine, error: (2.0 * eta + sum) * cosine + 2.0 * u, slope };
        }
        pair(loss.distance, &unit_rows[i], &unit_rows[j], eta, u, sum)
    };
    let (ap, an, pn) = (measure(0, 1), measure(0, 2), measure(1, 2));
    let distances = if loss.swap { an.error.max(pn.error) } else { an.error };
    let sizes = ap.d + if loss.swap { an.d.max(pn.d) } else { an.d } + loss.margin;
    let loss_bound = ap.error + distances + 3.0 * u * sizes;

    // Both negative pairs where `swap` may have taken either: only the larger bound is lost.
    let mut grads = [vec![0.0; dim], vec![0.0; dim], vec![0.0; dim]];
    let (pairs, swapped) = ([(0, 1, &ap), (0, 2, &an), (1, 2, &pn)], loss.swap);
    for (k, grad) in grads.iter_mut().enumerate() {
        let mut size = vec![0.0; dim];
        let mut error = vec![0.0; dim];
        for &(i, j, pair) in pairs.iter().take(if swapped { 3 } else { 2 }).filter(|(i, j, _)| *i == k || *j == k) {
            for d in 0..dim {
                let (s, e) = match cosine {
                    true => {
                        let other = unit_rows[if i == k { j } else { i }][d].abs();
                        (other, (eta + 2.0 * u) * other)
                    }
                    false => pair.slope[d],
                };
                size[d] += s;
                error[d] += e + 6.0 * u * s;
            }
        }
        // Through u = x / norm: (g - (g.u) u) / norm.
        let along: f64 = size.iter().zip(&unit_rows[k]).map(|(s, x)| s * x.abs()).sum();
        let along_error: f64 =
            error.iter().zip(&unit_rows[k]).map(|(e, x)| e * x.abs()).sum::<f64>() + (eta + sum) * along;
        for d in 0..dim {
            let v = unit_rows[k][d].abs();
            grad[d] = weight.abs()
                * match normalize {
                    true => {
                        let inside = error[d] + v * along_error + eta * v * along;
                        (inside + (eta + 6.0 * u) * (size[d] + v * along)) / norms[k]
                    }
                    false => error[d],
                };
            // Products of tiny factors may underflow.
            grad[d] += if T::NAME == "f64" { 1e-300 } else { 1e-37 };
        }
    }
    Row { loss: loss_bound, swap: an.error + pn.error + u * (an.d + pn.d), grads }
}
