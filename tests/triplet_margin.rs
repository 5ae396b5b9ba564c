//! Property tests of `triplet_margin`: every backend x dtype x distance x option against the f64 oracle, with bounds
//! that follow from the arithmetic. The emulator takes the same cases in emulator/tests/triplet_margin.rs.

#[cfg(feature = "cuda")]
#[path = "support/device.rs"]
mod device;
#[path = "support/paired.rs"]
mod paired;
#[path = "support/paired_powers.rs"]
mod powers;
#[path = "support/triplet_margin_property.rs"]
mod property;
mod support;

use paired::{Backend, Data, poison};
use property::Case;
use tercet::{Element, PairedDistance, Reduction, TripletMarginLoss};

#[cfg(feature = "cuda")]
trait BackendElement: cudarc::driver::DeviceRepr {}
#[cfg(feature = "cuda")]
impl<T: cudarc::driver::DeviceRepr> BackendElement for T {}
#[cfg(not(feature = "cuda"))]
trait BackendElement {}
#[cfg(not(feature = "cuda"))]
impl<T> BackendElement for T {}

type Output<T> = paired::Output<T, 3>;

struct Cpu;

impl Backend<TripletMarginLoss, 3> for Cpu {
    const NAME: &'static str = "cpu";
    fn run<T: Element + BackendElement>(&self, case: &Case, data: &Data<T, 3>) -> Output<T>
    where
        T::Scalar: BackendElement,
    {
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
}

#[cfg(feature = "cuda")]
struct Cuda(std::sync::Arc<cudarc::driver::CudaStream>);

#[cfg(feature = "cuda")]
impl Backend<TripletMarginLoss, 3> for Cuda {
    const NAME: &'static str = "cuda";
    fn run<T: Element + BackendElement>(&self, case: &Case, data: &Data<T, 3>) -> Output<T>
    where
        T::Scalar: BackendElement,
    {
        use tercet::cuda::CudaMatrix;
        let Case { rows, dim, gap, offset, .. } = *case;
        let stream = &self.0;
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
}

#[test]
fn cpu_agrees_with_the_oracle() {
    paired::property(&Cpu, 1500);
}

#[test]
fn cpu_powers_stay_in_range() {
    powers::stay_in_range(&Cpu);
}

#[test]
fn cpu_computes_what_it_did() {
    paired::unchanged(&Cpu, "cpu");
}

#[test]
fn a_change_is_found_in_every_case() {
    paired::finds_what_is_wrong(Cpu, "cpu");
}

#[test]
fn every_bit_of_a_result_counts() {
    paired::every_bit_counts(&Cpu);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_agrees_with_the_oracle() {
    device::agrees_with_the_oracle(Cuda);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_powers_stay_in_range() {
    device::powers_stay_in_range(Cuda);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_computes_what_it_did() {
    device::computes_what_it_did(Cuda);
}

#[test]
fn nan_and_infinity_reach_all_gradients_of_their_row() {
    let distances = [
        PairedDistance::SquaredEuclidean,
        PairedDistance::Euclidean,
        PairedDistance::Cosine,
        PairedDistance::Lp { p: 2.0, eps: 1e-6 },
        PairedDistance::Lp { p: 1.0, eps: 0.0 },
        PairedDistance::Lp { p: 3.0, eps: 1e-6 },
        PairedDistance::Lp { p: f64::INFINITY, eps: 0.0 },
    ];
    for (distance, normalize, swap) in
        distances.into_iter().flat_map(|d| [(d, false, false), (d, false, true), (d, true, false)])
    {
        for (which, bad) in [0, 1, 2].into_iter().flat_map(|k| [f32::NAN, f32::INFINITY].map(|bad| (k, bad))) {
            let loss = TripletMarginLoss { distance, normalize, swap, ..Default::default() };
            // The bad element is in a whole vector register or in the remainder; all other elements are equal, or not.
            for (at, spread) in [(3, 0.0), (36, 0.0), (3, 1.0), (36, 1.0)] {
                let mut x = [1.0f32, 2.0, 3.0].map(|k| (0..2 * 37).map(|i| k * spread * i as f32).collect::<Vec<_>>());
                x[which][37 + at] = bad;
                let rows = x.each_ref().map(|x| tercet::Matrix::new(x, 37).unwrap());
                let mut grads = [vec![0.0; 74], vec![0.0; 74], vec![0.0; 74]];
                let value = loss.loss_and_grad(rows, grads.each_mut().map(|g| &mut g[..])).unwrap();
                assert!(value.is_nan(), "{loss:?}");
                for grad in grads {
                    assert!(grad[..37].iter().all(|g| g.is_finite()), "{loss:?} {which} {bad} {grad:?}");
                    assert!(grad[37..].iter().all(|g| g.is_nan()), "{loss:?} {which} {bad} {grad:?}");
                }
            }
        }
    }
}

/// Differences of (0.3, 0.1) and (0.2, 0.2): to the power of 100 they are below the smallest number of f32, and ten
/// times as large above its largest. With p = 100 a distance is the largest difference, or 2^(1/100) times that if two
/// are equal.
#[test]
fn a_large_power_of_ordinary_numbers() {
    for (scale, expected) in [(0.1f32, 0.598_608_9), (1.0, 1.486_088_9)] {
        let x = [[0.0, 0.0], [3.0 * scale, scale], [2.0 * scale, 2.0 * scale]];
        let rows = x.each_ref().map(|x| tercet::Matrix::new(x, 2).unwrap());
        let distance = PairedDistance::Lp { p: 100.0, eps: 0.0 };
        let loss = TripletMarginLoss { margin: 0.5, distance, ..Default::default() };
        let mut grads = [[f32::NAN; 2]; 3];
        let value = loss.loss_and_grad(rows, grads.each_mut().map(|g| &mut g[..])).unwrap();
        assert!((value - expected).abs() < 2e-6, "{value}");
        let oracle = tercet::triplet_margin::oracle::run(
            &loss,
            x.map(|x| x.map(f64::from)).each_ref().map(|x| tercet::Matrix::new(x, 2).unwrap()),
            &[1.0],
        );
        // Two equal differences share the gradient, 2^(1/100) / 2 each.
        let share = 0.503_477_8;
        let right = [[share - 1.0, share], [1.0, 0.0], [-share, -share]];
        for (grads, what) in [(grads.map(|g| g.map(f64::from)), "f32"), (flat(oracle.unwrap().grads), "the oracle")] {
            for (actual, expected) in grads.iter().flatten().zip(right.iter().flatten()) {
                assert!((actual - expected).abs() < 2e-5, "{what}, scale {scale}: {grads:?}");
            }
        }
    }
}

fn flat(grads: [Vec<f64>; 3]) -> [[f64; 2]; 3] {
    grads.map(|g| [g[0], g[1]])
}
