//! What the property test of `pairwise_distance` needs: its cases, its calls, and its bounds.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
#[cfg(feature = "cuda")]
use tercet::internal::{self, Address, Cores, Input, Memory};
use tercet::pairwise_distance::oracle;
use tercet::{Distance, Element, Matrix, PairwiseDistance, Precision, Reduction};

use crate::mined::batch::{self, Batch, Content, Data, Labelling};
use crate::mined::bounds::{self, Bounds};
use crate::support::backends::{Cpu, Number, OneThread, Operation};
#[cfg(feature = "cuda")]
use crate::support::cuda::Cuda;
#[cfg(feature = "cuda")]
use crate::support::devices::TestDevice;
#[cfg(feature = "emulator")]
use crate::support::emulated::Ordered;
use crate::support::property::{Limits, Property, Worst, property_tests};
#[cfg(feature = "cuda")]
use crate::support::records::same_bits_on_cuda;
use crate::support::records::{Bits, Listed, same_bits};
use crate::support::{Numbers, poison};

property_tests!(PairwiseDistance, cpu: 300, emulator: 70, detector: 10);

#[test]
fn cpu_computes_what_it_did_on_one_thread() {
    same_bits::<PairwiseDistance, _, _>(&Cpu, &OneThread::new(), "cpu");
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_computes_what_it_did_a_moment_ago() {
    if let Some(cuda) = Cuda::first("pairwise_distance: cuda_computes_what_it_did_a_moment_ago") {
        same_bits_on_cuda::<PairwiseDistance>(&cuda);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_computes_what_it_did_in_another_order() {
    same_bits::<PairwiseDistance, _, _>(&Ordered(0), &Ordered(1), "emulator");
}

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
    pub fn upstream<T: Number>(&self) -> Vec<f64> {
        let mut numbers = Numbers(self.batch.seed ^ 1);
        let one = |_| {
            let number = numbers.unit();
            if self.sparse && numbers.below(4) > 0 { 0.0 } else { number }
        };
        (0..self.size()).map(one).map(|u| T::Scalar::from_f64(u).to_f64()).collect()
    }
}

/// The precisions to draw from, `None` for products without tensor cores. On devices half of the time the default.
fn precisions(on_device: bool) -> &'static [Option<Precision>] {
    use Precision::{High, Highest, Medium};
    if on_device { &[Some(Highest), Some(Highest), Some(High), Some(Medium), None] } else { &[Some(Highest)] }
}

/// What a backend returned.
pub struct Output<T: Number> {
    pub distances: Vec<T::Scalar>,
    /// The gradients with respect to each side.
    pub grads: [Vec<T>; 2],
}

impl Operation for PairwiseDistance {
    const STEM: &'static str = "pairwise_distance";
    type Case = Case;
    type Data<T: Number> = Data<T>;
    type Output<T: Number> = Output<T>;

    #[cfg(feature = "emulator")]
    fn seed(case: &Case) -> u64 {
        case.batch.seed
    }

    fn on_cpu<T: Number>(case: &Case, data: &Data<T>) -> Output<T> {
        let all = data.matrix(&case.batch);
        let side = |rows: &std::ops::Range<usize>| {
            let stride = case.batch.dim + case.batch.gap;
            let from = &data.laid_out[case.batch.offset + rows.start * stride..];
            Matrix::strided(from, rows.len(), case.batch.dim, stride).unwrap()
        };
        let sides = case.sides();
        let [x, y] = if case.split.is_some() { sides.each_ref().map(side) } else { [all, all] };
        let mut distances = poison(case.size());
        case.op.distances(x, y, &mut distances).unwrap();
        let upstream = Data::<T>::scalars(&case.upstream::<T>());
        let mut grads = sides.map(|side| poison(side.len() * case.batch.dim));
        case.op.grad(x, y, &upstream, grads.each_mut().map(|g| Some(&mut g[..]))).unwrap();
        // A gradient computed alone has the same bits.
        let mut alone = poison(grads[1].len());
        case.op.grad(x, y, &upstream, [None, Some(&mut alone)]).unwrap();
        assert!(alone == grads[1] || alone.iter().any(|g: &T| g.to_f64().is_nan()));
        Output { distances, grads }
    }

    #[cfg(feature = "cuda")]
    fn on_device<T: Number, D: TestDevice>(device: &D, case: &Case, data: &Data<T>) -> Output<T> {
        let Batch { dim, gap, offset, .. } = case.batch;
        let launcher = device.launcher();
        let sides = case.sides();
        let rows = sides.each_ref().map(|side| side.len());
        let shapes = rows.map(|rows| [rows, dim]);
        let op = (&case.op, if case.plain { Cores::Cuda } else { case.op.precision.into() });
        let x = device.upload(&data.laid_out);
        let stride = dim + gap;
        let inputs = sides.each_ref().map(|side| Input {
            x: x.address() + ((offset + side.start * stride) * size_of::<T>()) as Address,
            stride,
            labels: 0,
        });
        let distances = device.poison::<f32>(case.size());
        // SAFETY: buffers of the device, of the shapes that the call expects.
        unsafe { internal::pairwise_distance::<T, _>(op, launcher, shapes, &inputs, distances.address()) }
            .unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        let upstream: Vec<f32> = case.upstream::<T>().iter().map(|&u| u as f32).collect();
        let upstream = device.upload(&upstream);
        let grads = rows.map(|rows| device.poison::<T>(rows * dim));
        let to = grads.each_ref().map(Memory::address);
        // SAFETY: buffers of the device, of the shapes that the call expects.
        unsafe { internal::pairwise_distance_backward::<T, _>(op, launcher, shapes, &inputs, upstream.address(), to) }
            .unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        Output {
            distances: device.read(&distances, case.size()),
            grads: [device.read(&grads[0], rows[0] * dim), device.read(&grads[1], rows[1] * dim)],
        }
    }
}

impl Property for PairwiseDistance {
    const SEQUENCE: u8 = 13;

    fn cases(limits: Limits) -> BoxedStrategy<Case> {
        let precisions = proptest::sample::select(precisions(limits.any_precision));
        let options = (batch::distances(), any::<bool>(), precisions);
        let cases = (options, batch::batches(limits.rows), any::<u64>(), any::<bool>()).prop_map(
            |((distance, normalize, precision), batch, split, sparse)| {
                let split = (batch.rows > 1 && !split.is_multiple_of(3)).then(|| 1 + split as usize % (batch.rows - 1));
                let op = PairwiseDistance { distance, normalize, precision: precision.unwrap_or_default() };
                Case { op, batch, split, sparse, plain: precision.is_none() }
            },
        );
        cases.boxed()
    }

    fn data<T: Number>(case: &Case) -> Data<T> {
        Data::new(&case.batch, Reduction::Mean)
    }

    fn compare<T: Number>(case: &Case, data: &Data<T>, output: &Output<T>, worst: &mut Worst) -> TestCaseResult {
        let dim = case.batch.dim;
        let bounds = Bounds::new::<T>(&data.exact, data.exact.len() / dim, dim, case.op.distance, case.op.normalize)
            .at::<T>(case.op.precision);
        let [rows, columns] = case.sides();
        let side =
            |side: &std::ops::Range<usize>| Matrix::new(&data.exact[side.start * dim..side.end * dim], dim).unwrap();
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
                let rounding = bounds::rounding::<T>(*expected) + 4.0 * bounds.epsilon * expected.abs();
                let bound = error + 4.0 * count.sqrt() * bounds.epsilon * size + rounding;
                if bounds::overflows::<T>(expected.abs() + bound) {
                    continue;
                }
                let what = || format!("grads[{which}][{}, {}]", at / dim, at % dim);
                worst.check(what, actual.to_f64(), *expected, bound)?;
            }
        }
        Ok(())
    }
}

impl Listed for PairwiseDistance {
    fn listed<T: Number>(on_device: bool) -> Vec<(String, Case, Data<T>)> {
        listed(on_device)
    }
    fn bits<T: Number>(output: &Output<T>) -> u64 {
        let [of_x, of_y] = &output.grads;
        Bits::default().and(&output.distances).and(of_x).and(of_y).hash()
    }
}

/// Every distance, normalised and not, at every precision, of a batch with itself and of two.
fn listed<T: Number>(on_device: bool) -> Vec<(String, Case, Data<T>)> {
    let mut precisions = precisions(on_device).to_vec();
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
                    let case = Case { op, batch, split, sparse: j > 0, plain: precision.is_none() };
                    let [rows, columns] = case.sides().map(|side| side.len());
                    let by_itself = if split.is_none() { ", by itself" } else { "" };
                    let plain = if case.plain { ", on CUDA cores" } else { "" };
                    let name = format!("{}, {op:?}{plain}, [{rows}, {columns}, {dim}]{by_itself}", T::NAME);
                    let data = Data::new(&case.batch, Reduction::Mean);
                    cases.push((name, case, data));
                }
            }
        }
    }
    cases
}
