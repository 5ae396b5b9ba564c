//! The oracle of this loss: f64, one obvious loop after another. Every backend is compared with it.

use super::BatchNegativeTripletLoss;
use super::options::{Negative, Pairs};
use crate::mined::{Loss, Slices};
pub use crate::oracle::ReferenceSet;
use crate::oracle::{Anchors, hinge};
use crate::{Error, Matrix, Scalar, Stats, random};

/// The loss of a batch, and what it is made of.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Every pair (anchor, positive) of an anchor that has a negative: by anchor, then by positive.
    pub pairs: Vec<[u32; 2]>,
    /// Each pair's candidates, from which `Random` and `SemiHard` draw and of which `Hardest` takes the nearest.
    pub candidates: Vec<Vec<u32>>,
    /// Each pair's negative; `u32::MAX` if the pair is skipped.
    pub negative: Vec<u32>,
    /// Each pair's `d_ap`.
    pub positive_distances: Vec<f64>,
    /// Each pair's `d_an`; 0 if the pair is skipped.
    pub negative_distances: Vec<f64>,
    /// Each anchor's loss: the sum over its pairs.
    pub losses: Vec<f64>,
    /// The reduced loss; for `Reduction::None` the sum of the losses.
    pub loss: f64,
    /// The gradient with respect to the embeddings, `[N, D]`.
    pub grad: Vec<f64>,
    /// The gradient with respect to the reference set, `[M, D]`; empty if the batch is its own reference set.
    pub reference_grad: Vec<f64>,
    /// `valid` and `active` count the selected triplets; the distances are means over them.
    pub stats: Stats,
}

/// The loss of a batch at `step`, and its gradient times `upstream` (one number, or one an anchor). `selection`: the
/// negatives to take instead of the oracle's own, one a pair in the order of [`Oracle::pairs`].
///
/// S is the type of arithmetic whose bits the draws are keyed by.
///
/// # Errors
/// If the batch is empty or too large, there is not one label a row, or an option is out of range.
pub fn run<S: Scalar>(
    loss: &BatchNegativeTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    step: i64,
    upstream: &[f64],
    selection: Option<&[u32]>,
) -> Result<Oracle, Error> {
    run_against::<S>(loss, embeddings, labels, None, step, upstream, selection)
}

/// The loss of a batch against a reference set, and its gradients; `step`, `upstream` and `selection` as [`run`] takes
/// them.
///
/// # Errors
/// Those of [`run`], or if the reference set does not fit the batch, or pairs are taken once and `own` is `Own::None`.
pub fn run_against<S: Scalar>(
    loss: &BatchNegativeTripletLoss,
    embeddings: Matrix<'_, f64>,
    labels: &[i64],
    reference: Option<&ReferenceSet<'_>>,
    step: i64,
    upstream: &[f64],
    selection: Option<&[u32]>,
) -> Result<Oracle, Error> {
    loss.problem(&Slices { embeddings, labels, reference }.sizes())?;
    let anchors = Anchors::new((loss.distance, loss.normalize), embeddings, labels, reference)?;
    let d = |a: usize, j: usize| anchors.d[a][j];
    let hashes = |matrix: Matrix<'_, f64>| -> Vec<[u32; 2]> {
        let narrow = |i| matrix.row(i).iter().map(|x| S::from_f64(*x)).collect::<Vec<S>>();
        (0..matrix.rows()).map(|i| random::row_hash(&narrow(i))).collect()
    };
    let anchor_hashes = hashes(embeddings);
    let hashes = hashes(reference.map_or(embeddings, |set| set.embeddings));
    let session = random::session(loss.seed, step);

    let mut result = Oracle {
        pairs: Vec::new(),
        candidates: Vec::new(),
        negative: Vec::new(),
        positive_distances: Vec::new(),
        negative_distances: Vec::new(),
        losses: Vec::new(),
        loss: 0.0,
        grad: Vec::new(),
        reference_grad: Vec::new(),
        stats: Stats::default(),
    };
    let mut triplets = Vec::new();
    for (a, &anchor_hash) in anchor_hashes.iter().enumerate() {
        let is_pair = |p: usize| loss.pairs == Pairs::Ordered || anchors.own(a).is_some_and(|own| own < p);
        for p in anchors.positives(a).filter(|&p| is_pair(p)) {
            if anchors.negatives(a).next().is_none() {
                continue;
            }
            let (d_ap, far) = (d(a, p), d(a, p) + loss.margin);
            let is_candidate = |n: usize| match loss.negative {
                Negative::Hardest | Negative::Random => d_ap - d(a, n) + loss.margin > 0.0,
                Negative::SemiHard => d(a, n) > d_ap && d_ap - d(a, n) + loss.margin > 0.0,
            };
            let mut candidates: Vec<usize> = anchors.negatives(a).filter(|&n| is_candidate(n)).collect();
            // With an infinite d_ap, or a row of NaN or infinity, the loss is NaN whichever negative is taken: take the
            // first.
            if !far.is_finite() || !anchors.sees_finite_rows(a) {
                candidates = anchors.negatives(a).take(1).collect();
            }
            let pair = random::pair_word(session, anchor_hash, hashes[p]);
            let priority = |n: usize| random::priority(pair, random::row_word(session, hashes[n]));
            let mut chosen = match loss.negative {
                Negative::Hardest => candidates.iter().copied().min_by(|&m, &n| d(a, m).total_cmp(&d(a, n))),
                Negative::Random | Negative::SemiHard => candidates.iter().copied().min_by_key(|&n| (priority(n), n)),
            };
            if let Some(negatives) = selection {
                chosen = Some(negatives[result.pairs.len()] as usize).filter(|&n| n != u32::MAX as usize);
            }
            triplets.extend(chosen.map(|n| [a, p, n]));
            result.pairs.push([a as u32, p as u32]);
            result.candidates.push(candidates.iter().map(|&n| n as u32).collect());
            result.negative.push(chosen.map_or(u32::MAX, |n| n as u32));
            result.positive_distances.push(d_ap);
            result.negative_distances.push(chosen.map_or(0.0, |n| d(a, n)));
        }
    }

    let hinge = hinge(&anchors, &triplets, loss.margin, loss.reduction, upstream);
    [result.grad, result.reference_grad] = hinge.grads;
    Ok(Oracle { losses: hinge.losses, loss: hinge.loss, stats: hinge.stats, ..result })
}
