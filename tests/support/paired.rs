//! The property test and the records that every backend of every paired loss takes: dtype x distance x option against
//! the f64 oracle, with bounds that follow from the arithmetic. A loss describes itself in support/<stem>_property.rs;
//! each test program defines its backends and `BackendElement`.
#![allow(dead_code, reason = "each test uses its share")]

use std::fmt::Debug;

use half::{bf16, f16};
use proptest::prelude::*;
use tercet::{Element, Matrix, PairedDistance, Reduction};

use super::BackendElement;
use super::support::records::{self, Bits, Figure, Record, elements, of_gradient};
use super::support::{self, Numbers};

/// What the K matrices look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content {
    /// Uniform in [-scale, scale).
    Uniform { scale: f64 },
    /// Integers from -2 to 2: equal distances, exact zeros of the hinge, coincident points.
    Lattice,
    /// All other rows close to the first: distances near 0.
    Collapsed,
    /// A large common offset, which must cancel exactly.
    Offset,
    /// Some rows all zero, some rows equal.
    Degenerate,
}

/// One call of the loss L.
#[derive(Clone, Debug)]
pub struct Case<L> {
    pub loss: L,
    pub rows: usize,
    pub dim: usize,
    /// Numbers between the end of a row and the start of the next.
    pub gap: usize,
    /// Numbers before the first row: with most offsets it is not aligned.
    pub offset: usize,
    pub content: Content,
    pub seed: u64,
}

/// A loss as these tests see it.
pub trait Paired<const K: usize>: Copy + Debug {
    const NAME: &'static str;
    /// Random cases of the loss.
    fn cases() -> BoxedStrategy<Case<Self>>;
    /// One of two losses to record for a distance.
    fn recorded(which: usize, distance: PairedDistance, reduction: Reduction) -> Self;
    /// The loss of rows that are not normalised.
    fn plain(margin: f64, distance: PairedDistance, reduction: Reduction) -> Self;
    /// Whether distances of about `scale`, and the loss of them, are finite in T's arithmetic.
    fn takes_scale<T: Element>(scale: f64) -> bool;
    /// An upper bound on the loss of a row whose distances and margin add up to `reach`.
    fn loss_size(reach: f64) -> f64;
    /// The loss's options in words.
    fn options(&self) -> String;
    fn distance(&self) -> PairedDistance;
    fn normalize(&self) -> bool;
    fn reduction(&self) -> Reduction;
    fn oracle<T: Element>(case: &Case<Self>, data: &Data<T, K>, upstream: &[f64]) -> Oracle<K>;
    /// Whether all rows are away from jumps of the slopes, at which no bound holds.
    fn has_bound<T: Element>(case: &Case<Self>, data: &Data<T, K>) -> bool;
}

/// What the oracle computes for a case.
pub struct Oracle<const K: usize> {
    pub losses: Vec<f64>,
    pub loss: f64,
    pub grads: [Vec<f64>; K],
    /// For each row, how far from the oracle it may be.
    pub bounds: Vec<RowBounds>,
}

/// How far from the oracle a row may be.
pub struct RowBounds {
    pub loss: f64,
    /// The error of an element of the gradients, per unit of upstream.
    pub slope: f64,
    /// Whether rounding cannot decide what the gradients are.
    pub decided: bool,
}

pub fn sizes(largest: usize) -> impl Strategy<Value = usize> {
    let boundaries = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 512, 513];
    let boundaries: Vec<usize> = boundaries.into_iter().filter(|n| *n <= largest).collect();
    prop_oneof![3 => proptest::sample::select(boundaries), 1 => 1..=largest]
}

pub fn distances() -> impl Strategy<Value = PairedDistance> {
    prop_oneof![
        4 => Just(PairedDistance::SquaredEuclidean),
        4 => Just(PairedDistance::Euclidean),
        4 => Just(PairedDistance::Cosine),
        2 => Just(PairedDistance::Lp { p: 2.0, eps: 1e-6 }),
        1 => Just(PairedDistance::Lp { p: 1.0, eps: 1e-6 }),
        1 => Just(PairedDistance::Lp { p: 3.0, eps: 0.0 }),
        1 => Just(PairedDistance::Lp { p: 1.5, eps: 1e-6 }),
        1 => proptest::sample::select(vec![0.5, 17.0, 100.0]).prop_map(|p| PairedDistance::Lp { p, eps: 1e-6 }),
        1 => Just(PairedDistance::Lp { p: f64::INFINITY, eps: 1e-6 }),
    ]
}

pub fn contents() -> impl Strategy<Value = Content> {
    prop_oneof![
        4 => proptest::sample::select(vec![1.0, 0.1, 30.0]).prop_map(|scale| Content::Uniform { scale }),
        1 => Just(Content::Lattice),
        1 => Just(Content::Collapsed),
        1 => Just(Content::Offset),
        1 => Just(Content::Degenerate),
    ]
}

pub fn reductions() -> impl Strategy<Value = Reduction> {
    prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)]
}

/// The parts of a case other than the loss and the content: rows, dim, gap, offset, seed.
pub fn shapes() -> impl Strategy<Value = (usize, usize, usize, usize, u64)> {
    (sizes(70), sizes(600), 0usize..5, 0usize..3, any::<u64>())
}

/// Numbers that T holds exactly, in the forms for the backend and for the oracle.
pub struct Data<T, const K: usize> {
    /// As the backend reads them, with offset and gaps.
    pub laid_out: [Vec<T>; K],
    pub exact: [Vec<f64>; K],
    pub upstream: Vec<f64>,
}

impl<T: Element, const K: usize> Data<T, K> {
    pub fn new<L: Paired<K>>(case: &Case<L>) -> Self {
        let Case { rows, dim, gap, offset, content, .. } = *case;
        let mut numbers = Numbers(case.seed);
        let mut exact = [(); K].map(|()| Vec::new());
        for i in 0..rows * dim {
            let first = match content {
                Content::Lattice => numbers.below(5) as f64 - 2.0,
                Content::Offset => 100.0 + numbers.unit(),
                Content::Uniform { scale } => scale * numbers.unit(),
                Content::Collapsed | Content::Degenerate => numbers.unit(),
            };
            for (k, x) in exact.iter_mut().enumerate() {
                let value = match content {
                    _ if k == 0 => first,
                    Content::Lattice => numbers.below(5) as f64 - 2.0,
                    Content::Collapsed => first + 1e-3 * numbers.unit(),
                    Content::Offset => 100.0 + numbers.unit(),
                    Content::Uniform { scale } => scale * numbers.unit(),
                    Content::Degenerate => match (i / dim + k) % 4 {
                        0 => 0.0,
                        1 => first,
                        _ => numbers.unit(),
                    },
                };
                x.push(T::from_f64(value).to_f64());
            }
        }
        let laid_out = exact.each_ref().map(|exact| {
            // Whatever lies before and between the rows must not matter.
            let mut all = vec![T::from_f64(f64::NAN); offset + rows * (dim + gap)];
            for (row, from) in exact.chunks(dim).enumerate() {
                for (to, from) in all[offset + row * (dim + gap)..].iter_mut().zip(from) {
                    *to = T::from_f64(*from);
                }
            }
            all
        });
        let count = if case.loss.reduction() == Reduction::None { rows } else { 1 };
        let upstream = (0..count).map(|_| T::Scalar::from_f64(2.0 * numbers.unit()).to_f64()).collect();
        Self { laid_out, exact, upstream }
    }

    /// The matrices as a backend on slices takes them.
    pub fn inputs<L>(&self, case: &Case<L>) -> [Matrix<'_, T>; K] {
        let Case { rows, dim, gap, offset, .. } = *case;
        self.laid_out.each_ref().map(|x| Matrix::strided(&x[offset..], rows, dim, dim + gap).unwrap())
    }

    /// The matrices as the oracle takes them.
    pub fn exact_inputs(&self, dim: usize) -> [Matrix<'_, f64>; K] {
        self.exact.each_ref().map(|x| Matrix::new(x, dim).unwrap())
    }

    pub fn upstream_scalars(&self) -> Vec<T::Scalar> {
        self.upstream.iter().map(|u| T::Scalar::from_f64(*u)).collect()
    }
}

pub fn poison<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// What a backend returned.
pub struct Output<T: Element, const K: usize> {
    pub losses: Vec<T::Scalar>,
    /// The reduced loss; absent for `Reduction::None`.
    pub loss: Option<T::Scalar>,
    /// Gradients for an upstream of 1; absent for `Reduction::None`.
    pub grads: Option<[Vec<T>; K]>,
    /// Gradients for the case's upstream.
    pub scaled_grads: [Vec<T>; K],
}

impl<T: Element, const K: usize> Output<T, K> {
    /// The hash of all of it.
    pub fn bits(&self) -> u64 {
        let bits = Bits::default().and(&self.losses).and(self.loss.as_slice());
        let grads = self.grads.iter().flatten().chain(&self.scaled_grads);
        grads.fold(bits, |bits, grad| bits.and(grad)).hash()
    }
}

pub trait Backend<L, const K: usize> {
    const NAME: &'static str;
    fn run<T: Element + BackendElement>(&self, case: &Case<L>, data: &Data<T, K>) -> Output<T, K>
    where
        T::Scalar: BackendElement;
}

// ---- bounds ----

/// How far from the oracle plain arithmetic of this precision may be.
///
/// With unit roundoff u and sums of D terms in any order, a sum of non-negative terms is off by at most (D + 3) u of
/// itself; in practice by about √D u, so 8 (√D + 4) u leaves room without hiding a mistake (tests at D = 600 and at D = 1
/// use the same rule). Differences of given numbers are exact to u; after normalisation each element carries the error of
/// its row's norm, so distances are off absolutely, by as much as unit vectors can be.
pub struct Bounds {
    /// The relative error of a sum.
    pub sum: f64,
    /// The absolute error of a distance beyond its relative one, in units of `sum`.
    absolute: f64,
}

fn roundoff<T: Element>() -> f64 {
    if T::Scalar::NAME == "f64" { f64::EPSILON } else { f64::from(f32::EPSILON) }
}

impl Bounds {
    pub fn new<T: Element, L: Paired<K>, const K: usize>(case: &Case<L>) -> Self {
        let (roots, distance) = ((case.dim as f64).sqrt(), case.loss.distance());
        // Taking the root multiplies the relative error of a sum of powers by 1 / p; taking the power multiplies that
        // of an element by p.
        let powers = match distance {
            PairedDistance::Lp { p, .. } if p != 2.0 && p.is_finite() => 4.0 * p.max(1.0 / p).max(1.0),
            PairedDistance::Lp { p, .. } if p != 2.0 => 4.0,
            _ => 1.0,
        };
        // Σ|δe| over unit vectors is at most √D in the worst of the norms here (p = 1).
        let absolute = match distance {
            _ if !units(&case.loss) => 0.0,
            PairedDistance::Lp { p, .. } if p < 2.0 => roots,
            _ => 4.0,
        };
        Self { sum: 8.0 * (roots + 4.0) * powers * roundoff::<T>(), absolute }
    }

    /// The error of distances and a margin that add up to `scale`.
    pub fn distance(&self, scale: f64) -> f64 {
        self.sum * (scale + self.absolute) + 1e-35
    }
}

/// The relative rounding of a gradient stored in T, and its smallest step.
fn storage<T: Element>() -> (f64, f64) {
    match T::NAME {
        "f16" => (f64::from(f32::from(f16::EPSILON)), 6e-8),
        "bf16" => (f64::from(f32::from(bf16::EPSILON)), 1e-37),
        _ => (0.0, 1e-37),
    }
}

/// Whether rows are normalised.
fn units<L: Paired<K>, const K: usize>(loss: &L) -> bool {
    loss.normalize() || loss.distance() == PairedDistance::Cosine
}

/// Row `row` of each matrix, normalised if the loss normalises, and the norms.
pub fn unit_rows<T, L: Paired<K>, const K: usize>(
    case: &Case<L>,
    data: &Data<T, K>,
    row: usize,
) -> ([Vec<f64>; K], [f64; K]) {
    let mut rows = data.exact.each_ref().map(|x| x[row * case.dim..(row + 1) * case.dim].to_vec());
    let norm = |x: &Vec<f64>| x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    let norms = rows.each_ref().map(|x| if units(&case.loss) { norm(x) } else { 1.0 });
    for (row, norm) in rows.iter_mut().zip(norms) {
        row.iter_mut().for_each(|x| *x /= norm);
    }
    (rows, norms)
}

/// An upper bound on the distance of two rows.
pub fn distance_scale(distance: PairedDistance, x: &[f64], y: &[f64]) -> f64 {
    let e = || x.iter().zip(y).map(|(x, y)| (x - y).abs() + 1e-6);
    match distance {
        PairedDistance::Cosine => 2.0,
        PairedDistance::SquaredEuclidean => e().map(|e| e * e).sum::<f64>(),
        PairedDistance::Lp { p, .. } if p < 1.0 => e().map(|e| e.powf(p)).sum::<f64>().powf(1.0 / p),
        PairedDistance::Lp { p, .. } if p < 2.0 => e().sum::<f64>(),
        _ => e().map(|e| e * e).sum::<f64>().sqrt(),
    }
}

/// An upper bound on any element of the distance's gradients, before cancellation; for normalised rows also on what
/// errors of the unit vectors make of it, per 1 / norm.
pub fn slope_scale<L: Paired<K>, const K: usize>(loss: &L, x: &[f64], y: &[f64]) -> f64 {
    let e: Vec<f64> = x.iter().zip(y).map(|(x, y)| (x - y).abs() + 1e-6).collect();
    let d = e.iter().map(|e| e * e).sum::<f64>().sqrt();
    match loss.distance() {
        PairedDistance::Cosine => 4.0,
        PairedDistance::SquaredEuclidean => 2.0 * d + if units(loss) { 4.0 } else { 0.0 },
        // (|e| / d)^(p-1) is largest at the smallest element.
        distance @ PairedDistance::Lp { p, .. } if p < 1.0 => {
            let smallest = x.iter().zip(y).map(|(x, y)| (x - y + 1e-6).abs()).fold(f64::INFINITY, f64::min);
            (distance_scale(distance, x, y) / smallest).powf(1.0 - p)
        }
        // e / d is at most 1; errors of unit vectors grow by 1 / d.
        _ if units(loss) => 1.0 + 4.0 / d,
        _ => 1.0,
    }
}

/// Slopes of these sizes after normalisation of rows with these norms.
pub fn through_norms<L: Paired<K>, const K: usize>(loss: &L, slopes: f64, norms: [f64; K]) -> f64 {
    let smallest_norm = norms.into_iter().fold(f64::INFINITY, f64::min);
    if units(loss) { 2.0 * slopes / smallest_norm } else { slopes }
}

/// Whether the slopes have a bound here. Euclidean and Lp slopes jump if a distance is 0 or as small as its rounding
/// error, and Lp slopes below p = 2 if an element is: the lattice tests and the recorded values cover those points.
pub fn is_smooth<L: Paired<K>, const K: usize>(loss: &L, x: &[f64], y: &[f64]) -> bool {
    match loss.distance() {
        PairedDistance::SquaredEuclidean | PairedDistance::Cosine => true,
        PairedDistance::Euclidean | PairedDistance::Lp { p: 2.0, .. } => {
            let d = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
            d > if loss.normalize() { 1e-3 } else { 1e-4 } || (!loss.normalize() && d == 0.0)
        }
        PairedDistance::Lp { p, .. } if p.is_infinite() => {
            let mut e: Vec<f64> = x.iter().zip(y).map(|(x, y)| (x - y).abs()).collect();
            e.sort_by(f64::total_cmp);
            e.len() < 2 || e[e.len() - 1] - e[e.len() - 2] > 1e-4 * (1.0 + x[0].abs())
        }
        // Errors of unit vectors would have to be followed through slopes without a bound.
        PairedDistance::Lp { p, .. } if p < 1.0 && loss.normalize() => false,
        PairedDistance::Lp { .. } => x.iter().zip(y).all(|(x, y)| (x - y).abs() > 1e-3 * x.abs().max(1e-3)),
        _ => unreachable!("a distance without slopes here"),
    }
}

fn mean<L: Paired<K>, const K: usize>(case: &Case<L>) -> f64 {
    if case.loss.reduction() == Reduction::Mean { 1.0 / case.rows as f64 } else { 1.0 }
}

/// The size of a row's upstream gradient, with the factor of the mean.
fn weight<L: Paired<K>, const K: usize>(case: &Case<L>, upstream: &[f64], row: usize) -> f64 {
    mean(case) * upstream[if upstream.len() == 1 { 0 } else { row }].abs()
}

// ---- the property test ----

fn compare<T: Element, L: Paired<K>, const K: usize>(
    case: &Case<L>,
    data: &Data<T, K>,
    output: &Output<T, K>,
    worst: &mut f64,
) -> Result<(), TestCaseError> {
    let mut check = |what: &str, actual: f64, expected: f64, bound: f64| {
        let err = (actual - expected).abs();
        *worst = worst.max(err / bound);
        // NaN fails.
        prop_assert!(err <= bound, "{what}: {actual} for {expected}, error {err:e}, bound {bound:e}");
        Ok(())
    };
    let oracle = L::oracle(case, data, &data.upstream);
    let unit = L::oracle(case, data, &[1.0]);
    for (row, bounds) in oracle.bounds.iter().enumerate() {
        check(&format!("losses[{row}]"), output.losses[row].to_f64(), oracle.losses[row], bounds.loss)?;
    }
    if let Some(loss) = output.loss {
        let total_bound: f64 = oracle.bounds.iter().map(|b| b.loss).sum();
        let rounding = roundoff::<T>() * oracle.loss.abs();
        check("loss", loss.to_f64(), oracle.loss, mean(case) * total_bound + rounding)?;
    }

    let (rounding, smallest) = storage::<T>();
    let mut grads = vec![(&output.scaled_grads, &oracle, data.upstream.clone())];
    grads.extend(output.grads.as_ref().map(|g| (g, &unit, vec![1.0])));
    for (actual, expected, upstream) in grads {
        for (row, bounds) in oracle.bounds.iter().enumerate().filter(|(_, bounds)| bounds.decided) {
            let bound = weight(case, &upstream, row) * bounds.slope;
            for k in 0..K {
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

/// Tries `count` cases for each dtype.
pub fn property<L: Paired<K>, B: Backend<L, K>, const K: usize>(backend: &B, count: u32) {
    fn one<T: Element + BackendElement, L: Paired<K>, B: Backend<L, K>, const K: usize>(backend: &B, count: u32)
    where
        T::Scalar: BackendElement,
    {
        let worst = std::cell::Cell::new((0, 0.0f64));
        let what = format!("{} on {} {}", L::NAME, B::NAME, T::NAME);
        support::cases::check(&what, 7, count, &L::cases(), |case| {
            let data = Data::<T, K>::new(&case);
            prop_assume!(L::has_bound(&case, &data));
            let output = backend.run(&case, &data);
            let mut seen = 0.0;
            let result = compare(&case, &data, &output, &mut seen);
            worst.set((worst.get().0 + 1, worst.get().1.max(seen)));
            result
        });
        let (cases, ratio) = worst.get();
        println!("{} on {} {}: {cases} cases, worst error / bound {ratio:.3}", L::NAME, B::NAME, T::NAME);
    }
    one::<f32, L, B, K>(backend, count);
    one::<f64, L, B, K>(backend, count);
    one::<f16, L, B, K>(backend, count);
    one::<bf16, L, B, K>(backend, count);
}

// ---- records ----

/// The share of the property test's bounds that two runs may differ by, as two orders of the same sums may.
const SHARE: f64 = 1.0 / 8.0;

/// Cases to record, and their names: every distance, each with its own choice of the other options and of the shape.
fn recorded<T: Element, L: Paired<K>, const K: usize>() -> Vec<(String, Case<L>)> {
    const SHAPES: [[usize; 2]; 6] = [[5, 1], [9, 32], [17, 33], [3, 128], [8, 257], [33, 64]];
    let distances = [
        PairedDistance::SquaredEuclidean,
        PairedDistance::Euclidean,
        PairedDistance::Cosine,
        PairedDistance::Lp { p: 2.0, eps: 1e-6 },
        PairedDistance::Lp { p: 1.0, eps: 1e-6 },
        PairedDistance::Lp { p: 3.0, eps: 0.0 },
        PairedDistance::Lp { p: f64::INFINITY, eps: 1e-6 },
    ];
    let reductions = [Reduction::Mean, Reduction::Sum, Reduction::None];
    let mut cases = Vec::new();
    for (i, distance) in distances.into_iter().enumerate() {
        for j in 0..2 {
            // Slopes of Lp jump at each element: few numbers, or no seed is away from all jumps.
            let few = matches!(distance, PairedDistance::Lp { p, .. } if p != 2.0);
            let [rows, dim] = if few { [3 - j, 17 + 16 * j] } else { SHAPES[(i + j * 2) % SHAPES.len()] };
            let loss = L::recorded(j, distance, reductions[(i + j) % 3]);
            let content = Content::Uniform { scale: 1.0 };
            let case = Case { loss, rows, dim, gap: i % 2 * 8, offset: j * 8, content, seed: 0 };
            let case = seeded::<T, L, K>(case, ((i * 2 + j) as u64) << 20);
            cases.push((format!("{}, {}, [{rows}, {dim}]", T::NAME, loss.options()), case));
        }
    }
    cases
}

/// The case with the first seed from `from` on whose rows are all away from jumps.
fn seeded<T: Element, L: Paired<K>, const K: usize>(case: Case<L>, from: u64) -> Case<L> {
    let smooth = |case: &Case<L>| {
        let data = Data::<T, K>::new(case);
        L::has_bound(case, &data) && L::oracle(case, &data, &data.upstream).bounds.iter().all(|b| b.decided)
    };
    (0..1 << 20).map(|seed| Case { seed: from + seed, ..case.clone() }).find(smooth).expect("some seed")
}

/// What is recorded of a case: the losses' sum and the reduced loss; of each gradient the norm, the sum with
/// alternating signs, and three elements.
fn figures<T: Element, L: Paired<K>, const K: usize>(
    case: &Case<L>,
    data: &Data<T, K>,
    output: &Output<T, K>,
) -> Vec<Figure> {
    let bounds = L::oracle(case, data, &data.upstream).bounds;
    let all: f64 = bounds.iter().map(|b| SHARE * b.loss).sum();
    let figure = |name: &str, value, bound| Figure { name: name.into(), value, bound };
    let sum = output.losses.iter().map(|x| x.to_f64()).sum();
    let mut figures = vec![figure("losses", sum, all)];
    let rounding = f64::from(f32::EPSILON);
    figures.extend(output.loss.map(|x| figure("loss", x.to_f64(), mean(case) * all + rounding * x.to_f64())));

    let (rounding, smallest) = storage::<T>();
    for (k, grads) in output.scaled_grads.iter().enumerate() {
        let grads: Vec<f64> = grads.iter().map(|x| x.to_f64()).collect();
        let bound = |at: usize| {
            let row = at / case.dim;
            SHARE * weight(case, &data.upstream, row) * bounds[row].slope + rounding * grads[at].abs() + smallest
        };
        let all: Vec<f64> = (0..grads.len()).map(bound).collect();
        let norm = all.iter().map(|x| x * x).sum::<f64>().sqrt();
        let [first, middle, last] = elements(grads.len()).map(bound);
        let bounds = [norm, all.iter().sum(), first, middle, last];
        let named = of_gradient(k, &grads).into_iter().zip(bounds);
        figures.extend(named.map(|((name, value), bound)| Figure { name, value, bound }));
    }
    figures
}

/// What a backend computes, case by case.
fn all_records<L: Paired<K>, B: Backend<L, K>, const K: usize>(backend: &B) -> Vec<Record> {
    fn of<T: Element + BackendElement, L: Paired<K>, B: Backend<L, K>, const K: usize>(
        backend: &B,
    ) -> impl Iterator<Item = Record>
    where
        T::Scalar: BackendElement,
    {
        recorded::<T, L, K>().into_iter().map(move |(name, case)| {
            let data = Data::<T, K>::new(&case);
            let output = backend.run(&case, &data);
            Record { name, bits: output.bits(), figures: figures(&case, &data, &output) }
        })
    }
    let f32s = of::<f32, L, B, K>(backend);
    let f64s = of::<f64, L, B, K>(backend);
    let f16s = of::<f16, L, B, K>(backend);
    f32s.chain(f64s).chain(f16s).chain(of::<bf16, L, B, K>(backend)).collect()
}

/// Fails if anything has moved since the record `of` a backend was written.
pub fn unchanged<L: Paired<K>, B: Backend<L, K>, const K: usize>(backend: &B, of: &str) {
    records::unchanged(L::NAME, of, &all_records(backend));
}

/// A backend whose gradients are a twentieth too large.
pub struct Wrong<B>(pub B);

impl<L, B: Backend<L, K>, const K: usize> Backend<L, K> for Wrong<B> {
    const NAME: &'static str = "a wrong backend";
    fn run<T: Element + BackendElement>(&self, case: &Case<L>, data: &Data<T, K>) -> Output<T, K>
    where
        T::Scalar: BackendElement,
    {
        let mut output = self.0.run(case, data);
        output.scaled_grads.iter_mut().flatten().for_each(|x| *x = T::from_f64(x.to_f64() * 1.05));
        output
    }
}

/// Fails unless every case in the record `of` a backend shows gradients that are a twentieth too large.
pub fn finds_what_is_wrong<L: Paired<K>, B: Backend<L, K>, const K: usize>(backend: B, of: &str) {
    if support::rewrite_records() {
        return; // wrong gradients would be recorded
    }
    let all = all_records(&Wrong(backend));
    assert_eq!(all.len(), 4 * 14, "14 a dtype");
    records::all_gradients_moved(&records::changes(L::NAME, of, &all), &all);
}

/// Fails if a case's hash stays as it was when one bit of anything that a backend returned is another.
pub fn every_bit_counts<L: Paired<K>, B: Backend<L, K>, const K: usize>(backend: &B)
where
    f32: BackendElement,
{
    let all = recorded::<f32, L, K>();
    let (_, case) = all.iter().find(|(_, case)| case.loss.reduction() != Reduction::None).expect("a reduced one");
    let mut output = backend.run(case, &Data::<f32, K>::new(case));
    let bits = output.bits();
    let places = 2 + 2 * K;
    for place in 0..places {
        let mut flip = || {
            let x: &mut f32 = match place {
                0 => output.losses.last_mut().expect("a row"),
                1 => output.loss.as_mut().expect("reduced"),
                _ => {
                    let all = output.grads.as_mut().expect("reduced").iter_mut().chain(&mut output.scaled_grads);
                    all.into_iter().nth(place - 2).expect("2 K").last_mut().expect("a row")
                }
            };
            *x = f32::from_bits(x.to_bits() ^ 1);
            output.bits()
        };
        assert_ne!(flip(), bits, "place {place} of {places}");
        assert_eq!(flip(), bits, "place {place} of {places}, back");
    }
}
