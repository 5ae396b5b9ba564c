//! `contrastive` as the tests of paired losses see it.

#[cfg(feature = "cuda")]
use bytemuck::Pod;
#[cfg(feature = "cuda")]
use half::{bf16, f16};
use proptest::prelude::*;
#[cfg(feature = "cuda")]
use tercet::Error;
use tercet::contrastive::oracle;
#[cfg(feature = "cuda")]
use tercet::internal::Memory;
#[cfg(feature = "cuda")]
use tercet::internal::{self, Pass, Same};
use tercet::{ContrastiveLoss, Element, PairedDistance, Reduction};

use crate::paired::powers;
use crate::paired::property::{
    self as paired, Bounds, Data, OfRows, Oracle, Output, Paired, RowBounds, distance_scale, is_smooth, slope_scale,
};
use crate::paired::recorded::every_bit_counts;
use crate::support::backends::{Cpu, Number};
#[cfg(feature = "cuda")]
use crate::support::cuda::Cuda;
#[cfg(feature = "cuda")]
use crate::support::devices::{MemoryOf, TestDevice};
#[cfg(feature = "emulator")]
use crate::support::emulated::Emulated;
use crate::support::property::property_tests;
#[cfg(feature = "cuda")]
use crate::support::records::unchanged_on_cuda;
use crate::support::records::{finds_what_is_wrong, unchanged};
use crate::support::{Numbers, poison};

pub type Case = paired::Case<ContrastiveLoss>;

type Rows = OfRows<ContrastiveLoss, 2>;

property_tests!(Rows, cpu: 1500, emulator: 250, detector: 60);

#[test]
fn cpu_powers_stay_in_range() {
    powers::stay_in_range::<ContrastiveLoss, _, 2>(&Cpu);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_powers_stay_in_range() {
    if let Some(cuda) = Cuda::first("contrastive: cuda_powers_stay_in_range") {
        powers::stay_in_range::<ContrastiveLoss, _, 2>(&cuda);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulators_powers_stay_in_range() {
    powers::stay_in_range::<ContrastiveLoss, _, 2>(&Emulated::<false>::default());
}

#[test]
fn cpu_computes_what_it_did() {
    unchanged::<Rows, _>(&Cpu, "cpu");
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_computes_what_it_did() {
    if let Some(cuda) = Cuda::first("contrastive: cuda_computes_what_it_did") {
        unchanged_on_cuda::<Rows>(&cuda);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_computes_what_it_did() {
    unchanged::<Rows, _>(&Emulated::<false>::default(), "emulator");
}

#[test]
fn a_change_is_found_in_every_case() {
    finds_what_is_wrong::<Rows>(Some(4 * 14)); // 14 a dtype
}

#[test]
fn every_bit_of_a_result_counts() {
    every_bit_counts::<ContrastiveLoss, 2>();
}

/// Which pairs are positive, about half of them: it follows from the seed.
pub fn same(seed: u64, rows: usize) -> Vec<bool> {
    let mut numbers = Numbers(!seed);
    (0..rows).map(|_| numbers.below(2) == 0).collect()
}

/// Which pairs are positive, in a device's memory as one of the types that they may have.
#[cfg(feature = "cuda")]
pub fn upload<D: TestDevice>(device: &D, same: &[f64], kind: u64) -> (MemoryOf<D>, Same) {
    fn floats<T: Element, D: TestDevice>(device: &D, same: &[f64]) -> (MemoryOf<D>, Same) {
        let memory = device.upload(&same.iter().map(|x| T::from_f64(*x)).collect::<Vec<_>>());
        let same = Same::floats::<T>(memory.address());
        (memory, same)
    }
    fn integers<T: Pod, D: TestDevice>(device: &D, same: &[f64], of: fn(f64) -> T) -> (MemoryOf<D>, Same) {
        let memory = device.upload(&same.iter().map(|x| of(*x)).collect::<Vec<_>>());
        let same = Same::integers(memory.address(), size_of::<T>() as u32);
        (memory, same)
    }
    match kind % 8 {
        0 => integers(device, same, |x| x as i8),
        1 => integers(device, same, |x| x as i16),
        2 => integers(device, same, |x| x as i32),
        3 => integers(device, same, |x| x as i64),
        4 => floats::<f16, D>(device, same),
        5 => floats::<bf16, D>(device, same),
        6 => floats::<f32, D>(device, same),
        _ => floats::<f64, D>(device, same),
    }
}

impl Paired<2> for ContrastiveLoss {
    const STEM: &'static str = "contrastive";

    fn cases() -> BoxedStrategy<Case> {
        let margins = proptest::sample::select(vec![0.0, 0.5, 1.0, 3.0, 1e4]);
        let (distances, contents, reductions) = (paired::distances(), paired::contents(), paired::reductions());
        let options = (distances, contents, reductions, margins, any::<bool>());
        let cases = (options, paired::shapes()).prop_map(
            |((distance, content, reduction, margin, normalize), (rows, dim, gap, offset, seed))| Case {
                loss: ContrastiveLoss { margin, distance, normalize, reduction },
                rows,
                dim,
                gap,
                offset,
                content,
                seed,
            },
        );
        cases.boxed()
    }

    fn recorded(which: usize, distance: PairedDistance, reduction: Reduction) -> Self {
        // Above most distances between such rows, and near those of normalised rows.
        Self { margin: [8.0, 1.5][which], distance, normalize: which == 1, reduction }
    }

    fn plain(margin: f64, distance: PairedDistance, reduction: Reduction) -> Self {
        Self { margin, distance, normalize: false, reduction }
    }
    fn takes_scale<T: Element>(scale: f64) -> bool {
        if T::Scalar::NAME == "f64" { (1e-100..1e100).contains(&scale) } else { (1e-12..1e12).contains(&scale) }
    }
    fn loss_size(reach: f64) -> f64 {
        reach * reach / 2.0
    }

    fn options(&self) -> String {
        let Self { margin, distance, normalize, reduction } = self;
        format!("{distance:?}, normalize {normalize}, {reduction:?}, margin {margin}")
    }

    fn distance(&self) -> PairedDistance {
        self.distance
    }
    fn normalize(&self) -> bool {
        self.normalize
    }
    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn oracle<T: Element>(case: &Case, data: &Data<T, 2>, upstream: &[f64]) -> Oracle<2> {
        let same = same(case.seed, case.rows);
        let found = oracle::run(&case.loss, data.exact_inputs(case.dim), &same, upstream).unwrap();
        let bounds = (0..case.rows).map(|row| row_bounds(case, data, same[row], found.distances[row], row)).collect();
        let oracle::Oracle { losses, loss, grads, .. } = found;
        Oracle { losses, loss, grads, bounds }
    }

    fn has_bound<T: Element>(case: &Case, data: &Data<T, 2>) -> bool {
        let root = matches!(case.loss.distance, PairedDistance::Euclidean | PairedDistance::Lp { p: 2.0, .. });
        same(case.seed, case.rows).into_iter().enumerate().all(|(row, same)| {
            let ([x, y], _) = paired::unit_rows(case, data, row);
            // The square of a Euclidean distance has no jump.
            same && root || is_smooth(&case.loss, &x, &y)
        })
    }

    #[cfg(feature = "cuda")]
    fn each_row(self) -> Self {
        Self { reduction: Reduction::None, ..self }
    }

    fn on_cpu<T: Number>(case: &Case, data: &Data<T, 2>) -> Output<T, 2> {
        let (inputs, same) = (data.inputs(case), same(case.seed, case.rows));
        let mut losses = poison(case.rows);
        case.loss.losses(inputs, &same, &mut losses).unwrap();
        let size = case.rows * case.dim;
        let mut grads = [poison(size), poison(size)];
        let reduced = case.loss.reduction != Reduction::None;
        let loss = reduced.then(|| {
            let forward = case.loss.loss(inputs, &same).unwrap();
            let both = case.loss.loss_and_grad(inputs, &same, grads.each_mut().map(|g| &mut g[..])).unwrap();
            assert!(forward.to_f64().to_bits() == both.to_f64().to_bits(), "with and without gradients");
            both
        });
        let mut scaled_grads = [poison(size), poison(size)];
        let to = scaled_grads.each_mut().map(|g| Some(&mut g[..]));
        case.loss.grad(inputs, &same, &data.upstream_scalars(), to).unwrap();
        Output { losses, loss, grads: reduced.then_some(grads), scaled_grads }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<T: Number>(cuda: &Cuda, case: &Case, data: &Data<T, 2>) -> Output<T, 2> {
        use cudarc::driver::CudaSlice;
        use tercet::cuda::CudaMatrix;
        let Case { loss, rows, dim, gap, offset, .. } = *case;
        let stream = cuda.stream();
        let on_device = |x: &[T]| stream.clone_htod(x).unwrap();
        let [x1, x2] = data.laid_out.each_ref().map(|x| on_device(x));
        let same = stream.clone_htod(&same(case.seed, rows)).unwrap();
        let view = |x| CudaMatrix::strided(x, rows, dim, dim + gap).unwrap();
        let inputs = || [view(x1.slice(offset..)), view(x2.slice(offset..))];
        let outputs = || [(); 2].map(|()| on_device(&poison(rows * dim)));
        let read = |x: &CudaSlice<T::Scalar>| stream.clone_dtoh(x).unwrap();
        let read_both = |x: [CudaSlice<T>; 2]| x.map(|x| stream.clone_dtoh(&x).unwrap());

        let mut losses = stream.clone_htod(&poison(rows)).unwrap();
        let each_row = ContrastiveLoss { reduction: Reduction::None, ..loss };
        each_row.loss_and_grad_cuda(stream, inputs(), &same, &mut losses, [None, None]).unwrap();
        let reduced = (loss.reduction != Reduction::None).then(|| {
            let (mut value, mut grads) = (stream.clone_htod(&poison(1)).unwrap(), outputs());
            let to = grads.each_mut().map(Some);
            loss.loss_and_grad_cuda(stream, inputs(), &same, &mut value, to).unwrap();
            (read(&value)[0], read_both(grads))
        });
        let (upstream, mut scaled) = (stream.clone_htod(&data.upstream_scalars()).unwrap(), outputs());
        loss.grad_cuda(stream, inputs(), &same, &upstream, scaled.each_mut().map(Some)).unwrap();
        let (loss, grads) = reduced.unzip();
        Output { losses: read(&losses), loss, grads, scaled_grads: read_both(scaled) }
    }

    /// Which pairs are positive, as one of the types that they may have.
    #[cfg(feature = "cuda")]
    type Ready<M> = (M, Same);
    #[cfg(feature = "cuda")]
    fn ready<D: TestDevice>(&self, device: &D, rows: usize, seed: u64) -> (MemoryOf<D>, Same) {
        let numbers: Vec<f64> = same(seed, rows).into_iter().map(|same| f64::from(u8::from(same))).collect();
        upload(device, &numbers, seed / 4)
    }
    #[cfg(feature = "cuda")]
    unsafe fn launch<T: Element, D: TestDevice>(
        &self,
        ready: &(MemoryOf<D>, Same),
        device: &D,
        shape: [usize; 2],
        pass: &Pass<2>,
    ) -> Result<(), Error> {
        // SAFETY: the caller keeps the contract, and `same` has one number per row.
        unsafe { internal::contrastive::<T, _>(self, device.launcher(), shape, pass, ready.1) }
    }
}

fn row_bounds<T: Element>(case: &Case, data: &Data<T, 2>, same: bool, d: f64, row: usize) -> RowBounds {
    let bounds = Bounds::new::<T, _, 2>(case);
    let Case { loss, .. } = case;
    let ([x, y], norms) = paired::unit_rows(case, data, row);
    let scale = distance_scale(loss.distance, &x, &y);
    // The loss is force² / 2; its derivative by d is the force, up to the sign.
    let (force, error) = match same {
        true => (d, bounds.distance(scale)),
        false => ((loss.margin - d).max(0.0), bounds.distance(scale + loss.margin)),
    };
    let slope = slope_scale(loss, &x, &y);
    RowBounds {
        loss: error * (force + error / 2.0) + bounds.sum * force * force / 2.0,
        slope: paired::through_norms(loss, slope * (error + bounds.sum * (force + error)), norms),
        // The gradients are continuous where a pair is just far enough apart.
        decided: true,
    }
}
