//! `batch_all` against the best formulation in tch operations: squared distances by one matrix product, and the terms of
//! every anchor-positive pair with every row, masked.
//!
//! The floor is the matrix product `X X^T` alone, as libtorch computes it.

#[path = "support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use support::mined::{batch, gradient};
use support::{Clock, Row, medians, peak_bytes, recycling, run_again_recycling, write_rows};
use tch::{Device, Kind, Tensor};
use tercet::BatchAllTripletLoss;

const SIZES: [(i64, i64); 3] = [(256, 128), (1024, 128), (4096, 128)];

/// The mean over the active triplets, with squared distances and margin 0.2. The pairs are given: a loader knows them.
fn in_tch_operations(x: &Tensor, labels: &Tensor, pairs: &(Tensor, Tensor)) -> Tensor {
    let norms = x.square().sum_dim_intlist(1, true, Kind::Float);
    let d = &norms + norms.tr() - x.matmul(&x.tr()) * 2.0;
    let (a, p) = pairs;
    let same = labels.unsqueeze(0).eq_tensor(&labels.index_select(0, a).unsqueeze(1));
    let positive = d.index(&[Some(a), Some(p)]).unsqueeze(1);
    let terms = (positive - d.index_select(0, a) + 0.2).masked_fill(&same, 0.0).relu();
    let active = terms.greater(0.0).sum(Kind::Float).clamp_min(1.0);
    terms.sum(Kind::Float) / active
}

/// The pairs of every anchor with each of its positives.
fn pairs(labels: &Tensor) -> (Tensor, Tensor) {
    let mut same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let found = same.fill_diagonal_(0.0, false).nonzero();
    (found.select(1, 0), found.select(1, 1))
}

fn tables() -> Vec<Row> {
    let device = Device::cuda_if_available();
    let clock = Clock::of(device);
    let ours = BatchAllTripletLoss::default();
    let malloc = if recycling() { ", recycling malloc" } else { "" };
    let mut rows = Vec::new();
    for size in SIZES {
        let (x, labels) = batch(size);
        let pairs = pairs(&labels);
        let product = tch::no_grad(|| medians(&clock, || drop(black_box(x.matmul(&x.tr()))), || ()).0);
        let step = || gradient(&ours.forward(&x, &labels), &x);
        let mut row = |pass: &str, (ms, peer_ms): (f64, f64), peak_bytes: Option<u64>| {
            rows.push(Row {
                op: "batch_all".into(),
                size: format!("{}x{}", size.0, size.1),
                dtype: "f32".into(),
                backend: if device == Device::Cpu { "cpu through tch" } else { "cuda through tch" }.into(),
                pass: pass.into(),
                ms,
                peer: format!("tch operations{malloc}"),
                peer_ms,
                floor_ms: Some(product),
                peak_bytes,
            });
        };
        let both = medians(
            &clock,
            || drop(black_box(step())),
            || drop(black_box(gradient(&in_tch_operations(&x, &labels, &pairs), &x))),
        );
        row("both", both, if device == Device::Cpu { peak_bytes(step) } else { None });
        if !recycling() {
            let forward = medians(
                &clock,
                || drop(tch::no_grad(|| black_box(ours.forward(&x, &labels)))),
                || drop(tch::no_grad(|| black_box(in_tch_operations(&x, &labels, &pairs)))),
            );
            row("forward", forward, None);
        }
    }
    rows
}

fn criterion_report(c: &mut Criterion) {
    let ours = BatchAllTripletLoss::default();
    let mut group = c.benchmark_group("batch_all");
    group.sample_size(10);
    for size in &SIZES[..2] {
        let (x, labels) = batch(*size);
        let pairs = pairs(&labels);
        let name = format!("{}x{}", size.0, size.1);
        group
            .bench_function(BenchmarkId::new("tercet", &name), |b| b.iter(|| gradient(&ours.forward(&x, &labels), &x)));
        group.bench_function(BenchmarkId::new("tch operations", &name), |b| {
            b.iter(|| gradient(&in_tch_operations(&x, &labels, &pairs), &x));
        });
    }
    group.finish();
}

fn main() {
    // `cargo test --benches` passes --test: only see that both compute the same.
    if std::env::args().any(|a| a == "--test") {
        let (x, labels) = batch((64, 16));
        let (ours, theirs) =
            (BatchAllTripletLoss::default().forward(&x, &labels), in_tch_operations(&x, &labels, &pairs(&labels)));
        assert!((ours.double_value(&[]) - theirs.double_value(&[])).abs() < 1e-4 * theirs.double_value(&[]).abs());
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
    if Device::cuda_if_available() == Device::Cpu {
        run_again_recycling();
    }
}
