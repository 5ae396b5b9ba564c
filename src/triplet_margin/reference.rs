//! The oracle: f64, one obvious loop after another. Every backend is compared with it.

use super::TripletMarginLoss;
use crate::{Distance, Error, Matrix, Reduction};

/// What the loss and its gradients are.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Each row's loss.
    pub losses: Vec<f64>,
    /// Each row's `d(a, p) - d_n + margin`, before `relu`: near 0, rounding decides whether a row is active.
    pub arguments: Vec<f64>,
    /// With `swap`, each row's `d(p, n) - d(a, n)`, whose sign decides the negative pair; else infinity.
    pub swap_gaps: Vec<f64>,
    /// The reduced loss; for `Reduction::None` their sum.
    pub loss: f64,
    /// Gradients with respect to anchor, positive and negative, `[B, D]`.
    pub grads: [Vec<f64>; 3],
}

/// The loss of `rows` and its gradients times `upstream` (one number, or one a row).
///
/// # Errors
/// As [`TripletMarginLoss::losses`].
pub fn run(loss: &TripletMarginLoss, rows: [Matrix<'_, f64>; 3], upstream: &[f64]) -> Result<Reference, Error> {
    let problem = loss.problem(&rows)?;
    let (count, dim) = (problem.rows, problem.dim);
    let mut result = Reference {
        losses: Vec::new(),
        arguments: Vec::new(),
        swap_gaps: Vec::new(),
        loss: 0.0,
        grads: [vec![0.0; count * dim], vec![0.0; count * dim], vec![0.0; count * dim]],
    };
    let mean = if loss.reduction == Reduction::Mean { 1.0 / count as f64 } else { 1.0 };
    for b in 0..count {
        let x = [rows[0].row(b), rows[1].row(b), rows[2].row(b)];
        // Cosine normalises by itself.
        let normalize = loss.normalize && loss.distance != Distance::Cosine;
        let u = x.map(|x| if normalize { normalized(x) } else { x.to_vec() });

        let d_ap = distance(loss.distance, &u[0], &u[1]);
        let d_an = distance(loss.distance, &u[0], &u[2]);
        let d_pn = distance(loss.distance, &u[1], &u[2]);
        let swapped = loss.swap && d_pn < d_an;
        let all_finite = d_ap.is_finite() && d_an.is_finite() && (!loss.swap || d_pn.is_finite());
        let argument = if !all_finite { f64::NAN } else { d_ap - if swapped { d_pn } else { d_an } + loss.margin };
        result.arguments.push(argument);
        result.swap_gaps.push(if loss.swap { d_pn - d_an } else { f64::INFINITY });
        result.losses.push(if argument.is_nan() { argument } else { argument.max(0.0) });

        let mut g = [vec![0.0; dim], vec![0.0; dim], vec![0.0; dim]];
        if argument.is_nan() {
            g = [vec![f64::NAN; dim], vec![f64::NAN; dim], vec![f64::NAN; dim]];
        } else if argument > 0.0 {
            let weight = mean * if upstream.len() == 1 { upstream[0] } else { upstream[b] };
            let (nearer, negative) = (if swapped { 1 } else { 0 }, 2);
            for (i, j, sign) in [(0, 1, 1.0), (nearer, negative, -1.0)] {
                let (to_i, to_j) = distance_gradient(loss.distance, &u[i], &u[j]);
                for k in 0..dim {
                    g[i][k] += sign * weight * to_i[k];
                    g[j][k] += sign * weight * to_j[k];
                }
            }
            if normalize {
                for i in 0..3 {
                    g[i] = normalized_gradient(x[i], &g[i]);
                }
            }
        }
        for (all, row) in result.grads.iter_mut().zip(g) {
            all[b * dim..(b + 1) * dim].copy_from_slice(&row);
        }
    }
    result.loss = mean * result.losses.iter().sum::<f64>();
    Ok(result)
}

const MIN_NORM: f64 = 1e-12;

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn normalized(x: &[f64]) -> Vec<f64> {
    let norm = norm(x);
    // A norm that overflowed leaves nothing to trust.
    let divisor = if norm.is_finite() { norm.max(MIN_NORM) } else { f64::NAN };
    x.iter().map(|x| x / divisor).collect()
}

/// The gradient with respect to x, given `g` with respect to `normalized(x)`.
fn normalized_gradient(x: &[f64], g: &[f64]) -> Vec<f64> {
    let norm = norm(x);
    if norm < MIN_NORM {
        return g.iter().map(|g| g / MIN_NORM).collect();
    }
    let u = normalized(x);
    let along: f64 = g.iter().zip(&u).map(|(g, u)| g * u).sum();
    g.iter().zip(&u).map(|(g, u)| (g - along * u) / norm).collect()
}

fn distance(distance: Distance, x: &[f64], y: &[f64]) -> f64 {
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
fn distance_gradient(kind: Distance, x: &[f64], y: &[f64]) -> (Vec<f64>, Vec<f64>) {
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
