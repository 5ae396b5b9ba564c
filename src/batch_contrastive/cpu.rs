//! The fused CPU version: positives by difference, negatives by tiles of products. The weight of a pair in the gradient
//! depends on its distance alone, so one sweep gives the loss and the gradients, unless each anchor has an upstream gradient
//! of its own: then these are another sweep, for which only the rows are kept.

pub(crate) mod found;
mod gradient;
mod hardest;
mod terms;
mod tiles;

use super::options::{Negatives, Problem};
use crate::cpu::blocks;
use crate::cpu::comparison::Comparison;
use crate::cpu::rounds::TASK_ROWS;
use crate::element::{ByScalar, ScalarFn};
use crate::{Element, Reduction, Scalar, Stats};
use found::{Found, Kind, Kinds};
use terms::Terms;

/// Selects the pairs of a batch, and sums up their losses. `with_grad`: for which gradients [`gradients`] may be called.
pub(crate) fn find<A: Scalar>(problem: &Problem, comparison: Comparison<A>, with_grad: [bool; 2]) -> Found<A> {
    A::of_scalar(&FIND_PAIRS)(problem, comparison, with_grad)
}

/// The gradients times `upstream` (one number, or one an anchor; `None`: 1).
pub(crate) fn gradients<T: Element>(
    problem: &Problem,
    found: &Found<T::Scalar>,
    upstream: Option<&[T::Scalar]>,
    grads: [Option<&mut [T]>; 2],
) {
    let each = problem.options.reduction == Reduction::None;
    let factor = upstream.filter(|_| !each).map_or(T::Scalar::ONE, |upstream| upstream[0]);
    let factor = factor / T::Scalar::from_f64(found.kinds.divisor(problem, Kind::NEGATIVE));
    let comparison = &found.comparison;
    let wanted = grads.each_ref().map(|grad| grad.is_some() && !comparison.poisoned());
    let made;
    let from = if found.grads.iter().zip(wanted).any(|(grad, wanted)| wanted && grad.is_empty()) {
        made = T::Scalar::of_scalar(&GRADIENT)(problem, found, upstream.filter(|_| each), wanted);
        &made
    } else {
        &found.grads
    };
    for (grad, from) in grads.into_iter().zip(from) {
        let Some(grad) = grad else { continue };
        if comparison.poisoned() {
            grad.fill(T::from_f64(f64::NAN));
            continue;
        }
        blocks::scale(from, factor, grad, TASK_ROWS * problem.dim);
    }
}

struct FindPairs;
impl ScalarFn for FindPairs {
    type Of<A: Scalar> = fn(&Problem, Comparison<A>, [bool; 2]) -> Found<A>;
}
static FIND_PAIRS: ByScalar<FindPairs> = ByScalar { f32: find_pairs, f64: find_pairs };

struct Gradient;
impl ScalarFn for Gradient {
    type Of<A: Scalar> = fn(&Problem, &Found<A>, Option<&[A]>, [bool; 2]) -> [Vec<A>; 2];
}
static GRADIENT: ByScalar<Gradient> = ByScalar { f32: gradient::run, f64: gradient::run };

/// What the pairs of one anchor add up to.
#[derive(Clone, Copy, Default)]
pub struct Sums {
    loss: f64,
    active: u64,
    /// What the pairs of one class, and those of different classes, are of `loss` and of `active`.
    kinds: Kinds,
    /// The sums of the distances of pairs of one class, and of pairs of different classes.
    distances: [f64; 2],
}

fn find_pairs<A: Scalar>(problem: &Problem, comparison: Comparison<A>, with_grad: [bool; 2]) -> Found<A> {
    let rows = problem.rows;
    let count = |of: &dyn Fn(usize) -> usize| (0..rows).map(|i| of(i) as u64).sum::<u64>();
    let all = problem.options.extra.negatives == Negatives::All;
    let positives = count(&|i| comparison.count_positives(i));
    let negatives = count(&|i| comparison.count_negatives(i));
    let negatives = if all { negatives } else { negatives.min(positives) };
    let valid = positives + negatives;
    if comparison.poisoned() {
        // An anchor with a pair of different classes looks at every row, if only to find that it is not selected.
        let has_pairs =
            |i: usize| comparison.count_positives(i) > 0 || (negatives > 0 && comparison.count_negatives(i) > 0);
        let is_lost = |i: usize| has_pairs(i) || comparison.anchors.row(i).iter().any(|x| !x.is_finite());
        let of_anchor = |&i: &u32| if is_lost(i as usize) { A::NAN } else { A::ZERO };
        let losses = comparison.classes.position.iter().map(of_anchor).collect();
        let stats = Stats { valid, ..Stats::poisoned() };
        let kinds = Kinds([Kind { loss: f64::NAN, ..Kind::default() }; 2]);
        return Found {
            comparison,
            hardest: Vec::new(),
            losses,
            sum: f64::NAN,
            stats,
            kinds,
            grads: Default::default(),
        };
    }
    let terms = Terms::<A>::of(problem);
    let mut sums = vec![Sums::default(); rows];
    let (mut hardest, mut grads) = (Vec::new(), Default::default());
    if all {
        let with_grad = with_grad.map(|wanted| wanted && problem.options.reduction != Reduction::None);
        let add_rest = |sums: &mut [Sums]| {
            add_positives(problem, &comparison, sums);
            Kinds::over(sums, [positives, negatives])
        };
        grads = gradient::by_all(problem, &comparison, None, with_grad, Some((&mut sums, &add_rest)));
    } else if negatives > 0 {
        hardest = hardest::select(&comparison, if comparison.is_itself() { negatives / 2 } else { negatives });
        for pair in &hardest {
            let d = comparison.anchors.distance(pair.compared);
            let loss = terms.negative(d).to_f64() * terms.unit();
            let both = [pair.anchor, pair.other];
            for given in both.into_iter().take(if comparison.is_itself() { 2 } else { 1 }) {
                let sums = &mut sums[comparison.classes.position[given as usize] as usize];
                sums.loss += loss;
                sums.active += u64::from(d < terms.margin);
                sums.distances[1] += d.to_f64();
            }
        }
    }
    if !all {
        add_positives(problem, &comparison, &mut sums);
    }

    let kinds = Kinds::over(&sums, [positives, negatives]);
    let mut stats = Stats { valid, ..Stats::default() };
    let (mut losses, mut sum, mut distances) = (Vec::with_capacity(rows), 0.0, [0.0; 2]);
    for &i in &comparison.classes.position {
        let of_anchor = &sums[i as usize];
        losses.push(A::from_f64(of_anchor.loss));
        sum += of_anchor.loss;
        stats.active += of_anchor.active;
        distances.iter_mut().zip(of_anchor.distances).for_each(|(sum, d)| *sum += d);
    }
    stats.mean_positive_distance = distances[0] / positives.max(1) as f64;
    stats.mean_negative_distance = distances[1] / negatives.max(1) as f64;
    Found { comparison, hardest, losses, sum, stats, kinds, grads }
}

/// Adds the pairs of one class to sums that have those of different classes alone.
fn add_positives<A: Scalar>(problem: &Problem, comparison: &Comparison<A>, sums: &mut [Sums]) {
    let terms = Terms::<A>::of(problem);
    blocks::for_each(sums.chunks_mut(TASK_ROWS).collect(), |task, sums: &mut [Sums]| {
        for (k, sums) in sums.iter_mut().enumerate() {
            let i = task * TASK_ROWS + k;
            sums.kinds.0[Kind::NEGATIVE] = Kind { loss: sums.loss, active: sums.active, count: 0 };
            for p in comparison.positives(i) {
                let compared = comparison.direct(i, p);
                let (loss, active) = terms.positive(&comparison.anchors, compared);
                sums.loss += loss;
                sums.active += u64::from(active);
                let kind = &mut sums.kinds.0[Kind::POSITIVE];
                kind.loss += loss;
                kind.active += u64::from(active);
                sums.distances[0] += comparison.anchors.distance(compared).to_f64();
            }
        }
    });
}
