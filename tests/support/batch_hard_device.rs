//! `batch_hard` on whatever launches its kernels.

use tercet::batch_hard::cuda::Output as Places;
use tercet::cuda::Memory;
use tercet::{Element, Reduction, Stats};

use super::launches::{OnDevice, TestDevice};
use super::property::{Case, Output};
use super::support::mined::Data;

pub fn run_case<T: Element, D: TestDevice>(device: &D, case: &Case, data: &Data<T>) -> Output<T> {
    let shape @ [rows, dim] = [case.batch.rows, case.batch.dim];
    let launcher = device.launcher();
    let batch = OnDevice::new(device, &case.batch, data);
    let (losses, loss, stats) = (device.poison::<f32>(rows), device.poison::<f32>(1), device.poison::<f64>(5));
    let (positive, negative) = (device.poison::<u32>(rows), device.poison::<u32>(rows));
    let per_row = case.loss.reduction == Reduction::None;
    let places = Places {
        losses: losses.address(),
        loss: if per_row { 0 } else { loss.address() },
        positive: positive.address(),
        negative: negative.address(),
        stats: stats.address(),
    };
    // SAFETY: buffers of the device, of the shapes that the call expects.
    let mined = unsafe { case.loss.forward_on::<T, _>(launcher, shape, &batch.input, &places) };
    let mined = mined.unwrap_or_else(|e| panic!("{e}\n{case:?}"));
    let backward = |upstream: &[f64]| {
        let grad = device.poison::<T>(rows * dim);
        let upstream = device.upload(&upstream.iter().map(|&u| u as f32).collect::<Vec<_>>());
        let (from, to) = (upstream.address(), grad.address());
        // SAFETY: as above.
        let done = unsafe { case.loss.backward_on::<T, _>(launcher, shape, &mined, &batch.input, from, to) };
        done.unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        device.read::<T>(&grad, rows * dim)
    };
    let scaled_grad = backward(&data.upstream);
    let reduced = (!per_row).then(|| (device.read::<T::Scalar>(&loss, 1)[0], backward(&[1.0])));
    let [valid, active, positives, negatives, _] = device.read::<f64>(&stats, 5)[..] else { unreachable!("five") };
    Output {
        positive: device.read(&positive, rows),
        negative: device.read(&negative, rows),
        losses: device.read(&losses, rows),
        stats: Stats {
            valid: valid as u64,
            active: active as u64,
            mean_positive_distance: positives / valid.max(1.0),
            mean_negative_distance: negatives / valid.max(1.0),
        },
        reduced,
        scaled_grad,
    }
}
