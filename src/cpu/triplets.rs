//! Losses that choose one negative for each pair of anchor and positive: the hinge of the chosen triplets, and its gradient.

use super::blocks;
use super::comparison::{Comparison, NONE};
use super::distance_matrix::TASK_ROWS;
use super::pulls::{self, Pull};
use crate::element::{ByScalar, ScalarFn};
use crate::problem::Problem;
use crate::{Element, Reduction, Scalar, Stats};

/// The pairs of all anchors: sorted anchor i has one with each row of its class, in their order, its own row included.
pub struct ClassPairs {
    /// Where an anchor's pairs start.
    pub start: Vec<usize>,
}

impl ClassPairs {
    pub fn new<A: Scalar>(comparison: &Comparison<A>) -> Self {
        let mut start = Vec::with_capacity(comparison.anchors.rows + 1);
        start.push(0);
        for i in 0..comparison.anchors.rows {
            start.push(start[i] + comparison.class(i).len());
        }
        Self { start }
    }

    pub fn len(&self) -> usize {
        self.start[self.start.len() - 1]
    }

    pub fn of(&self, i: usize) -> std::ops::Range<usize> {
        self.start[i]..self.start[i + 1]
    }

    /// Cuts `all`, which has one number a pair, into the parts of the tasks of [`DistanceMatrix`](super::distance_matrix::DistanceMatrix).
    pub fn tasks<'a, T>(&self, mut all: &'a mut [T]) -> Vec<&'a mut [T]> {
        let rows = self.start.len() - 1;
        let task = |first: usize| self.start[rows.min(first + TASK_ROWS)] - self.start[first];
        let cut = |first| all.split_off_mut(..task(first)).expect("as long as all parts together");
        (0..rows).step_by(TASK_ROWS).map(cut).collect()
    }

    /// Where anchor i's pairs are in its task's part.
    pub fn in_task(&self, i: usize) -> std::ops::Range<usize> {
        let base = self.start[i - i % TASK_ROWS];
        self.start[i] - base..self.start[i + 1] - base
    }

    /// `distance(i, p)` of each pair, and `own` for each anchor with itself.
    pub fn fill<A: Scalar>(
        &self,
        comparison: &Comparison<A>,
        own: A,
        distance: impl Fn(usize, usize) -> A + Sync,
    ) -> Vec<A> {
        let mut all = vec![own; self.len()];
        blocks::for_each(self.tasks(&mut all), |task, part| {
            let first = task * TASK_ROWS;
            for i in first..comparison.anchors.rows.min(first + TASK_ROWS) {
                let (start, part) = (comparison.class(i).start, &mut part[self.in_task(i)]);
                for p in comparison.positives(i) {
                    part[p - start] = distance(i, p);
                }
            }
        });
        all
    }
}

/// A chosen triplet; rows are places in the order of classes.
#[derive(Clone, Copy, Debug)]
pub struct Triplet<A> {
    pub anchor: u32,
    pub positive: u32,
    pub negative: u32,
    /// `d_ap` and `d_an`.
    pub distances: [A; 2],
    pub loss: A,
}

/// The chosen triplets of a batch, and what they come to.
pub struct ChosenTriplets<A> {
    /// The triplets, in the given order of the anchors and of their positives.
    pub triplets: Vec<Triplet<A>>,
    /// The sum of each anchor's losses, in the given order.
    pub losses: Vec<A>,
    /// The sum of all losses.
    pub sum: f64,
    pub stats: Stats,
}

/// The losses of the triplets whose negatives are `chosen`: for each pair a row, or [`NONE`].
pub fn hinge<A: Scalar>(
    comparison: &Comparison<A>,
    margin: f64,
    pairs: &ClassPairs,
    chosen: &[u32],
) -> ChosenTriplets<A> {
    let rows = comparison.anchors.rows;
    let margin = A::from_f64(margin);
    let blank = Triplet { anchor: 0, positive: 0, negative: NONE, distances: [A::ZERO; 2], loss: A::ZERO };
    let mut all = vec![blank; pairs.len()];
    blocks::for_each(pairs.tasks(&mut all), |task, part| {
        let first = task * TASK_ROWS;
        for i in first..rows.min(first + TASK_ROWS) {
            let start = comparison.class(i).start;
            for (k, (triplet, &negative)) in part[pairs.in_task(i)].iter_mut().zip(&chosen[pairs.of(i)]).enumerate() {
                if negative == NONE {
                    continue;
                }
                let distance = |j: usize| comparison.anchors.distance(comparison.direct(i, j));
                let distances @ [d_ap, d_an] = [distance(start + k), distance(negative as usize)];
                let t = d_ap - d_an + margin;
                let loss = match d_ap.is_finite() && d_an.is_finite() {
                    false => A::NAN,
                    true if t > A::ZERO => t,
                    true => A::ZERO,
                };
                *triplet = Triplet { anchor: i as u32, positive: (start + k) as u32, negative, distances, loss };
            }
        }
    });
    let mut result =
        ChosenTriplets { triplets: Vec::new(), losses: vec![A::ZERO; rows], sum: 0.0, stats: Stats::default() };
    for (given, loss) in result.losses.iter_mut().enumerate() {
        let of_anchor = &all[pairs.of(comparison.classes.position[given] as usize)];
        let mut sum = 0.0;
        for triplet in of_anchor.iter().filter(|triplet| triplet.negative != NONE) {
            sum += triplet.loss.to_f64();
            result.stats.active += u64::from(triplet.loss > A::ZERO);
            result.stats.mean_positive_distance += triplet.distances[0].to_f64();
            result.stats.mean_negative_distance += triplet.distances[1].to_f64();
            result.triplets.push(*triplet);
        }
        result.sum += sum;
        *loss = A::from_f64(sum);
    }
    result.stats.valid = result.triplets.len() as u64;
    let valid = result.stats.valid.max(1) as f64;
    result.stats.mean_positive_distance /= valid;
    result.stats.mean_negative_distance /= valid;
    result
}

/// What a batch with NaN or infinity in it comes to: NaN for every anchor with a triplet, which looks at every row.
/// `is_pair(i, p)`: whether anchor i may have a triplet with positive p.
pub fn poisoned<A: Scalar>(comparison: &Comparison<A>, is_pair: impl Fn(usize, usize) -> bool) -> ChosenTriplets<A> {
    let mut valid = 0;
    let losses = comparison.classes.position.iter().map(|&i| {
        let i = i as usize;
        let has_negative = comparison.count_negatives(i) > 0;
        let count = comparison.positives(i).filter(|&p| has_negative && is_pair(i, p)).count() as u64;
        valid += count;
        let bad = count > 0 || comparison.anchors.row(i).iter().any(|x| !x.is_finite());
        if bad { A::NAN } else { A::ZERO }
    });
    let losses = losses.collect();
    ChosenTriplets { triplets: Vec::new(), losses, sum: f64::NAN, stats: Stats { valid, ..Stats::poisoned() } }
}

/// The gradients times `upstream` (one number, or one an anchor; `None`: 1).
pub fn gradients<T: Element, X: Copy>(
    problem: &Problem<X>,
    comparison: &Comparison<T::Scalar>,
    chosen: &ChosenTriplets<T::Scalar>,
    upstream: Option<&[T::Scalar]>,
    grads: [Option<&mut [T]>; 2],
) {
    let each = problem.options.reduction == Reduction::None;
    let pulls = T::Scalar::of_scalar(&PULLS_OF)(comparison, &chosen.triplets, upstream.filter(|_| each));
    let scale = match upstream {
        Some(upstream) if !each => upstream[0],
        _ => T::Scalar::ONE,
    };
    let divisor = T::Scalar::from_f64(problem.divisor(&chosen.stats));
    pulls::gradients(comparison, &pulls, scale / divisor, grads);
}

struct PullsOf;
impl ScalarFn for PullsOf {
    type Of<A: Scalar> = fn(&Comparison<A>, &[Triplet<A>], Option<&[A]>) -> Vec<Pull<A>>;
}
static PULLS_OF: ByScalar<PullsOf> = ByScalar { f32: pulls_of, f64: pulls_of };

fn pulls_of<A: Scalar>(comparison: &Comparison<A>, triplets: &[Triplet<A>], upstream: Option<&[A]>) -> Vec<Pull<A>> {
    let mut all = Vec::with_capacity(2 * triplets.len());
    for &Triplet { anchor, positive, negative, distances, loss } in triplets {
        if loss == A::ZERO {
            continue;
        }
        let weight = if loss.is_nan() { A::NAN } else { A::ONE };
        let weight =
            weight * upstream.map_or(A::ONE, |upstream| upstream[comparison.classes.order[anchor as usize] as usize]);
        for (other, distance, weight) in [(positive, distances[0], weight), (negative, distances[1], -weight)] {
            all.push(Pull { anchor, other, weight: weight * comparison.anchors.slope(distance) });
        }
    }
    all
}

/// The triplets of a batch, one for each pair of anchor and positive that has a negative, by anchor and then by positive.
/// Rows are given indices; those of positives and negatives are of the reference set, if there is one.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Triplets<A> {
    /// The anchors.
    pub anchor: Vec<u32>,
    /// The positives.
    pub positive: Vec<u32>,
    /// The negatives.
    pub negative: Vec<u32>,
    /// `d(a, p)` of each triplet.
    pub positive_distances: Vec<A>,
    /// `d(a, n)` of each triplet.
    pub negative_distances: Vec<A>,
}

impl<A: Scalar> Triplets<A> {
    pub(crate) fn new(comparison: &Comparison<A>, chosen: &ChosenTriplets<A>) -> Self {
        let rows = |row: fn(&Triplet<A>) -> u32, order: &[u32]| -> Vec<u32> {
            chosen.triplets.iter().map(|triplet| order[row(triplet) as usize]).collect()
        };
        let others = &comparison.other_classes().order;
        Self {
            anchor: rows(|triplet| triplet.anchor, &comparison.classes.order),
            positive: rows(|triplet| triplet.positive, others),
            negative: rows(|triplet| triplet.negative, others),
            positive_distances: chosen.triplets.iter().map(|triplet| triplet.distances[0]).collect(),
            negative_distances: chosen.triplets.iter().map(|triplet| triplet.distances[1]).collect(),
        }
    }
}
