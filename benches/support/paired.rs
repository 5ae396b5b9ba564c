//! Contests of paired losses, which have two rows more: backward alone, and into the caller's own slices against a copy of
//! as many bytes.
//!
//! A row's floor is the time that copying takes for the bytes that any implementation must move: K rows in and, with
//! gradients, K rows out.

use std::hint::black_box;

use tch::{Device, Kind, Tensor};
use tercet::Matrix;

use super::contest::{Contest, Pair};
use super::{Clock, Row, copy, copy_bandwidth, device, gradients, medians, medians_of, recycling};

pub const SIZES: [[i64; 2]; 6] = [[32, 128], [256, 128], [4096, 128], [4096, 512], [4096, 1024], [65536, 128]];

/// Losses of K matrices; `on_slices` computes the first of them and its gradients.
pub fn contest<'a, const K: usize>(
    [rows, dim]: [i64; 2],
    pairs: Vec<Pair<'a, K>>,
    on_slices: impl Fn([Matrix<'_, f32>; K], [&mut [f32]; K]) -> f32 + 'a,
) -> Contest<'a, K> {
    Contest {
        size: format!("{rows}x{dim}"),
        inputs: [(); K].map(|()| Tensor::randn([rows, dim], (Kind::Float, device())).set_requires_grad(true)),
        pairs,
        agree: true,
        floors: |clock, x| [1.0, 2.0].map(|times| times * copy_ms(clock, x)),
        more: Box::new(move |contest, clock| {
            if recycling() { Vec::new() } else { vec![backward(contest, clock), slices(contest, &on_slices)] }
        }),
    }
}

/// The time of reading these tensors once, or of writing them, when memory is read and written in turn.
fn copy_ms<const K: usize>(clock: &Clock, x: &[Tensor; K]) -> f64 {
    (K * x[0].numel() * size_of::<f32>()) as f64 / copy_bandwidth(clock) * 1e3
}

/// Our forward pass has made the gradients; with an upstream of 1, backward hands them over.
fn backward<const K: usize>(contest: &Contest<'_, K>, clock: &Clock) -> Row {
    let (x, Pair { op, ours, peer, theirs }) = (&contest.inputs, &contest.pairs[0]);
    let timed = |loss: &Tensor| gradients(loss, x.each_ref());
    let ms = medians_of(clock, || ours(x), timed, || theirs(x), timed);
    Row::new(op, &contest.size, "backward", peer, ms, copy_ms(clock, x))
}

/// Gradients into the caller's own memory, against a copy of as many bytes.
fn slices<const K: usize>(
    contest: &Contest<'_, K>,
    on_slices: &impl Fn([Matrix<'_, f32>; K], [&mut [f32]; K]) -> f32,
) -> Row {
    let x = &contest.inputs;
    let dim = x[0].size()[1] as usize;
    let host = x.each_ref().map(|t| Vec::<f32>::try_from(t.to_device(Device::Cpu).flatten(0, -1)).unwrap());
    let mut grads = host.each_ref().map(|x| vec![0.0f32; x.len()]);
    let mut copies = grads.clone();
    let ms = medians(
        &Clock::Wall,
        || {
            let rows = host.each_ref().map(|x| Matrix::new(x, dim).unwrap());
            black_box(on_slices(rows, grads.each_mut().map(|g| &mut g[..])));
        },
        || copy(&host, &mut copies),
    );
    let row = Row::new(contest.pairs[0].op, &contest.size, "both", "copy of as many bytes", ms, ms.1);
    Row { backend: "cpu slices".into(), ..row }
}
