//! `triplet_margin` against the same computation in tch operations: forward, backward and both, in one run.
//!
//! Criterion's report is for reading; the rows for `cargo xtask bench` are measured beside it, ours and the peer's in
//! turn, so that a machine whose speed drifts is fair to both. A row's floor is the time that copying takes for the bytes
//! that any implementation must move: three rows in and, with gradients, three out.

#[path = "support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use support::{Row, copy_bandwidth, paired_medians, paired_medians_of, write_rows};
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
    let bandwidth = copy_bandwidth(device());
    let mut rows = Vec::new();
    for size in SIZES {
        let x = tensors(size);
        let sync = || {
            if let Device::Cuda(i) = device() {
                tch::Cuda::synchronize(i as i64);
            }
        };
        let bytes = 3.0 * (size.0 * size.1 * 4) as f64;
        let mut row = |op: &str, backend: &str, pass: &str, peer: &str, (ms, peer_ms): (f64, f64), rows_moved: f64| {
            rows.push(Row {
                op: op.into(),
                size: format!("{}x{}", size.0, size.1),
                dtype: "f32".into(),
                backend: backend.into(),
                pass: pass.into(),
                ms,
                peer: peer.into(),
                peer_ms,
                ratio: peer_ms / ms,
                floor_ms: rows_moved * bytes / bandwidth * 1e3,
                peak_bytes: (rows_moved * bytes) as u64,
            });
        };
        let [a, p, n] = &x;

        let forward = paired_medians(
            || {
                drop(tch::no_grad(|| black_box(ours.forward(a, p, n))));
                sync();
            },
            || {
                drop(tch::no_grad(|| black_box(in_tch_operations(&x))));
                sync();
            },
        );
        row("triplet_margin", backend, "forward", "tch operations", forward, 1.0);
        let both = paired_medians(
            || {
                black_box(gradients(&ours.forward(a, p, n), &x));
                sync();
            },
            || {
                black_box(gradients(&in_tch_operations(&x), &x));
                sync();
            },
        );
        row("triplet_margin", backend, "both", "tch operations", both, 2.0);
        // Our forward pass has made the gradients; with an upstream of 1, backward hands them over.
        let timed = |loss: &Tensor| {
            let grads = gradients(loss, &x);
            sync();
            grads
        };
        let backward = paired_medians_of(|| ours.forward(a, p, n), timed, || in_tch_operations(&x), timed);
        row("triplet_margin", backend, "backward", "tch operations", backward, 1.0);
        let euclidean = paired_medians(
            || {
                black_box(gradients(&torch.forward(a, p, n), &x));
                sync();
            },
            || {
                black_box(gradients(&of_libtorch(&x), &x));
                sync();
            },
        );
        row("triplet_margin (torch's options)", backend, "both", "triplet_margin_loss", euclidean, 2.0);

        // Into the caller's own memory, against a copy of as many bytes.
        let host = x.each_ref().map(|t| Vec::<f32>::try_from(t.to_device(Device::Cpu).flatten(0, -1)).unwrap());
        let dim = size.1 as usize;
        let mut grads = host.each_ref().map(|x| vec![0.0f32; x.len()]);
        let mut copies = host.each_ref().map(|x| vec![0.0f32; x.len()]);
        let slices = paired_medians(
            || {
                let rows = host.each_ref().map(|x| Matrix::new(x, dim).unwrap());
                let grads = grads.each_mut().map(|g| &mut g[..]);
                black_box(ours.loss_and_grad(rows, grads).unwrap());
            },
            || support::copy(&host, &mut copies),
        );
        row("triplet_margin", "cpu slices", "both", "copy of as many bytes", slices, 2.0);
        rows.last_mut().expect("just pushed").floor_ms = slices.1;
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
    let mut criterion = Criterion::default().configure_from_args();
    // `cargo test --benches` passes --test: only see that everything runs.
    if std::env::args().any(|a| a == "--test") {
        let x = tensors((8, 16));
        black_box((gradients(&in_tch_operations(&x), &x), gradients(&of_libtorch(&x), &x)));
        return;
    }
    criterion_report(&mut criterion);
    criterion.final_summary();
    write_rows(&tables());
}
