//! `triplet_margin` against the same computation in tch operations: forward, backward and both, in one run.
//!
//! Criterion's report is for reading; the rows for `cargo xtask bench` are measured beside it, ours and the peer's in
//! turn. A row's floor is the time that copying takes for the bytes that any implementation must move: three rows in
//! and, with gradients, three out. On the CPU the tch peers are timed twice, the second time with a C library that keeps
//! freed memory.

#[path = "support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use support::{
    Clock, Row, copy_bandwidth, medians, medians_of, peak_bytes, recycling, run_again_recycling, write_rows,
};
use tch::{Device, Kind, Tensor};
use tercet::{Matrix, TripletMarginLoss};

const SIZES: [(i64, i64); 4] = [(256, 128), (4096, 128), (4096, 512), (65536, 128)];

fn device() -> Device {
    Device::cuda_if_available()
}

fn tensors(size: (i64, i64)) -> [Tensor; 3] {
    [(); 3].map(|()| Tensor::randn([size.0, size.1], (Kind::Float, device())).set_requires_grad(true))
}

/// The tutorial's formula in tch operations: the peer that computes exactly the same.
fn in_tch_operations([a, p, n]: &[Tensor; 3]) -> Tensor {
    let squared = |x: &Tensor, y: &Tensor| (x - y).square().sum_dim_intlist(1, false, Kind::Float);
    (squared(a, p) - squared(a, n) + 0.2).relu().mean(Kind::Float)
}

/// libtorch's own loss, with its Euclidean distance.
fn of_libtorch([a, p, n]: &[Tensor; 3]) -> Tensor {
    Tensor::triplet_margin_loss(a, p, n, 0.2, 2.0, 1e-6, false, tch::Reduction::Mean)
}

fn gradients(loss: &Tensor, inputs: &[Tensor; 3]) -> Vec<Tensor> {
    Tensor::run_backward(&[loss], &inputs.each_ref(), false, false)
}

fn tables() -> Vec<Row> {
    let backend = if device() == Device::Cpu { "cpu through tch" } else { "cuda through tch" };
    let ours = TripletMarginLoss::default();
    let torch = TripletMarginLoss { margin: 0.2, ..TripletMarginLoss::torch() };
    let clock = Clock::of(device());
    let bandwidth = copy_bandwidth(device());
    let malloc = if recycling() { ", recycling malloc" } else { "" };
    let mut rows = Vec::new();
    for size in SIZES {
        let x = tensors(size);
        let [a, p, n] = &x;
        let bytes = 3.0 * (size.0 * size.1 * 4) as f64;
        let row = |op: &str, pass: &str, peer: &str, (ms, peer_ms): (f64, f64), moved: f64, peak: Option<u64>| Row {
            op: op.into(),
            size: format!("{}x{}", size.0, size.1),
            dtype: "f32".into(),
            backend: backend.into(),
            pass: pass.into(),
            ms,
            peer: format!("{peer}{malloc}"),
            peer_ms,
            floor_ms: Some(moved * bytes / bandwidth * 1e3),
            peak_bytes: peak,
        };
        let step = || gradients(&ours.forward(a, p, n), &x);

        let both =
            medians(&clock, || drop(black_box(step())), || drop(black_box(gradients(&in_tch_operations(&x), &x))));
        let peak = if device() == Device::Cpu { peak_bytes(step) } else { None };
        rows.push(row("triplet_margin", "both", "tch operations", both, 2.0, peak));
        let euclidean = medians(
            &clock,
            || drop(black_box(gradients(&torch.forward(a, p, n), &x))),
            || drop(black_box(gradients(&of_libtorch(&x), &x))),
        );
        rows.push(row("triplet_margin (torch's options)", "both", "triplet_margin_loss", euclidean, 2.0, None));
        if recycling() {
            continue;
        }

        let forward = medians(
            &clock,
            || drop(tch::no_grad(|| black_box(ours.forward(a, p, n)))),
            || drop(tch::no_grad(|| black_box(in_tch_operations(&x)))),
        );
        rows.push(row("triplet_margin", "forward", "tch operations", forward, 1.0, None));
        // Our forward pass has made the gradients; with an upstream of 1, backward hands them over.
        let timed = |loss: &Tensor| gradients(loss, &x);
        let backward = medians_of(&clock, || ours.forward(a, p, n), timed, || in_tch_operations(&x), timed);
        rows.push(row("triplet_margin", "backward", "tch operations", backward, 1.0, None));

        // Into the caller's own memory, against a copy of as many bytes.
        let host = x.each_ref().map(|t| Vec::<f32>::try_from(t.to_device(Device::Cpu).flatten(0, -1)).unwrap());
        let mut grads = host.each_ref().map(|x| vec![0.0f32; x.len()]);
        let mut copies = host.each_ref().map(|x| vec![0.0f32; x.len()]);
        let slices = medians(
            &Clock::Wall,
            || {
                let rows = host.each_ref().map(|x| Matrix::new(x, size.1 as usize).unwrap());
                let grads = grads.each_mut().map(|g| &mut g[..]);
                black_box(ours.loss_and_grad(rows, grads).unwrap());
            },
            || support::copy(&host, &mut copies),
        );
        let row = row("triplet_margin", "both", "copy of as many bytes", slices, 2.0, None);
        rows.push(Row { backend: "cpu slices".into(), floor_ms: Some(slices.1), ..row });
    }
    rows
}

fn criterion_report(c: &mut Criterion) {
    let ours = TripletMarginLoss::default();
    let mut group = c.benchmark_group("triplet_margin");
    group.sample_size(10);
    for size in SIZES {
        let x = tensors(size);
        let [a, p, n] = &x;
        let name = format!("{}x{}", size.0, size.1);
        group.bench_function(BenchmarkId::new("tercet", &name), |b| b.iter(|| gradients(&ours.forward(a, p, n), &x)));
        group.bench_function(BenchmarkId::new("tch operations", &name), |b| {
            b.iter(|| gradients(&in_tch_operations(&x), &x));
        });
    }
    group.finish();
}

fn main() {
    // `cargo test --benches` passes --test: only see that everything runs.
    if std::env::args().any(|a| a == "--test") {
        let x = tensors((8, 16));
        black_box((gradients(&in_tch_operations(&x), &x), gradients(&of_libtorch(&x), &x)));
        return;
    }
    if recycling() {
        write_rows(&tables());
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    criterion_report(&mut criterion);
    criterion.final_summary();
    write_rows(&tables());
    if device() == Device::Cpu {
        run_again_recycling();
    }
}
