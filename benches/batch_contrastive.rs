//! `batch_contrastive` against the best formulation in tch operations: distances by one matrix product, and both terms masked.
//!
//! The floor is the matrix product `X X^T` alone, as libtorch computes it.

#[path = "support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use support::mined::{batch, gradient};
use support::{Clock, Row, medians, peak_bytes, recycling, run_again_recycling, write_rows};
use tch::{Device, Kind, Tensor};
use tercet::BatchContrastiveLoss;

const SIZES: [(i64, i64); 3] = [(256, 128), (1024, 128), (4096, 128)];

/// About half of the pairs of rows of 128 standard normal numbers are nearer than this.
const MARGIN: f64 = 16.0;

fn ours() -> BatchContrastiveLoss {
    BatchContrastiveLoss { margin: MARGIN, ..Default::default() }
}

/// The mean over all pairs, with Euclidean distances. A floor below the root keeps the gradient finite.
fn in_tch_operations(x: &Tensor, labels: &Tensor) -> Tensor {
    let norms = x.square().sum_dim_intlist(1, true, Kind::Float);
    let squared = &norms + norms.tr() - x.matmul(&x.tr()) * 2.0;
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let own = Tensor::eye(x.size()[0], (Kind::Bool, x.device()));
    let positives = squared.masked_fill(&same.logical_xor(&own).logical_not(), 0.0);
    let negatives = (MARGIN - squared.clamp_min(1e-12).sqrt()).relu().square().masked_fill(&same, 0.0);
    let pairs = x.size()[0] * (x.size()[0] - 1);
    (positives + negatives).sum(Kind::Float) / (2 * pairs) as f64
}

fn tables() -> Vec<Row> {
    let device = Device::cuda_if_available();
    let clock = Clock::of(device);
    let ours = ours();
    let malloc = if recycling() { ", recycling malloc" } else { "" };
    let mut rows = Vec::new();
    for size in SIZES {
        let (x, labels) = batch(size);
        let product = tch::no_grad(|| medians(&clock, || drop(black_box(x.matmul(&x.tr()))), || ()).0);
        let step = || gradient(&ours.forward(&x, &labels), &x);
        let mut row = |pass: &str, (ms, peer_ms): (f64, f64), peak_bytes: Option<u64>| {
            rows.push(Row {
                op: "batch_contrastive".into(),
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
            || drop(black_box(gradient(&in_tch_operations(&x, &labels), &x))),
        );
        row("both", both, if device == Device::Cpu { peak_bytes(step) } else { None });
        if !recycling() {
            let forward = medians(
                &clock,
                || drop(tch::no_grad(|| black_box(ours.forward(&x, &labels)))),
                || drop(tch::no_grad(|| black_box(in_tch_operations(&x, &labels)))),
            );
            row("forward", forward, None);
        }
    }
    rows
}

fn criterion_report(c: &mut Criterion) {
    let ours = ours();
    let mut group = c.benchmark_group("batch_contrastive");
    group.sample_size(10);
    for size in SIZES {
        let (x, labels) = batch(size);
        let name = format!("{}x{}", size.0, size.1);
        group
            .bench_function(BenchmarkId::new("tercet", &name), |b| b.iter(|| gradient(&ours.forward(&x, &labels), &x)));
        group.bench_function(BenchmarkId::new("tch operations", &name), |b| {
            b.iter(|| gradient(&in_tch_operations(&x, &labels), &x));
        });
    }
    group.finish();
}

fn main() {
    // `cargo test --benches` passes --test: only see that both compute the same.
    if std::env::args().any(|a| a == "--test") {
        let (x, labels) = batch((64, 16));
        let (ours, theirs) = (ours().forward(&x, &labels), in_tch_operations(&x, &labels));
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
