//! The fused CPU version: tiles of distances by products, counts against each anchor's thresholds `d_ap + margin`, and
//! the counts times the rows as a second product. [`count::Count`] has c_ap and c_an of `docs/batch-all.md` as `totals`
//! and `counts`.

mod count;
mod thresholds;
mod tiles;

use crate::cpu::blocks;
use crate::cpu::comparison::Comparison;
use crate::element::{ByScalar, ScalarFn};
use crate::{Element, Scalar, Stats};
use thresholds::{TASK_ROWS, Thresholds};

/// The options and sizes of one call.
pub(crate) type Problem = crate::problem::Problem<()>;

/// The loss of a batch, not yet divided, its statistics and its gradients.
pub struct Found<A> {
    /// The sum of the triplets' losses; NaN if the batch is poisoned.
    pub(crate) sum: f64,
    pub(crate) stats: Stats,
    /// The gradients with respect to the anchors and to the reference set, in the given order, not divided; empty if
    /// not asked for, or if the batch is poisoned.
    grads: [Vec<A>; 2],
    /// Whether the loss and the gradients are NaN.
    poisoned: bool,
}

impl<A: Scalar> Found<A> {
    fn poisoned(valid: u64) -> Self {
        let stats = Stats { valid, ..Stats::poisoned() };
        Self { sum: f64::NAN, stats, grads: [Vec::new(), Vec::new()], poisoned: true }
    }
}

/// Counts the active triplets of a batch.
pub(crate) fn sweep<A: Scalar>(problem: &Problem, comparison: &Comparison<A>, with_grad: [bool; 2]) -> Found<A> {
    A::of_scalar(&RUN)(problem, comparison, with_grad)
}

/// The gradients times `upstream` (`None`: 1), for what a sweep with these gradients found.
pub(crate) fn gradients<T: Element>(
    problem: &Problem,
    found: &Found<T::Scalar>,
    upstream: Option<&[T::Scalar]>,
    grads: [Option<&mut [T]>; 2],
) {
    let factor = upstream.map_or(T::Scalar::ONE, |upstream| upstream[0]);
    let factor = factor / T::Scalar::from_f64(problem.divisor(&found.stats));
    for (grad, from) in grads.into_iter().zip(&found.grads) {
        let Some(grad) = grad else { continue };
        if found.poisoned {
            grad.fill(T::from_f64(f64::NAN));
            continue;
        }
        blocks::scale(from, factor, grad, TASK_ROWS * problem.dim);
    }
}

struct Run;
impl ScalarFn for Run {
    type Of<A: Scalar> = fn(&Problem, &Comparison<A>, [bool; 2]) -> Found<A>;
}
static RUN: ByScalar<Run> = ByScalar { f32: run, f64: run };

fn run<A: Scalar>(problem: &Problem, comparison: &Comparison<A>, with_grad: [bool; 2]) -> Found<A> {
    let rows = comparison.anchors.rows;
    let of_row = |i: usize| comparison.count_positives(i) as u64 * comparison.count_negatives(i) as u64;
    let valid = (0..rows).map(of_row).sum();
    if comparison.poisoned() {
        return Found::poisoned(valid);
    }
    let size = |which: usize| if which == 0 { comparison.anchors.x.len() } else { comparison.others().x.len() };
    let grads = [0, 1].map(|which| vec![A::ZERO; if with_grad[which] { size(which) } else { 0 }]);
    let mut found = Found { sum: 0.0, stats: Stats { valid, ..Stats::default() }, grads, poisoned: false };
    if valid == 0 {
        return found;
    }
    let margin = A::from_f64(problem.options.margin);
    let Some(pairs) = Thresholds::new(comparison, margin) else { return Found::poisoned(valid) };
    let Some(sums) = tiles::count(comparison, &pairs, with_grad, &mut found.grads) else {
        return Found::poisoned(valid);
    };
    let each = 1.0 / valid as f64;
    for i in 0..rows {
        let negatives = comparison.count_negatives(i) as f64;
        // Each term in f64, anchor by anchor: the loss is the small difference of two sums of large terms,
        // `Σ c_ap t_ap - Σ c_an d_an`.
        let (mut sum, mut distances) = (0.0, 0.0);
        for (&distance, &count) in pairs.distances(i).iter().zip(&sums.counts[pairs.of(i)]) {
            distances += distance.to_f64();
            if count > 0 {
                sum += (distance + margin).to_f64() * f64::from(count);
                found.stats.active += u64::from(count);
            }
        }
        found.sum += sum;
        found.stats.mean_positive_distance += distances * negatives * each;
    }
    found.sum -= sums.active_distances.iter().sum::<f64>();
    found.sum = found.sum.max(0.0);
    found.stats.mean_negative_distance = sums.distances.iter().map(|sum| sum * each).sum();
    found
}
