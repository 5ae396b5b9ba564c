//! A computation against peers that compute the same: that both agree, criterion's report, and the rows of
//! `target/bench.json`.
//!
//! The report is for reading; the rows are measured beside it, ours and the peer's in turn. On the CPU the peers are timed
//! twice, the second time with a C library that keeps freed memory.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use tch::{Device, Tensor};

use super::{
    Clock, Row, asked, device, gradients, medians, peak_bytes, recycling, run_again_recycling, testing, write_rows,
};

/// A computation on K tensors.
pub type Computes<'a, const K: usize> = Box<dyn Fn(&[Tensor; K]) -> Tensor + 'a>;

/// A computation and a peer.
pub struct Pair<'a, const K: usize> {
    pub op: &'a str,
    pub ours: Computes<'a, K>,
    pub peer: &'a str,
    pub theirs: Computes<'a, K>,
}

pub type More<'a, const K: usize> = Box<dyn Fn(&Contest<'a, K>, &Clock) -> Vec<Row> + 'a>;

/// What is compared at one size; criterion's report has the first pair alone.
pub struct Contest<'a, const K: usize> {
    pub size: String,
    /// The tensors whose gradients are asked for.
    pub inputs: [Tensor; K],
    pub pairs: Vec<Pair<'a, K>>,
    /// Whether both give the same numbers: not if they draw at random.
    pub agree: bool,
    /// Milliseconds that no implementation takes less than: forward, and forward and backward.
    pub floors: fn(&Clock, &[Tensor; K]) -> [f64; 2],
    /// Rows that only some contests have.
    pub more: More<'a, K>,
}

impl<const K: usize> Contest<'_, K> {
    fn check(&self) {
        for Pair { op, ours, theirs, .. } in &self.pairs {
            let [ours, theirs] = [ours, theirs].map(|computes| {
                let value = computes(&self.inputs);
                gradients(&value, self.inputs.each_ref());
                value.detach()
            });
            let largest = |x: &Tensor| x.abs().max().double_value(&[]);
            let near = largest(&(&ours - &theirs)) < 1e-4 * largest(&theirs);
            let (ours, theirs) = (largest(&ours), largest(&theirs));
            assert!(if self.agree { near } else { ours > 0.0 && theirs > 0.0 }, "{op}: {ours} and {theirs}");
        }
    }

    /// Whether criterion's arguments had anything measured.
    fn report(&self, criterion: &mut Criterion) -> bool {
        let Pair { op, ours, peer, theirs } = &self.pairs[0];
        let mut measured = false;
        let mut group = criterion.benchmark_group(*op);
        group.sample_size(10);
        for (who, computes) in [("tercet", ours), (*peer, theirs)] {
            group.bench_function(BenchmarkId::new(who, &self.size), |b| {
                measured = true;
                b.iter(|| gradients(&computes(&self.inputs), self.inputs.each_ref()));
            });
        }
        group.finish();
        measured
    }

    fn rows(&self, clock: &Clock) -> Vec<Row> {
        let mut rows = Vec::new();
        let [floor, floor_of_both] = (self.floors)(clock, &self.inputs);
        for Pair { op, ours, peer, theirs } in &self.pairs {
            let row = |pass, ms, floor| Row::new(op, &self.size, pass, peer, ms, floor);
            let both = |computes: &Computes<'_, K>| gradients(&computes(&self.inputs), self.inputs.each_ref());
            let ms = medians(clock, || drop(black_box(both(ours))), || drop(black_box(both(theirs))));
            let peak_bytes = if device() == Device::Cpu { peak_bytes(|| both(ours)) } else { None };
            rows.push(Row { peak_bytes, ..row("both", ms, floor_of_both) });
            if !recycling() {
                let forward = |computes: &Computes<'_, K>| {
                    drop(tch::no_grad(|| black_box(computes(&self.inputs))));
                };
                rows.push(row("forward", medians(clock, || forward(ours), || forward(theirs)), floor));
            }
        }
        rows.extend((self.more)(self, clock));
        rows
    }
}

/// All that a stem's module does: the contests of these sizes.
pub fn bench<'a, const K: usize>(sizes: &[[i64; 2]], of: impl Fn([i64; 2]) -> Contest<'a, K>) {
    if testing() {
        return of([64, 16]).check();
    }
    let mut measured = recycling() || asked("--rows");
    if !measured {
        let mut criterion = Criterion::default().configure_from_args();
        for &size in sizes {
            measured |= of(size).report(&mut criterion);
        }
        criterion.final_summary();
    }
    if measured {
        let clock = Clock::of(device());
        write_rows(&sizes.iter().flat_map(|&size| of(size).rows(&clock)).collect::<Vec<_>>());
        if device() == Device::Cpu && !recycling() {
            run_again_recycling();
        }
    }
}
