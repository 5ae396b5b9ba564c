//! The oracle: f64, one obvious loop after another. Every backend is compared with it.

use super::{BatchAllTripletLoss, Problem};
use crate::reference::{distance, distance_gradient, normalized, normalized_gradient};
use crate::{Distance, Error, Matrix, Stats};

/// What the loss and its gradient are.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The reduced loss.
    pub loss: f64,
    /// The sum of the losses of all triplets.
    pub sum: f64,
    /// `Σ d_ap + margin` over the active triplets: the loss is a difference of numbers of this size.
    pub size: f64,
    /// The gradient, `[N, D]`.
    pub grad: Vec<f64>,
    /// See [`BatchAllTripletLoss::loss_with_stats`].
    pub stats: Stats,
    /// What the sum, and the gradient, is divided by.
    pub divisor: f64,
}

/// Every ordered triplet of rows (a, p, n) with `y_a = y_p ≠ y_n`, `a ≠ p`.
pub fn triplets(labels: &[i64]) -> impl Iterator<Item = (usize, usize, usize)> {
    let rows = labels.len();
    let pairs = (0..rows).flat_map(move |a| (0..rows).map(move |p| (a, p)));
    let pairs = pairs.filter(|&(a, p)| a != p && labels[a] == labels[p]);
    pairs.flat_map(move |(a, p)| (0..rows).filter(move |&n| labels[n] != labels[a]).map(move |n| (a, p, n)))
}

/// The loss, and its gradient times `upstream`.
///
/// # Errors
/// As [`BatchAllTripletLoss::loss`].
pub fn run(
    loss: &BatchAllTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    upstream: f64,
) -> Result<Reference, Error> {
    let problem = loss.checked(embeddings.rows(), embeddings.dim(), labels.len())?;
    let Problem { rows, dim, .. } = problem;
    // Cosine normalises by itself.
    let normalize = loss.normalize && loss.distance != Distance::Cosine;
    let u: Vec<Vec<f64>> =
        (0..rows).map(|i| if normalize { normalized(embeddings.row(i)) } else { embeddings.row(i).to_vec() }).collect();
    let d: Vec<Vec<f64>> = u.iter().map(|x| u.iter().map(|y| distance(loss.distance, x, y)).collect()).collect();
    let finite = |i: usize| embeddings.row(i).iter().chain(&u[i]).all(|x| x.is_finite());
    let all_finite = (0..rows).all(finite);

    let mut stats = Stats::default();
    // Per anchor, so that no long sum loses more than the backends: the losses, their size, both distances.
    let mut sums = vec![[0.0; 4]; rows];
    // How often each pair is a term of an active triplet: + as anchor and positive, - as anchor and negative.
    let mut weights = vec![vec![0.0; rows]; rows];
    for (a, p, n) in triplets(labels) {
        let argument = d[a][p] - d[a][n] + loss.margin;
        stats.valid += 1;
        sums[a][2] += d[a][p];
        sums[a][3] += d[a][n];
        if argument > 0.0 || argument.is_nan() || !d[a][n].is_finite() {
            stats.active += 1;
            // An infinite negative distance must not pass for a far one.
            sums[a][0] += if d[a][n].is_finite() { argument } else { f64::NAN };
            sums[a][1] += d[a][p] + loss.margin;
            weights[a][p] += 1.0;
            weights[a][n] -= 1.0;
        }
    }
    let total = |k: usize| sums.iter().map(|sums| sums[k]).sum::<f64>();
    let (mut sum, size) = (total(0), total(1));
    stats.mean_positive_distance = total(2) / stats.valid.max(1) as f64;
    stats.mean_negative_distance = total(3) / stats.valid.max(1) as f64;
    if !all_finite {
        (sum, stats) = (f64::NAN, Stats { valid: stats.valid, ..Stats::poisoned() });
    }

    let divisor = problem.divisor(&stats);
    let mut g = vec![vec![0.0; dim]; rows];
    for a in 0..rows {
        for j in (0..rows).filter(|&j| weights[a][j] != 0.0) {
            let (to_a, to_j) = distance_gradient(loss.distance, &u[a], &u[j]);
            for k in 0..dim {
                g[a][k] += weights[a][j] * to_a[k];
                g[j][k] += weights[a][j] * to_j[k];
            }
        }
    }
    let mut grad = Vec::with_capacity(rows * dim);
    for i in 0..rows {
        let g = if normalize { normalized_gradient(embeddings.row(i), &g[i]) } else { g[i].clone() };
        grad.extend(g.iter().map(|g| if finite(i) { upstream / divisor * g } else { f64::NAN }));
    }
    Ok(Reference { loss: sum / divisor, sum, size, grad, stats, divisor })
}
