//! What the property test and the records of `batch_hard` need: its cases, its calls, and its bounds.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tercet::batch_hard::oracle::{self, Oracle};
use tercet::{BatchHardTripletLoss, Element, Matrix, Precision, Reduction};

use crate::mined::batch::{self, Batch, Content, Data};
use crate::mined::bounds::{Bounds, check_gradients};
use crate::mined::{self, Mined, OnSlices, Output};
use crate::support::backends::Number;
use crate::support::property::{Limits, Worst, property_tests};

use super::nearest::limit;

type Case = mined::Case<BatchHardTripletLoss>;

property_tests!(BatchHardTripletLoss, cpu: 300, emulator: 60, detector: 8);

impl Mined for BatchHardTripletLoss {
    const STEM: &'static str = "batch_hard";
    const SEQUENCE: u8 = 11;
    /// The positive and the negative of each anchor, `u32::MAX` for an anchor without both.
    type Selected = [Vec<u32>; 2];

    fn cases(limits: Limits) -> BoxedStrategy<Case> {
        let reductions = prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)];
        let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
        let precisions = batch::precisions(limits);
        let options = (batch::distances(), reductions, margins, any::<bool>(), any::<bool>(), precisions);
        let cases = (options, batch::batches(limits.rows)).prop_map(
            |((distance, reduction, margin, normalize, soft_margin, precision), batch)| Case {
                loss: Self { margin, distance, normalize, soft_margin, reduction, precision },
                batch,
            },
        );
        cases.boxed()
    }

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn on_cpu<T: Number>(case: &Case, data: &Data<T>) -> Output<T, Self::Selected> {
        let slices = OnSlices::new(case.loss, &case.batch, data);
        let selection = slices.call().select().unwrap();
        let reduced = (case.loss.reduction != Reduction::None).then(|| {
            assert_eq!(slices.stats(), selection.stats);
            slices.reduced()
        });
        let losses = slices.losses();
        assert_eq!(losses, selection.losses);
        Output {
            selected: [selection.positive, selection.negative],
            losses,
            stats: selection.stats,
            reduced,
            scaled_grads: slices.grads_of(&data.upstream),
        }
    }

    #[cfg(feature = "cuda")]
    fn chosen<T: Element>(data: &Data<T>) -> usize {
        data.labels.len()
    }

    #[cfg(feature = "cuda")]
    fn selected<T: Number>(_: &Case, _: &Data<T>, chosen: [Vec<u32>; 2]) -> Self::Selected {
        chosen
    }

    fn compare<T: Number>(
        case: &Case,
        data: &Data<T>,
        output: &Output<T, Self::Selected>,
        worst: &mut Worst,
    ) -> TestCaseResult {
        let [positive, negative] = &output.selected;
        let Batch { rows, dim, .. } = case.batch;
        let bounds = Bounds::of(data, dim, case.loss.distance, case.loss.normalize).at::<T>(case.loss.precision);
        let truth = oracle(case, data, &data.upstream, None);
        let lattice = matches!(case.batch.content, Content::Lattice { .. }) && !bounds.units && T::NAME != "bf16";
        if lattice {
            prop_assert_eq!(positive, &truth.positive);
            prop_assert_eq!(negative, &truth.negative);
        }

        // The selected rows are of the right class, and within rounding of the extremes.
        for a in 0..rows {
            prop_assert_eq!(positive[a] == u32::MAX, truth.positive[a] == u32::MAX);
            prop_assert_eq!(negative[a] == u32::MAX, truth.negative[a] == u32::MAX);
            if truth.positive[a] == u32::MAX {
                continue;
            }
            let (p, n) = (positive[a] as usize, negative[a] as usize);
            prop_assert!(data.is_positive(a, p) && data.is_negative(a, n));
            for (negative, found, true_one) in
                [(false, p, truth.positive[a] as usize), (true, n, truth.negative[a] as usize)]
            {
                let (found, true_one) = (data.other(found), data.other(true_one));
                // At full precision a distance by product is as good as one by difference.
                let by_product = negative && case.loss.precision != Precision::Highest;
                let of = |j| if by_product { bounds.of_product(a, j) } else { bounds.of_distance(a, j) };
                let bound = of(found) + of(true_one);
                // Of given numbers: normalised ones are rounded before.
                if negative && !by_product && !bounds.units {
                    let limit = 1.0 + (limit(dim) - 1.0) * bounds.epsilon / f64::from(f32::EPSILON);
                    let (taken, least) = (bounds.d(a, found), bounds.d(a, true_one));
                    prop_assert!(taken <= limit * least + 1e-35, "{a}'s negative: {taken} for {least}");
                }
                worst.check(|| format!("distance of {a}'s"), bounds.d(a, found), bounds.d(a, true_one), bound)?;
            }
        }

        let own = oracle(case, data, &data.upstream, Some((positive, negative)));
        let mut total = 0.0;
        let mut distance_bounds = [0.0; 2];
        for a in 0..rows {
            let (mut bound, expected) = (0.0, own.losses[a]);
            if own.positive[a] != u32::MAX {
                let (p, n) = (data.other(own.positive[a] as usize), data.other(own.negative[a] as usize));
                bound = anchor_bound(case, &bounds, a, p, n) + 4.0 * bounds.epsilon * expected;
                distance_bounds[0] += bounds.of_distance(a, p);
                distance_bounds[1] += bounds.of_distance(a, n);
            }
            total += bound;
            worst.check(|| format!("losses[{a}]"), output.losses[a].to_f64(), expected, bound + 1e-35)?;
        }
        let valid = own.stats.valid.max(1) as f64;
        prop_assert_eq!(output.stats.valid, own.stats.valid);
        let active = output.losses.iter().filter(|loss| loss.to_f64() > 0.0).count() as u64;
        prop_assert_eq!(output.stats.active, active);
        let means = [
            (output.stats.mean_positive_distance, own.stats.mean_positive_distance),
            (output.stats.mean_negative_distance, own.stats.mean_negative_distance),
        ];
        for ((actual, expected), bound) in means.into_iter().zip(distance_bounds) {
            worst.check(
                || "a mean distance".into(),
                actual,
                expected,
                bound / valid + bounds.epsilon * expected.abs(),
            )?;
        }
        let mean = if case.loss.reduction == Reduction::Mean { 1.0 / valid } else { 1.0 };
        let unit = oracle(case, data, &[1.0], Some((positive, negative)));
        let mut grads = vec![(&output.scaled_grads, &own, data.upstream.clone())];
        if let Some((loss, grads_of_one)) = &output.reduced {
            let rounding = bounds.epsilon * own.loss.abs();
            worst.check(|| "loss".into(), loss.to_f64(), own.loss, mean * total + rounding + 1e-35)?;
            grads.push((grads_of_one, &unit, vec![1.0]));
        }
        for (actual, expected, upstream) in grads {
            let rows_bounds = gradient_bounds(case, data, &bounds, &own, &upstream);
            let expected = [&expected.grad[..], &expected.reference_grad].concat();
            check_gradients(worst, actual, &expected, dim, &rows_bounds)?;
        }
        Ok(())
    }
}

fn oracle<T: Element>(case: &Case, data: &Data<T>, upstream: &[f64], selection: Option<(&[u32], &[u32])>) -> Oracle {
    let embeddings = Matrix::new(&data.exact, case.batch.dim).unwrap();
    let set = data.exact_set(case.batch.dim);
    oracle::run_against(&case.loss, embeddings, &data.labels, set.as_ref(), upstream, selection).unwrap()
}

/// For each row, first of the anchors, then of the reference set, the error of an element of its gradient: the errors
/// of the selected pairs, and the whole gradient of anchors that rounding decides.
fn gradient_bounds<T: Element>(
    case: &Case,
    data: &Data<T>,
    bounds: &Bounds,
    own: &Oracle,
    upstream: &[f64],
) -> Vec<f64> {
    let rows = case.batch.rows;
    let mut total = vec![0.0; bounds.x.len()];
    let mut sizes = vec![(0.0, 0usize); bounds.x.len()];
    let mean = if case.loss.reduction == Reduction::Mean { 1.0 / own.stats.valid.max(1) as f64 } else { 1.0 };
    for a in (0..rows).filter(|&a| own.positive[a] != u32::MAX) {
        let (p, n) = (data.other(own.positive[a] as usize), data.other(own.negative[a] as usize));
        let up = mean * upstream[if upstream.len() == 1 { 0 } else { a }].abs();
        let unsure = anchor_bound(case, bounds, a, p, n);
        let weight = match case.loss.soft_margin {
            true => 1.0,
            false if own.arguments[a].abs() <= unsure => 1.0,
            false if own.arguments[a] <= 0.0 => continue,
            false => 1.0,
        };
        // With a soft margin the weight is a sigmoid: at most 1, with a slope of at most a quarter.
        let undecided = match case.loss.soft_margin {
            true => (0.25 * unsure).min(1.0) + 4.0 * bounds.epsilon,
            false => f64::from(own.arguments[a].abs() <= unsure),
        };
        for (i, j) in [(a, p), (p, a), (a, n), (n, a)] {
            let (size, error) = bounds.slope(i, j);
            total[i] += up * (weight * error + undecided * size);
            sizes[i].0 += up * weight * size;
            sizes[i].1 += 1;
        }
    }
    // Rounding of a sum of K terms in any order.
    total
        .iter()
        .zip(sizes)
        .map(|(total, (size, count))| total + 4.0 * (count as f64).sqrt() * bounds.epsilon * size)
        .collect()
}

/// The error of the loss of anchor `a`; `p` and `n` count all rows, the anchors first.
fn anchor_bound(case: &Case, bounds: &Bounds, a: usize, p: usize, n: usize) -> f64 {
    bounds.of_distance(a, p) + bounds.of_distance(a, n) + 4.0 * bounds.epsilon * (case.loss.margin + 1.0)
}
