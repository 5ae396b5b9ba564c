//! The oracle of this loss: f64, one obvious loop after another. Every backend is compared with it.

use super::BatchSemiHardTripletLoss;
use crate::mined::{Loss, Slices};
pub use crate::oracle::ReferenceSet;
use crate::oracle::{Anchors, hinge};
use crate::{Error, Matrix, Stats};

/// The loss of a batch, and what it is made of.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Every pair (anchor, positive) of an anchor that has a negative: by anchor, then by positive.
    pub pairs: Vec<[u32; 2]>,
    /// Each pair's negative.
    pub negative: Vec<u32>,
    /// Each pair's `d_ap`.
    pub positive_distances: Vec<f64>,
    /// Each pair's `d_an`.
    pub negative_distances: Vec<f64>,
    /// Each pair's `d_ap - d_an + margin`, before `relu`: near 0, rounding decides whether the pair is active.
    pub arguments: Vec<f64>,
    /// Each anchor's loss: the sum over its pairs.
    pub losses: Vec<f64>,
    /// The reduced loss; for `Reduction::None` the sum of the losses.
    pub loss: f64,
    /// The gradient with respect to the embeddings, `[N, D]`.
    pub grad: Vec<f64>,
    /// The gradient with respect to the reference set, `[M, D]`; empty if the batch is its own reference set.
    pub reference_grad: Vec<f64>,
    /// `valid` counts the pairs, `active` those whose loss is above 0; the distances are means over the pairs.
    pub stats: Stats,
}

/// The loss of a batch, and its gradient times `upstream` (one number, or one an anchor). `selection`: the negatives to
/// take instead of the oracle's own, one a pair in the order of [`Oracle::pairs`].
///
/// # Errors
/// If the batch is empty or too large, there is not one label a row, or an option is out of range.
pub fn run(
    loss: &BatchSemiHardTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    upstream: &[f64],
    selection: Option<&[u32]>,
) -> Result<Oracle, Error> {
    run_against(loss, embeddings, labels, None, upstream, selection)
}

/// The loss of a batch against a reference set, and its gradients; `upstream` and `selection` as [`run`] takes them.
///
/// # Errors
/// Those of [`run`], or if the reference set does not fit the batch.
pub fn run_against(
    loss: &BatchSemiHardTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    reference: Option<&ReferenceSet<'_>>,
    upstream: &[f64],
    selection: Option<&[u32]>,
) -> Result<Oracle, Error> {
    loss.problem(&Slices { embeddings, labels, reference }.sizes())?;
    let anchors = Anchors::new((loss.distance, loss.normalize), embeddings, labels, reference)?;
    let d = |a: usize, j: usize| anchors.d[a][j];

    let mut triplets = Vec::new();
    for a in 0..anchors.rows() {
        for p in anchors.positives(a) {
            let (mut nearest, mut farthest) = (None, None);
            for n in anchors.negatives(a) {
                if d(a, n) > d(a, p) && nearest.is_none_or(|m: usize| d(a, n) < d(a, m)) {
                    nearest = Some(n);
                }
                if farthest.is_none_or(|m: usize| d(a, n) > d(a, m)) {
                    farthest = Some(n);
                }
            }
            if let Some(n) = nearest.or(farthest) {
                let pair = triplets.len();
                triplets.push([a, p, selection.map_or(n, |negatives| negatives[pair] as usize)]);
            }
        }
    }

    let hinge = hinge(&anchors, &triplets, loss.margin, loss.reduction, upstream);
    let [grad, reference_grad] = hinge.grads;
    Ok(Oracle {
        pairs: triplets.iter().map(|&[a, p, _]| [a as u32, p as u32]).collect(),
        negative: triplets.iter().map(|&[_, _, n]| n as u32).collect(),
        positive_distances: triplets.iter().map(|&[a, p, _]| d(a, p)).collect(),
        negative_distances: triplets.iter().map(|&[a, _, n]| d(a, n)).collect(),
        arguments: hinge.arguments,
        losses: hinge.losses,
        loss: hinge.loss,
        grad,
        reference_grad,
        stats: hinge.stats,
    })
}
