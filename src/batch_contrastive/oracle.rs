//! The oracle of this loss: f64, one obvious loop after another. Every backend is compared with it.

use super::BatchContrastiveLoss;
use super::options::Negatives;
use crate::mined::{Loss, Slices};
use crate::oracle::Anchors;
pub use crate::oracle::ReferenceSet;
use crate::{Error, Matrix, MeanOver, Reduction, Stats};

/// The loss of a batch, and what it is made of.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// The pairs of one class, (anchor, reference row), in ascending order.
    pub positives: Vec<[u32; 2]>,
    /// The selected pairs of different classes, (anchor, reference row), in ascending order; both orders of each pair
    /// if the batch is its own reference set.
    pub negatives: Vec<[u32; 2]>,
    /// The distances of `positives`.
    pub positive_distances: Vec<f64>,
    /// The distances of `negatives`.
    pub negative_distances: Vec<f64>,
    /// Each anchor's loss: the sum over its pairs.
    pub losses: Vec<f64>,
    /// The reduced loss; for `Reduction::None` the sum of the losses.
    pub loss: f64,
    /// The gradient with respect to the embeddings, `[N, D]`.
    pub grad: Vec<f64>,
    /// The gradient with respect to the reference set, `[M, D]`; empty if the batch is its own reference set.
    pub reference_grad: Vec<f64>,
    /// `valid` counts the selected pairs, `active` those whose loss is above 0; each distance is the mean over the
    /// selected pairs of its kind.
    pub stats: Stats,
}

/// The loss of a batch, and its gradient times `upstream` (one number, or one an anchor). `selection`: the pairs of
/// different classes to take instead of the oracle's own.
///
/// # Errors
/// If the batch is empty or too large, there is not one label a row, or an option is out of range.
pub fn run(
    loss: &BatchContrastiveLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    upstream: &[f64],
    selection: Option<&[[u32; 2]]>,
) -> Result<Oracle, Error> {
    run_against(loss, embeddings, labels, None, upstream, selection)
}

/// The loss of a batch against a reference set, and its gradients; `upstream` and `selection` as [`run`] takes them.
///
/// # Errors
/// Those of [`run`], or if the reference set does not fit the batch.
pub fn run_against(
    loss: &BatchContrastiveLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    reference: Option<&ReferenceSet<'_>>,
    upstream: &[f64],
    selection: Option<&[[u32; 2]]>,
) -> Result<Oracle, Error> {
    loss.problem(&Slices { embeddings, labels, reference }.sizes())?;
    let anchors = Anchors::new((loss.distance, loss.normalize), embeddings, labels, reference)?;
    let rows = anchors.rows();
    let d = |[a, j]: [u32; 2]| anchors.d[a as usize][j as usize];

    let (mut positives, mut negatives) = (Vec::new(), Vec::new());
    for a in 0..rows {
        positives.extend(anchors.positives(a).map(|j| [a as u32, j as u32]));
        negatives.extend(anchors.negatives(a).map(|j| [a as u32, j as u32]));
    }
    if loss.negatives == Negatives::Hardest {
        negatives = hardest(negatives, positives.len(), d, anchors.itself);
    }
    if let Some(pairs) = selection {
        negatives = pairs.to_vec();
    }

    let valid = (positives.len() + negatives.len()) as u64;
    let mut stats = Stats { valid, ..Stats::default() };
    // The loss of a pair, and its derivative with respect to the distance.
    let of_pair = |same: bool, d: f64| {
        let (gap, sign) = if same { (d - loss.pos_margin, 1.0) } else { (loss.margin - d, -1.0) };
        match loss.power {
            // Of the square itself also where rounding has made a cosine distance negative.
            2 if same && loss.pos_margin == 0.0 => (d * d / 2.0, d),
            _ if gap <= 0.0 => (0.0, 0.0),
            2 => (gap * gap / 2.0, sign * gap),
            _ => (gap, sign),
        }
    };
    // What the pairs of one class, and those of different classes, are multiplied by.
    let is_active = |same: bool, pair: &[u32; 2]| of_pair(same, d(*pair)).0 > 0.0;
    let counts = [(&positives, true), (&negatives, false)].map(|(pairs, same)| match loss.mean_over {
        MeanOver::Valid => pairs.len(),
        MeanOver::Active => pairs.iter().filter(|pair| is_active(same, pair)).count(),
    });
    let means = match (loss.reduction, loss.means_apart) {
        (Reduction::Mean, true) => counts.map(|count| 1.0 / count.max(1) as f64),
        (Reduction::Mean, false) => [1.0 / (counts[0] + counts[1]).max(1) as f64; 2],
        _ => [1.0; 2],
    };
    let mut losses: Vec<f64> = (0..rows).map(|a| if anchors.anchor_is_finite(a) { 0.0 } else { f64::NAN }).collect();
    let mut weights = vec![vec![0.0; anchors.references()]; rows];
    let mut sums = [0.0; 2];
    for (pairs, same) in [(&positives, true), (&negatives, false)] {
        // Summed for each anchor first: tens of thousands of equal distances in a row would all round alike.
        let (mut totals, mut of_kind, mean) = (vec![0.0; rows], vec![0.0; rows], means[usize::from(!same)]);
        for &[a, j] in pairs {
            let d = d([a, j]);
            let (a, j) = (a as usize, j as usize);
            let is_lost = !anchors.sees_finite_rows(a) || !d.is_finite();
            let (value, slope) = if is_lost { (f64::NAN, f64::NAN) } else { of_pair(same, d) };
            losses[a] += value;
            of_kind[a] += value;
            weights[a][j] += mean * slope * upstream[if upstream.len() == 1 { 0 } else { a }];
            stats.active += u64::from(value > 0.0);
            totals[a] += d;
        }
        sums[usize::from(!same)] = of_kind.iter().sum::<f64>();
        let distance = if same { &mut stats.mean_positive_distance } else { &mut stats.mean_negative_distance };
        *distance = totals.iter().sum::<f64>() / pairs.len().max(1) as f64;
    }

    let mut sum =
        if loss.means_apart { means[0] * sums[0] + means[1] * sums[1] } else { means[0] * losses.iter().sum::<f64>() };
    if !anchors.all_finite() {
        (sum, stats) = (f64::NAN, Stats { valid, ..Stats::poisoned() });
    }
    let [grad, reference_grad] = anchors.gradients(&weights);
    Ok(Oracle {
        positive_distances: positives.iter().map(|&pair| d(pair)).collect(),
        negative_distances: negatives.iter().map(|&pair| d(pair)).collect(),
        positives,
        negatives,
        losses,
        loss: sum,
        grad,
        reference_grad,
        stats,
    })
}

/// The `count` pairs with the smallest distances, in ascending order. `both`: pairs come in both orders, and are taken
/// in both.
fn hardest(pairs: Vec<[u32; 2]>, count: usize, d: impl Fn([u32; 2]) -> f64, both: bool) -> Vec<[u32; 2]> {
    let mut sorted: Vec<[u32; 2]> = pairs.into_iter().filter(|[a, j]| !both || a < j).collect();
    // A stable sort: of equally far pairs the one that came first stays first.
    sorted.sort_by(|&x, &y| d(x).total_cmp(&d(y)));
    sorted.truncate(if both { count / 2 } else { count });
    if both {
        let turned: Vec<[u32; 2]> = sorted.iter().map(|&[a, j]| [j, a]).collect();
        sorted.extend(turned);
    }
    sorted.sort_unstable();
    sorted
}
