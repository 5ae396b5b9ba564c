//! Batches for the benches of mined losses, and their tables.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use tch::{Device, Kind, Tensor};

use super::{Clock, Row, medians, peak_bytes, recycling, run_again_recycling, write_rows};

/// The number of rows in a class: each anchor has seven positives.
pub const EACH: i64 = 8;

/// Embeddings and labels on the device that is benched.
pub fn batch((rows, dim): (i64, i64)) -> (Tensor, Tensor) {
    let device = Device::cuda_if_available();
    let x = Tensor::randn([rows, dim], (Kind::Float, device)).set_requires_grad(true);
    (x, Tensor::arange(rows, (Kind::Int64, device)).remainder((rows / EACH).max(1)))
}

pub fn gradient(loss: &Tensor, x: &Tensor) -> Vec<Tensor> {
    Tensor::run_backward(&[loss], &[x], false, false)
}

/// `|x_i - x_j|²` by one matrix product, as one writes it in tensor operations.
#[allow(dead_code, reason = "each bench uses its share")]
pub fn squared_distances(x: &Tensor) -> Tensor {
    let norms = x.square().sum_dim_intlist(1, true, Kind::Float);
    &norms + norms.tr() - x.matmul(&x.tr()) * 2.0
}

/// A loss against the same computation in tch operations.
#[allow(dead_code, reason = "each bench uses its share")]
pub struct Contest<'a> {
    pub op: &'a str,
    pub sizes: &'a [(i64, i64)],
    pub ours: &'a dyn Fn(&Tensor, &Tensor) -> Tensor,
    pub theirs: &'a dyn Fn(&Tensor, &Tensor) -> Tensor,
    /// Whether both give the same number: not if they draw at random.
    pub agree: bool,
}

#[allow(dead_code, reason = "each bench uses its share")]
impl Contest<'_> {
    /// The measurements; their floor is the matrix product `X X^T` alone, as libtorch computes it.
    fn tables(&self) -> Vec<Row> {
        let device = Device::cuda_if_available();
        let clock = Clock::of(device);
        let malloc = if recycling() { ", recycling malloc" } else { "" };
        let mut rows = Vec::new();
        for &size in self.sizes {
            let (x, labels) = batch(size);
            let product = tch::no_grad(|| medians(&clock, || drop(black_box(x.matmul(&x.tr()))), || ()).0);
            let step = || gradient(&(self.ours)(&x, &labels), &x);
            let mut row = |pass: &str, (ms, peer_ms): (f64, f64), peak_bytes: Option<u64>| {
                rows.push(Row {
                    op: self.op.into(),
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
                || drop(black_box(gradient(&(self.theirs)(&x, &labels), &x))),
            );
            row("both", both, if device == Device::Cpu { peak_bytes(step) } else { None });
            if !recycling() {
                let forward = medians(
                    &clock,
                    || drop(tch::no_grad(|| black_box((self.ours)(&x, &labels)))),
                    || drop(tch::no_grad(|| black_box((self.theirs)(&x, &labels)))),
                );
                row("forward", forward, None);
            }
        }
        rows
    }

    fn criterion_report(&self, c: &mut Criterion) {
        let mut group = c.benchmark_group(self.op);
        group.sample_size(10);
        for &size in self.sizes {
            let (x, labels) = batch(size);
            let name = format!("{}x{}", size.0, size.1);
            let of = [("tercet", self.ours), ("tch operations", self.theirs)];
            for (who, loss) in of {
                group.bench_function(BenchmarkId::new(who, &name), |b| b.iter(|| gradient(&loss(&x, &labels), &x)));
            }
        }
        group.finish();
    }

    pub fn run(&self) {
        // `cargo test --benches` passes --test: only see that both compute the same.
        if std::env::args().any(|a| a == "--test") {
            let (x, labels) = batch((64, 16));
            let [ours, theirs] = [self.ours, self.theirs].map(|loss| loss(&x, &labels).double_value(&[]));
            let near = (ours - theirs).abs() < 1e-4 * theirs.abs();
            assert!(if self.agree { near } else { ours > 0.0 && theirs > 0.0 }, "{ours} and {theirs}");
            return;
        }
        if recycling() {
            write_rows(&self.tables());
            return;
        }
        let mut criterion = Criterion::default().configure_from_args();
        self.criterion_report(&mut criterion);
        criterion.final_summary();
        write_rows(&self.tables());
        if Device::cuda_if_available() == Device::Cpu {
            run_again_recycling();
        }
    }
}
