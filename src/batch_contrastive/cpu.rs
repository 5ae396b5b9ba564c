//! The fused CPU version: positives by difference, negatives by tiles of products. The weight of a pair in the gradient
//! depends on its distance alone, so the gradient is another sweep, for which only the rows and the hardest pairs are
//! kept.

pub(crate) mod found;
mod gradient;
mod hardest;

use pulp::{Simd, WithSimd};

use super::options::{Negatives, Problem};
use crate::cpu::blocks;
use crate::cpu::comparison::{Comparison, around_class};
use crate::cpu::distance_matrix::{DistanceMatrix, TASK_ROWS};
use crate::cpu::simd::V;
use crate::element::{ByScalar, ScalarFn};
use crate::{Element, Reduction, Scalar, Stats};
use found::Found;

/// Selects the pairs of a batch, and sums up their losses.
pub(crate) fn find<A: Scalar>(problem: &Problem, comparison: Comparison<A>) -> Found<A> {
    A::of_scalar(&FIND_PAIRS)(problem, comparison)
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
    let factor = factor / T::Scalar::from_f64(problem.divisor(&found.stats));
    let comparison = &found.comparison;
    for (which, grad) in grads.into_iter().enumerate() {
        let Some(grad) = grad else { continue };
        if comparison.poisoned() {
            grad.fill(T::from_f64(f64::NAN));
            continue;
        }
        let sorted = T::Scalar::of_scalar(&GRADIENT)(problem, found, upstream.filter(|_| each), which);
        let (dim, classes) = (problem.dim, if which == 0 { &comparison.classes } else { comparison.other_classes() });
        blocks::for_each(grad.chunks_mut(TASK_ROWS * dim).collect(), |task, to: &mut [T]| {
            let mut wide = vec![T::Scalar::ZERO; dim];
            for (to, &position) in to.chunks_exact_mut(dim).zip(&classes.position[task * TASK_ROWS..]) {
                let from = &sorted[position as usize * dim..][..dim];
                wide.iter_mut().zip(from).for_each(|(wide, from)| *wide = *from * factor);
                T::narrow(&wide, to);
            }
        });
    }
}

struct FindPairs;
impl ScalarFn for FindPairs {
    type Of<A: Scalar> = fn(&Problem, Comparison<A>) -> Found<A>;
}
static FIND_PAIRS: ByScalar<FindPairs> = ByScalar { f32: find_pairs, f64: find_pairs };

struct Gradient;
impl ScalarFn for Gradient {
    type Of<A: Scalar> = fn(&Problem, &Found<A>, Option<&[A]>, usize) -> Vec<A>;
}
static GRADIENT: ByScalar<Gradient> = ByScalar { f32: gradient::run, f64: gradient::run };

/// What the pairs of one anchor add up to.
#[derive(Clone, Copy, Default)]
struct Sums {
    loss: f64,
    active: u64,
    /// The sums of the distances of pairs of one class, and of pairs of different classes.
    distances: [f64; 2],
}

fn find_pairs<A: Scalar>(problem: &Problem, comparison: Comparison<A>) -> Found<A> {
    let rows = problem.rows;
    let count = |of: &dyn Fn(usize) -> usize| (0..rows).map(|i| of(i) as u64).sum::<u64>();
    let positives = count(&|i| comparison.count_positives(i));
    let negatives = count(&|i| comparison.count_negatives(i));
    let negatives = if problem.options.extra == Negatives::All { negatives } else { negatives.min(positives) };
    let valid = positives + negatives;
    if comparison.poisoned() {
        // An anchor with a pair of different classes looks at every row, if only to find that it is not selected.
        let has_pairs =
            |i: usize| comparison.count_positives(i) > 0 || (negatives > 0 && comparison.count_negatives(i) > 0);
        let is_lost = |i: usize| has_pairs(i) || comparison.anchors.row(i).iter().any(|x| !x.is_finite());
        let of_anchor = |&i: &u32| if is_lost(i as usize) { A::NAN } else { A::ZERO };
        let losses = comparison.classes.position.iter().map(of_anchor).collect();
        let stats = Stats { valid, ..Stats::poisoned() };
        return Found { comparison, hardest: Vec::new(), losses, sum: f64::NAN, stats };
    }
    let margin = A::from_f64(problem.options.margin);
    let mut sums = vec![Sums::default(); rows];
    let mut hardest = Vec::new();
    if negatives > 0 && problem.options.extra == Negatives::All {
        sweep_negatives(&comparison, margin, &mut sums);
    } else if negatives > 0 {
        hardest = hardest::select(&comparison, if comparison.is_itself() { negatives / 2 } else { negatives });
        for pair in &hardest {
            let d = comparison.anchors.distance(pair.compared);
            let gap = if d < margin { margin - d } else { A::ZERO };
            let loss = if d.is_finite() { (gap * gap).to_f64() / 2.0 } else { f64::NAN };
            let both = [pair.anchor, pair.other];
            for given in both.into_iter().take(if comparison.is_itself() { 2 } else { 1 }) {
                let sums = &mut sums[comparison.classes.position[given as usize] as usize];
                sums.loss += loss;
                sums.active += u64::from(d < margin);
                sums.distances[1] += d.to_f64();
            }
        }
    }
    add_positives(&comparison, &mut sums);

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
    Found { comparison, hardest, losses, sum, stats }
}

fn add_positives<A: Scalar>(comparison: &Comparison<A>, sums: &mut [Sums]) {
    blocks::for_each(sums.chunks_mut(TASK_ROWS).collect(), |task, sums: &mut [Sums]| {
        for (k, sums) in sums.iter_mut().enumerate() {
            let i = task * TASK_ROWS + k;
            for p in comparison.positives(i) {
                let compared = comparison.direct(i, p);
                let d = comparison.anchors.distance(compared);
                // The sum of squares itself: squaring its root would only round twice.
                let square = if comparison.anchors.is_root() { compared } else { d * d };
                sums.loss += if compared.is_finite() { square.to_f64() / 2.0 } else { f64::NAN };
                sums.active += u64::from(d != A::ZERO);
                sums.distances[0] += d.to_f64();
            }
        }
    });
}

/// Adds the losses and distances of all pairs of different classes to `sums`.
fn sweep_negatives<A: Scalar>(comparison: &Comparison<A>, margin: A, sums: &mut [Sums]) {
    let root = comparison.anchors.is_root();
    let visit = |sums: &mut &mut [Sums], i: usize, columns: std::ops::Range<usize>, compared: &mut [A]| {
        let (before, after) = around_class(&comparison.class(i), &columns);
        let sums = &mut sums[i % TASK_ROWS];
        for run in [&compared[..before], &compared[after..]] {
            let [squares, distances, active] = pulp::Arch::new().dispatch(Run { compared: run, margin, root });
            // A sum of finite numbers may overflow too.
            let lost = !distances.is_finite() && run.iter().any(|compared| !compared.is_finite());
            sums.loss += if lost { f64::NAN } else { squares.to_f64() / 2.0 };
            sums.active += active.to_f64() as u64;
            sums.distances[1] += distances.to_f64();
        }
    };
    DistanceMatrix::new(&comparison.anchors, comparison.others()).sweep(sums.chunks_mut(TASK_ROWS).collect(), visit);
}

/// Computes `Σ max(m - d, 0)²`, `Σ d`, and how many d are below m, over distances d and the margin m.
struct Run<'a, A> {
    compared: &'a [A],
    margin: A,
    root: bool,
}

impl<A: Scalar> WithSimd for Run<'_, A> {
    type Output = [A; 3];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [A; 3] {
        let Self { compared, margin, root } = self;
        let zero = V::<S, A>::splat(simd, A::ZERO);
        let margins = V::<S, A>::splat(simd, margin);
        let (mut squares, mut distances, mut active) = (zero, zero, zero);
        let (whole, rest) = A::registers::<S>(compared);
        for &register in whole {
            let d = V::<S, A> { simd, register: if root { A::sqrt_of(simd, register) } else { register } };
            let gap = (margins - d).max(zero);
            squares = gap.mul_add(gap, squares);
            distances = distances + d;
            active = active + d.if_below(margins);
        }
        let mut sums = [squares.sum(), distances.sum(), active.sum()];
        for &compared in rest {
            let d = if root { compared.sqrt() } else { compared };
            let gap = if d < margin { margin - d } else { A::ZERO };
            sums[0] += gap * gap;
            sums[1] += d;
            sums[2] += if d < margin { A::ONE } else { A::ZERO };
        }
        sums
    }
}
