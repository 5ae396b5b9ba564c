//! `pairwise_distance` on whatever launches its kernels.

use tercet::Element;
use tercet::internal::{self, Address, Cores, Input, Memory};

use super::launches::TestDevice;
use super::property::{Case, Output};
use super::support::mined::{Batch, Data};

pub fn run_case<T: Element, D: TestDevice>(device: &D, case: &Case, data: &Data<T>) -> Output<T> {
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
