//! `batch_all` on whatever launches its kernels.

use tercet::batch_all::cuda::Output as Places;
use tercet::cuda::Memory;
use tercet::cuda::batch::Input;
use tercet::{BatchAllTripletLoss, Element, Stats};

use super::launches::{OnDevice, TestDevice};
use super::property::{Case, Output};
use super::support::mined::Data;

/// The loss, its statistics, and the gradient for each upstream.
pub fn run<T: Element, D: TestDevice>(
    device: &D,
    loss_fn: &BatchAllTripletLoss,
    shape: [usize; 2],
    input: &Input,
    upstreams: &[f64],
) -> (f32, Stats, Vec<Vec<T>>) {
    let launcher = device.launcher();
    let (loss, stats) = (device.poison::<f32>(1), device.poison::<f64>(5));
    let places = Places { loss: loss.address(), stats: stats.address() };
    // SAFETY: buffers of the device, of the shapes that the call expects.
    let swept = unsafe { loss_fn.forward_on::<T, _>(launcher, shape, input, &places, true) };
    let swept = swept.unwrap_or_else(|e| panic!("{e}\n{loss_fn:?} {shape:?}"));
    let grads = upstreams.iter().map(|&upstream| {
        let grad = device.poison::<T>(shape[0] * shape[1]);
        let upstream = device.upload(&[upstream as f32]);
        // SAFETY: as above.
        let done = unsafe { loss_fn.backward_on::<T, _>(launcher, shape, &swept, upstream.address(), grad.address()) };
        done.unwrap_or_else(|e| panic!("{e}\n{loss_fn:?} {shape:?}"));
        device.read::<T>(&grad, shape[0] * shape[1])
    });
    let grads = grads.collect();
    let alone = device.poison::<f32>(1);
    let places = Places { loss: alone.address(), stats: 0 };
    // SAFETY: as above.
    unsafe { loss_fn.forward_on::<T, _>(launcher, shape, input, &places, false) }.unwrap_or_else(|e| panic!("{e}"));
    let [loss, alone] = [loss, alone].map(|x| device.read::<f32>(&x, 1)[0]);
    assert_eq!(loss.to_bits(), alone.to_bits(), "with and without gradient");
    let [valid, active, positives, negatives, _] = device.read::<f64>(&stats, 5)[..] else { unreachable!("five") };
    let stats = Stats {
        valid: valid as u64,
        active: active as u64,
        mean_positive_distance: positives / valid.max(1.0),
        mean_negative_distance: negatives / valid.max(1.0),
    };
    (loss, stats, grads)
}

pub fn run_case<T: Element, D: TestDevice>(device: &D, case: &Case, data: &Data<T>) -> Output<T> {
    let shape = [case.batch.rows, case.batch.dim];
    let batch = OnDevice::new(device, &case.batch, data);
    let (loss, stats, grads) = run::<T, D>(device, &case.loss, shape, &batch.input, &[1.0, data.upstream[0]]);
    let Ok([grad, scaled_grad]) = <[_; 2]>::try_from(grads) else { unreachable!("two upstreams") };
    Output { loss: T::Scalar::from_f64(f64::from(loss)), stats, grad, scaled_grad }
}
