//! The oracle of this loss: f64, one obvious loop after another. Every backend is compared with it.

use super::BatchAllTripletLoss;
use crate::mined::{Loss, Slices};
use crate::oracle::Anchors;
pub use crate::oracle::ReferenceSet;
use crate::{Error, Matrix, Stats};

/// The loss of a batch, and what it is made of.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// The reduced loss.
    pub loss: f64,
    /// The sum of the losses of all triplets.
    pub sum: f64,
    /// `Σ (d_ap + margin)` over the active triplets: `sum` is a difference of numbers of this size.
    pub size: f64,
    /// The gradient with respect to the embeddings, `[N, D]`.
    pub grad: Vec<f64>,
    /// The gradient with respect to the reference set, `[M, D]`; empty if the batch is its own reference set.
    pub reference_grad: Vec<f64>,
    /// See [`Call::loss_with_stats`](crate::Call::loss_with_stats).
    pub stats: Stats,
    /// What the sum of the losses and the gradients are divided by.
    pub divisor: f64,
}

/// Every ordered triplet of rows (a, p, n) with `y_a = y_p ≠ y_n`, `a ≠ p`.
pub fn triplets(labels: &[i64]) -> impl Iterator<Item = (usize, usize, usize)> {
    let rows = labels.len();
    let pairs = (0..rows).flat_map(move |a| (0..rows).map(move |p| (a, p)));
    let pairs = pairs.filter(|&(a, p)| a != p && labels[a] == labels[p]);
    pairs.flat_map(move |(a, p)| (0..rows).filter(move |&n| labels[n] != labels[a]).map(move |n| (a, p, n)))
}

/// The loss of a batch, and its gradient times `upstream`.
///
/// # Errors
/// As [`Call::loss`](crate::Call::loss).
pub fn run(
    loss: &BatchAllTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    upstream: f64,
) -> Result<Oracle, Error> {
    run_against(loss, embeddings, labels, None, upstream)
}

/// The loss of a batch against a reference set, and its gradients times `upstream`.
///
/// # Errors
/// Those of [`run`], or if the reference set does not fit the batch.
pub fn run_against(
    loss: &BatchAllTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    reference: Option<&ReferenceSet<'_>>,
    upstream: f64,
) -> Result<Oracle, Error> {
    let problem = loss.problem(&Slices { embeddings, labels, reference }.sizes())?;
    let anchors = Anchors::new((loss.distance, loss.normalize), embeddings, labels, reference)?;
    let (rows, d) = (anchors.rows(), &anchors.d);

    let mut stats = Stats::default();
    // The losses, their size and both distances, summed per pair, then per anchor: no long sum may lose more than the
    // backends do, not even if all terms are one of a few numbers, so that each addition rounds alike.
    let mut sums = vec![[0.0; 4]; rows];
    // How often each pair is a term of an active triplet: + as anchor and positive, - as anchor and negative.
    let mut weights = vec![vec![0.0; anchors.references()]; rows];
    for a in 0..rows {
        let negatives: Vec<usize> = anchors.negatives(a).collect();
        for p in anchors.positives(a) {
            let mut of_pair = [0.0; 4];
            for &n in &negatives {
                let argument = d[a][p] - d[a][n] + loss.margin;
                stats.valid += 1;
                of_pair[2] += d[a][p];
                of_pair[3] += d[a][n];
                if argument > 0.0 || argument.is_nan() || !d[a][n].is_finite() {
                    stats.active += 1;
                    // An infinite negative distance must not pass for a far one.
                    of_pair[0] += if d[a][n].is_finite() { argument } else { f64::NAN };
                    of_pair[1] += d[a][p] + loss.margin;
                    weights[a][p] += 1.0;
                    weights[a][n] -= 1.0;
                }
            }
            sums[a].iter_mut().zip(of_pair).for_each(|(sum, of_pair)| *sum += of_pair);
        }
    }
    let total = |k: usize| sums.iter().map(|sums| sums[k]).sum::<f64>();
    let (mut sum, size) = (total(0), total(1));
    stats.mean_positive_distance = total(2) / stats.valid.max(1) as f64;
    stats.mean_negative_distance = total(3) / stats.valid.max(1) as f64;
    if !anchors.all_finite() {
        (sum, stats) = (f64::NAN, Stats { valid: stats.valid, ..Stats::poisoned() });
    }

    let divisor = problem.divisor(&stats);
    weights.iter_mut().flatten().for_each(|weight| *weight *= upstream / divisor);
    let [grad, reference_grad] = anchors.gradients(&weights);
    Ok(Oracle { loss: sum / divisor, sum, size, grad, reference_grad, stats, divisor })
}
