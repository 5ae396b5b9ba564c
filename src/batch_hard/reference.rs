//! The oracle: f64, one obvious loop after another. Every backend is compared with it.

use super::BatchHardTripletLoss;
use crate::reference::{distance, distance_gradient, normalized, normalized_gradient};
use crate::{Distance, Error, Matrix, Reduction, Stats};

/// What the loss and its gradient are.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Each anchor's positive and negative, `u32::MAX` where it lacks either.
    pub positive: Vec<u32>,
    /// See `positive`.
    pub negative: Vec<u32>,
    /// Each anchor's distance to its positive, else 0.
    pub positive_distances: Vec<f64>,
    /// Each anchor's distance to its negative, else 0.
    pub negative_distances: Vec<f64>,
    /// Each anchor's loss.
    pub losses: Vec<f64>,
    /// Each anchor's `d_ap - d_an + margin`, before `relu`: near 0, rounding decides whether it is active. Infinity
    /// without a triplet.
    pub arguments: Vec<f64>,
    /// The reduced loss; for `Reduction::None` their sum.
    pub loss: f64,
    /// The gradient, `[N, D]`.
    pub grad: Vec<f64>,
    /// See [`BatchHardTripletLoss::loss_with_stats`].
    pub stats: Stats,
}

/// The loss and its gradient times `upstream` (one number, or one an anchor); with `selection` for those positives and
/// negatives instead of the farthest and nearest.
///
/// # Errors
/// As [`BatchHardTripletLoss::losses`].
pub fn run(
    loss: &BatchHardTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    upstream: &[f64],
    selection: Option<(&[u32], &[u32])>,
) -> Result<Reference, Error> {
    let problem = loss.problem(&embeddings, labels)?;
    let (rows, dim) = (problem.rows, problem.dim);
    // Cosine normalises by itself.
    let normalize = loss.normalize && loss.distance != Distance::Cosine;
    let u: Vec<Vec<f64>> =
        (0..rows).map(|i| if normalize { normalized(embeddings.row(i)) } else { embeddings.row(i).to_vec() }).collect();
    let all: Vec<Vec<f64>> = u.iter().map(|x| u.iter().map(|y| distance(loss.distance, x, y)).collect()).collect();
    let d = |i: usize, j: usize| all[i][j];
    let finite = |i: usize| embeddings.row(i).iter().chain(&u[i]).all(|x| x.is_finite());
    let all_finite = (0..rows).all(finite);

    let mut result = Reference {
        positive: vec![u32::MAX; rows],
        negative: vec![u32::MAX; rows],
        positive_distances: vec![0.0; rows],
        negative_distances: vec![0.0; rows],
        losses: vec![0.0; rows],
        arguments: vec![f64::INFINITY; rows],
        loss: 0.0,
        grad: vec![0.0; rows * dim],
        stats: Stats::default(),
    };
    let mut weights = vec![0.0; rows];
    for a in 0..rows {
        let (mut positive, mut negative) = (None, None);
        for j in (0..rows).filter(|&j| j != a) {
            if labels[j] == labels[a] {
                if positive.is_none_or(|p| d(a, j) > d(a, p)) {
                    positive = Some(j);
                }
            } else if negative.is_none_or(|n| d(a, j) < d(a, n)) {
                negative = Some(j);
            }
        }
        let (Some(mut p), Some(mut n)) = (positive, negative) else {
            result.losses[a] = if finite(a) { 0.0 } else { f64::NAN };
            continue;
        };
        if let Some((positives, negatives)) = selection {
            (p, n) = (positives[a] as usize, negatives[a] as usize);
        }
        let (d_ap, d_an) = (d(a, p), d(a, n));
        result.positive[a] = p as u32;
        result.negative[a] = n as u32;
        result.positive_distances[a] = d_ap;
        result.negative_distances[a] = d_an;
        let argument = d_ap - d_an + loss.margin;
        result.arguments[a] = argument;
        (result.losses[a], weights[a]) = match loss.soft_margin {
            _ if !all_finite || !d_ap.is_finite() || !d_an.is_finite() => (f64::NAN, f64::NAN),
            true => (softplus(d_ap - d_an), 1.0 / (1.0 + (d_an - d_ap).exp())),
            false if argument > 0.0 => (argument, 1.0),
            false => (0.0, 0.0),
        };
        result.stats.valid += 1;
        result.stats.active += u64::from(result.losses[a] > 0.0);
        result.stats.mean_positive_distance += d_ap;
        result.stats.mean_negative_distance += d_an;
    }

    let valid = result.stats.valid.max(1) as f64;
    result.stats.mean_positive_distance /= valid;
    result.stats.mean_negative_distance /= valid;
    let mean = if loss.reduction == Reduction::Mean { 1.0 / valid } else { 1.0 };
    result.loss = mean * result.losses.iter().sum::<f64>();

    let mut g = vec![vec![0.0; dim]; rows];
    for a in (0..rows).filter(|&a| weights[a] != 0.0) {
        let weight = mean * weights[a] * if upstream.len() == 1 { upstream[0] } else { upstream[a] };
        for (j, sign) in [(result.positive[a] as usize, 1.0), (result.negative[a] as usize, -1.0)] {
            let (to_a, to_j) = distance_gradient(loss.distance, &u[a], &u[j]);
            for k in 0..dim {
                g[a][k] += sign * weight * to_a[k];
                g[j][k] += sign * weight * to_j[k];
            }
        }
    }
    for i in 0..rows {
        let g = if normalize { normalized_gradient(embeddings.row(i), &g[i]) } else { g[i].clone() };
        result.grad[i * dim..(i + 1) * dim].copy_from_slice(&g);
        if !finite(i) {
            result.grad[i * dim..(i + 1) * dim].fill(f64::NAN);
        }
    }
    Ok(result)
}

/// `ln(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    if x > 30.0 { x + (-x).exp() } else { x.exp().ln_1p() }
}
