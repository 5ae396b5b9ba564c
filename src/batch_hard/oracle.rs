//! The oracle of this loss: f64, one obvious loop after another. Every backend is compared with it.

use super::BatchHardTripletLoss;
use crate::mined::{Loss, Slices};
use crate::oracle::Anchors;
pub use crate::oracle::ReferenceSet;
use crate::{Error, Matrix, Reduction, Stats};

/// The loss of a batch, and what it is made of.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Each anchor's positive; `u32::MAX` without a positive or without a negative.
    pub positive: Vec<u32>,
    /// Each anchor's negative; `u32::MAX` without a positive or without a negative.
    pub negative: Vec<u32>,
    /// Each anchor's distance to its positive; 0 without a triplet.
    pub positive_distances: Vec<f64>,
    /// Each anchor's distance to its negative; 0 without a triplet.
    pub negative_distances: Vec<f64>,
    /// Each anchor's loss.
    pub losses: Vec<f64>,
    /// Each anchor's `d_ap - d_an + margin`, before `relu`: near 0, rounding decides whether it is active. Infinity
    /// without a triplet.
    pub arguments: Vec<f64>,
    /// The reduced loss; for `Reduction::None` the sum of the losses.
    pub loss: f64,
    /// The gradient with respect to the embeddings, `[N, D]`.
    pub grad: Vec<f64>,
    /// The gradient with respect to the reference set, `[M, D]`; empty if the batch is its own reference set.
    pub reference_grad: Vec<f64>,
    /// See [`Call::loss_with_stats`](crate::Call::loss_with_stats).
    pub stats: Stats,
}

/// The loss of a batch, and its gradient times `upstream` (one number, or one an anchor). `selection`: the positives
/// and negatives to take instead of the farthest and nearest.
///
/// # Errors
/// As [`Call::losses`](crate::Call::losses).
pub fn run(
    loss: &BatchHardTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    upstream: &[f64],
    selection: Option<(&[u32], &[u32])>,
) -> Result<Oracle, Error> {
    run_against(loss, embeddings, labels, None, upstream, selection)
}

/// The loss of a batch against a reference set, and its gradients; `upstream` and `selection` as [`run`] takes them.
///
/// # Errors
/// Those of [`run`], or if the reference set does not fit the batch.
pub fn run_against(
    loss: &BatchHardTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    reference: Option<&ReferenceSet<'_>>,
    upstream: &[f64],
    selection: Option<(&[u32], &[u32])>,
) -> Result<Oracle, Error> {
    loss.problem(&Slices { embeddings, labels, reference }.sizes())?;
    let anchors = Anchors::new((loss.distance, loss.normalize), embeddings, labels, reference)?;
    let rows = anchors.rows();
    let d = |a: usize, j: usize| anchors.d[a][j];

    let mut result = Oracle {
        positive: vec![u32::MAX; rows],
        negative: vec![u32::MAX; rows],
        positive_distances: vec![0.0; rows],
        negative_distances: vec![0.0; rows],
        losses: vec![0.0; rows],
        arguments: vec![f64::INFINITY; rows],
        loss: 0.0,
        grad: Vec::new(),
        reference_grad: Vec::new(),
        stats: Stats::default(),
    };
    let mut slopes = vec![0.0; rows];
    for a in 0..rows {
        let (mut positive, mut negative) = (None, None);
        for j in anchors.positives(a) {
            if positive.is_none_or(|p| d(a, j) > d(a, p)) {
                positive = Some(j);
            }
        }
        for j in anchors.negatives(a) {
            if negative.is_none_or(|n| d(a, j) < d(a, n)) {
                negative = Some(j);
            }
        }
        let (Some(mut p), Some(mut n)) = (positive, negative) else {
            result.losses[a] = if anchors.anchor_is_finite(a) { 0.0 } else { f64::NAN };
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
        (result.losses[a], slopes[a]) = match loss.soft_margin {
            _ if !anchors.sees_finite_rows(a) || !d_ap.is_finite() || !d_an.is_finite() => (f64::NAN, f64::NAN),
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
    result.loss = if anchors.all_finite() { mean * result.losses.iter().sum::<f64>() } else { f64::NAN };

    let mut weights = vec![vec![0.0; anchors.references()]; rows];
    for a in (0..rows).filter(|&a| slopes[a] != 0.0) {
        let weight = mean * slopes[a] * if upstream.len() == 1 { upstream[0] } else { upstream[a] };
        weights[a][result.positive[a] as usize] += weight;
        weights[a][result.negative[a] as usize] -= weight;
    }
    [result.grad, result.reference_grad] = anchors.gradients(&weights);
    Ok(result)
}

/// `ln(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    if x > 30.0 { x + (-x).exp() } else { x.exp().ln_1p() }
}
