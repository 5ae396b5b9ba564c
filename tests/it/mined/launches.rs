//! Mined losses on whatever launches their kernels, through the crate's own launches.

use std::fmt::Debug;

use tercet::internal::{
    self, Address, Input, Inputs, Launcher, Memory, OnDevice as Mined, Output, ReferenceInput, STATS_WRITTEN,
};
use tercet::{Element, Own, Stats};

use super::batch::{self, Batch, Data};
use crate::support::devices::{MemoryOf, TestDevice};

/// A batch in a device's memory, and a reference set if the case has one.
pub struct OnDevice<M> {
    pub inputs: Inputs,
    /// The rows of the batch and of the reference set; 0 if there is none.
    pub rows: [usize; 2],
    pub dim: usize,
    _memory: Vec<M>,
}

impl<M: Memory> OnDevice<M> {
    pub fn new<T: Element, D: TestDevice<Launcher: Launcher<Memory = M>>>(
        device: &D,
        batch: &Batch,
        data: &Data<T>,
    ) -> Self {
        let mut memory = Vec::new();
        let mut input = |batch: &Batch, laid_out: &[T], labels: &[i64]| {
            let (x, labels) = (device.upload(laid_out), device.upload(labels));
            let input = Input {
                x: x.address() + (batch.offset * size_of::<T>()) as Address,
                stride: batch.dim + batch.gap,
                labels: labels.address(),
            };
            memory.extend([x, labels]);
            input
        };
        let anchors = input(batch, &data.laid_out, &data.labels);
        let reference = data.reference.as_ref().map(|other| {
            let rows = input(&other.batch, &other.laid_out, &other.labels);
            (rows, other.batch.rows, &other.own)
        });
        let reference = reference.map(|(rows, count, own)| {
            let own = match own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(*offset),
                Own::Rows(rows) => {
                    memory.push(device.upload(rows));
                    Own::Rows(memory[memory.len() - 1].address())
                }
            };
            ReferenceInput { rows, count, own }
        });
        let rows = [batch.rows, reference.map_or(0, |reference| reference.count)];
        Self { inputs: Inputs { anchors, reference, step: 0 }, rows, dim: batch.dim, _memory: memory }
    }

    /// A batch of contiguous rows that is its own reference set.
    #[cfg(feature = "emulator")]
    pub fn itself<T: Element, D: TestDevice<Launcher: Launcher<Memory = M>>>(
        device: &D,
        x: &[T],
        dim: usize,
        labels: &[i64],
    ) -> Self {
        let rows = [labels.len(), 0];
        let (x, labels) = (device.upload(x), device.upload(labels));
        let anchors = Input { x: x.address(), stride: dim, labels: labels.address() };
        Self { inputs: Inputs::itself(anchors), rows, dim, _memory: vec![x, labels] }
    }
}

/// What a mined loss returned on a device.
pub struct Mining<T> {
    pub losses: Vec<f32>,
    /// The reduced loss; NaN for `Reduction::None`.
    pub loss: f32,
    pub stats: Stats,
    pub chosen: [Vec<u32>; 2],
    /// The gradients for each upstream, with respect to the anchors and to the reference set.
    pub grads: Vec<[Vec<T>; 2]>,
}

/// Runs forward, and backward for each of `upstreams`: one number, or one per anchor. `chosen`: how many numbers the
/// loss writes of its selection.
pub fn mine<T: Element, D: TestDevice, L: Mined + Debug>(
    device: &D,
    loss_fn: &L,
    batch: &OnDevice<MemoryOf<D>>,
    chosen: usize,
    upstreams: &[&[f64]],
) -> Mining<T> {
    let launcher = device.launcher();
    let shape @ [rows, dim] = [batch.rows[0], batch.dim];
    let (losses, loss, stats) =
        (device.poison::<f32>(rows), device.poison::<f32>(1), device.poison::<f64>(STATS_WRITTEN));
    let choices = [(); 2].map(|()| device.poison::<u32>(chosen.max(1)));
    let with_grad = [true, batch.inputs.reference.is_some()];
    let output = Output {
        losses: losses.address(),
        loss: loss.address(),
        stats: stats.address(),
        chosen: choices.each_ref().map(|choice| if chosen > 0 { choice.address() } else { 0 }),
    };
    // SAFETY: buffers of the device, of the shapes that the call expects.
    let kept =
        unsafe { internal::mined_forward::<_, T, _>(loss_fn, launcher, shape, &batch.inputs, &output, with_grad) };
    let kept = kept.unwrap_or_else(|e| panic!("{e}\n{loss_fn:?} {shape:?}"));
    let backward = |upstream: &[f64]| {
        let grads = batch.rows.map(|rows| device.poison::<T>(rows * dim));
        let upstream = device.upload(&upstream.iter().map(|&u| u as f32).collect::<Vec<_>>());
        let to = [grads[0].address(), if with_grad[1] { grads[1].address() } else { 0 }];
        let from = upstream.address();
        // SAFETY: buffers of the device, of the shapes that the call expects.
        let done =
            unsafe { internal::mined_backward::<_, T, _>(loss_fn, launcher, shape, &kept, &batch.inputs, from, to) };
        done.unwrap_or_else(|e| panic!("{e}\n{loss_fn:?} {shape:?}"));
        [0, 1].map(|side| device.read::<T>(&grads[side], batch.rows[side] * dim))
    };
    let grads = upstreams.iter().map(|upstream| backward(upstream)).collect();
    // Without gradients the loss is the same.
    let alone = device.poison::<f32>(1);
    let output = Output { loss: alone.address(), ..Output::default() };
    // SAFETY: buffers of the device, of the shapes that the call expects.
    unsafe { internal::mined_forward::<_, T, _>(loss_fn, launcher, shape, &batch.inputs, &output, [false; 2]) }
        .unwrap_or_else(|e| panic!("{e}"));
    let [loss, alone] = [loss, alone].map(|x| device.read::<f32>(&x, 1)[0]);
    assert_eq!(loss.to_bits(), alone.to_bits(), "with and without gradient");
    let [valid, active, positives, negatives, _, too_many] = device.read::<f64>(&stats, STATS_WRITTEN)[..] else {
        unreachable!("six")
    };
    let [valid, active, too_many] = [valid, active, too_many].map(f64::to_bits);
    assert!(too_many <= 1, "{too_many}");
    Mining {
        losses: device.read(&losses, rows),
        loss,
        stats: batch::stats([valid, active], [positives, negatives], too_many == 1),
        chosen: choices.map(|choice| device.read(&choice, chosen)),
        grads,
    }
}
