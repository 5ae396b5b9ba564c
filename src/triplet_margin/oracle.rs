//! The oracle of this loss: f64, one obvious loop after another. Every backend is compared with it.

use super::TripletMarginLoss;
use crate::oracle::{distance, distance_gradient, normalized, normalized_gradient};
use crate::{Error, Matrix, PairedDistance, Reduction};

/// The losses of a batch, and what they are made of.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Each row's loss.
    pub losses: Vec<f64>,
    /// Each row's `d(a, p) - d_n + margin`, before `relu`: near 0, rounding decides whether the row is active.
    pub arguments: Vec<f64>,
    /// With `swap`, each row's `d(p, n) - d(a, n)`, whose sign decides the negative pair; else infinity.
    pub swap_gaps: Vec<f64>,
    /// The reduced loss; for `Reduction::None` the sum of the losses.
    pub loss: f64,
    /// The gradients with respect to anchor, positive and negative, `[B, D]`.
    pub grads: [Vec<f64>; 3],
}

/// The loss of `rows` and its gradients times `upstream` (one number, or one a row).
///
/// # Errors
/// If the shapes differ or are empty, or an option is out of range.
pub fn run(loss: &TripletMarginLoss, rows: [Matrix<'_, f64>; 3], upstream: &[f64]) -> Result<Oracle, Error> {
    let problem = loss.problem(&rows)?;
    let (count, dim) = (problem.paired.rows, problem.paired.dim);
    let mut result = Oracle {
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
        let normalize = loss.normalize && loss.distance != PairedDistance::Cosine;
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
