//! The property test of `triplet_margin` that every backend takes: dtype x distance x option against the f64 oracle, with
//! bounds that follow from the arithmetic. Each test program has its backends and says what `BackendElement` is.

use std::collections::BTreeMap;
use std::fmt::Debug;

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tercet::triplet_margin::reference::{self, Reference};
use tercet::{Distance, Element, Matrix, Reduction, TripletMarginLoss};

use super::BackendElement;
use super::support::Numbers;

/// What the three matrices look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content {
    /// Uniform in [-scale, scale).
    Uniform { scale: f64 },
    /// Integers from -2 to 2: equal distances, exact zeros of the hinge, coincident points.
    Lattice,
    /// Positives and negatives a hair from the anchors: distances near 0.
    Collapsed,
    /// A large common offset, which must cancel exactly.
    Offset,
    /// Some rows all zero, some rows equal.
    Degenerate,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub loss: TripletMarginLoss,
    pub rows: usize,
    pub dim: usize,
    /// Numbers between the end of a row and the start of the next.
    pub gap: usize,
    /// Numbers before the first row: most are then not aligned.
    pub offset: usize,
    pub content: Content,
    pub seed: u64,
}

fn sizes(largest: usize) -> impl Strategy<Value = usize> {
    let boundaries = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 512, 513];
    let boundaries: Vec<usize> = boundaries.into_iter().filter(|n| *n <= largest).collect();
    prop_oneof![3 => proptest::sample::select(boundaries), 1 => 1..=largest]
}

fn cases() -> impl Strategy<Value = Case> {
    let distances = prop_oneof![
        4 => Just(Distance::SquaredEuclidean),
        4 => Just(Distance::Euclidean),
        4 => Just(Distance::Cosine),
        2 => Just(Distance::Lp { p: 2.0, eps: 1e-6 }),
        1 => Just(Distance::Lp { p: 1.0, eps: 1e-6 }),
        1 => Just(Distance::Lp { p: 3.0, eps: 0.0 }),
        1 => Just(Distance::Lp { p: 1.5, eps: 1e-6 }),
        1 => Just(Distance::Lp { p: f64::INFINITY, eps: 1e-6 }),
    ];
    let contents = prop_oneof![
        4 => proptest::sample::select(vec![1.0, 0.1, 30.0]).prop_map(|scale| Content::Uniform { scale }),
        1 => Just(Content::Lattice),
        1 => Just(Content::Collapsed),
        1 => Just(Content::Offset),
        1 => Just(Content::Degenerate),
    ];
    let reductions = prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)];
    let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
    let options = (distances, contents, reductions, margins, any::<bool>(), any::<bool>());
    let shape = (sizes(70), sizes(600), 0usize..5, 0usize..3, any::<u64>());
    (options, shape).prop_map(
        |((distance, content, reduction, margin, normalize, swap), (rows, dim, gap, offset, seed))| Case {
            loss: TripletMarginLoss { margin, distance, normalize, swap, reduction },
            rows,
            dim,
            gap,
            offset,
            content,
            seed,
        },
    )
}

/// Numbers that T holds exactly, as the backend sees them and as the oracle does.
pub struct Data<T> {
    /// With offset and gaps.
    pub laid_out: [Vec<T>; 3],
    pub exact: [Vec<f64>; 3],
    pub upstream: Vec<f64>,
}

impl<T: Element> Data<T> {
    pub fn new(case: &Case) -> Self {
        let Case { rows, dim, gap, offset, content, .. } = *case;
        let mut numbers = Numbers(case.seed);
        let mut exact: [Vec<f64>; 3] = Default::default();
        for i in 0..rows * dim {
            let anchor = match content {
                Content::Lattice => numbers.below(5) as f64 - 2.0,
                Content::Offset => 100.0 + numbers.unit(),
                Content::Uniform { scale } => scale * numbers.unit(),
                Content::Collapsed | Content::Degenerate => numbers.unit(),
            };
            for (k, x) in exact.iter_mut().enumerate() {
                let value = match content {
                    _ if k == 0 => anchor,
                    Content::Lattice => numbers.below(5) as f64 - 2.0,
                    Content::Collapsed => anchor + 1e-3 * numbers.unit(),
                    Content::Offset => 100.0 + numbers.unit(),
                    Content::Uniform { scale } => scale * numbers.unit(),
                    Content::Degenerate => match (i / dim + k) % 4 {
                        0 => 0.0,
                        1 => anchor,
                        _ => numbers.unit(),
                    },
                };
                x.push(T::from_f64(value).to_f64());
            }
        }
        let laid_out = exact.each_ref().map(|exact| {
            // Whatever lies between the rows must not matter.
            let mut all = vec![T::from_f64(f64::NAN); offset + rows * (dim + gap)];
            for (row, from) in exact.chunks(dim).enumerate() {
                for (to, from) in all[offset + row * (dim + gap)..].iter_mut().zip(from) {
                    *to = T::from_f64(*from);
                }
            }
            all
        });
        let count = if case.loss.reduction == Reduction::None { rows } else { 1 };
        let upstream = (0..count).map(|_| T::Scalar::from_f64(2.0 * numbers.unit()).to_f64()).collect();
        Self { laid_out, exact, upstream }
    }

    pub fn oracle(&self, case: &Case, upstream: &[f64]) -> Reference {
        let rows = self.exact.each_ref().map(|x| Matrix::new(x, case.dim).unwrap());
        reference::run(&case.loss, rows, upstream).unwrap()
    }
}

/// What a backend returned.
pub struct Output<T: Element> {
    pub losses: Vec<T::Scalar>,
    /// Absent for `Reduction::None`.
    pub loss: Option<T::Scalar>,
    /// For an upstream of 1; absent for `Reduction::None`.
    pub grads: Option<[Vec<T>; 3]>,
    /// For the case's upstream.
    pub scaled_grads: [Vec<T>; 3],
}

pub trait Backend {
    const NAME: &'static str;
    fn run<T: Element + BackendElement>(&self, case: &Case, data: &Data<T>) -> Output<T>
    where
        T::Scalar: BackendElement;
}

/// How far from the oracle plain arithmetic of this precision may be.
///
/// With unit roundoff u and sums of D terms in any order, a sum of non-negative terms is off by at most (D + 3) u of
/// itself; in practice by about √D u, so 8 (√D + 4) u leaves room without hiding a mistake (tests at D = 600 and at D = 1
/// use the same rule). Differences of given numbers are exact to u; after normalisation each element carries the error of
/// its row's norm, so distances are off absolutely, by as much as unit vectors can be.
pub struct Bounds {
    /// Relative error of a sum.
    pub sum: f64,
    /// Absolute error of a distance over `sum`, beyond the distance itself.
    pub absolute: f64,
}

pub fn roundoff<T: Element>() -> f64 {
    if T::Scalar::NAME == "f64" { f64::EPSILON } else { f64::from(f32::EPSILON) }
}

impl Bounds {
    pub fn new<T: Element>(case: &Case) -> Self {
        let roots = (case.dim as f64).sqrt();
        let powers = if let Distance::Lp { p, .. } = case.loss.distance
            && p != 2.0
        {
            4.0
        } else {
            1.0
        };
        let units = case.loss.normalize || case.loss.distance == Distance::Cosine;
        // Σ|δe| over unit vectors is at most √D in the worst of the norms here (p = 1).
        let absolute = match case.loss.distance {
            _ if !units => 0.0,
            Distance::Lp { p, .. } if p < 2.0 => roots,
            _ => 4.0,
        };
        Self { sum: 8.0 * (roots + 4.0) * powers * roundoff::<T>(), absolute }
    }

    /// Of one row's loss, whose distances and margin add up to `scale`.
    pub fn loss(&self, scale: f64) -> f64 {
        self.sum * (scale + self.absolute) + 1e-35
    }
}

/// Of a gradient in T: its relative rounding, and its smallest steps.
pub fn storage<T: Element>() -> (f64, f64) {
    match T::NAME {
        "f16" => (f64::from(f32::from(f16::EPSILON)), 6e-8),
        "bf16" => (f64::from(f32::from(bf16::EPSILON)), 1e-37),
        _ => (0.0, 1e-37),
    }
}

/// The worst error over bound seen, per dtype.
type Worst = BTreeMap<String, (usize, f64)>;

fn compare<T: Element>(case: &Case, data: &Data<T>, output: &Output<T>, worst: &mut f64) -> Result<(), TestCaseError> {
    let mut check = |what: &str, actual: f64, expected: f64, bound: f64| {
        let err = (actual - expected).abs();
        *worst = worst.max(err / bound);
        // NaN fails.
        prop_assert!(err <= bound, "{what}: {actual} for {expected}, error {err:e}, bound {bound:e}");
        Ok(())
    };
    let bounds = Bounds::new::<T>(case);
    let oracle = data.oracle(case, &data.upstream);
    let unit = data.oracle(case, &[1.0]);
    let mean = if case.loss.reduction == Reduction::Mean { 1.0 / case.rows as f64 } else { 1.0 };

    // Near 0, rounding decides whether a row is active; near equal distances, which pair is the negative.
    let mut total_bound = 0.0;
    let mut decided = Vec::new();
    for row in 0..case.rows {
        let argument = oracle.arguments[row];
        // The distances themselves are not kept; |argument| + 2 d_n + margin would be exact, the norms bound them.
        let scale = distance_scale(case, data, row) + case.loss.margin;
        let bound = bounds.loss(scale);
        total_bound += bound;
        check(&format!("losses[{row}]"), output.losses[row].to_f64(), oracle.losses[row], bound)?;
        decided.push(argument.abs() > bound && oracle.swap_gaps[row].abs() > bound);
    }
    if let Some(loss) = output.loss {
        let rounding = roundoff::<T>() * oracle.loss.abs();
        check("loss", loss.to_f64(), oracle.loss, mean * total_bound + rounding)?;
    }

    let (rounding, smallest) = storage::<T>();
    let mut grads = vec![(&output.scaled_grads, &oracle, data.upstream.clone())];
    grads.extend(output.grads.as_ref().map(|g| (g, &unit, vec![1.0])));
    for (actual, expected, upstream) in grads {
        for row in (0..case.rows).filter(|row| decided[*row]) {
            let weight = mean * upstream[if upstream.len() == 1 { 0 } else { row }].abs();
            let bound = weight * bounds.sum * slope_scale(case, data, row);
            for k in 0..3 {
                for i in row * case.dim..(row + 1) * case.dim {
                    let (actual, expected) = (actual[k][i].to_f64(), expected.grads[k][i]);
                    let bound = bound + rounding * expected.abs() + smallest;
                    if T::NAME == "f16" && expected.abs() + bound >= f64::from(f32::from(f16::MAX)) {
                        continue; // rounds to infinity, as it must; a zero row of cosine divides by 1e-12
                    }
                    check(&format!("grads[{k}][{row}, {}]", i % case.dim), actual, expected, bound)?;
                }
            }
        }
    }
    Ok(())
}

/// The rows of one triplet, normalised where the loss does, with their norms.
fn unit_rows<T>(case: &Case, data: &Data<T>, row: usize) -> ([Vec<f64>; 3], [f64; 3]) {
    let units = case.loss.normalize || case.loss.distance == Distance::Cosine;
    let rows = data.exact.each_ref().map(|x| x[row * case.dim..(row + 1) * case.dim].to_vec());
    let norms =
        rows.each_ref().map(|x| if units { x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12) } else { 1.0 });
    let mut rows = rows;
    for (row, norm) in rows.iter_mut().zip(norms) {
        row.iter_mut().for_each(|x| *x /= norm);
    }
    (rows, norms)
}

/// At least the sum of the triplet's distances.
pub fn distance_scale<T>(case: &Case, data: &Data<T>, row: usize) -> f64 {
    let ([a, p, n], _) = unit_rows(case, data, row);
    let d = |x: &[f64], y: &[f64]| {
        let e = || x.iter().zip(y).map(|(x, y)| (x - y).abs() + 1e-6);
        match case.loss.distance {
            Distance::Cosine => 2.0,
            Distance::SquaredEuclidean => e().map(|e| e * e).sum::<f64>(),
            Distance::Lp { p, .. } if p < 2.0 => e().sum::<f64>(),
            _ => e().map(|e| e * e).sum::<f64>().sqrt(),
        }
    };
    d(&a, &p) + d(&a, &n) + d(&p, &n)
}

/// At least the size of any element of the gradients, before cancellation, per unit of weight; for normalised rows also
/// what errors of the unit vectors make of it.
pub fn slope_scale<T>(case: &Case, data: &Data<T>, row: usize) -> f64 {
    let ([a, p, n], norms) = unit_rows(case, data, row);
    let units = case.loss.normalize || case.loss.distance == Distance::Cosine;
    let pair = |x: &[f64], y: &[f64]| {
        let e: Vec<f64> = x.iter().zip(y).map(|(x, y)| (x - y).abs() + 1e-6).collect();
        let d = e.iter().map(|e| e * e).sum::<f64>().sqrt();
        match case.loss.distance {
            Distance::Cosine => 4.0,
            Distance::SquaredEuclidean => 2.0 * d + if units { 4.0 } else { 0.0 },
            // e / d is at most 1; errors of unit vectors grow by 1 / d.
            _ if units => 1.0 + 4.0 / d,
            _ => 1.0,
        }
    };
    let slopes = pair(&a, &p) + pair(&a, &n) + if case.loss.swap { pair(&p, &n) } else { 0.0 };
    let smallest_norm = norms.into_iter().fold(f64::INFINITY, f64::min);
    if units { 2.0 * slopes / smallest_norm } else { slopes }
}

/// Euclidean and Lp slopes jump where a distance is 0, or so small that its rounding error is as large, and where
/// elements of Lp below p = 2 are: no bound holds there. The lattice tests and the recorded values cover those points.
pub fn has_bound<T: Element>(case: &Case, data: &Data<T>) -> bool {
    (0..case.rows).all(|row| {
        let ([a, p, n], _) = unit_rows(case, data, row);
        let units = case.loss.normalize;
        let smooth = |x: &[f64], y: &[f64]| match case.loss.distance {
            Distance::SquaredEuclidean | Distance::Cosine => true,
            Distance::Euclidean | Distance::Lp { p: 2.0, .. } => {
                let d = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
                d > if units { 1e-3 } else { 1e-4 } || (!units && d == 0.0)
            }
            Distance::Lp { p, .. } if p.is_infinite() => {
                let mut e: Vec<f64> = x.iter().zip(y).map(|(x, y)| (x - y).abs()).collect();
                e.sort_by(f64::total_cmp);
                e.len() < 2 || e[e.len() - 1] - e[e.len() - 2] > 1e-4 * (1.0 + x[0].abs())
            }
            Distance::Lp { .. } => x.iter().zip(y).all(|(x, y)| (x - y).abs() > 1e-3 * x.abs().max(1e-3)),
        };
        smooth(&a, &p) && smooth(&a, &n) && (!case.loss.swap || smooth(&p, &n))
    })
}

/// Runs `count` cases for each dtype; the same ones in every run.
pub fn property<B: Backend>(backend: &B, count: u32) {
    let mut worst = Worst::new();
    fn one<B: Backend, T: Element + BackendElement + Debug>(backend: &B, count: u32, worst: &mut Worst)
    where
        T::Scalar: BackendElement,
    {
        let config =
            Config { cases: count, failure_persistence: None, max_global_rejects: 20 * count, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let worst = std::cell::RefCell::new(worst.entry(T::NAME.into()).or_default());
        let outcome = TestRunner::new_with_rng(config, rng).run(&cases(), |case| {
            let data = Data::<T>::new(&case);
            prop_assume!(has_bound(&case, &data));
            let output = backend.run(&case, &data);
            let mut seen = 0.0;
            let result = compare(&case, &data, &output, &mut seen);
            let mut worst = worst.borrow_mut();
            worst.0 += 1;
            worst.1 = worst.1.max(seen);
            result
        });
        if let Err(error) = outcome {
            panic!("{} {}: {error}", B::NAME, T::NAME);
        }
    }
    one::<B, f32>(backend, count, &mut worst);
    one::<B, f64>(backend, count, &mut worst);
    one::<B, f16>(backend, count, &mut worst);
    one::<B, bf16>(backend, count, &mut worst);
    for (dtype, (cases, ratio)) in worst {
        println!("triplet_margin on {} {dtype}: {cases} cases, worst error / bound {ratio:.3}", B::NAME);
    }
}
