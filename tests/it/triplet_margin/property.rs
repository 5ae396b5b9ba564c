//! `triplet_margin` as the tests of paired losses see it.

use proptest::prelude::*;
#[cfg(feature = "cuda")]
use tercet::Error;
#[cfg(feature = "cuda")]
use tercet::internal::{self, Pass};
use tercet::triplet_margin::oracle;
use tercet::{Element, PairedDistance, Reduction, TripletMarginLoss};

use crate::paired::powers;
use crate::paired::property::{
    self as paired, Bounds, Data, OfRows, Oracle, Output, Paired, RowBounds, distance_scale, is_smooth, slope_scale,
};
use crate::paired::recorded::every_bit_counts;
use crate::support::backends::{Cpu, Number};
#[cfg(feature = "cuda")]
use crate::support::cuda::Cuda;
#[cfg(feature = "cuda")]
use crate::support::devices::TestDevice;
#[cfg(feature = "emulator")]
use crate::support::emulated::Emulated;
use crate::support::poison;
use crate::support::property::property_tests;
#[cfg(feature = "cuda")]
use crate::support::records::unchanged_on_cuda;
use crate::support::records::{finds_what_is_wrong, unchanged};

pub type Case = paired::Case<TripletMarginLoss>;

type Rows = OfRows<TripletMarginLoss, 3>;

property_tests!(Rows, cpu: 1500, emulator: 250, detector: 60);

#[test]
fn cpu_powers_stay_in_range() {
    powers::stay_in_range::<TripletMarginLoss, _, 3>(&Cpu);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_powers_stay_in_range() {
    if let Some(cuda) = Cuda::first("triplet_margin: cuda_powers_stay_in_range") {
        powers::stay_in_range::<TripletMarginLoss, _, 3>(&cuda);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulators_powers_stay_in_range() {
    powers::stay_in_range::<TripletMarginLoss, _, 3>(&Emulated::<false>::default());
}

#[test]
fn cpu_computes_what_it_did() {
    unchanged::<Rows, _>(&Cpu, "cpu");
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_computes_what_it_did() {
    if let Some(cuda) = Cuda::first("triplet_margin: cuda_computes_what_it_did") {
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
    every_bit_counts::<TripletMarginLoss, 3>();
}

impl Paired<3> for TripletMarginLoss {
    const STEM: &'static str = "triplet_margin";

    fn cases() -> BoxedStrategy<Case> {
        let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
        let (distances, contents, reductions) = (paired::distances(), paired::contents(), paired::reductions());
        let options = (distances, contents, reductions, margins, any::<bool>(), any::<bool>());
        let cases = (options, paired::shapes()).prop_map(
            |((distance, content, reduction, margin, normalize, swap), (rows, dim, gap, offset, seed))| Case {
                loss: TripletMarginLoss { margin, distance, normalize, swap, reduction },
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
        let (margin, [normalize, swap]) = ([0.2, 1.0][which], [which == 1; 2]);
        Self { margin, distance, normalize, swap, reduction }
    }

    fn plain(margin: f64, distance: PairedDistance, reduction: Reduction) -> Self {
        Self { margin, distance, normalize: false, swap: false, reduction }
    }
    fn takes_scale<T: Element>(_: f64) -> bool {
        true
    }
    fn loss_size(reach: f64) -> f64 {
        reach
    }

    fn options(&self) -> String {
        let Self { margin, distance, normalize, swap, reduction } = self;
        format!("{distance:?}, normalize {normalize}, swap {swap}, {reduction:?}, margin {margin}")
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

    fn oracle<T: Element>(case: &Case, data: &Data<T, 3>, upstream: &[f64]) -> Oracle<3> {
        let found = oracle::run(&case.loss, data.exact_inputs(case.dim), upstream).unwrap();
        let bounds = (0..case.rows).map(|row| row_bounds(case, data, &found, row)).collect();
        let oracle::Oracle { losses, loss, grads, .. } = found;
        Oracle { losses, loss, grads, bounds }
    }

    fn has_bound<T: Element>(case: &Case, data: &Data<T, 3>) -> bool {
        let Case { loss, .. } = case;
        (0..case.rows).all(|row| {
            let ([a, p, n], _) = paired::unit_rows(case, data, row);
            is_smooth(loss, &a, &p) && is_smooth(loss, &a, &n) && (!loss.swap || is_smooth(loss, &p, &n))
        })
    }

    #[cfg(feature = "cuda")]
    fn each_row(self) -> Self {
        Self { reduction: Reduction::None, ..self }
    }

    fn on_cpu<T: Number>(case: &Case, data: &Data<T, 3>) -> Output<T, 3> {
        let inputs = data.inputs(case);
        let mut losses = poison(case.rows);
        case.loss.losses(inputs, &mut losses).unwrap();
        let size = case.rows * case.dim;
        let mut grads = [poison(size), poison(size), poison(size)];
        let reduced = case.loss.reduction != Reduction::None;
        let loss = reduced.then(|| {
            let forward = case.loss.loss(inputs).unwrap();
            let both = case.loss.loss_and_grad(inputs, grads.each_mut().map(|g| &mut g[..])).unwrap();
            assert!(forward.to_f64().to_bits() == both.to_f64().to_bits(), "with and without gradients");
            both
        });
        let mut scaled_grads = [poison(size), poison(size), poison(size)];
        let to = scaled_grads.each_mut().map(|g| Some(&mut g[..]));
        case.loss.grad(inputs, &data.upstream_scalars(), to).unwrap();
        Output { losses, loss, grads: reduced.then_some(grads), scaled_grads }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<T: Number>(cuda: &Cuda, case: &Case, data: &Data<T, 3>) -> Output<T, 3> {
        use tercet::cuda::CudaMatrix;
        let Case { rows, dim, gap, offset, .. } = *case;
        let stream = cuda.stream();
        let device = data.laid_out.each_ref().map(|x| stream.clone_htod(x).unwrap());
        let inputs =
            || device.each_ref().map(|x| CudaMatrix::strided(x.slice(offset..), rows, dim, dim + gap).unwrap());
        let size = rows * dim;
        let upload = |len| stream.clone_htod(&poison::<T::Scalar>(len)).unwrap();
        let outputs = || [(); 3].map(|()| stream.clone_htod(&poison::<T>(size)).unwrap());

        let each = TripletMarginLoss { reduction: Reduction::None, ..case.loss };
        let mut losses = upload(rows);
        each.loss_and_grad_cuda(stream, inputs(), &mut losses, [None, None, None]).unwrap();
        let mut grads = outputs();
        let reduced = case.loss.reduction != Reduction::None;
        let loss = reduced.then(|| {
            let mut loss = upload(1);
            case.loss.loss_and_grad_cuda(stream, inputs(), &mut loss, grads.each_mut().map(Some)).unwrap();
            stream.clone_dtoh(&loss).unwrap()[0]
        });
        let upstream = stream.clone_htod(&data.upstream_scalars()).unwrap();
        let mut scaled = outputs();
        case.loss.grad_cuda(stream, inputs(), &upstream, scaled.each_mut().map(Some)).unwrap();
        let download = |x: [cudarc::driver::CudaSlice<T>; 3]| x.map(|x| stream.clone_dtoh(&x).unwrap());
        Output {
            losses: stream.clone_dtoh(&losses).unwrap(),
            loss,
            grads: reduced.then(|| download(grads)),
            scaled_grads: download(scaled),
        }
    }

    #[cfg(feature = "cuda")]
    type Ready<M> = ();
    #[cfg(feature = "cuda")]
    fn ready<D: TestDevice>(&self, _: &D, _: usize, _: u64) {}
    #[cfg(feature = "cuda")]
    unsafe fn launch<T: Element, D: TestDevice>(
        &self,
        (): &(),
        device: &D,
        shape: [usize; 2],
        pass: &Pass<3>,
    ) -> Result<(), Error> {
        // SAFETY: the caller keeps the contract.
        unsafe { internal::triplet_margin::<T, _>(self, device.launcher(), shape, pass) }
    }
}

fn row_bounds<T: Element>(case: &Case, data: &Data<T, 3>, oracle: &oracle::Oracle, row: usize) -> RowBounds {
    let bounds = Bounds::new::<T, _, 3>(case);
    let Case { loss, .. } = case;
    let ([a, p, n], norms) = paired::unit_rows(case, data, row);
    let d = |x: &[f64], y: &[f64]| distance_scale(loss.distance, x, y);
    // The oracle does not keep the distances: upper bounds stand in for them.
    let loss_bound = bounds.distance(d(&a, &p) + d(&a, &n) + d(&p, &n) + loss.margin);
    let slopes =
        slope_scale(loss, &a, &p) + slope_scale(loss, &a, &n) + if loss.swap { slope_scale(loss, &p, &n) } else { 0.0 };
    RowBounds {
        loss: loss_bound,
        slope: bounds.sum * paired::through_norms(loss, slopes, norms),
        // Near 0, rounding decides whether a row is active; near equal distances, which pair is the negative.
        decided: oracle.arguments[row].abs() > loss_bound && oracle.swap_gaps[row].abs() > loss_bound,
    }
}
