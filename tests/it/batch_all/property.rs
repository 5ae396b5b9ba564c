//! What the property test and the records of `batch_all` need: its cases, its calls, and its bounds.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tercet::batch_all::oracle::{self, Oracle};
use tercet::{BatchAllTripletLoss, Distance, Element, Matrix, MeanOver, Reduction};

use crate::mined::batch::{self, Content, Data};
use crate::mined::bounds::{Bounds, check_gradients};
use crate::mined::{self, Mined, OnSlices, Output};
use crate::support::backends::Number;
use crate::support::property::{Limits, Worst, property_tests};

type Case = mined::Case<BatchAllTripletLoss>;

property_tests!(BatchAllTripletLoss, cpu: 250, emulator: 30, detector: 4);

impl Mined for BatchAllTripletLoss {
    const STEM: &'static str = "batch_all";
    const SEQUENCE: u8 = 12;
    /// It takes all triplets.
    type Selected = ();

    fn cases(limits: Limits) -> BoxedStrategy<Case> {
        let means = prop_oneof![
            Just((Reduction::Mean, MeanOver::Active)),
            Just((Reduction::Mean, MeanOver::Valid)),
            Just((Reduction::Sum, MeanOver::Active)),
        ];
        let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
        let options = (batch::distances(), means, margins, any::<bool>(), batch::precisions(limits));
        let cases = (options, batch::batches(limits.rows)).prop_map(
            |((distance, (reduction, mean_over), margin, normalize, precision), batch)| Case {
                loss: Self { margin, distance, normalize, reduction, mean_over, precision, pairs_at_once: None },
                batch,
            },
        );
        cases.boxed()
    }

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn on_cpu<T: Number>(case: &Case, data: &Data<T>) -> Output<T, ()> {
        let slices = OnSlices::new(case.loss, &case.batch, data);
        Output {
            selected: (),
            losses: Vec::new(),
            stats: slices.stats(),
            reduced: Some(slices.reduced()),
            scaled_grads: slices.grads_of(&data.upstream),
        }
    }

    #[cfg(feature = "cuda")]
    fn selected<T: Number>(_: &Case, _: &Data<T>, _: [Vec<u32>; 2]) {}

    fn compare<T: Number>(
        case: &Case,
        data: &Data<T>,
        output: &Output<T, Self::Selected>,
        worst: &mut Worst,
    ) -> TestCaseResult {
        let (loss, grads) = output.reduced.as_ref().expect("this loss is always reduced");
        let dim = case.batch.dim;
        let bounds = Bounds::of(data, dim, case.loss.distance, case.loss.normalize).at::<T>(case.loss.precision);
        let truth = oracle(case, data);
        let allowed = allowed(case, data, &bounds);

        prop_assert_eq!(output.stats.valid, truth.stats.valid);
        let (active, expected) = (output.stats.active, truth.stats.active);
        prop_assert!(active.abs_diff(expected) <= allowed.undecided, "{active} active triplets for {expected}");
        let exact = case.loss.distance == Distance::SquaredEuclidean && !case.loss.normalize && T::NAME != "bf16";
        if exact && matches!(case.batch.content, Content::Lattice { .. }) {
            prop_assert_eq!(active, expected);
        }
        let valid = truth.stats.valid.max(1) as f64;
        let means = [
            (output.stats.mean_positive_distance, truth.stats.mean_positive_distance),
            (output.stats.mean_negative_distance, truth.stats.mean_negative_distance),
        ];
        for ((actual, expected), bound) in means.into_iter().zip(allowed.mean_distances) {
            let rounding = 4.0 * bounds.sum * expected.abs();
            worst.check(|| "a mean distance".into(), actual, expected, bound / valid + rounding)?;
        }

        // Rounding decides whether a triplet at the border counts in M: divide by the backend's own M.
        let divisor = match (case.loss.reduction, case.loss.mean_over) {
            (Reduction::Mean, MeanOver::Active) => active.max(1) as f64,
            _ => truth.divisor,
        };
        let bound = (allowed.sum + 4.0 * bounds.sum * truth.size) / divisor + 1e-35;
        worst.check(|| "loss".into(), loss.to_f64(), truth.sum / divisor, bound)?;
        if truth.stats.valid == 0 {
            prop_assert_eq!(loss.to_f64(), 0.0);
        }
        let grad = [&truth.grad[..], &truth.reference_grad].concat();
        for (actual, upstream) in [(grads, 1.0), (&output.scaled_grads, data.upstream[0])] {
            let factor = upstream / divisor;
            let expected: Vec<f64> = grad.iter().map(|grad| grad * truth.divisor * factor).collect();
            let largest =
                |row: usize| expected[row * dim..(row + 1) * dim].iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            let of_row = |(row, bound): (usize, &f64)| bound * factor.abs() + 4.0 * bounds.epsilon * largest(row);
            let of_rows: Vec<f64> = allowed.grad.iter().enumerate().map(of_row).collect();
            check_gradients(worst, actual, &expected, dim, &of_rows)?;
        }
        Ok(())
    }
}

fn oracle<T: Element>(case: &Case, data: &Data<T>) -> Oracle {
    let embeddings = Matrix::new(&data.exact, case.batch.dim).unwrap();
    let set = data.exact_set(case.batch.dim);
    oracle::run_against(&case.loss, embeddings, &data.labels, set.as_ref(), 1.0).unwrap()
}

/// How far from the oracle each result may be, before the mean's division.
#[derive(Default)]
struct Allowed {
    sum: f64,
    /// How many triplets rounding decides.
    undecided: u64,
    mean_distances: [f64; 2],
    /// For each row, the error of an element of its gradient.
    grad: Vec<f64>,
}

fn allowed<T: Element>(case: &Case, data: &Data<T>, bounds: &Bounds) -> Allowed {
    let (rows, others) = (case.batch.rows, data.other_labels().len());
    let margin = case.loss.margin;
    let mut allowed = Allowed::default();
    // How many triplets each pair is a term of for certain, and how many perhaps.
    let mut terms = vec![[0.0f64; 2]; rows * others];
    let (positives, negatives) = (
        |a: usize| (0..others).filter(move |&j| data.is_positive(a, j)),
        |a: usize| (0..others).filter(move |&j| data.is_negative(a, j)),
    );
    let triplets = (0..rows).flat_map(|a| positives(a).flat_map(move |p| negatives(a).map(move |n| (a, p, n))));
    for (a, p, n) in triplets {
        let (of_p, of_n) = (data.other(p), data.other(n));
        let argument = bounds.d(a, of_p) - bounds.d(a, of_n) + margin;
        let (of_positive, of_negative) = (bounds.of_distance(a, of_p), bounds.of_product(a, of_n));
        let rounding = 4.0 * bounds.epsilon * (margin + bounds.d(a, of_p).abs() + bounds.d(a, of_n).abs());
        let unsure = of_positive + of_negative + rounding;
        allowed.mean_distances[0] += of_positive;
        allowed.mean_distances[1] += of_negative;
        if argument <= -unsure {
            continue;
        }
        allowed.sum += unsure;
        let undecided = argument <= unsure;
        allowed.undecided += u64::from(undecided);
        for j in [p, n] {
            terms[a * others + j][usize::from(undecided)] += 1.0;
        }
    }
    allowed.grad = vec![0.0; bounds.x.len()];
    let mut sums = vec![(0.0, 0.0f64); bounds.x.len()];
    for a in 0..rows {
        for j in 0..others {
            let [certain, perhaps] = terms[a * others + j];
            if certain + perhaps == 0.0 {
                continue;
            }
            let of_j = data.other(j);
            for (x, y) in [(a, of_j), (of_j, a)] {
                let positive = data.is_positive(a, j);
                let (size, error) = if positive { bounds.slope(x, y) } else { bounds.product_slope(x, y) };
                allowed.grad[x] += (certain + perhaps) * error + perhaps * size;
                sums[x].0 += (certain + perhaps) * size;
                sums[x].1 += 1.0;
            }
        }
    }
    for (grad, (size, count)) in allowed.grad.iter_mut().zip(sums) {
        *grad += 4.0 * count.sqrt() * bounds.epsilon * size;
    }
    allowed
}
