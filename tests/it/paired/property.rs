//! What the property tests of paired losses share: calls, random numbers, and bounds that follow from the arithmetic. A
//! loss describes itself in `<stem>/property.rs`.

use std::fmt::Debug;
use std::marker::PhantomData;

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
#[cfg(feature = "cuda")]
use tercet::Error;
#[cfg(feature = "cuda")]
use tercet::internal::{Address, Memory, Pass};
use tercet::{Element, Matrix, PairedDistance, Reduction};

use crate::support::Numbers;
use crate::support::backends::{Number, Operation};
#[cfg(feature = "cuda")]
use crate::support::cuda::Cuda;
#[cfg(feature = "cuda")]
use crate::support::devices::{MemoryOf, TestDevice};
use crate::support::property::{Limits, Property, Worst};
use crate::support::records::Bits;

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

/// A loss of K matrices as these tests see it.
pub trait Paired<const K: usize>: Copy + Debug + Send + Sync + 'static {
    const STEM: &'static str;
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
    /// The same loss of each row.
    #[cfg(feature = "cuda")]
    fn each_row(self) -> Self;
    fn oracle<T: Element>(case: &Case<Self>, data: &Data<T, K>, upstream: &[f64]) -> Oracle<K>;
    /// Whether all rows are away from jumps of the slopes, at which no bound holds.
    fn has_bound<T: Element>(case: &Case<Self>, data: &Data<T, K>) -> bool;

    fn on_cpu<T: Number>(case: &Case<Self>, data: &Data<T, K>) -> Output<T, K>;
    #[cfg(feature = "cuda")]
    fn on_cuda<T: Number>(cuda: &Cuda, case: &Case<Self>, data: &Data<T, K>) -> Output<T, K>;
    /// What the loss takes beside the matrices, in a device's memory.
    #[cfg(feature = "cuda")]
    type Ready<M>;
    /// It follows from the seed.
    #[cfg(feature = "cuda")]
    fn ready<D: TestDevice>(&self, device: &D, rows: usize, seed: u64) -> Self::Ready<MemoryOf<D>>;
    /// # Safety
    /// As for the loss's pass in `tercet::internal`.
    #[cfg(feature = "cuda")]
    unsafe fn launch<T: Element, D: TestDevice>(
        &self,
        ready: &Self::Ready<MemoryOf<D>>,
        device: &D,
        shape: [usize; 2],
        pass: &Pass<K>,
    ) -> Result<(), Error>;
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

/// A paired loss of K matrices with its results.
pub struct OfRows<L, const K: usize>(PhantomData<L>);

impl<L: Paired<K>, const K: usize> Operation for OfRows<L, K> {
    const STEM: &'static str = L::STEM;
    const F64_ON_DEVICES: bool = true;
    type Case = Case<L>;
    type Data<T: Number> = Data<T, K>;
    type Output<T: Number> = Output<T, K>;

    #[cfg(feature = "emulator")]
    fn seed(case: &Case<L>) -> u64 {
        case.seed
    }

    fn on_cpu<T: Number>(case: &Case<L>, data: &Data<T, K>) -> Output<T, K> {
        L::on_cpu(case, data)
    }

    #[cfg(feature = "cuda")]
    fn on_device<T: Number, D: TestDevice>(device: &D, case: &Case<L>, data: &Data<T, K>) -> Output<T, K> {
        let Case { rows, dim, gap, offset, seed, .. } = *case;
        let inputs = data.laid_out.each_ref().map(|x| device.upload(x));
        let per_row = case.loss.reduction() == Reduction::None;
        let ready = case.loss.ready(device, rows, seed);
        let pass = Pass {
            inputs: inputs.each_ref().map(|x| x.address() + (offset * size_of::<T>()) as Address),
            strides: [dim + gap; K],
            upstream_per_row: per_row,
            ..Pass::default()
        };
        let outputs = || [(); K].map(|()| device.poison::<T>(rows * dim));
        let launch = |loss: &L, pass: Pass<K>| {
            // SAFETY: buffers of the device, of the sizes that `pass` says.
            unsafe { loss.launch::<T, D>(&ready, device, [rows, dim], &pass) }
                .unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        };

        let losses = device.poison::<T::Scalar>(rows);
        launch(&case.loss.each_row(), Pass { losses: losses.address(), ..pass });
        let (loss, grads) = (device.poison::<T::Scalar>(1), outputs());
        if !per_row {
            launch(&case.loss, Pass { loss: loss.address(), grads: grads.each_ref().map(Memory::address), ..pass });
        }
        let upstream = device.upload(&data.upstream_scalars());
        let scaled = outputs();
        let to = scaled.each_ref().map(Memory::address);
        launch(&case.loss, Pass { upstream: upstream.address(), grads: to, ..pass });
        let read = |grads: &[MemoryOf<D>; K]| grads.each_ref().map(|grad| device.read(grad, rows * dim));
        Output {
            losses: device.read(&losses, rows),
            loss: (!per_row).then(|| device.read(&loss, 1)[0]),
            grads: (!per_row).then(|| read(&grads)),
            scaled_grads: read(&scaled),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<T: Number>(cuda: &Cuda, case: &Case<L>, data: &Data<T, K>) -> Output<T, K> {
        L::on_cuda(cuda, case, data)
    }
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
pub fn storage<T: Element>() -> (f64, f64) {
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

pub fn mean<L: Paired<K>, const K: usize>(case: &Case<L>) -> f64 {
    if case.loss.reduction() == Reduction::Mean { 1.0 / case.rows as f64 } else { 1.0 }
}

/// The size of a row's upstream gradient, with the factor of the mean.
pub fn weight<L: Paired<K>, const K: usize>(case: &Case<L>, upstream: &[f64], row: usize) -> f64 {
    mean(case) * upstream[if upstream.len() == 1 { 0 } else { row }].abs()
}

// ---- the property test ----

impl<L: Paired<K>, const K: usize> Property for OfRows<L, K> {
    const SEQUENCE: u8 = 7;

    fn cases(_: Limits) -> BoxedStrategy<Case<L>> {
        L::cases()
    }
    fn data<T: Number>(case: &Case<L>) -> Data<T, K> {
        Data::new(case)
    }
    fn has_bounds<T: Number>(case: &Case<L>, data: &Data<T, K>) -> bool {
        L::has_bound(case, data)
    }
    fn compare<T: Number>(
        case: &Case<L>,
        data: &Data<T, K>,
        output: &Output<T, K>,
        worst: &mut Worst,
    ) -> TestCaseResult {
        compare(case, data, output, worst)
    }
}

fn compare<T: Element, L: Paired<K>, const K: usize>(
    case: &Case<L>,
    data: &Data<T, K>,
    output: &Output<T, K>,
    worst: &mut Worst,
) -> TestCaseResult {
    let oracle = L::oracle(case, data, &data.upstream);
    let unit = L::oracle(case, data, &[1.0]);
    for (row, bounds) in oracle.bounds.iter().enumerate() {
        worst.check(|| format!("losses[{row}]"), output.losses[row].to_f64(), oracle.losses[row], bounds.loss)?;
    }
    if let Some(loss) = output.loss {
        let total_bound: f64 = oracle.bounds.iter().map(|b| b.loss).sum();
        let rounding = roundoff::<T>() * oracle.loss.abs();
        worst.check(|| "loss".into(), loss.to_f64(), oracle.loss, mean(case) * total_bound + rounding)?;
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
                    worst.check(|| format!("grads[{k}][{row}, {}]", i % case.dim), actual, expected, bound)?;
                }
            }
        }
    }
    Ok(())
}
