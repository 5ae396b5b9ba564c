//! The fused CPU version: positives by difference, negatives by tiles of products, the gradient from the chosen pairs.

use crate::cpu::blocks;
use crate::cpu::comparison::{Comparison, NONE};
use crate::cpu::nearest::{Picked, nearest_negatives};
use crate::cpu::pulls::{self, Pull};
use crate::element::{ByScalar, ScalarFn};
use crate::{Element, Reduction, Scalar, Stats};

/// The options and sizes of one call; `extra` is [`soft_margin`](super::BatchHardTripletLoss::soft_margin).
pub(crate) type Problem = crate::problem::Problem<bool>;

/// Rows of one task.
const TASK_ROWS: usize = 32;

/// The triplet of each anchor of a batch, in the order given, and the losses.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Selection<A> {
    /// The index of the farthest positive; `u32::MAX` for an anchor without a positive or without a negative.
    pub positive: Vec<u32>,
    /// The index of the nearest negative; `u32::MAX` for an anchor without a positive or without a negative.
    pub negative: Vec<u32>,
    /// The distance to the positive; 0 for an anchor without a triplet.
    pub positive_distances: Vec<A>,
    /// The distance to the negative; 0 for an anchor without a triplet.
    pub negative_distances: Vec<A>,
    /// The loss of each anchor.
    pub losses: Vec<A>,
    /// `valid` counts the anchors with a positive and a negative, `active` those among them whose loss is above 0.
    pub stats: Stats,
    /// Whether the embeddings hold NaN or infinity; nothing is selected then.
    pub poisoned: bool,
}

impl<A: Scalar> Selection<A> {
    /// The sum of the anchors' losses.
    pub(crate) fn sum(&self) -> f64 {
        if self.poisoned {
            return f64::NAN;
        }
        self.losses.iter().map(|loss| loss.to_f64()).sum()
    }
}

/// Finds the triplets of a batch, and hands back the comparison, which [`gradient`] needs too.
pub(crate) fn select<A: Scalar>(problem: &Problem, comparison: Comparison<A>) -> (Comparison<A>, Selection<A>) {
    let selection = A::of_scalar(&FIND)(problem, &comparison);
    (comparison, selection)
}

/// The gradients times `upstream` (one number, or one an anchor; `None`: 1), for the triplets of `selection`.
pub(crate) fn gradient<T: Element>(
    problem: &Problem,
    comparison: &Comparison<T::Scalar>,
    selection: &Selection<T::Scalar>,
    upstream: Option<&[T::Scalar]>,
    grads: [Option<&mut [T]>; 2],
) {
    let (pulls, scale) = T::Scalar::of_scalar(&PULLS)(problem, comparison, selection, upstream);
    pulls::gradients(comparison, &pulls, scale, grads);
}

struct Find;
impl ScalarFn for Find {
    type Of<A: Scalar> = fn(&Problem, &Comparison<A>) -> Selection<A>;
}
static FIND: ByScalar<Find> = ByScalar { f32: find, f64: find };

struct Pulls;
impl ScalarFn for Pulls {
    type Of<A: Scalar> = fn(&Problem, &Comparison<A>, &Selection<A>, Option<&[A]>) -> (Vec<Pull<A>>, A);
}
static PULLS: ByScalar<Pulls> = ByScalar { f32: pulls, f64: pulls };

fn find<A: Scalar>(problem: &Problem, comparison: &Comparison<A>) -> Selection<A> {
    let rows = problem.rows;
    let classes = &comparison.classes;
    let mut selection = Selection {
        positive: vec![NONE; rows],
        negative: vec![NONE; rows],
        positive_distances: vec![A::ZERO; rows],
        negative_distances: vec![A::ZERO; rows],
        losses: vec![A::ZERO; rows],
        stats: Stats::default(),
        poisoned: comparison.poisoned(),
    };
    let valid = (0..rows).filter(|&i| comparison.is_valid(i)).count() as u64;
    if selection.poisoned {
        // Every anchor with a triplet looks at every row.
        for i in 0..rows {
            if comparison.is_valid(i) || comparison.anchors.row(i).iter().any(|x| !x.is_finite()) {
                selection.losses[classes.order[i] as usize] = A::NAN;
            }
        }
        selection.stats = Stats { valid, ..Stats::poisoned() };
        return selection;
    }
    if valid == 0 {
        return selection;
    }
    let positives = farthest_positives(comparison);
    let negatives = nearest_negatives(comparison);
    let (mut positive_sum, mut negative_sum, mut active) = (0.0, 0.0, 0);
    for a in 0..rows {
        let i = classes.position[a] as usize;
        if !comparison.is_valid(i) {
            continue;
        }
        let d = [positives.compared[i], negatives.compared[i]].map(|compared| comparison.anchors.distance(compared));
        let loss = loss(problem, d);
        selection.positive[a] = comparison.given(positives.row[i] as usize);
        selection.negative[a] = comparison.given(negatives.row[i] as usize);
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
        ..Stats::default()
    };
    selection
}

/// The loss of an anchor with distances `d_ap` and `d_an`.
fn loss<A: Scalar>(problem: &Problem, [d_ap, d_an]: [A; 2]) -> A {
    if !(d_ap.is_finite() && d_an.is_finite()) {
        return A::NAN;
    }
    if problem.options.extra {
        // ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|)
        let x = d_ap.to_f64() - d_an.to_f64();
        return A::from_f64(x.max(0.0) + (-x.abs()).exp().ln_1p());
    }
    let t = d_ap - d_an + A::from_f64(problem.options.margin);
    if t > A::ZERO { t } else { A::ZERO }
}

/// The derivative of the loss with respect to `d_ap - d_an`.
fn weight<A: Scalar>(problem: &Problem, [d_ap, d_an]: [A; 2], loss: A) -> A {
    if loss.is_nan() {
        A::NAN
    } else if problem.options.extra {
        A::from_f64(1.0 / (1.0 + (d_an.to_f64() - d_ap.to_f64()).exp()))
    } else if loss > A::ZERO {
        A::ONE
    } else {
        A::ZERO
    }
}

fn farthest_positives<A: Scalar>(comparison: &Comparison<A>) -> Picked<A> {
    let rows = comparison.anchors.rows;
    let mut found = Picked { compared: vec![A::ZERO; rows], row: vec![NONE; rows] };
    let parts = found.compared.chunks_mut(TASK_ROWS).zip(found.row.chunks_mut(TASK_ROWS)).collect();
    blocks::for_each(parts, |block, (compared, row): (&mut [A], &mut [u32])| {
        for (k, (compared, row)) in compared.iter_mut().zip(row).enumerate() {
            let i = block * TASK_ROWS + k;
            for p in comparison.positives(i) {
                let d = comparison.direct(i, p);
                if *row == NONE || d > *compared {
                    (*compared, *row) = (d, p as u32);
                }
            }
        }
    });
    found
}

/// The weights of each anchor's two pairs in the gradient, times its upstream gradient if each anchor has its own; and
/// the factor that every gradient is multiplied by at last.
fn pulls<A: Scalar>(
    problem: &Problem,
    comparison: &Comparison<A>,
    selection: &Selection<A>,
    upstream: Option<&[A]>,
) -> (Vec<Pull<A>>, A) {
    let each = problem.options.reduction == Reduction::None;
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
        let place = |given: u32| comparison.other_classes().position[given as usize];
        for (other, distance, weight) in
            [(selection.positive[a], distances[0], weight), (selection.negative[a], distances[1], -weight)]
        {
            let weight = weight * comparison.anchors.slope(distance);
            pulls.push(Pull { anchor: comparison.classes.position[a], other: place(other), weight });
        }
    }
    let scale = match upstream {
        Some(upstream) if !each => upstream[0],
        _ => A::ONE,
    } / A::from_f64(problem.divisor(&selection.stats));
    (pulls, scale)
}
