//! The property test of `batch_hard` that every backend takes: dtype x distance x option against the f64 oracle, with
//! bounds that follow from the arithmetic.

use std::fmt::Debug;

use half::{bf16, f16};
use proptest::prelude::*;
use tercet::batch_hard::oracle::{self, Oracle};
use tercet::{BatchHardTripletLoss, Element, Matrix, Precision, Reduction, Stats};

use super::support::cases as random;
use super::support::mined::{self, Batch, Bounds, Content, Data, Worst};

#[derive(Clone, Debug)]
pub struct Case {
    pub loss: BatchHardTripletLoss,
    pub batch: Batch,
}

fn cases(precisions: &'static [Precision], largest: usize) -> impl Strategy<Value = Case> {
    let reductions = prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)];
    let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
    let precisions = proptest::sample::select(precisions);
    let options = (mined::distances(), reductions, margins, any::<bool>(), any::<bool>(), precisions);
    (options, mined::batches(largest)).prop_map(
        |((distance, reduction, margin, normalize, soft_margin, precision), batch)| Case {
            loss: BatchHardTripletLoss { margin, distance, normalize, soft_margin, reduction, precision },
            batch,
        },
    )
}

fn oracle<T: Element>(case: &Case, data: &Data<T>, upstream: &[f64], selection: Option<(&[u32], &[u32])>) -> Oracle {
    let embeddings = Matrix::new(&data.exact, case.batch.dim).unwrap();
    let set = data.exact_set(case.batch.dim);
    oracle::run_against(&case.loss, embeddings, &data.labels, set.as_ref(), upstream, selection).unwrap()
}

/// What a backend returned.
pub struct Output<T: Element> {
    pub positive: Vec<u32>,
    pub negative: Vec<u32>,
    pub losses: Vec<T::Scalar>,
    pub stats: Stats,
    /// The reduced loss and the gradients for an upstream of 1; absent for `Reduction::None`.
    pub reduced: Option<(T::Scalar, [Vec<T>; 2])>,
    /// Gradients for the case's upstream, with respect to the anchors and to the reference set.
    pub scaled_grads: [Vec<T>; 2],
}

pub trait Backend {
    const NAME: &'static str;
    /// Whether the backend takes f64: devices do not, for mined losses.
    const TAKES_F64: bool;
    /// The precisions to draw from; only devices have more than one.
    const PRECISIONS: &'static [Precision] = &[Precision::Highest];
    /// The largest number of rows: the oracle is slow, and the emulator slower.
    const LARGEST: usize = 300;
    fn run<T: Element>(&self, case: &Case, data: &Data<T>) -> Output<T>;
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

fn compare<T: Element>(
    case: &Case,
    data: &Data<T>,
    output: &Output<T>,
    worst: &mut Worst,
) -> Result<(), TestCaseError> {
    let Batch { rows, dim, .. } = case.batch;
    let bounds = Bounds::of(data, dim, case.loss.distance, case.loss.normalize).at::<T>(case.loss.precision);
    let truth = oracle(case, data, &data.upstream, None);
    let lattice = matches!(case.batch.content, Content::Lattice { .. }) && !bounds.units && T::NAME != "bf16";
    if lattice {
        prop_assert_eq!(&output.positive, &truth.positive);
        prop_assert_eq!(&output.negative, &truth.negative);
    }

    // The selected rows are of the right class, and within rounding of the extremes.
    for a in 0..rows {
        prop_assert_eq!(output.positive[a] == u32::MAX, truth.positive[a] == u32::MAX);
        prop_assert_eq!(output.negative[a] == u32::MAX, truth.negative[a] == u32::MAX);
        if truth.positive[a] == u32::MAX {
            continue;
        }
        let (p, n) = (output.positive[a] as usize, output.negative[a] as usize);
        prop_assert!(data.is_positive(a, p) && data.is_negative(a, n));
        for (negative, found, true_one) in
            [(false, p, truth.positive[a] as usize), (true, n, truth.negative[a] as usize)]
        {
            let (found, true_one) = (data.other(found), data.other(true_one));
            // At full precision a distance by product is as good as one by difference.
            let by_product = negative && case.loss.precision != Precision::Highest;
            let of = |j| if by_product { bounds.of_product(a, j) } else { bounds.of_distance(a, j) };
            let bound = of(found) + of(true_one);
            worst.check(|| format!("distance of {a}'s"), bounds.d(a, found), bounds.d(a, true_one), bound)?;
        }
    }

    let own = oracle(case, data, &data.upstream, Some((&output.positive, &output.negative)));
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
        worst.check(|| "a mean distance".into(), actual, expected, bound / valid + bounds.epsilon * expected.abs())?;
    }
    let mean = if case.loss.reduction == Reduction::Mean { 1.0 / valid } else { 1.0 };
    let unit = oracle(case, data, &[1.0], Some((&output.positive, &output.negative)));
    let mut grads = vec![(&output.scaled_grads, &own, data.upstream.clone())];
    if let Some((loss, grads_of_one)) = &output.reduced {
        let rounding = bounds.epsilon * own.loss.abs();
        worst.check(|| "loss".into(), loss.to_f64(), own.loss, mean * total + rounding + 1e-35)?;
        grads.push((grads_of_one, &unit, vec![1.0]));
    }
    for (actual, expected, upstream) in grads {
        let rows_bounds = gradient_bounds(case, data, &bounds, &own, &upstream);
        let expected = [&expected.grad[..], &expected.reference_grad].concat();
        mined::check_gradients(worst, actual, &expected, dim, &rows_bounds)?;
    }
    Ok(())
}

/// Tries `count` cases for each dtype.
pub fn property<B: Backend>(backend: &B, count: u32) {
    fn one<B: Backend, T: Element + Debug>(backend: &B, count: u32) {
        let worst = std::cell::RefCell::new(Worst::default());
        let what = format!("{} {}", B::NAME, T::NAME);
        random::check(&what, 11, count, &cases(B::PRECISIONS, B::LARGEST), |case| {
            let data = Data::<T>::new(&case.batch, case.loss.reduction);
            let output = backend.run(&case, &data);
            let mut worst = worst.borrow_mut();
            worst.cases += 1;
            compare(&case, &data, &output, &mut worst)
        });
        worst.borrow().print("batch_hard", B::NAME, T::NAME);
    }
    one::<B, f32>(backend, count);
    if B::TAKES_F64 {
        one::<B, f64>(backend, count);
    }
    one::<B, f16>(backend, count);
    one::<B, bf16>(backend, count);
}
