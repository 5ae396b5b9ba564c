//! The fused CPU version: tiles of distances by products, counts against each anchor's thresholds `d_ap + margin`, and the
//! counts times the rows as a second product. What the docs call c_ap and c_an are `totals` and `counts` of [`count::Count`].

mod against;
mod count;
mod pairs;
mod rounds;

use super::Problem;
use crate::cpu::against::Against;
use crate::cpu::blocks;
use crate::element::{ByScalar, ScalarFn};
use crate::{Element, Matrix, Reference, Scalar, Stats};
use pairs::Pairs;
use rounds::Rounds;

/// Rows of one task where no tiles are involved.
const TASK_ROWS: usize = 32;

/// What a batch came to.
pub struct Swept<A> {
    /// The sum of the triplets' losses.
    sum: f64,
    pub(crate) stats: Stats,
    /// With respect to the anchors and to the reference set, in the given order, not divided; where it was asked for and
    /// the batch is not poisoned.
    grads: [Vec<A>; 2],
    poisoned: bool,
}

impl<A: Scalar> Swept<A> {
    /// The reduced loss.
    pub(crate) fn loss(&self, problem: &Problem) -> A {
        if self.poisoned {
            return A::NAN;
        }
        A::from_f64(self.sum / problem.divisor(&self.stats))
    }

    fn poisoned(valid: u64) -> Self {
        let stats = Stats { valid, ..Stats::poisoned() };
        Self { sum: f64::NAN, stats, grads: [Vec::new(), Vec::new()], poisoned: true }
    }
}

/// Counts the active triplets of a batch.
pub(crate) fn sweep<T: Element>(
    problem: &Problem,
    embeddings: &Matrix<'_, T>,
    labels: &[i64],
    reference: Option<&Reference<Matrix<'_, T>, &[i64]>>,
    with_grad: [bool; 2],
) -> Swept<T::Scalar> {
    let against = Against::new(embeddings, labels, reference, problem.metric, problem.normalize);
    T::Scalar::of_scalar(&RUN)(problem, &against, with_grad)
}

/// The gradients times `upstream` (`None`: 1), of a sweep with them.
pub(crate) fn gradients<T: Element>(
    problem: &Problem,
    swept: &Swept<T::Scalar>,
    upstream: Option<&[T::Scalar]>,
    grads: [Option<&mut [T]>; 2],
) {
    let factor = upstream.map_or(T::Scalar::ONE, |upstream| upstream[0]);
    let factor = factor / T::Scalar::from_f64(problem.divisor(&swept.stats));
    for (grad, from) in grads.into_iter().zip(&swept.grads) {
        let Some(grad) = grad else { continue };
        if swept.poisoned {
            grad.fill(T::from_f64(f64::NAN));
            continue;
        }
        let chunk = TASK_ROWS * problem.dim;
        let parts = grad.chunks_mut(chunk).zip(from.chunks(chunk)).collect();
        blocks::for_each(parts, |_, (to, from): (&mut [T], &[T::Scalar])| match T::as_scalars_mut(to) {
            Some(to) => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from * factor),
            None => T::narrow(&from.iter().map(|g| *g * factor).collect::<Vec<_>>(), to),
        });
    }
}

struct Run;
impl ScalarFn for Run {
    type Of<A: Scalar> = fn(&Problem, &Against<A>, [bool; 2]) -> Swept<A>;
}
static RUN: ByScalar<Run> = ByScalar { f32: run, f64: run };

/// What all anchors' sweeps add up to.
struct Sums {
    /// c_ap of each pair, in the order of [`Pairs`].
    counts: Vec<u32>,
    /// `Σ_n c_an d_an`, in parts.
    active_distances: Vec<f64>,
    /// `Σ d_an` over all triplets, in parts.
    distances: Vec<f64>,
}

fn run<A: Scalar>(problem: &Problem, against: &Against<A>, with_grad: [bool; 2]) -> Swept<A> {
    let rows = against.anchors.rows;
    let of_row = |i: usize| against.count_positives(i) as u64 * against.count_negatives(i) as u64;
    let valid = (0..rows).map(of_row).sum();
    if against.poisoned() {
        return Swept::poisoned(valid);
    }
    let size = |which: usize| if which == 0 { against.anchors.x.len() } else { against.others().x.len() };
    let grads = [0, 1].map(|which| vec![A::ZERO; if with_grad[which] { size(which) } else { 0 }]);
    let mut swept = Swept { sum: 0.0, stats: Stats { valid, ..Stats::default() }, grads, poisoned: false };
    if valid == 0 {
        return swept;
    }
    let margin = A::from_f64(problem.margin);
    let Some(pairs) = Pairs::new(against, margin) else { return Swept::poisoned(valid) };
    let sums = if against.is_itself() {
        let rounds = Rounds::new(&against.anchors, &against.classes, &pairs, with_grad[0]);
        let blocks = rounds.sweep();
        if rounds.overflowed() {
            return Swept::poisoned(valid);
        }
        if with_grad[0] {
            rounds::write_gradient(&rounds, &blocks, &mut swept.grads[0]);
        }
        let mut sums = Sums { counts: Vec::new(), active_distances: Vec::new(), distances: Vec::new() };
        for block in blocks {
            sums.counts.extend(block.counts);
            sums.active_distances.push(block.active_distances);
            sums.distances.push(block.distances);
        }
        sums
    } else {
        match against::sweep(against, &pairs, with_grad, &mut swept.grads) {
            Some(sums) => sums,
            None => return Swept::poisoned(valid),
        }
    };
    let each = 1.0 / valid as f64;
    for i in 0..rows {
        let negatives = against.count_negatives(i) as f64;
        // One by one in f64, anchor by anchor: the difference of both sums is what is left of numbers as large as the
        // distances.
        let (mut sum, mut distances) = (0.0, 0.0);
        for (&distance, &count) in pairs.distances(i).iter().zip(&sums.counts[pairs.of(i)]) {
            distances += distance.to_f64();
            if count > 0 {
                sum += (distance + margin).to_f64() * f64::from(count);
                swept.stats.active += u64::from(count);
            }
        }
        swept.sum += sum;
        swept.stats.mean_positive_distance += distances * negatives * each;
    }
    swept.sum -= sums.active_distances.iter().sum::<f64>();
    swept.sum = swept.sum.max(0.0);
    swept.stats.mean_negative_distance = sums.distances.iter().map(|sum| sum * each).sum();
    swept
}
