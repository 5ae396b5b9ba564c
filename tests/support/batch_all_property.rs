//! The property test of `batch_all` that every backend takes: dtype x distance x option against the f64 oracle, with
//! bounds that follow from the arithmetic.

use std::fmt::Debug;

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use tercet::batch_all::reference::{self, Reference};
use tercet::{BatchAllTripletLoss, Distance, Element, Matrix, MeanOver, Reduction, Stats};

use super::support::mined::{self, Batch, Bounds, Content, Data, Worst};

#[derive(Clone, Debug)]
pub struct Case {
    pub loss: BatchAllTripletLoss,
    pub batch: Batch,
}

fn cases() -> impl Strategy<Value = Case> {
    let means = prop_oneof![
        Just((Reduction::Mean, MeanOver::Active)),
        Just((Reduction::Mean, MeanOver::Valid)),
        Just((Reduction::Sum, MeanOver::Active)),
    ];
    let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
    let options = (mined::distances(), means, margins, any::<bool>());
    (options, mined::batches(300)).prop_map(|((distance, (reduction, mean_over), margin, normalize), batch)| Case {
        loss: BatchAllTripletLoss { margin, distance, normalize, reduction, mean_over, ..Default::default() },
        batch,
    })
}

fn oracle<T: Element>(case: &Case, data: &Data<T>) -> Reference {
    let embeddings = Matrix::new(&data.exact, case.batch.dim).unwrap();
    reference::run(&case.loss, embeddings, &data.labels, 1.0).unwrap()
}

/// What a backend returned.
pub struct Output<T: Element> {
    pub loss: T::Scalar,
    pub stats: Stats,
    /// For an upstream of 1.
    pub grad: Vec<T>,
    /// For the case's upstream.
    pub scaled_grad: Vec<T>,
}

pub trait Backend {
    const NAME: &'static str;
    /// Devices take no f64 for mined losses.
    const TAKES_F64: bool;
    fn run<T: Element>(&self, case: &Case, data: &Data<T>) -> Output<T>;
}

/// What may be off, before the mean's division.
#[derive(Default)]
struct Allowed {
    sum: f64,
    /// Triplets that rounding decides.
    undecided: u64,
    mean_distances: [f64; 2],
    /// Per row, of an element of the gradient.
    grad: Vec<f64>,
}

fn allowed<T: Element>(case: &Case, data: &Data<T>, bounds: &Bounds) -> Allowed {
    let rows = case.batch.rows;
    let margin = case.loss.margin;
    let mut allowed = Allowed::default();
    // How often each pair is a term for certain, and perhaps.
    let mut terms = vec![[0.0f64; 2]; rows * rows];
    for (a, p, n) in reference::triplets(&data.labels) {
        let argument = bounds.d(a, p) - bounds.d(a, n) + margin;
        let (of_positive, of_negative) = (bounds.of_distance(a, p), bounds.of_product(a, n));
        let rounding = 4.0 * bounds.epsilon * (margin + bounds.d(a, p).abs() + bounds.d(a, n).abs());
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
            terms[a * rows + j][usize::from(undecided)] += 1.0;
        }
    }
    allowed.grad = vec![0.0; rows];
    for i in 0..rows {
        let (mut sizes, mut count) = (0.0, 0.0f64);
        for j in (0..rows).filter(|&j| j != i) {
            let [certain, perhaps] = [0, 1].map(|k| terms[i * rows + j][k] + terms[j * rows + i][k]);
            if certain + perhaps == 0.0 {
                continue;
            }
            let positive = data.labels[i] == data.labels[j];
            let (size, error) = if positive { bounds.slope(i, j) } else { bounds.product_slope(i, j) };
            allowed.grad[i] += (certain + perhaps) * error + perhaps * size;
            sizes += (certain + perhaps) * size;
            count += 1.0;
        }
        allowed.grad[i] += 4.0 * count.sqrt() * bounds.epsilon * sizes;
    }
    allowed
}

fn compare<T: Element>(
    case: &Case,
    data: &Data<T>,
    output: &Output<T>,
    worst: &mut Worst,
) -> Result<(), TestCaseError> {
    let dim = case.batch.dim;
    let bounds = Bounds::new::<T>(&data.exact, dim, case.loss.distance, case.loss.normalize);
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

    // Whether a triplet at the border is one of M decides as much as its loss does: each backend has an M of its own.
    let divisor = match (case.loss.reduction, case.loss.mean_over) {
        (Reduction::Mean, MeanOver::Active) => active.max(1) as f64,
        _ => truth.divisor,
    };
    let bound = (allowed.sum + 4.0 * bounds.sum * truth.size) / divisor + 1e-35;
    worst.check(|| "loss".into(), output.loss.to_f64(), truth.sum / divisor, bound)?;
    if truth.stats.valid == 0 {
        prop_assert_eq!(output.loss.to_f64(), 0.0);
    }
    for (actual, upstream) in [(&output.grad, 1.0), (&output.scaled_grad, data.upstream[0])] {
        let factor = upstream / divisor;
        for (i, (actual, expected)) in actual.iter().zip(&truth.grad).enumerate() {
            let expected = expected * truth.divisor * factor;
            let rounding = mined::rounding::<T>(expected) + 4.0 * bounds.epsilon * expected.abs();
            let bound = allowed.grad[i / dim] * factor.abs() + rounding;
            if mined::overflows::<T>(expected.abs() + bound) {
                continue;
            }
            worst.check(|| format!("grad[{}, {}]", i / dim, i % dim), actual.to_f64(), expected, bound)?;
        }
    }
    Ok(())
}

/// Runs `count` cases for each dtype; the same ones in every run.
pub fn property<B: Backend>(backend: &B, count: u32) {
    fn one<B: Backend, T: Element + Debug>(backend: &B, count: u32) {
        let worst = std::cell::RefCell::new(Worst::default());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[12; 32]);
        let outcome = TestRunner::new_with_rng(mined::config(count), rng).run(&cases(), |case| {
            let data = Data::<T>::new(&case.batch, case.loss.reduction);
            let output = backend.run(&case, &data);
            let mut worst = worst.borrow_mut();
            worst.cases += 1;
            compare(&case, &data, &output, &mut worst)
        });
        if let Err(error) = outcome {
            panic!("{} {}: {error}", B::NAME, T::NAME);
        }
        worst.borrow().print("batch_all", B::NAME, T::NAME);
    }
    one::<B, f32>(backend, count);
    if B::TAKES_F64 {
        one::<B, f64>(backend, count);
    }
    one::<B, f16>(backend, count);
    one::<B, bf16>(backend, count);
}
