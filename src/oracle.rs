//! Distances, reference sets and gradients for the oracles: f64, one obvious loop after another.

use crate::{Distance, Error, Matrix, Own, PairedDistance, Reduction, Stats};

const MIN_NORM: f64 = 1e-12;

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `x / max(‖x‖, 1e-12)`.
pub(crate) fn normalized(x: &[f64]) -> Vec<f64> {
    let norm = norm(x);
    // If the norm overflows the row is NaN.
    let divisor = if norm.is_finite() { norm.max(MIN_NORM) } else { f64::NAN };
    x.iter().map(|x| x / divisor).collect()
}

/// The gradient with respect to x, given the gradient `g` with respect to `normalized(x)`.
pub(crate) fn normalized_gradient(x: &[f64], g: &[f64]) -> Vec<f64> {
    let norm = norm(x);
    if norm < MIN_NORM {
        return g.iter().map(|g| g / MIN_NORM).collect();
    }
    let u = normalized(x);
    let along: f64 = g.iter().zip(&u).map(|(g, u)| g * u).sum();
    g.iter().zip(&u).map(|(g, u)| (g - along * u) / norm).collect()
}

pub(crate) fn distance(distance: PairedDistance, x: &[f64], y: &[f64]) -> f64 {
    let pairs = || x.iter().zip(y);
    match distance {
        PairedDistance::SquaredEuclidean => pairs().map(|(x, y)| (x - y).powi(2)).sum(),
        PairedDistance::Euclidean => euclidean(differences(x, y, 0.0)),
        PairedDistance::Cosine => 1.0 - normalized(x).iter().zip(normalized(y)).map(|(x, y)| x * y).sum::<f64>(),
        PairedDistance::Lp { p: 2.0, eps } => euclidean(differences(x, y, eps)),
        PairedDistance::Lp { p, eps } => power_distance(differences(x, y, eps), p),
    }
}

fn differences(x: &[f64], y: &[f64], eps: f64) -> impl Iterator<Item = f64> + Clone {
    x.iter().zip(y).map(move |(x, y)| x - y + eps)
}

/// The largest absolute value of `e`, or NaN.
fn largest(e: impl Iterator<Item = f64>) -> f64 {
    e.fold(0.0, |m, e| if e.abs() > m || e.is_nan() { e.abs() } else { m })
}

/// `√Σ e²`. Unless the squares underflow or overflow it is the root of their sum, so that equal sums are equal
/// distances.
fn euclidean(e: impl Iterator<Item = f64> + Clone) -> f64 {
    let sum: f64 = e.clone().map(|e| e * e).sum();
    if sum < 1e-280 || sum == f64::INFINITY { power_distance(e, 2.0) } else { sum.sqrt() }
}

/// `(Σ |e|^p)^(1/p)`, computed from `|e| / m` with m the largest `|e|`: powers of e itself would overflow or underflow.
fn power_distance(e: impl Iterator<Item = f64> + Clone, p: f64) -> f64 {
    let m = largest(e.clone());
    match p.is_infinite() || m == 0.0 {
        true => m,
        false => m * power_sum(e, m, p).powf(1.0 / p),
    }
}

/// `Σ (|e| / m)^p`, the sum that [`power_distance`] takes the root of.
fn power_sum(e: impl Iterator<Item = f64>, m: f64, p: f64) -> f64 {
    e.map(|e| (e.abs() / m).powf(p)).sum()
}

/// The gradients of the distance with respect to x and to y.
pub(crate) fn distance_gradient(kind: PairedDistance, x: &[f64], y: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let d = distance(kind, x, y);
    let to_x: Vec<f64> = match kind {
        PairedDistance::Cosine => {
            // d = 1 - u·v with u = x / ‖x‖: first with respect to u and v, then through the normalisation.
            let (u, v) = (normalized(x), normalized(y));
            let minus = |w: &[f64]| w.iter().map(|w| -w).collect::<Vec<_>>();
            return (normalized_gradient(x, &minus(&v)), normalized_gradient(y, &minus(&u)));
        }
        PairedDistance::SquaredEuclidean => differences(x, y, 0.0).map(|e| 2.0 * e).collect(),
        PairedDistance::Euclidean => differences(x, y, 0.0).map(|e| if d > 0.0 { e / d } else { 0.0 }).collect(),
        PairedDistance::Lp { p, eps } if p.is_infinite() => {
            let reaching = differences(x, y, eps).filter(|e| e.abs() == d).count() as f64;
            let reaches = |e: f64| e.abs() == d && d > 0.0;
            differences(x, y, eps).map(|e| if reaches(e) { e.signum() / reaching } else { 0.0 }).collect()
        }
        // sign(e) (|e| / d)^(p-1), and (m / d)^(p-1) is the sum of (|e| / m)^p to the power (1 - p) / p.
        PairedDistance::Lp { p, eps } => {
            let e = differences(x, y, eps);
            let m = largest(e.clone());
            let factor = power_sum(e.clone(), m, p).powf((1.0 - p) / p);
            e.map(|e| if e == 0.0 { 0.0 } else { e.signum() * (e.abs() / m).powf(p - 1.0) * factor }).collect()
        }
    };
    let to_y = to_x.iter().map(|g| -g).collect();
    (to_x, to_y)
}

/// A reference set as the oracles take it.
pub type ReferenceSet<'a> = crate::Reference<Matrix<'a, f64>, &'a [i64]>;

/// Anchors, the reference rows that their positives and negatives are taken from, and the distances between them.
pub(crate) struct Anchors<'a> {
    distance: PairedDistance,
    normalize: bool,
    /// The anchors and the reference rows as given.
    given: [Matrix<'a, f64>; 2],
    /// The anchors and the reference rows as distances see them: normalised, if the loss does so.
    u: [Vec<Vec<f64>>; 2],
    labels: [&'a [i64]; 2],
    own: Vec<Option<usize>>,
    finite: [Vec<bool>; 2],
    references_are_finite: bool,
    /// Whether the batch is its own reference set: then there is one gradient.
    pub itself: bool,
    /// `d[a][j]`: the distance between anchor a and reference row j.
    pub d: Vec<Vec<f64>>,
}

impl<'a> Anchors<'a> {
    /// Compares the rows of the batch with those of `reference`, or `None`: with each other. The batch and the options
    /// are checked already.
    pub fn new(
        (distance, normalize): (Distance, bool),
        embeddings: Matrix<'a, f64>,
        labels: &'a [i64],
        reference: Option<&ReferenceSet<'a>>,
    ) -> Result<Self, Error> {
        let itself = crate::Reference { embeddings, labels, own: Own::Offset(0) };
        let set = reference.unwrap_or(&itself);
        let (rows, references) = (embeddings.rows(), set.embeddings.rows());
        // Cosine normalises by itself.
        let normalize = normalize && distance != Distance::Cosine;
        let distance = distance.into();
        let given = [embeddings, set.embeddings];
        let u = given.map(|matrix| {
            let rows = (0..matrix.rows()).map(|i| matrix.row(i));
            rows.map(|x| if normalize { normalized(x) } else { x.to_vec() }).collect::<Vec<_>>()
        });
        let d = u[0].iter().map(|x| u[1].iter().map(|y| self::distance(distance, x, y)).collect()).collect();
        let finite = [0, 1].map(|side| {
            let (given, u): (&Matrix<'_, f64>, &Vec<Vec<f64>>) = (&given[side], &u[side]);
            let is_finite = |i: usize| given.row(i).iter().chain(&u[i]).all(|x| x.is_finite());
            (0..given.rows()).map(is_finite).collect::<Vec<_>>()
        });
        Ok(Self {
            distance,
            normalize,
            given,
            u,
            labels: [labels, set.labels],
            own: (0..rows).map(|a| set.own.row(a, references)).collect(),
            references_are_finite: finite[1].iter().all(|finite| *finite),
            finite,
            itself: reference.is_none(),
            d,
        })
    }

    pub fn rows(&self) -> usize {
        self.given[0].rows()
    }

    pub fn references(&self) -> usize {
        self.given[1].rows()
    }

    /// The reference row that anchor a is itself.
    pub fn own(&self, a: usize) -> Option<usize> {
        self.own[a]
    }

    pub fn is_positive(&self, a: usize, j: usize) -> bool {
        self.labels[1][j] == self.labels[0][a] && self.own[a] != Some(j)
    }

    pub fn is_negative(&self, a: usize, j: usize) -> bool {
        self.labels[1][j] != self.labels[0][a]
    }

    pub fn positives(&self, a: usize) -> impl Iterator<Item = usize> {
        (0..self.references()).filter(move |&j| self.is_positive(a, j))
    }

    pub fn negatives(&self, a: usize) -> impl Iterator<Item = usize> {
        (0..self.references()).filter(move |&j| self.is_negative(a, j))
    }

    /// Whether all numbers of anchor a's own row are finite.
    pub fn anchor_is_finite(&self, a: usize) -> bool {
        self.finite[0][a]
    }

    /// Whether all rows are finite that anchor a looks at, if it has a triplet: its own and the whole reference set.
    pub fn sees_finite_rows(&self, a: usize) -> bool {
        self.finite[0][a] && self.references_are_finite
    }

    pub fn all_finite(&self) -> bool {
        self.finite[0].iter().all(|finite| *finite) && self.references_are_finite
    }

    /// The gradients with respect to anchors and reference rows, `[N, D]` and `[M, D]`, given `weights[a][j]` with
    /// respect to `d[a][j]`. If the batch is its own reference set the first is the sum of both, and the second is
    /// empty.
    pub fn gradients(&self, weights: &[Vec<f64>]) -> [Vec<f64>; 2] {
        let mut g = self.given.map(|matrix| vec![vec![0.0; matrix.dim()]; matrix.rows()]);
        for a in 0..self.rows() {
            for j in (0..self.references()).filter(|&j| weights[a][j] != 0.0) {
                let (to_a, to_j) = distance_gradient(self.distance, &self.u[0][a], &self.u[1][j]);
                let j_side = usize::from(!self.itself);
                for k in 0..to_a.len() {
                    g[0][a][k] += weights[a][j] * to_a[k];
                    g[j_side][j][k] += weights[a][j] * to_j[k];
                }
            }
        }
        if self.itself {
            g[1].clear();
        }
        [0, 1].map(|side| {
            let rows = g[side].iter().enumerate().map(|(i, g)| match self.finite[side][i] {
                false => vec![f64::NAN; g.len()],
                true if self.normalize => normalized_gradient(self.given[side].row(i), g),
                true => g.clone(),
            });
            rows.flatten().collect()
        })
    }
}

/// The hinge losses of a list of triplets, and their gradients.
pub(crate) struct Hinge {
    /// Each triplet's `d_ap - d_an + margin`, before `relu`.
    pub arguments: Vec<f64>,
    /// The sum of each anchor's losses.
    pub losses: Vec<f64>,
    pub loss: f64,
    pub grads: [Vec<f64>; 2],
    pub stats: Stats,
}

/// Computes `relu(d_ap - d_an + margin)` of each triplet `(a, p, n)`, their mean or sum, and the gradients times
/// `upstream` (one number, or one an anchor).
pub(crate) fn hinge(
    anchors: &Anchors<'_>,
    triplets: &[[usize; 3]],
    margin: f64,
    reduction: Reduction,
    upstream: &[f64],
) -> Hinge {
    let rows = anchors.rows();
    let mean = if reduction == Reduction::Mean { 1.0 / triplets.len().max(1) as f64 } else { 1.0 };
    let mut stats = Stats { valid: triplets.len() as u64, ..Stats::default() };
    let mut losses: Vec<f64> = (0..rows).map(|a| if anchors.anchor_is_finite(a) { 0.0 } else { f64::NAN }).collect();
    let mut weights = vec![vec![0.0; anchors.references()]; rows];
    let mut arguments = Vec::with_capacity(triplets.len());
    for &[a, p, n] in triplets {
        let (d_ap, d_an) = (anchors.d[a][p], anchors.d[a][n]);
        let argument = d_ap - d_an + margin;
        let (value, slope) = match argument > 0.0 {
            // An infinite negative distance must not pass for a far one.
            _ if !anchors.sees_finite_rows(a) || !d_ap.is_finite() || !d_an.is_finite() => (f64::NAN, f64::NAN),
            true => (argument, 1.0),
            false => (0.0, 0.0),
        };
        let weight = mean * slope * upstream[if upstream.len() == 1 { 0 } else { a }];
        weights[a][p] += weight;
        weights[a][n] -= weight;
        arguments.push(argument);
        losses[a] += value;
        stats.active += u64::from(value > 0.0);
        stats.mean_positive_distance += d_ap / triplets.len() as f64;
        stats.mean_negative_distance += d_an / triplets.len() as f64;
    }
    let mut loss = mean * losses.iter().sum::<f64>();
    if !anchors.all_finite() {
        (loss, stats) = (f64::NAN, Stats { valid: stats.valid, ..Stats::poisoned() });
    }
    Hinge { arguments, losses, loss, grads: anchors.gradients(&weights), stats }
}
