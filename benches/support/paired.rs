//! What the benches of paired losses measure: forward, backward and both against the same computation in tch operations,
//! and into the caller's own slices against a copy of as many bytes.
//!
//! Criterion's report is for reading; the rows for `cargo xtask bench` are measured beside it, ours and the peer's in
//! turn. A row's floor is the time that copying takes for the bytes that any implementation must move: K rows in and, with
//! gradients, K rows out. On the CPU the tch peers are timed twice, the second time with a C library that keeps freed
//! memory.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use tch::{Device, Kind, Tensor};
use tercet::Matrix;

use super::support::{
    Clock, Row, copy, copy_bandwidth, medians, medians_of, peak_bytes, recycling, run_again_recycling, write_rows,
};

const SIZES: [[i64; 2]; 4] = [[256, 128], [4096, 128], [4096, 512], [65536, 128]];

/// A loss of K matrices.
type Loss<'a, const K: usize> = &'a dyn Fn(&[Tensor; K]) -> Tensor;

/// A loss and a peer that computes the same.
pub struct Pair<'a, const K: usize> {
    pub op: &'a str,
    pub ours: Loss<'a, K>,
    pub peer: &'a str,
    pub theirs: Loss<'a, K>,
}

/// Computes the first loss and its gradients on slices.
type OnSlices<'a, const K: usize> = &'a dyn Fn([Matrix<'_, f32>; K], [&mut [f32]; K]) -> f32;

/// What is compared for so many rows. The first pair is measured in all passes, the others in both together.
pub struct Subject<'a, const K: usize> {
    pub pairs: &'a [Pair<'a, K>],
    pub on_slices: OnSlices<'a, K>,
}

pub fn device() -> Device {
    Device::cuda_if_available()
}

fn tensors<const K: usize>(size: [i64; 2]) -> [Tensor; K] {
    [(); K].map(|()| Tensor::randn(size, (Kind::Float, device())).set_requires_grad(true))
}

fn gradients<const K: usize>(loss: &Tensor, inputs: &[Tensor; K]) -> Vec<Tensor> {
    Tensor::run_backward(&[loss], &inputs.each_ref(), false, false)
}

fn tables<const K: usize>(of: impl Fn(i64, &mut dyn FnMut(Subject<'_, K>))) -> Vec<Row> {
    let backend = if device() == Device::Cpu { "cpu through tch" } else { "cuda through tch" };
    let clock = Clock::of(device());
    let bandwidth = copy_bandwidth(device());
    let malloc = if recycling() { ", recycling malloc" } else { "" };
    let mut rows = Vec::new();
    for size in SIZES {
        let x = tensors::<K>(size);
        let bytes = K as f64 * (size[0] * size[1] * 4) as f64;
        let row = |op: &str, pass: &str, peer: &str, (ms, peer_ms): (f64, f64), moved: f64, peak: Option<u64>| Row {
            op: op.into(),
            size: format!("{}x{}", size[0], size[1]),
            dtype: "f32".into(),
            backend: backend.into(),
            pass: pass.into(),
            ms,
            peer: format!("{peer}{malloc}"),
            peer_ms,
            floor_ms: Some(moved * bytes / bandwidth * 1e3),
            peak_bytes: peak,
        };
        of(size[0], &mut |subject| {
            for (i, Pair { op, ours, peer, theirs }) in subject.pairs.iter().enumerate() {
                let step = || gradients(&ours(&x), &x);
                let both = medians(&clock, || drop(black_box(step())), || drop(black_box(gradients(&theirs(&x), &x))));
                let peak = if i == 0 && device() == Device::Cpu { peak_bytes(step) } else { None };
                rows.push(row(op, "both", peer, both, 2.0, peak));
            }
            if recycling() {
                return;
            }

            let Pair { op, ours, peer, theirs } = &subject.pairs[0];
            let forward = medians(
                &clock,
                || drop(tch::no_grad(|| black_box(ours(&x)))),
                || drop(tch::no_grad(|| black_box(theirs(&x)))),
            );
            rows.push(row(op, "forward", peer, forward, 1.0, None));
            // Our forward pass has made the gradients; with an upstream of 1, backward hands them over.
            let timed = |loss: &Tensor| gradients(loss, &x);
            let backward = medians_of(&clock, || ours(&x), timed, || theirs(&x), timed);
            rows.push(row(op, "backward", peer, backward, 1.0, None));

            // Gradients into the caller's own memory, against a copy of as many bytes.
            let host = x.each_ref().map(|t| Vec::<f32>::try_from(t.to_device(Device::Cpu).flatten(0, -1)).unwrap());
            let mut grads = host.each_ref().map(|x| vec![0.0f32; x.len()]);
            let mut copies = host.each_ref().map(|x| vec![0.0f32; x.len()]);
            let slices = medians(
                &Clock::Wall,
                || {
                    let rows = host.each_ref().map(|x| Matrix::new(x, size[1] as usize).unwrap());
                    black_box((subject.on_slices)(rows, grads.each_mut().map(|g| &mut g[..])));
                },
                || copy(&host, &mut copies),
            );
            let row = row(op, "both", "copy of as many bytes", slices, 2.0, None);
            rows.push(Row { backend: "cpu slices".into(), floor_ms: Some(slices.1), ..row });
        });
    }
    rows
}

fn criterion_report<const K: usize>(c: &mut Criterion, of: impl Fn(i64, &mut dyn FnMut(Subject<'_, K>))) {
    for size in SIZES {
        let x = tensors::<K>(size);
        let name = format!("{}x{}", size[0], size[1]);
        of(size[0], &mut |subject| {
            let Pair { op, ours, peer, theirs } = &subject.pairs[0];
            let mut group = c.benchmark_group(*op);
            group.sample_size(10);
            group.bench_function(BenchmarkId::new("tercet", &name), |b| b.iter(|| gradients(&ours(&x), &x)));
            group.bench_function(BenchmarkId::new(*peer, &name), |b| b.iter(|| gradients(&theirs(&x), &x)));
            group.finish();
        });
    }
}

/// The whole program; `of` makes what is compared for so many rows.
pub fn main<const K: usize>(of: impl Fn(i64, &mut dyn FnMut(Subject<'_, K>))) {
    // `cargo test --benches` passes --test: only see that everything runs.
    if std::env::args().any(|a| a == "--test") {
        let x = tensors::<K>([8, 16]);
        return of(8, &mut |subject| {
            for pair in subject.pairs {
                black_box((gradients(&(pair.ours)(&x), &x), gradients(&(pair.theirs)(&x), &x)));
            }
        });
    }
    if recycling() {
        return write_rows(&tables(of));
    }
    let mut criterion = Criterion::default().configure_from_args();
    criterion_report(&mut criterion, &of);
    criterion.final_summary();
    write_rows(&tables(of));
    if device() == Device::Cpu {
        run_again_recycling();
    }
}
