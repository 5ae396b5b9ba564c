//! Every operator once through tch, forward and backward: with the inputs of python/benches/peers.py, which times the same through
//! PyTorch and, given these rows, says how much longer each takes there.
//!
//! ```sh
//! cargo bench -p tercet -- operators --json FILE
//! python python/benches/peers.py operators --beside FILE
//! ```

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Distance, PairwiseDistance, TopK, TripletMarginLoss,
};

use crate::support::{asked, gradients, testing};

/// As in python/benches/peers.py.
const SIZES: [[i64; 2]; 2] = [[1024, 128], [256, 128]];
const RUNS: u32 = 7;
const ENOUGH: Duration = Duration::from_millis(500);

/// The seconds of one call: the fastest of some runs, which take half a second together.
fn seconds(mut call: impl FnMut()) -> f64 {
    call();
    let begin = Instant::now();
    call();
    let count = if testing() {
        1
    } else {
        (ENOUGH.as_secs_f64() / begin.elapsed().as_secs_f64() / f64::from(RUNS)).max(1.0) as u32
    };
    let run = |_| {
        let begin = Instant::now();
        (0..count).for_each(|_| call());
        begin.elapsed().as_secs_f64() / f64::from(count)
    };
    (0..RUNS).map(run).fold(f64::INFINITY, f64::min)
}

/// The numbers that PyTorch draws with that seed.
fn rows(count: i64, dim: i64, seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn([count, dim], (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

fn every_operator([count, dim]: [i64; 2], mut add: impl FnMut(&str, f64)) {
    let (x, y) = (rows(count, dim, 0), rows(count, dim, 1));
    let labels = Tensor::arange(count, (Kind::Int64, Device::Cpu)).floor_divide_scalar(8);
    let [a, p, n] = [0, 1, 2].map(|seed| rows(16 * count, dim, seed));
    let same = Tensor::arange(16 * count, (Kind::Int64, Device::Cpu)).remainder(2).eq(0);
    let margin = dim as f64 / 8.0;
    add("triplet_margin", seconds(|| drop(gradients(&TripletMarginLoss::default().forward(&a, &p, &n), [&a, &p, &n]))));
    let pairs = ContrastiveLoss { margin: 16.0, ..Default::default() };
    add("contrastive", seconds(|| drop(gradients(&pairs.forward(&a, &p, &same), [&a, &p]))));
    macro_rules! mined {
        ($name:literal, $loss:expr) => {
            add($name, seconds(|| drop(gradients(&$loss.forward(&x, &labels), [&x]))));
        };
    }
    mined!("batch_all", BatchAllTripletLoss { margin, ..Default::default() });
    mined!("batch_hard", BatchHardTripletLoss { margin, ..Default::default() });
    mined!("batch_semi_hard", BatchSemiHardTripletLoss { margin, ..Default::default() });
    mined!("batch_negative", BatchNegativeTripletLoss { margin, ..Default::default() });
    mined!("batch_contrastive", BatchContrastiveLoss { margin: 16.0, ..Default::default() });
    let distance = PairwiseDistance { distance: Distance::Euclidean, ..Default::default() };
    add("pairwise_distance", seconds(|| drop(gradients(&distance.forward(&x, &y), [&x, &y]))));
    let top = TopK { k: 10, ..Default::default() };
    let (x, y) = (x.detach(), y.detach());
    add("top_k", seconds(|| drop(black_box(top.on(&x, &y).forward()))));
}

pub fn bench() {
    let path = std::env::args().skip_while(|a| a != "--json").nth(1);
    assert!(path.is_some() || !asked("--json"), "--json FILE");
    let mut file = path.map(|path| std::fs::File::create(&path).unwrap_or_else(|e| panic!("{path}: {e}")));
    for size in SIZES {
        every_operator(size, |name, seconds| {
            let (bench, us) = (format!("operators {} x {}", size[0], size[1]), seconds * 1e6);
            println!("{bench:<24} {name:<20} {us:12.1} us");
            if let Some(file) = &mut file {
                writeln!(file, "{{\"bench\": {bench:?}, \"who\": {name:?}, \"us\": {us}}}")
                    .expect("the rows can be written");
            }
        });
    }
}
