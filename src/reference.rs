//! Distances and their gradients for the oracles: f64, one obvious loop after another.

use crate::Distance;

const MIN_NORM: f64 = 1e-12;

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `x / max(‖x‖, 1e-12)`.
pub(crate) fn normalized(x: &[f64]) -> Vec<f64> {
    let norm = norm(x);
    // A norm that overflowed leaves nothing to trust.
    let divisor = if norm.is_finite() { norm.max(MIN_NORM) } else { f64::NAN };
    x.iter().map(|x| x / divisor).collect()
}

/// The gradient with respect to x, given `g` with respect to `normalized(x)`.
pub(crate) fn normalized_gradient(x: &[f64], g: &[f64]) -> Vec<f64> {
    let norm = norm(x);
    if norm < MIN_NORM {
        return g.iter().map(|g| g / MIN_NORM).collect();
    }
    let u = normalized(x);
    let along: f64 = g.iter().zip(&u).map(|(g, u)| g * u).sum();
    g.iter().zip(&u).map(|(g, u)| (g - along * u) / norm).collect()
}

pub(crate) fn distance(distance: Distance, x: &[f64], y: &[f64]) -> f64 {
    let pairs = || x.iter().zip(y);
    match distance {
        Distance::SquaredEuclidean => pairs().map(|(x, y)| (x - y).powi(2)).sum(),
        Distance::Euclidean => pairs().map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt(),
        Distance::Cosine => 1.0 - normalized(x).iter().zip(normalized(y)).map(|(x, y)| x * y).sum::<f64>(),
        Distance::Lp { p, eps } if p.is_infinite() => {
            pairs().map(|(x, y)| (x - y + eps).abs()).fold(0.0, |m, e| if e > m || e.is_nan() { e } else { m })
        }
        Distance::Lp { p, eps } => pairs().map(|(x, y)| (x - y + eps).abs().powf(p)).sum::<f64>().powf(1.0 / p),
    }
}

/// The gradients of the distance with respect to x and to y.
pub(crate) fn distance_gradient(kind: Distance, x: &[f64], y: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let d = distance(kind, x, y);
    let differences = |eps: f64| x.iter().zip(y).map(move |(x, y)| x - y + eps);
    let to_x: Vec<f64> = match kind {
        Distance::Cosine => {
            // d = 1 - u·v with u = x / ‖x‖: first with respect to u and v, then through the normalisation.
            let (u, v) = (normalized(x), normalized(y));
            let minus = |w: &[f64]| w.iter().map(|w| -w).collect::<Vec<_>>();
            return (normalized_gradient(x, &minus(&v)), normalized_gradient(y, &minus(&u)));
        }
        Distance::SquaredEuclidean => differences(0.0).map(|e| 2.0 * e).collect(),
        Distance::Euclidean => differences(0.0).map(|e| if d > 0.0 { e / d } else { 0.0 }).collect(),
        Distance::Lp { p, eps } if p.is_infinite() => {
            let reaching = differences(eps).filter(|e| e.abs() == d).count() as f64;
            differences(eps).map(|e| if e.abs() == d && d > 0.0 { e.signum() / reaching } else { 0.0 }).collect()
        }
        Distance::Lp { p, eps } => differences(eps)
            .map(|e| if e == 0.0 || d == 0.0 { 0.0 } else { e.signum() * (e.abs() / d).powf(p - 1.0) })
            .collect(),
    };
    let to_y = to_x.iter().map(|g| -g).collect();
    (to_x, to_y)
}
