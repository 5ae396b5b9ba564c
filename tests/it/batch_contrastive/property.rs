//! What the property test and the records of `batch_contrastive` need: its cases, its calls, and its bounds.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tercet::batch_contrastive::oracle::{self, Oracle};
use tercet::{BatchContrastiveLoss, Element, Matrix, MeanOver, Negatives, Reduction};

use crate::mined::batch::{self, Content, Data};
use crate::mined::bounds::{Bounds, check_gradients};
use crate::mined::{self, Mined, OnSlices, Output};
use crate::support::backends::Number;
use crate::support::property::{Limits, Worst, property_tests};

type Case = mined::Case<BatchContrastiveLoss>;

property_tests!(BatchContrastiveLoss, cpu: 250, emulator: 30, detector: 3);

impl Mined for BatchContrastiveLoss {
    const STEM: &'static str = "batch_contrastive";
    const SEQUENCE: u8 = 13;
    /// The negative pairs, if the backend lists them.
    type Selected = Option<Vec<[u32; 2]>>;

    fn cases(limits: Limits) -> BoxedStrategy<Case> {
        let reductions = prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)];
        let margins = proptest::sample::select(vec![0.0, 0.3, 1.0, 3.0, 1e3]);
        let negatives = prop_oneof![Just(Negatives::All), Just(Negatives::Hardest)];
        let precisions = batch::precisions(limits);
        let options = (batch::distances(), reductions, margins, any::<bool>(), negatives, precisions);
        let mean_over = prop_oneof![Just(MeanOver::Valid), Just(MeanOver::Active)];
        let pos_margins = proptest::sample::select(vec![0.0, 0.0, 0.2, 1.0, 1e3]);
        let of_pairs = (1u32..=2, pos_margins, mean_over, any::<bool>());
        let cases = (options, of_pairs, batch::batches(limits.rows)).prop_map(|(options, of_pairs, batch)| {
            let (distance, reduction, margin, normalize, negatives, precision) = options;
            let (power, pos_margin, mean_over, means_apart) = of_pairs;
            let loss = Self {
                margin,
                distance,
                normalize,
                negatives,
                power,
                pos_margin,
                reduction,
                mean_over,
                means_apart,
                precision,
            };
            Case { loss, batch }
        });
        cases.boxed()
    }

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn on_cpu<T: Number>(case: &Case, data: &Data<T>) -> Output<T, Self::Selected> {
        let slices = OnSlices::new(case.loss, &case.batch, data);
        let mean = Self { reduction: Reduction::Mean, ..case.loss };
        let selection = slices.call().select().unwrap();
        Output {
            selected: Some(selection.anchor.into_iter().zip(selection.negative).map(|(a, j)| [a, j]).collect()),
            losses: slices.losses(),
            stats: OnSlices::new(mean, &case.batch, data).stats(),
            reduced: (case.loss.reduction != Reduction::None).then(|| slices.reduced()),
            scaled_grads: slices.grads_of(&data.upstream),
        }
    }

    #[cfg(feature = "cuda")]
    fn selected<T: Number>(_: &Case, _: &Data<T>, _: [Vec<u32>; 2]) -> Self::Selected {
        None
    }

    fn compare<T: Number>(
        case: &Case,
        data: &Data<T>,
        output: &Output<T, Self::Selected>,
        worst: &mut Worst,
    ) -> TestCaseResult {
        let dim = case.batch.dim;
        let bounds = Bounds::of(data, dim, case.loss.distance, case.loss.normalize).at::<T>(case.loss.precision);
        let mut truth = oracle(case, data, &data.upstream, None);
        let mut selected = selected(case, data, &bounds, &truth);
        if let Some(pairs) = &output.selected {
            // The backend's own selection must be possible; from here on it is the selection.
            let others = data.other_labels().len();
            prop_assert_eq!(pairs.len(), truth.negatives.len());
            let mut own = vec![Selected::Not; selected.len()];
            for &[a, j] in pairs {
                let pair = a as usize * others + j as usize;
                prop_assert!(selected[pair] != Selected::Not, "({a}, {j}) is too far to be selected");
                own[pair] = Selected::Surely;
            }
            for (pair, (own, expected)) in own.iter().zip(&selected).enumerate() {
                let missed = *own == Selected::Not && *expected == Selected::Surely;
                prop_assert!(!missed, "({}, {}) is not selected", pair / others, pair % others);
            }
            selected = own;
            truth = oracle(case, data, &data.upstream, Some(pairs));
        }
        let allowed = allowed(case, data, &bounds, &selected);

        prop_assert_eq!(output.stats.valid, truth.stats.valid);
        let (active, expected) = (output.stats.active, truth.stats.active);
        let undecided = allowed.undecided.iter().sum::<u64>();
        prop_assert!(active.abs_diff(expected) <= undecided, "{active} active pairs for {expected}");
        let distances = [
            (output.stats.mean_positive_distance, truth.stats.mean_positive_distance, truth.positives.len()),
            (output.stats.mean_negative_distance, truth.stats.mean_negative_distance, truth.negatives.len()),
        ];
        // An anchor's terms are added up in f64, here as there. Their roundings are as often up as down, so they grow with the
        // root of their number. But equal terms each round alike while the sum is between two powers of two: half of them in the
        // last such range, by at most half a unit.
        let growth = |terms: usize| {
            let (terms, is_far) = (terms as f64, case.batch.content == Content::Far);
            f64::EPSILON * if is_far { (4.0 * terms.sqrt()).max(terms / 4.0) } else { 4.0 * terms.sqrt() }
        };
        let of_sum = growth(data.other_labels().len());
        // And the anchors' sums are added up.
        let of_sums = of_sum + growth(case.batch.rows);
        for ((actual, expected, count), bound) in distances.into_iter().zip(allowed.distances) {
            let bound = bound / count.max(1) as f64 + (4.0 * bounds.epsilon + of_sum) * expected.abs();
            worst.check(|| "a mean distance".into(), actual, expected, bound + 1e-35)?;
        }
        for (a, (actual, expected)) in output.losses.iter().zip(&truth.losses).enumerate() {
            let bound = allowed.losses[a] + (4.0 * bounds.epsilon + of_sum) * expected;
            worst.check(|| format!("losses[{a}]"), actual.to_f64(), *expected, bound)?;
        }

        let means = means_of(&case.loss, &truth, &allowed.undecided);
        let unit = oracle(case, data, &[1.0], output.selected.as_deref());
        let mut grads = vec![(&output.scaled_grads, &truth, data.upstream.clone())];
        if let Some((loss, grads_of_one)) = &output.reduced {
            let off: f64 =
                means.iter().zip(allowed.sum).map(|(mean, sum)| mean.factor * (1.0 + mean.error) * sum).sum();
            let of_means = means.iter().map(|mean| mean.off(truth.loss)).fold(0.0, f64::max);
            let bound = off + of_means + (4.0 * bounds.epsilon + of_sums) * truth.loss + 1e-35;
            worst.check(|| "loss".into(), loss.to_f64(), truth.loss, bound)?;
            if truth.stats.valid == 0 {
                prop_assert_eq!(loss.to_f64(), 0.0);
            }
            grads.push((grads_of_one, &unit, vec![1.0]));
        }
        for (actual, expected, upstream) in grads {
            let of_rows = gradient_bounds(&allowed, &bounds, &means, &upstream);
            let expected = [&expected.grad[..], &expected.reference_grad].concat();
            check_gradients(worst, actual, &expected, dim, &of_rows)?;
        }
        Ok(())
    }
}

fn oracle<T: Element>(case: &Case, data: &Data<T>, upstream: &[f64], selected: Option<&[[u32; 2]]>) -> Oracle {
    let embeddings = Matrix::new(&data.exact, case.batch.dim).unwrap();
    let set = data.exact_set(case.batch.dim);
    oracle::run_against(&case.loss, embeddings, &data.labels, set.as_ref(), upstream, selected).unwrap()
}

/// How far from the oracle each result may be, before the mean's division.
struct Allowed {
    /// For each anchor, the error of its loss.
    losses: Vec<f64>,
    /// The error of the losses' sum, of pairs of one class and of two: it is the same whichever of equally hard pairs are
    /// selected.
    sum: [f64; 2],
    /// How many pairs' losses rounding may make 0.
    undecided: [u64; 2],
    distances: [f64; 2],
    /// For each pair that may be selected, its anchor, whether its rows are of one class (0) or of two (1), and the errors of
    /// its rows' gradients.
    pulls: Vec<(usize, usize, [PullBound; 2])>,
}

/// What the losses of a kind of pairs are multiplied by, and the relative error of that: a mean over pairs with a loss above 0
/// may count others than the oracle.
struct Mean {
    factor: f64,
    error: f64,
}

impl Mean {
    /// The error of a result of this size. Where the factor is not known at all it is infinite, except of 0.
    fn off(&self, size: f64) -> f64 {
        if size > 0.0 { self.error * size } else { 0.0 }
    }
}

/// Those of pairs of one class, and of two.
fn means_of(loss: &BatchContrastiveLoss, truth: &Oracle, undecided: &[u64; 2]) -> [Mean; 2] {
    let over_active = loss.mean_over == MeanOver::Active;
    let valid = [truth.positives.len() as u64, truth.negatives.len() as u64];
    let beyond = |d: &&f64| if loss.power == 2 && loss.pos_margin == 0.0 { **d != 0.0 } else { **d > loss.pos_margin };
    let active = [
        truth.positive_distances.iter().filter(beyond).count() as u64,
        truth.negative_distances.iter().filter(|d| **d < loss.margin).count() as u64,
    ];
    let mut counts = if over_active { active } else { valid };
    let mut unsure = if over_active { *undecided } else { [0; 2] };
    if !loss.means_apart {
        (counts, unsure) = ([counts.iter().sum(); 2], [unsure.iter().sum(); 2]);
    }
    [0, 1].map(|kind| {
        if loss.reduction != Reduction::Mean {
            return Mean { factor: 1.0, error: 0.0 };
        }
        let (count, unsure) = (counts[kind], unsure[kind]);
        let error = match unsure {
            0 => 0.0,
            _ if count <= unsure => f64::INFINITY,
            _ => unsure as f64 / (count - unsure) as f64,
        };
        Mean { factor: 1.0 / count.max(1) as f64, error }
    })
}

/// The error of what a pair adds to the gradient of one of its rows.
#[derive(Clone, Copy)]
struct PullBound {
    row: usize,
    size: f64,
    error: f64,
}

/// Whether a negative pair is selected for certain, or perhaps.
#[derive(Clone, Copy, PartialEq)]
enum Selected {
    Surely,
    Perhaps,
    Not,
}

/// Negative pairs whose distance is within rounding of the last selected one are `Perhaps`.
fn selected<T: Element>(case: &Case, data: &Data<T>, bounds: &Bounds, truth: &Oracle) -> Vec<Selected> {
    let (rows, others) = (case.batch.rows, data.other_labels().len());
    let mut selected = vec![Selected::Not; rows * others];
    let exact = matches!(case.batch.content, Content::Lattice { .. }) && !bounds.units && T::NAME != "bf16";
    if exact || case.loss.negatives == Negatives::All {
        for &[a, j] in &truth.negatives {
            selected[a as usize * others + j as usize] = Selected::Surely;
        }
        return selected;
    }
    let all = (0..rows).flat_map(|a| (0..others).map(move |j| (a, j))).filter(|&(a, j)| data.is_negative(a, j));
    let spans: Vec<_> = all
        .map(|(a, j)| {
            let (d, error) = (bounds.d(a, data.other(j)), bounds.of_product(a, data.other(j)));
            (a * others + j, d - error, d + error)
        })
        .collect();
    let count = truth.negatives.len();
    if count == 0 {
        return selected;
    }
    let last = |of: fn(&(usize, f64, f64)) -> f64| {
        let mut all: Vec<f64> = spans.iter().map(of).collect();
        *all.select_nth_unstable_by(count - 1, f64::total_cmp).1
    };
    let (lowest, highest) = (last(|span| span.1), last(|span| span.2));
    for (pair, low, high) in spans {
        selected[pair] = match count == truth.positives.len() {
            // Fewer negative pairs than positive ones: all are selected.
            false => Selected::Surely,
            true if high < lowest => Selected::Surely,
            true if low <= highest => Selected::Perhaps,
            true => Selected::Not,
        };
    }
    selected
}

fn allowed<T: Element>(case: &Case, data: &Data<T>, bounds: &Bounds, selected: &[Selected]) -> Allowed {
    let (rows, others, margin) = (case.batch.rows, data.other_labels().len(), case.loss.margin);
    let (power, pos_margin) = (case.loss.power, case.loss.pos_margin);
    let mut allowed = Allowed {
        losses: vec![1e-35; rows],
        sum: [1e-35; 2],
        undecided: [0; 2],
        distances: [0.0; 2],
        pulls: Vec::new(),
    };
    for a in 0..rows {
        for j in 0..others {
            let of_j = data.other(j);
            let (d, positive) = (bounds.d(a, of_j), data.is_positive(a, j));
            let selected = selected[a * others + j];
            if !positive && selected == Selected::Not {
                continue;
            }
            let distance = if positive { bounds.of_distance(a, of_j) } else { bounds.of_product(a, of_j) };
            let rounding = 4.0 * bounds.epsilon * (d.abs() + if positive { pos_margin } else { margin });
            let (error, kind) = (distance + rounding, usize::from(!positive));
            // How far the pair is from where its loss begins, and whether rounding may bring it to the other side.
            let gap = match positive {
                true if pos_margin == 0.0 && power == 2 => d.abs(),
                true => d - pos_margin,
                false => margin - d,
            };
            let (boundary, reached) = (gap.abs(), gap + error > 0.0 || (positive && gap + error >= 0.0));
            let (undecided, gap) = (boundary <= error, gap.max(0.0));
            // The loss's derivative with respect to the distance, and the errors of both.
            let (value, slope, slope_off, off) = match power {
                2 => (gap * gap / 2.0, gap, error, (gap + error) * error + 4.0 * bounds.epsilon * gap * gap),
                _ => (gap, 1.0, if undecided { 1.0 } else { 0.0 }, error + 4.0 * bounds.epsilon * gap),
            };
            let off = if reached { off } else { 0.0 };
            let perhaps = !positive && selected == Selected::Perhaps;
            let all = if perhaps && reached { value + off } else { 0.0 };
            allowed.losses[a] += off + all;
            allowed.sum[kind] += 2.0 * off;
            allowed.undecided[kind] += u64::from(perhaps || undecided);
            allowed.distances[kind] += 2.0 * error;
            if !reached {
                continue;
            }
            let of_row = |(x, y): (usize, usize)| {
                let (size, of_slope) = if positive { bounds.slope(x, y) } else { bounds.product_slope(x, y) };
                let whole = (slope + slope_off) * size;
                let error = (slope + slope_off) * of_slope + slope_off * size + if perhaps { whole } else { 0.0 };
                PullBound { row: x, size: whole, error }
            };
            allowed.pulls.push((a, kind, [(a, of_j), (of_j, a)].map(of_row)));
        }
    }
    allowed
}

/// For each row, the error of an element of its gradient.
fn gradient_bounds(allowed: &Allowed, bounds: &Bounds, means: &[Mean; 2], upstream: &[f64]) -> Vec<f64> {
    let mut total = vec![1e-35; bounds.x.len()];
    let mut sums = vec![(0.0, 0.0f64); bounds.x.len()];
    for (a, kind, pulls) in &allowed.pulls {
        let mean = &means[*kind];
        let up = mean.factor * upstream[if upstream.len() == 1 { 0 } else { *a }].abs();
        for pull in pulls {
            total[pull.row] += up * (pull.error + mean.off(pull.size));
            sums[pull.row].0 += up * pull.size;
            sums[pull.row].1 += 1.0;
        }
    }
    for (total, (size, count)) in total.iter_mut().zip(sums) {
        *total += 4.0 * count.sqrt() * bounds.epsilon * size;
    }
    total
}
