//! The fused CPU version: positives by difference, negatives by tiles of products, the gradient from the chosen pairs.

use super::Problem;
use crate::cpu::against::{Against, NONE};
use crate::cpu::blocks;
use crate::cpu::nearest::{Found, nearest_negatives};
use crate::cpu::pulls::{self, Pull};
use crate::element::{ByScalar, ScalarFn};
use crate::{Element, Matrix, Reduction, Reference, Scalar, Stats};

/// Rows of one task.
const TASK_ROWS: usize = 32;

/// The triplets of a batch: of each anchor, in the order given.
#[derive(Clone, Debug)]
pub struct Selection<A> {
    /// The farthest positive; `u32::MAX` for an anchor without a positive or without a negative.
    pub positive: Vec<u32>,
    /// The nearest negative; `u32::MAX` for an anchor without a positive or without a negative.
    pub negative: Vec<u32>,
    /// How far the positive is, else 0.
    pub positive_distances: Vec<A>,
    /// How far the negative is, else 0.
    pub negative_distances: Vec<A>,
    /// The anchors' losses.
    pub losses: Vec<A>,
    /// As of [`loss_with_stats`](super::BatchHardTripletLoss::loss_with_stats).
    pub stats: Stats,
    /// Whether the embeddings hold NaN or infinity: nothing is selected then.
    pub poisoned: bool,
}

impl<A: Scalar> Selection<A> {
    /// The reduced loss.
    pub(crate) fn loss(&self, problem: &Problem) -> A {
        if self.poisoned {
            return A::NAN;
        }
        let sum: f64 = self.losses.iter().map(|loss| loss.to_f64()).sum();
        A::from_f64(sum / problem.divisor(self.stats.valid))
    }
}

/// Finds the triplets. What is returned beside them serves [`gradient`].
pub(crate) fn select<T: Element>(
    problem: &Problem,
    embeddings: &Matrix<'_, T>,
    labels: &[i64],
    reference: Option<&Reference<Matrix<'_, T>, &[i64]>>,
) -> (Against<T::Scalar>, Selection<T::Scalar>) {
    let against = Against::new(embeddings, labels, reference, problem.metric, problem.normalize);
    let selection = T::Scalar::of_scalar(&FIND)(problem, &against);
    (against, selection)
}

/// The gradients times `upstream` (one number, or one an anchor; `None`: 1), for the triplets of `selection`.
pub(crate) fn gradient<T: Element>(
    problem: &Problem,
    against: &Against<T::Scalar>,
    selection: &Selection<T::Scalar>,
    upstream: Option<&[T::Scalar]>,
    grads: [Option<&mut [T]>; 2],
) {
    let (pulls, scale) = T::Scalar::of_scalar(&PULLS)(problem, against, selection, upstream);
    pulls::gradients(against, &pulls, scale, grads);
}

struct Find;
impl ScalarFn for Find {
    type Of<A: Scalar> = fn(&Problem, &Against<A>) -> Selection<A>;
}
static FIND: ByScalar<Find> = ByScalar { f32: find, f64: find };

struct Pulls;
impl ScalarFn for Pulls {
    type Of<A: Scalar> = fn(&Problem, &Against<A>, &Selection<A>, Option<&[A]>) -> (Vec<Pull<A>>, A);
}
static PULLS: ByScalar<Pulls> = ByScalar { f32: pulls, f64: pulls };

fn find<A: Scalar>(problem: &Problem, against: &Against<A>) -> Selection<A> {
    let rows = problem.rows;
    let classes = &against.classes;
    let mut selection = Selection {
        positive: vec![NONE; rows],
        negative: vec![NONE; rows],
        positive_distances: vec![A::ZERO; rows],
        negative_distances: vec![A::ZERO; rows],
        losses: vec![A::ZERO; rows],
        stats: Stats::default(),
        poisoned: against.poisoned(),
    };
    let valid = (0..rows).filter(|&i| against.is_valid(i)).count() as u64;
    if selection.poisoned {
        // Every anchor with a triplet looks at every row.
        for i in 0..rows {
            if against.is_valid(i) || against.anchors.row(i).iter().any(|x| !x.is_finite()) {
                selection.losses[classes.order[i] as usize] = A::NAN;
            }
        }
        selection.stats = Stats { valid, ..Stats::poisoned() };
        return selection;
    }
    if valid == 0 {
        return selection;
    }
    let positives = farthest_positives(against);
    let negatives = nearest_negatives(against);
    let (mut positive_sum, mut negative_sum, mut active) = (0.0, 0.0, 0);
    for a in 0..rows {
        let i = classes.position[a] as usize;
        if !against.is_valid(i) {
            continue;
        }
        let d = [positives.compared[i], negatives.compared[i]].map(|compared| against.anchors.distance(compared));
        let loss = loss(problem, d);
        selection.positive[a] = against.given(positives.row[i] as usize);
        selection.negative[a] = against.given(negatives.row[i] as usize);
        selection.positive_distances[a] = d[0];
        selection.negative_distances[a] = d[1];
        selection.losses[a] = loss;
        positive_sum += d[0].to_f64();
        negative_sum += d[1].to_f64();
        active += u64::from(loss > A::ZERO);
    }
    selection.stats = Stats {
        valid,
        active,
        mean_positive_distance: positive_sum / valid as f64,
        mean_negative_distance: negative_sum / valid as f64,
    };
    selection
}

/// The loss of an anchor with distances `d_ap` and `d_an`.
fn loss<A: Scalar>(problem: &Problem, [d_ap, d_an]: [A; 2]) -> A {
    if !(d_ap.is_finite() && d_an.is_finite()) {
        return A::NAN;
    }
    if problem.soft_margin {
        // ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|)
        let x = d_ap.to_f64() - d_an.to_f64();
        return A::from_f64(x.max(0.0) + (-x.abs()).exp().ln_1p());
    }
    let t = d_ap - d_an + A::from_f64(problem.margin);
    if t > A::ZERO { t } else { A::ZERO }
}

/// The derivative of the loss with respect to `d_ap - d_an`.
fn weight<A: Scalar>(problem: &Problem, [d_ap, d_an]: [A; 2], loss: A) -> A {
    if loss.is_nan() {
        A::NAN
    } else if problem.soft_margin {
        A::from_f64(1.0 / (1.0 + (d_an.to_f64() - d_ap.to_f64()).exp()))
    } else if loss > A::ZERO {
        A::ONE
    } else {
        A::ZERO
    }
}

fn farthest_positives<A: Scalar>(against: &Against<A>) -> Found<A> {
    let rows = against.anchors.rows;
    let mut found = Found { compared: vec![A::ZERO; rows], row: vec![NONE; rows] };
    let parts = found.compared.chunks_mut(TASK_ROWS).zip(found.row.chunks_mut(TASK_ROWS)).collect();
    blocks::for_each(parts, |block, (compared, row): (&mut [A], &mut [u32])| {
        for (k, (compared, row)) in compared.iter_mut().zip(row).enumerate() {
            let i = block * TASK_ROWS + k;
            for p in against.positives(i) {
                let d = against.direct(i, p);
                if *row == NONE || d > *compared {
                    (*compared, *row) = (d, p as u32);
                }
            }
        }
    });
    found
}

/// What each anchor's two pairs weigh, upstream included where there is one for each; and what every gradient is
/// multiplied by at last.
fn pulls<A: Scalar>(
    problem: &Problem,
    against: &Against<A>,
    selection: &Selection<A>,
    upstream: Option<&[A]>,
) -> (Vec<Pull<A>>, A) {
    let each = problem.reduction == Reduction::None;
    let mut pulls = Vec::with_capacity(2 * problem.rows);
    for a in (0..problem.rows).filter(|&a| selection.positive[a] != NONE) {
        let distances = [selection.positive_distances[a], selection.negative_distances[a]];
        let mut weight = weight(problem, distances, selection.losses[a]);
        if weight == A::ZERO {
            continue;
        }
        if let Some(upstream) = upstream.filter(|_| each) {
            weight = weight * upstream[a];
        }
        let place = |given: u32| against.other_classes().position[given as usize];
        for (other, distance, weight) in
            [(selection.positive[a], distances[0], weight), (selection.negative[a], distances[1], -weight)]
        {
            let weight = weight * against.anchors.slope(distance);
            pulls.push(Pull { anchor: against.classes.position[a], other: place(other), weight });
        }
    }
    let scale = match upstream {
        Some(upstream) if !each => upstream[0],
        _ => A::ONE,
    } / A::from_f64(problem.divisor(selection.stats.valid));
    (pulls, scale)
}
