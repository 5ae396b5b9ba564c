//! `pairwise_distance` against the same computation in tch operations: norms and one matrix product, which cancels if
//! rows are near, and against `cdist`.
//!
//! The floor is the matrix product `X Y^T` alone, as libtorch computes it.

#[path = "support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use support::{Clock, Row, medians, peak_bytes, recycling, run_again_recycling, write_rows};
use tch::{Device, Kind, Tensor};
use tercet::{Distance, PairwiseDistance};

const SIZES: [(i64, i64); 3] = [(256, 128), (1024, 128), (4096, 128)];

fn matrices((rows, dim): (i64, i64)) -> [Tensor; 2] {
    [(); 2].map(|()| Tensor::randn([rows, dim], (Kind::Float, Device::cuda_if_available())).set_requires_grad(true))
}

fn in_tch_operations([x, y]: &[Tensor; 2]) -> Tensor {
    let norms = |x: &Tensor| x.square().sum_dim_intlist(1, true, Kind::Float);
    norms(x) + norms(y).tr() - x.matmul(&y.tr()) * 2.0
}

fn cdist([x, y]: &[Tensor; 2]) -> Tensor {
    Tensor::cdist(x, y, 2.0, None)
}

fn ours(distance: Distance) -> impl Fn(&[Tensor; 2]) -> Tensor {
    move |[x, y]| PairwiseDistance { distance, ..Default::default() }.forward(x, y)
}

fn gradient(f: &dyn Fn(&[Tensor; 2]) -> Tensor, sides: &[Tensor; 2]) -> Vec<Tensor> {
    Tensor::run_backward(&[f(sides).sum(Kind::Float)], &[&sides[0], &sides[1]], false, false)
}

fn tables() -> Vec<Row> {
    let device = Device::cuda_if_available();
    let clock = Clock::of(device);
    let malloc = if recycling() { ", recycling malloc" } else { "" };
    let mut rows = Vec::new();
    let squared = ours(Distance::SquaredEuclidean);
    let euclidean = ours(Distance::Euclidean);
    type Op<'a> = &'a dyn Fn(&[Tensor; 2]) -> Tensor;
    let pairs: [(Op<'_>, Op<'_>, &str); 2] =
        [(&squared, &in_tch_operations, "tch operations"), (&euclidean, &cdist, "cdist")];
    for size in SIZES {
        let sides = matrices(size);
        let product = tch::no_grad(|| medians(&clock, || drop(black_box(sides[0].matmul(&sides[1].tr()))), || ()).0);
        for (op, peer, name) in pairs {
            let mut row = |pass: &str, (ms, peer_ms): (f64, f64), peak_bytes: Option<u64>| {
                rows.push(Row {
                    op: "pairwise_distance".into(),
                    size: format!("{0}x{0}x{1}", size.0, size.1),
                    dtype: "f32".into(),
                    backend: if device == Device::Cpu { "cpu through tch" } else { "cuda through tch" }.into(),
                    pass: pass.into(),
                    ms,
                    peer: format!("{name}{malloc}"),
                    peer_ms,
                    floor_ms: Some(product),
                    peak_bytes,
                });
            };
            let both =
                medians(&clock, || drop(black_box(gradient(op, &sides))), || drop(black_box(gradient(peer, &sides))));
            row("both", both, if device == Device::Cpu { peak_bytes(|| gradient(op, &sides)) } else { None });
            if !recycling() {
                let forward = medians(
                    &clock,
                    || drop(tch::no_grad(|| black_box(op(&sides)))),
                    || drop(tch::no_grad(|| black_box(peer(&sides)))),
                );
                row("forward", forward, None);
            }
        }
    }
    rows
}

fn criterion_report(c: &mut Criterion) {
    let squared = ours(Distance::SquaredEuclidean);
    let mut group = c.benchmark_group("pairwise_distance");
    group.sample_size(10);
    for size in SIZES {
        let sides = matrices(size);
        let name = format!("{0}x{0}x{1}", size.0, size.1);
        group.bench_function(BenchmarkId::new("tercet", &name), |b| b.iter(|| gradient(&squared, &sides)));
        group.bench_function(BenchmarkId::new("tch operations", &name), |b| {
            b.iter(|| gradient(&in_tch_operations, &sides));
        });
    }
    group.finish();
}

fn main() {
    // `cargo test --benches` passes --test: only see that both compute the same.
    if std::env::args().any(|a| a == "--test") {
        let sides = matrices((64, 16));
        let (ours, theirs) = (ours(Distance::SquaredEuclidean)(&sides), in_tch_operations(&sides));
        assert!((ours - theirs).abs().max().double_value(&[]) < 1e-3);
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
