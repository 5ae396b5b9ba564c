//! What the tests of this folder share: batches and how they lie over the processes, every loss, and comparisons.

use tch::{Device, Kind, Tensor};
use tercet::torch::WithStats;
use tercet::torch::distributed::{ProcessGroup, Shards, check_available};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Call, Distance, Error, MeanOver, MinedLoss, Negative, Negatives, Pairs, Reduction,
};

use crate::support::processes::as_processes;
use crate::support::skipped::skipped;

/// Numbers in a row.
pub const D: i64 = 12;

/// Runs the test as so many processes, each with its group, and prints what they print. `module` and `test` are the test's.
pub fn over(module: &str, test: &str, size: usize, inside: impl FnOnce(&ProcessGroup)) {
    if unavailable(test) {
        return;
    }
    match as_processes(module, test, size, &[]) {
        Some(printed) => worst_of(&printed),
        None => {
            tch::set_num_threads(1);
            let group = ProcessGroup::from_env().unwrap();
            assert_eq!(group.size(), size);
            inside(&group);
            group.barrier().unwrap();
        }
    }
}

/// Prints what the first of some processes has found.
pub fn worst_of(printed: &[String]) {
    printed[0].lines().filter(|line| line.contains("worst of")).for_each(|line| println!("{line}"));
}

/// Whether this libtorch has no process groups.
pub fn unavailable(test: &str) -> bool {
    let error = check_available().err();
    if let Some(error) = &error {
        skipped(&format!("{error}: {test}"));
    }
    error.is_some()
}

/// A batch, and how many of its rows each process has.
pub struct Layout {
    pub name: &'static str,
    pub counts: Vec<i64>,
    pub labels: Tensor,
    pub rows: Tensor,
}

impl Layout {
    /// Of a tensor with a row for each of the batch, those of a process.
    pub fn own(&self, of: &Tensor, rank: usize) -> Tensor {
        of.narrow(0, self.counts[..rank].iter().sum(), self.counts[rank])
    }
}

/// Every way in which a batch may lie that has something of its own.
pub fn layouts(size: usize) -> Vec<Layout> {
    let w = size as i64;
    let spread = |n: i64, classes: i64| (0..n).map(|i| (i * 7 + i / 5) % classes).collect::<Vec<i64>>();
    let layout = |name, counts: Vec<i64>, labels: Vec<i64>| {
        let n = counts.iter().sum::<i64>();
        assert_eq!(n, labels.len() as i64);
        let rows = Tensor::randn([n, D], (Kind::Double, Device::Cpu));
        Layout { name, counts, labels: Tensor::from_slice(&labels), rows }
    };
    tch::manual_seed(5);
    let mut all = vec![layout("equal shards", vec![12; size], spread(12 * w, 9))];
    let ragged: Vec<i64> = (0..w).map(|r| 5 + 7 * (r % 4)).collect();
    let total = ragged.iter().sum();
    all.push(layout("unequal shards", ragged, spread(total, 7)));
    let mut without = vec![11; size];
    if size > 1 {
        without[0] = 0;
        without[size - 1] = 13;
    }
    let total = without.iter().sum();
    all.push(layout("a process without rows", without, spread(total, 5)));
    let mut alone = spread(9 * w, 6);
    alone[..9].iter_mut().enumerate().for_each(|(i, label)| *label = 1000 + i as i64);
    all.push(layout("one process's rows have no positive", vec![9; size], alone));
    all.push(layout("positives in other processes only", vec![8; size], (0..8 * w).map(|i| i % 8).collect()));
    all.push(layout("all labels differ", vec![7; size], (0..7 * w).collect()));
    all.push(layout("one class", vec![6; size], vec![3; 6 * size]));
    // Small integers: many equal distances, exact in every dtype.
    let mut ties = layout("equal rows in all processes", vec![10; size], spread(10 * w, 4));
    ties.rows = (ties.rows * 0.7).round();
    all.push(ties);
    all
}

/// A loss of rows and labels, over the shards if there are any.
pub type Run = dyn Fn(&Tensor, &Tensor, Option<&Shards>) -> Result<WithStats, Error>;

/// A loss with some of its options.
pub struct Loss {
    pub name: &'static str,
    pub run: Box<Run>,
}

fn loss<L: MinedLoss>(name: &'static str, loss_fn: L) -> Loss {
    let run = move |x: &Tensor, y: &Tensor, shards: Option<&Shards>| {
        let call = Call::new(&loss_fn, x, y);
        shards.map_or(call, |shards| call.over(shards)).f_forward_with_stats()
    };
    Loss { name, run: Box::new(run) }
}

/// Every mined loss, with the options that change how it is added up over processes.
pub fn losses() -> Vec<Loss> {
    let hard = BatchHardTripletLoss { margin: 1.0, ..Default::default() };
    let all = BatchAllTripletLoss { margin: 1.0, ..Default::default() };
    let negative = BatchNegativeTripletLoss { margin: 3.0, seed: 3, ..Default::default() };
    let pairs = BatchContrastiveLoss { margin: 4.0, ..Default::default() };
    let drawn = move |x: &Tensor, y: &Tensor, shards: Option<&Shards>| {
        let step = Tensor::from_slice(&[5i64]).to_device(x.device());
        let loss_fn = BatchNegativeTripletLoss { negative: Negative::Random, ..negative };
        let call = loss_fn.on(x, y).step(&step);
        shards.map_or(call, |shards| call.over(shards)).f_forward_with_stats()
    };
    vec![
        loss("batch_hard", hard),
        loss(
            "batch_hard, soft, cosine",
            BatchHardTripletLoss { soft_margin: true, distance: Distance::Cosine, ..hard },
        ),
        loss("batch_hard, sum", BatchHardTripletLoss { reduction: Reduction::Sum, ..hard }),
        loss("batch_all", all),
        loss(
            "batch_all, over valid, Euclidean, normalised",
            BatchAllTripletLoss { mean_over: MeanOver::Valid, normalize: true, distance: Distance::Euclidean, ..all },
        ),
        loss("batch_semi_hard", BatchSemiHardTripletLoss { margin: 1.0, ..Default::default() }),
        loss("batch_negative, semi-hard", negative),
        Loss { name: "batch_negative, random, step 5", run: Box::new(drawn) },
        loss(
            "batch_negative, hardest, once",
            BatchNegativeTripletLoss { negative: Negative::Hardest, pairs: Pairs::Once, ..negative },
        ),
        loss("batch_contrastive", pairs),
        loss(
            "batch_contrastive, sum, cosine",
            BatchContrastiveLoss { reduction: Reduction::Sum, distance: Distance::Cosine, ..pairs },
        ),
        loss("batch_contrastive, hardest", BatchContrastiveLoss { negatives: Negatives::Hardest, ..pairs }),
        loss(
            "batch_contrastive, linear, over active",
            BatchContrastiveLoss { power: 1, pos_margin: 0.5, mean_over: MeanOver::Active, ..pairs },
        ),
        loss("batch_contrastive, means apart", BatchContrastiveLoss { power: 1, means_apart: true, ..pairs }),
    ]
}

/// The largest difference, relative to the largest number.
pub fn error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.size(), expected.size());
    if got.numel() == 0 {
        return 0.0;
    }
    let (got, expected) = (got.detach().to_kind(Kind::Double), expected.detach().to_kind(Kind::Double));
    let far = (&got - &expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]);
    if scale == 0.0 { far } else { far / scale }
}

/// A hash of the bits of some tensors.
pub fn bits(tensors: &[&Tensor]) -> i64 {
    let mut hash = 17i64;
    for tensor in tensors {
        let numbers =
            Vec::<f64>::try_from(tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double).reshape([-1])).unwrap();
        for number in numbers {
            hash = hash.wrapping_mul(0x0100_0000_01b3).wrapping_add(number.to_bits() as i64);
        }
    }
    hash
}

/// Asserts that these tensors have the same bits in all processes.
pub fn assert_same_everywhere(tensors: &[&Tensor], group: &ProcessGroup, what: &str) {
    let all = group.exchange(&[bits(tensors)]).unwrap();
    assert!(all.iter().all(|theirs| *theirs == all[0]), "{what}: other bits in other processes");
}

/// The worst errors of several kinds, and what they may be.
#[derive(Default)]
pub struct Worst(pub f64);

impl Worst {
    pub fn add(&mut self, error: f64, bound: f64, what: &str) {
        assert!(error <= bound, "{what}: off by {error:e}, bound {bound:e}");
        self.0 = self.0.max(error);
    }

    /// The worst of all processes.
    pub fn of_all(&self, group: &ProcessGroup) -> f64 {
        let all = group.exchange(&[self.0.to_bits() as i64]).unwrap();
        all.iter().map(|theirs| f64::from_bits(theirs[0] as u64)).fold(0.0, f64::max)
    }
}
