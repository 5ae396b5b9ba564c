//! What the property test of `top_k` needs: its cases, its calls, and its bounds.

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
#[cfg(feature = "cuda")]
use tercet::internal::{self, Address, Chunks, Dtype, Input, Memory, SearchInputs, StoredInput};
use tercet::top_k::oracle;
use tercet::{Distance, Element, Int8Rows, Matrix, Own, Precision, Reduction, Search, Stored, TopK};

use crate::mined::batch::{self, Batch, Content, Data, Labelling};
use crate::mined::bounds::Bounds;
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

property_tests!(TopK, cpu: 300, emulator: 70, detector: 10);

#[test]
fn cpu_computes_what_it_did_on_one_thread() {
    same_bits::<TopK, _, _>(&Cpu, &OneThread::new(), "cpu");
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_computes_what_it_did_a_moment_ago() {
    if let Some(cuda) = Cuda::first("top_k: cuda_computes_what_it_did_a_moment_ago") {
        same_bits_on_cuda::<TopK>(&cuda);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_computes_what_it_did_in_another_order() {
    same_bits::<TopK, _, _>(&Ordered(0), &Ordered(1), "emulator");
}

/// How the stored rows are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kept {
    /// As the queries are.
    Alike,
    F16,
    Bf16,
    Int8,
}

/// A search for the first `queries` rows of the batch among the others.
#[derive(Clone, Debug)]
pub struct Case {
    pub top: TopK,
    pub batch: Batch,
    pub queries: usize,
    pub kept: Kept,
    /// Whether there are exact rows beside the stored ones.
    pub exact: bool,
    /// Query i is itself stored row `own[i]`.
    pub own: Option<Vec<i64>>,
    /// Rows with one number that is not finite, and that number.
    pub bad: Vec<(usize, f64)>,
}

/// The numbers of a case.
pub struct Numbered<T> {
    data: Data<T>,
    /// The stored rows, by how they are stored; all but one are empty.
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    int8: (Vec<i8>, Vec<f32>),
    /// The exact rows, for 16-bit queries.
    exact: Vec<f32>,
    /// What queries and stored rows stand for.
    meant: Vec<f64>,
}

pub struct Output<T: Number> {
    pub distances: Vec<T::Scalar>,
    pub indices: Vec<i64>,
}

impl Case {
    fn stored(&self) -> usize {
        self.batch.rows - self.queries
    }

    fn side<'a, T: Number>(&self, data: &'a Data<T>, first: usize, rows: usize) -> Matrix<'a, T> {
        let stride = self.batch.dim + self.batch.gap;
        match rows {
            0 => Matrix::new(&[], self.batch.dim).unwrap(),
            _ => Matrix::strided(&data.laid_out[self.batch.offset + first * stride..], rows, self.batch.dim, stride)
                .unwrap(),
        }
    }

    fn numbered<T: Number>(&self) -> Numbered<T> {
        let mut data = Data::<T>::new(&self.batch, Reduction::Mean);
        let (dim, stride) = (self.batch.dim, self.batch.dim + self.batch.gap);
        for &(row, number) in &self.bad {
            let column = row % dim;
            data.laid_out[self.batch.offset + row * stride + column] = T::from_f64(number);
            data.exact[row * dim + column] = number;
        }
        let stored = &data.exact[self.queries * dim..];
        let exact: Vec<f32> = stored.iter().map(|&x| x as f32).collect();
        let mut numbered = Numbered {
            f16: if self.kept == Kept::F16 { stored.iter().map(|&x| f16::from_f64(x)).collect() } else { vec![] },
            bf16: if self.kept == Kept::Bf16 { stored.iter().map(|&x| bf16::from_f64(x)).collect() } else { vec![] },
            int8: Default::default(),
            meant: data.exact.clone(),
            exact,
            data,
        };
        if self.kept == Kept::Int8 {
            let (mut integers, mut scales) = (vec![0i8; numbered.exact.len()], vec![0f32; self.stored()]);
            let exact = Matrix::new(&numbered.exact, dim).unwrap();
            Int8Rows::quantize(exact, &mut integers, &mut scales).unwrap();
            numbered.int8 = (integers, scales);
        }
        if !self.exact {
            let of_scale = |i: usize| numbered.int8.1[i / dim];
            let meant: Vec<f64> = match self.kept {
                Kept::Alike => numbered.meant[self.queries * dim..].to_vec(),
                Kept::F16 => numbered.f16.iter().map(|x| x.to_f64()).collect(),
                Kept::Bf16 => numbered.bf16.iter().map(|x| x.to_f64()).collect(),
                Kept::Int8 => {
                    (0..).zip(&numbered.int8.0).map(|(i, &q)| f64::from(of_scale(i) * f32::from(q))).collect()
                }
            };
            numbered.meant[self.queries * dim..].copy_from_slice(&meant);
        }
        numbered
    }

    /// The search with `k` rows among the stored ones in `range`.
    fn searched<T: Number>(
        &self,
        numbered: &Numbered<T>,
        k: usize,
        range: std::ops::Range<usize>,
        own: Own<&[i64]>,
    ) -> Output<T> {
        let dim = self.batch.dim;
        let numbers = range.start * dim..range.end * dim;
        let stored: Stored<'_> = match self.kept {
            Kept::Alike => self.side(&numbered.data, self.queries + range.start, range.len()).into(),
            Kept::F16 => Matrix::new(&numbered.f16[numbers.clone()], dim).unwrap().into(),
            Kept::Bf16 => Matrix::new(&numbered.bf16[numbers.clone()], dim).unwrap().into(),
            Kept::Int8 => {
                Int8Rows::new(&numbered.int8.0[numbers.clone()], &numbered.int8.1[range], dim).unwrap().into()
            }
        };
        let top = TopK { k, ..self.top };
        let mut search: Search<Matrix<'_, T>> = top.on(self.side(&numbered.data, 0, self.queries), stored).own(own);
        if self.exact {
            search = search.exact(Matrix::new(&numbered.exact[numbers], dim).unwrap());
        }
        let (mut distances, mut indices) = (poison(self.queries * k), vec![7; self.queries * k]);
        search.search(&mut distances, &mut indices).unwrap();
        Output { distances, indices }
    }
}

impl Operation for TopK {
    const STEM: &'static str = "top_k";
    type Case = Case;
    type Data<T: Number> = Numbered<T>;
    type Output<T: Number> = Output<T>;

    #[cfg(feature = "emulator")]
    fn seed(case: &Case) -> u64 {
        case.batch.seed
    }

    fn on_cpu<T: Number>(case: &Case, data: &Numbered<T>) -> Output<T> {
        let own = case.own.as_deref().map_or(Own::None, Own::Rows);
        case.searched(data, case.top.k, 0..case.stored(), own)
    }

    #[cfg(feature = "cuda")]
    fn on_device<T: Number, D: TestDevice>(device: &D, case: &Case, data: &Numbered<T>) -> Output<T> {
        let Case { top, queries, batch: Batch { dim, gap, offset, .. }, .. } = *case;
        let (stored, stride) = (case.stored(), dim + gap);
        let x = device.upload(&data.data.laid_out);
        let side = |first: usize| StoredInput {
            x: x.address() + ((offset + first * stride) * size_of::<T>()) as Address,
            stride,
            dtype: Dtype::of::<T>(),
            scales: 0,
        };
        // Empty uploads are none.
        let padded = |numbers: &[f32]| [numbers, &[0.0][..]].concat();
        let half = device.upload(&[&data.f16[..], &[f16::ZERO]].concat());
        let bf16 = device.upload(&[&data.bf16[..], &[bf16::ZERO]].concat());
        let integers = device.upload(&[&data.int8.0[..], &[0]].concat());
        let (scales, exact) = (device.upload(&padded(&data.int8.1)), device.upload(&padded(&data.exact)));
        let own = device.upload(&[case.own.as_deref().unwrap_or_default(), &[0]].concat());
        let contiguous = |x: Address, dtype| StoredInput { x, stride: dim, dtype, scales: 0 };
        let inputs = SearchInputs {
            queries: side(0),
            stored: match case.kept {
                Kept::Alike => side(queries),
                Kept::F16 => contiguous(half.address(), Dtype::F16),
                Kept::Bf16 => contiguous(bf16.address(), Dtype::Bf16),
                Kept::Int8 => StoredInput { scales: scales.address(), ..contiguous(integers.address(), Dtype::Int8) },
            },
            exact: case.exact.then(|| Input { x: exact.address(), stride: dim, labels: 0 }),
            own: if case.own.is_some() { Own::Rows(own.address()) } else { Own::None },
        };
        let (distances, indices) = (device.poison::<f32>(queries * top.k), device.upload(&vec![7i64; queries * top.k]));
        // Small ones, so that few rows are several chunks, and lists run over.
        let chunks = match case.batch.seed % 4 {
            0 => None,
            seed => Some(Chunks { rows: [40, 64, 200][seed as usize - 1], room: [3, 17, 30][seed as usize - 1] }),
        };
        let outputs = [distances.address(), indices.address()];
        // SAFETY: buffers of the device, of the shapes that the call expects.
        unsafe { internal::top_k(&top, device.launcher(), [[queries, dim], [stored, dim]], &inputs, outputs, chunks) }
            .unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        Output { distances: device.read(&distances, queries * top.k), indices: device.read(&indices, queries * top.k) }
    }
}

impl Property for TopK {
    const SEQUENCE: u8 = 17;

    fn cases(limits: Limits) -> BoxedStrategy<Case> {
        let precisions: &[Precision] = match limits.any_precision {
            true => &[Precision::Highest, Precision::High, Precision::Medium],
            false => &[Precision::Highest],
        };
        let options = (batch::distances(), any::<bool>(), proptest::sample::select(precisions));
        let kept = proptest::sample::select(vec![Kept::Alike, Kept::Alike, Kept::F16, Kept::Bf16, Kept::Int8]);
        (options, batch::batches(limits.rows), kept, any::<bool>(), any::<u64>())
            .prop_map(|((distance, normalize, precision), batch, kept, exact, seed)| {
                let batch = Batch { reference: None, ..batch };
                let mut numbers = Numbers(seed);
                let queries = match numbers.below(4) {
                    0 => 1 + numbers.below(batch.rows.min(3)),
                    1 => batch.rows,
                    _ => 1 + numbers.below(batch.rows),
                };
                let stored = batch.rows - queries;
                let k = match numbers.below(4) {
                    0 => 1,
                    1 => 1 + numbers.below(stored + 4),
                    _ => 1 + numbers.below(12),
                };
                let own = (numbers.below(3) == 0)
                    .then(|| (0..queries).map(|_| numbers.below(stored + 3) as i64 - 1).collect());
                let bad_ones = if numbers.below(3) == 0 { numbers.below(4) } else { 0 };
                let bad = (0..bad_ones).map(|_| {
                    let kinds = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
                    (numbers.below(batch.rows), kinds[numbers.below(3)])
                });
                let bad = bad.collect();
                Case { top: TopK { k, distance, normalize, precision }, batch, queries, kept, exact, own, bad }
            })
            .boxed()
    }

    fn data<T: Number>(case: &Case) -> Numbered<T> {
        case.numbered()
    }

    fn has_bounds<T: Number>(case: &Case, _: &Numbered<T>) -> bool {
        T::NAME != "f64" || (case.kept == Kept::Alike && !case.exact)
    }

    fn compare<T: Number>(case: &Case, data: &Numbered<T>, output: &Output<T>, worst: &mut Worst) -> TestCaseResult {
        let (dim, stored, k) = (case.batch.dim, case.stored(), case.top.k);
        let bounds = Bounds::new::<T>(&data.meant, data.meant.len() / dim, dim, case.top.distance, case.top.normalize);
        let (queries, rows) = data.meant.split_at(case.queries * dim);
        let own = case.own.as_deref().map_or(Own::None, Own::Rows);
        let truth =
            oracle::run(&case.top, Matrix::new(queries, dim).unwrap(), Matrix::new(rows, dim).unwrap(), own).unwrap();
        for i in 0..case.queries {
            let all = &truth.all[i * stored..][..stored];
            let bound = (0..stored)
                .filter(|&j| !all[j].is_nan())
                .map(|j| bounds.of_distance(i, case.queries + j))
                .fold(0.0, f64::max);
            let mut before = (f64::NEG_INFINITY, -1);
            for at in i * k..(i + 1) * k {
                let (d, j) = (output.distances[at].to_f64(), output.indices[at]);
                let (expected, of) = (truth.distances[at], truth.indices[at]);
                if of == -1 {
                    prop_assert!(
                        j == -1 && d.to_bits() == expected.to_bits() || d.is_nan() && expected.is_nan(),
                        "query {i}: {d} of {j} for nothing"
                    );
                    continue;
                }
                prop_assert!((0..stored as i64).contains(&j), "query {i}: {j} of {stored} rows");
                prop_assert!(before < (d, j), "query {i}: {:?} follows {before:?}", (d, j));
                before = (d, j);
                // What is sorted is no farther from what would be sorted without errors than the largest of them.
                worst.check(|| format!("distance {at}"), d, expected, bound)?;
                let its = bounds.of_distance(i, case.queries + j as usize);
                worst.check(|| format!("distance {at}, of row {j}"), d, all[j as usize], its)?;
            }
        }
        Ok(())
    }
}

/// The results of any search are those of a sort of all distances, each of which a search among one row gives: bit by bit.
#[test]
fn cpu_finds_what_a_sort_finds() {
    struct Sorted;
    impl crate::support::backends::EachDtype for Sorted {
        type Result = ();
        fn of<T: Number>(&self) {
            let limits = Limits { rows: 200, any_precision: false };
            let what = format!("a sort of {}", T::NAME);
            crate::support::cases::check(&what, 18, 300, &TopK::cases(limits), &|case| {
                let data = case.numbered::<T>();
                prop_assume!(TopK::has_bounds(&case, &data));
                let (output, k) = (TopK::on_cpu(&case, &data), case.top.k);
                let mut all = vec![Vec::new(); case.queries];
                for j in 0..case.stored() {
                    let own: Vec<i64> =
                        case.own.iter().flatten().map(|&own| if own == j as i64 { 0 } else { -1 }).collect();
                    let own = if own.is_empty() { Own::None } else { Own::Rows(&own[..]) };
                    let one = case.searched(&data, 1, j..j + 1, own);
                    for i in (0..case.queries).filter(|&i| one.indices[i] == 0) {
                        all[i].push((one.distances[i], j as i64));
                    }
                }
                for (i, mut all) in all.into_iter().enumerate() {
                    all.sort_by(|x, y| x.partial_cmp(y).expect("numbers"));
                    for (r, at) in (i * k..(i + 1) * k).enumerate() {
                        let found = (output.distances[at], output.indices[at]);
                        match all.get(r) {
                            Some(expected) => prop_assert_eq!(found, *expected, "query {}, neighbour {}", i, r),
                            None => prop_assert_eq!(found.1, -1, "query {}, neighbour {}", i, r),
                        }
                    }
                }
                Ok(())
            });
        }
    }
    crate::support::backends::each_dtype::<TopK, Cpu, _>(&Sorted);
}

impl Listed for TopK {
    fn listed<T: Number>(on_device: bool) -> Vec<(String, Case, Numbered<T>)> {
        let mut cases = Vec::new();
        let of_distances = [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine].into_iter().enumerate();
        for (i, distance) in of_distances {
            let kinds = [(Kept::Alike, false), (Kept::F16, true), (Kept::Int8, false), (Kept::Int8, true)];
            for (at, (kept, exact)) in kinds.into_iter().enumerate() {
                if T::NAME == "f64" && (kept != Kept::Alike || exact) {
                    continue;
                }
                let (queries, k) = if (at + i) % 3 == 0 { (3, 5) } else { (30, 7) };
                let batch = Batch {
                    rows: 230,
                    dim: [33, 64, 17][i],
                    gap: i,
                    offset: 2 * i,
                    content: Content::Uniform { scale: 1.0 },
                    labelling: Labelling::Singletons,
                    seed: 7,
                    reference: None,
                };
                let precision = if on_device && at % 2 == 1 { Precision::High } else { Precision::Highest };
                let top = TopK { k, distance, normalize: i == 1, precision };
                let case = Case { top, batch, queries, kept, exact, own: None, bad: vec![] };
                let name = format!("{}, {top:?}, {kept:?}, exact {exact}, {queries} queries", T::NAME);
                let data = case.numbered();
                cases.push((name, case, data));
            }
        }
        cases
    }
    fn bits<T: Number>(output: &Output<T>) -> u64 {
        Bits::default().and(&output.distances).and(&output.indices).hash()
    }
}
