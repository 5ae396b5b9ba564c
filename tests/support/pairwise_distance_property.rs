//! The property test of `pairwise_distance` that every backend takes: dtype x distance x option against the f64 oracle,
//! with bounds that follow from the arithmetic.

use std::fmt::Debug;

use half::{bf16, f16};
use proptest::prelude::*;
use tercet::pairwise_distance::oracle;
use tercet::{Distance, Element, Matrix, PairwiseDistance, Precision, Reduction};

use super::support::Numbers;
use super::support::cases as random;
use super::support::mined::{self, Batch, Bounds, Content, Data, Labelling, Worst};
use super::support::records::{self, Bits};

/// The distances of the first `split` rows of the batch to the others, or of all rows to all rows.
#[derive(Clone, Debug)]
pub struct Case {
    pub op: PairwiseDistance,
    pub batch: Batch,
    pub split: Option<usize>,
    pub sparse: bool,
    /// Products on CUDA cores, which only tests ask for.
    pub plain: bool,
}

impl Case {
    /// The rows of each side, as ranges of the batch.
    pub fn sides(&self) -> [std::ops::Range<usize>; 2] {
        match self.split {
            Some(split) => [0..split, split..self.batch.rows],
            None => [0..self.batch.rows, 0..self.batch.rows],
        }
    }

    pub fn size(&self) -> usize {
        self.sides().iter().map(|side| side.len()).product()
    }

    /// The upstream gradient, `[N, M]`. If `sparse`, most numbers are 0, which must hide nothing else.
    pub fn upstream<T: Element>(&self) -> Vec<f64> {
        let mut numbers = Numbers(self.batch.seed ^ 1);
        let one = |_| {
            let number = numbers.unit();
            if self.sparse && numbers.below(4) > 0 { 0.0 } else { number }
        };
        (0..self.size()).map(one).map(|u| T::Scalar::from_f64(u).to_f64()).collect()
    }
}

fn cases(precisions: &'static [Option<Precision>], largest: usize) -> impl Strategy<Value = Case> {
    let options = (mined::distances(), any::<bool>(), proptest::sample::select(precisions));
    (options, mined::batches(largest), any::<u64>(), any::<bool>()).prop_map(
        |((distance, normalize, precision), batch, split, sparse)| {
            let split = (batch.rows > 1 && !split.is_multiple_of(3)).then(|| 1 + split as usize % (batch.rows - 1));
            let op = PairwiseDistance { distance, normalize, precision: precision.unwrap_or_default() };
            Case { op, batch, split, sparse, plain: precision.is_none() }
        },
    )
}

/// What a backend returned.
pub struct Output<T: Element> {
    pub distances: Vec<T::Scalar>,
    /// The gradients with respect to each side.
    pub grads: [Vec<T>; 2],
}

pub trait Backend {
    const NAME: &'static str;
    /// Whether the backend takes f64: devices do not.
    const TAKES_F64: bool;
    /// The precisions to draw from, `None` for products on CUDA cores; only devices have more than one.
    const PRECISIONS: &'static [Option<Precision>] = &[Some(Precision::Highest)];
    /// The largest number of rows: the oracle is slow, and the emulator slower.
    const LARGEST: usize = 300;
    fn run<T: Element>(&self, case: &Case, data: &Data<T>) -> Output<T>;
}

fn compare<T: Element>(
    case: &Case,
    data: &Data<T>,
    output: &Output<T>,
    worst: &mut Worst,
) -> Result<(), TestCaseError> {
    let dim = case.batch.dim;
    let bounds = Bounds::new::<T>(&data.exact, data.exact.len() / dim, dim, case.op.distance, case.op.normalize)
        .at::<T>(case.op.precision);
    let [rows, columns] = case.sides();
    let side = |side: &std::ops::Range<usize>| Matrix::new(&data.exact[side.start * dim..side.end * dim], dim).unwrap();
    let upstream = case.upstream::<T>();
    let truth = oracle::run(&case.op, side(&rows), side(&columns), &upstream).unwrap();

    let lattice = matches!(case.batch.content, Content::Lattice { .. }) && !bounds.units && T::NAME != "bf16";
    let mut allowed = vec![[0.0f64; 3]; case.batch.rows * 2];
    for (a, i) in rows.clone().enumerate() {
        for (b, j) in columns.clone().enumerate() {
            let at = a * columns.len() + b;
            let (actual, expected) = (output.distances[at].to_f64(), truth.distances[at]);
            worst.check(|| format!("d[{a}, {b}]"), actual, expected, bounds.of_product(i, j))?;
            if lattice && case.op.distance == Distance::SquaredEuclidean {
                prop_assert_eq!(actual, expected, "integers are exact");
            }
            if i == j && case.op.distance != Distance::Cosine {
                prop_assert_eq!(actual, 0.0, "a row with itself");
            }
            for (at, x, y) in [(i, i, j), (case.batch.rows + j, j, i)] {
                let (size, error) = bounds.product_slope(x, y);
                let weight = upstream[a * columns.len() + b].abs();
                allowed[at][0] += weight * error;
                allowed[at][1] += weight * size;
                allowed[at][2] += f64::from(weight > 0.0);
            }
        }
    }
    for (which, range) in [&rows, &columns].into_iter().enumerate() {
        for (at, (actual, expected)) in output.grads[which].iter().zip(&truth.grads[which]).enumerate() {
            let row = which * case.batch.rows + range.start + at / dim;
            let [error, size, count] = allowed[row];
            let rounding = mined::rounding::<T>(*expected) + 4.0 * bounds.epsilon * expected.abs();
            let bound = error + 4.0 * count.sqrt() * bounds.epsilon * size + rounding;
            if mined::overflows::<T>(expected.abs() + bound) {
                continue;
            }
            let what = || format!("grads[{which}][{}, {}]", at / dim, at % dim);
            worst.check(what, actual.to_f64(), *expected, bound)?;
        }
    }
    Ok(())
}

/// Tries `count` cases for each dtype.
pub fn property<B: Backend>(backend: &B, count: u32) {
    fn one<B: Backend, T: Element + Debug>(backend: &B, count: u32) {
        let worst = std::cell::RefCell::new(Worst::default());
        let what = format!("{} {}", B::NAME, T::NAME);
        random::check(&what, 13, count, &cases(B::PRECISIONS, B::LARGEST), |case| {
            let data = Data::<T>::new(&case.batch, Reduction::Mean);
            let output = backend.run(&case, &data);
            let mut worst = worst.borrow_mut();
            worst.cases += 1;
            compare(&case, &data, &output, &mut worst)
        });
        worst.borrow().print("pairwise_distance", B::NAME, T::NAME);
    }
    one::<B, f32>(backend, count);
    if B::TAKES_F64 {
        one::<B, f64>(backend, count);
    }
    one::<B, f16>(backend, count);
    one::<B, bf16>(backend, count);
}

/// Every distance, normalised and not, at every precision, of a batch with itself and of two.
fn recorded<B: Backend>() -> Vec<Case> {
    let mut precisions = B::PRECISIONS.to_vec();
    precisions.dedup();
    let mut cases = Vec::new();
    for (i, distance) in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine].into_iter().enumerate() {
        for (j, normalize) in [false, true].into_iter().enumerate() {
            for precision in &precisions {
                for split in [None, Some(23)] {
                    let (dim, gap, offset) = ([33, 64, 17][i], 2 * j, i);
                    let (content, labelling) = (Content::Uniform { scale: 1.0 }, Labelling::Singletons);
                    let batch = Batch { rows: 66, dim, gap, offset, content, labelling, seed: 5, reference: None };
                    let op = PairwiseDistance { distance, normalize, precision: precision.unwrap_or_default() };
                    cases.push(Case { op, batch, split, sparse: j > 0, plain: precision.is_none() });
                }
            }
        }
    }
    cases
}

/// Fails if a backend computes other bits than another way of running the same code; otherwise they are recorded.
pub fn same_bits<B: Backend, C: Backend>(backend: &B, other_way: &C, of: &str) {
    fn bits<T: Element>(backend: &impl Backend, case: &Case) -> u64 {
        let output = backend.run(case, &Data::<T>::new(&case.batch, Reduction::Mean));
        let [of_x, of_y] = &output.grads;
        Bits::default().and(&output.distances).and(of_x).and(of_y).hash()
    }
    fn all<T: Element, B: Backend, C: Backend>(backend: &B, other_way: &C) -> Vec<(u64, String)> {
        let one = |case: Case| {
            let [rows, columns] = case.sides().map(|side| side.len());
            let by_itself = if case.split.is_none() { ", by itself" } else { "" };
            let plain = if case.plain { ", on CUDA cores" } else { "" };
            let (op, dim) = (case.op, case.batch.dim);
            let name = format!("{}, {op:?}{plain}, [{rows}, {columns}, {dim}]{by_itself}", T::NAME);
            let [bits, others] = [bits::<T>(backend, &case), bits::<T>(other_way, &case)];
            assert_eq!(bits, others, "{} and {}: {name}", B::NAME, C::NAME);
            (bits, name)
        };
        recorded::<B>().into_iter().map(one).collect()
    }
    let mut cases = all::<f32, B, C>(backend, other_way);
    if B::TAKES_F64 {
        cases.extend(all::<f64, B, C>(backend, other_way));
    }
    cases.extend(all::<f16, B, C>(backend, other_way));
    cases.extend(all::<bf16, B, C>(backend, other_way));
    records::write_bits("pairwise_distance", of, cases.iter().map(|(bits, name)| (*bits, &**name)));
}
