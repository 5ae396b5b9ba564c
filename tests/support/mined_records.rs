//! What every mined loss computed on a backend is recorded. A number that has moved further than another order of the
//! same sums can move it fails, and is named. `TERCET_REWRITE_RECORDS=1` writes the records again.
#![allow(dead_code, reason = "each test uses its share")]

use std::fmt::Debug;

use half::{bf16, f16};
use tercet::batch_semi_hard::Triplets;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Distance, Element, Matrix, MeanOver, Negative, Negatives, Pairs, Reduction, Reference,
    Stats, batch_all, batch_contrastive, batch_hard, batch_negative, batch_semi_hard,
};

use super::support::mined::{self, Batch, Content, Data, Labelling, OwnRows, Set};
use super::support::records::{self, Bits, Figure, Record, of_gradient};
use super::support::{self, Numbers};

/// What a backend returned for the case's upstream.
pub struct Output<T> {
    /// The reduced loss.
    pub loss: f64,
    /// The anchors' losses, of a loss that has them.
    pub losses: Vec<f64>,
    pub stats: Stats,
    pub grads: [Vec<T>; 2],
    /// The selected rows, as the backend lists them.
    pub selection: Vec<u32>,
    /// How far they are, of a backend that says so.
    pub distances: Vec<f64>,
}

impl<T: Element> Output<T> {
    /// The hash of all of it.
    pub fn bits(&self) -> u64 {
        let Stats { valid, active, mean_positive_distance, mean_negative_distance, .. } = self.stats;
        let [grad, grad_of_set] = &self.grads;
        Bits::default()
            .and(&[self.loss, mean_positive_distance, mean_negative_distance])
            .and(&[valid, active])
            .and(&self.losses)
            .and(grad)
            .and(grad_of_set)
            .and(&self.selection)
            .and(&self.distances)
            .hash()
    }
}

/// What the CPU selects: a list for each role that the loss gives rows.
#[derive(Default)]
struct Selected {
    anchor: Vec<u32>,
    positive: Vec<u32>,
    negative: Vec<u32>,
    distances: Vec<f64>,
}

fn wide<A: Element>(numbers: &[A]) -> Vec<f64> {
    numbers.iter().map(|x| x.to_f64()).collect()
}

/// A loss as these tests see it.
pub trait Recorded: Copy + Debug {
    const STEM: &'static str;
    /// One variant for each of its own options, for distances of about `scale`.
    fn all(scale: f64, distance: Distance, normalize: bool, reduction: Reduction) -> Vec<Self>;
    fn on_cpu<T: Element>(&self, batch: &Batch, data: &Data<T>) -> Output<T>;
    /// How many numbers a device writes of what it has chosen.
    fn chosen<T: Element>(data: &Data<T>) -> usize;
    /// The oracle for other numbers, with what the CPU selects for `data`.
    fn oracle<T: Element>(&self, batch: &Batch, data: &Data<T>, numbers: [&[f64]; 2]) -> Output<f64>;
}

/// A backend for a loss.
pub trait Backend<L> {
    const NAME: &'static str;
    const TAKES_F64: bool;
    fn run<T: Element>(&self, loss: &L, batch: &Batch, data: &Data<T>) -> Output<T>;
}

pub struct Cpu;

impl<L: Recorded> Backend<L> for Cpu {
    const NAME: &'static str = "cpu";
    const TAKES_F64: bool = true;
    fn run<T: Element>(&self, loss: &L, batch: &Batch, data: &Data<T>) -> Output<T> {
        loss.on_cpu(batch, data)
    }
}

/// What a loss has of its own: its variants, how much a device says of what it has chosen, the anchors' losses and what is
/// selected on the CPU, and the oracle with that selection.
macro_rules! recorded {
    (
        $loss:ident, $name:literal, |$plain:ident, $scale:ident| $all:expr, |$data:ident| $chosen:expr,
        |$self:ident, $x:ident, $labels:ident, $set:ident| ($losses:expr, $selection:expr),
        |$upstream:ident, $selected:ident| $oracle:expr
    ) => {
        impl Recorded for $loss {
            const STEM: &'static str = $name;

            fn all($scale: f64, distance: Distance, normalize: bool, reduction: Reduction) -> Vec<Self> {
                let $plain = $loss { margin: 0.1 * $scale, distance, normalize, reduction, ..Default::default() };
                $all.into()
            }

            fn chosen<T: Element>($data: &Data<T>) -> usize {
                $chosen
            }

            fn on_cpu<T: Element>(&$self, batch: &Batch, data: &Data<T>) -> Output<T> {
                let ($x, $labels, upstream) = (data.matrix(batch), &data.labels[..], Data::<T>::scalars(&data.upstream));
                let sizes = [data.exact.len(), data.reference.as_ref().map_or(0, |other| other.exact.len())];
                let mut grads = sizes.map(mined::poison);
                let [grad, grad_of_set] = &mut grads;
                let $set = data.set();
                let (loss, stats) = match &$set {
                    None => {
                        $self.on($x, $labels).grad(&upstream, grad).unwrap();
                        $self.on($x, $labels).loss_with_stats().unwrap()
                    }
                    Some(set) => {
                        $self.on($x, $labels).against(set).grads(&upstream, [Some(grad), Some(grad_of_set)]).unwrap();
                        $self.on($x, $labels).against(set).loss_with_stats().unwrap()
                    }
                };
                let Selected { anchor, positive, negative, distances } = $selection;
                let selection = [anchor, positive, negative].concat();
                Output { loss: loss.to_f64(), losses: $losses, stats, grads, selection, distances }
            }

            fn oracle<T: Element>(&$self, batch: &Batch, data: &Data<T>, numbers: [&[f64]; 2]) -> Output<f64> {
                let $selected = {
                    let ($x, $labels, $set) = (data.matrix(batch), &data.labels[..], data.set());
                    $selection
                };
                let matrix = |which: usize| Matrix::new(numbers[which], batch.dim).unwrap();
                let set = data.set();
                let set = set.map(|set| Reference { embeddings: matrix(1), labels: set.labels, own: set.own });
                let ($x, $labels, $set, $upstream) = (matrix(0), &data.labels[..], set.as_ref(), &data.upstream[..]);
                let result = $oracle.unwrap();
                let grads = [result.grad, result.reference_grad];
                let (losses, selection, distances) = Default::default();
                Output { loss: result.loss, losses, stats: result.stats, grads, selection, distances }
            }
        }
    };
}

/// The rows that the CPU selects.
macro_rules! select {
    ($loss:ident, $x:ident, $labels:ident, $set:ident) => {
        match &$set {
            None => $loss.on($x, $labels).select(),
            Some(set) => $loss.on($x, $labels).against(set).select(),
        }
        .unwrap()
    };
}

/// The losses of the anchors on the CPU.
macro_rules! losses {
    ($loss:ident, $x:ident, $labels:ident, $set:ident) => {{
        let mut losses = mined::poison($labels.len());
        match &$set {
            None => $loss.on($x, $labels).losses(&mut losses),
            Some(set) => $loss.on($x, $labels).against(set).losses(&mut losses),
        }
        .unwrap();
        wide(&losses)
    }};
}

impl Selected {
    fn triplets<A: Element>(triplets: Triplets<A>) -> Self {
        let Triplets { anchor, positive, negative, positive_distances, negative_distances, .. } = triplets;
        let distances = [wide(&positive_distances), wide(&negative_distances)].concat();
        Self { anchor, positive, negative, distances }
    }
}

recorded!(
    BatchAllTripletLoss,
    "batch_all",
    |plain, scale| [plain, Self { mean_over: MeanOver::Valid, margin: scale, ..plain }],
    |_data| 0,
    |self, _x, _labels, _set| (Vec::new(), Selected::default()),
    |upstream, _selected| batch_all::oracle::run_against(self, _x, _labels, _set, upstream[0])
);
recorded!(
    BatchHardTripletLoss,
    "batch_hard",
    |plain, scale| [Self { margin: 0.3 * scale, ..plain }, Self { soft_margin: true, ..plain }],
    |data| data.labels.len(),
    |self, x, labels, set| (losses!(self, x, labels, set), {
        let selection = select!(self, x, labels, set);
        let distances = [wide(&selection.positive_distances), wide(&selection.negative_distances)].concat();
        Selected { positive: selection.positive, negative: selection.negative, distances, ..Selected::default() }
    }),
    |upstream, selected| {
        let selected = Some((&selected.positive[..], &selected.negative[..]));
        batch_hard::oracle::run_against(self, x, labels, set, upstream, selected)
    }
);
recorded!(
    BatchSemiHardTripletLoss,
    "batch_semi_hard",
    |plain, _scale| [plain],
    |data| data.pairs_of_a_class(),
    |self, x, labels, set| (losses!(self, x, labels, set), Selected::triplets(select!(self, x, labels, set))),
    |upstream, selected| {
        batch_semi_hard::oracle::run_against(self, x, labels, set, upstream, Some(&selected.negative))
    }
);
recorded!(
    BatchNegativeTripletLoss,
    "batch_negative",
    |plain, _scale| [
        Self { negative: Negative::Hardest, ..plain },
        Self { negative: Negative::Random, seed: 7, ..plain },
        Self { negative: Negative::SemiHard, pairs: Pairs::Once, ..plain },
    ],
    |data| data.pairs_of_a_class(),
    |self, x, labels, set| (losses!(self, x, labels, set), Selected::triplets(select!(self, x, labels, set))),
    |upstream, selected| {
        let run = |negatives: Option<&[u32]>| {
            batch_negative::oracle::run_against::<f32>(self, x, labels, set, 0, upstream, negatives)
        };
        // The oracle takes one negative for each pair, `u32::MAX` if none is selected.
        let of_pair = |[a, p]: &[u32; 2]| {
            let at = selected
                .anchor
                .iter()
                .zip(&selected.positive)
                .position(|(anchor, positive)| anchor == a && positive == p);
            at.map_or(u32::MAX, |at| selected.negative[at])
        };
        run(Some(&run(None).unwrap().pairs.iter().map(of_pair).collect::<Vec<_>>()))
    }
);
recorded!(
    BatchContrastiveLoss,
    "batch_contrastive",
    |plain, scale| [Self { margin: scale, ..plain }, Self { margin: scale, negatives: Negatives::Hardest, ..plain },],
    |_data| 0,
    |self, x, labels, set| (losses!(self, x, labels, set), {
        let selection = select!(self, x, labels, set);
        let distances = wide(&selection.distances);
        Selected { anchor: selection.anchor, negative: selection.negative, distances, ..Selected::default() }
    }),
    |upstream, selected| {
        let pairs: Vec<_> = selected.anchor.iter().zip(&selected.negative).map(|(a, j)| [*a, *j]).collect();
        batch_contrastive::oracle::run_against(self, x, labels, set, upstream, Some(&pairs))
    }
);

/// One call to record.
struct Case<L, T> {
    name: String,
    loss: L,
    batch: Batch,
    data: Data<T>,
}

/// Every distance, with and without a reference set, each with its own choice of the other options and of the shape.
fn cases<L: Recorded, T: Element>() -> Vec<Case<L, T>> {
    const SHAPES: [[usize; 2]; 5] = [[40, 33], [33, 64], [24, 17], [67, 9], [21, 128]];
    let distances = [
        (Distance::SquaredEuclidean, false),
        (Distance::SquaredEuclidean, true),
        (Distance::Euclidean, false),
        (Distance::Euclidean, true),
        (Distance::Cosine, false),
    ];
    let mut cases = Vec::new();
    for (i, (distance, normalize)) in distances.into_iter().enumerate() {
        for with_set in [false, true] {
            let [rows, dim] = SHAPES[(i + usize::from(with_set) * 2) % SHAPES.len()];
            let reduction = if (i + usize::from(with_set)) % 2 == 0 { Reduction::Mean } else { Reduction::Sum };
            // About the distance of rows uniform in [-1, 1).
            let scale = match distance {
                Distance::Cosine => 1.0,
                Distance::Euclidean if normalize => 2f64.sqrt(),
                Distance::Euclidean => (dim as f64 / 1.5).sqrt(),
                _ if normalize => 2.0,
                _ => dim as f64 / 1.5,
            };
            for loss in L::all(scale, distance, normalize, reduction) {
                let (content, labelling) = (Content::Uniform { scale: 1.0 }, Labelling::Random { each: 4 });
                let own = if i % 2 == 0 { OwnRows::Rows } else { OwnRows::Offset(3) };
                let reference = with_set.then_some(Set { rows: 2 * rows / 3, own });
                let (gap, offset) = (i, i % 3);
                let batch = Batch { rows, dim, gap, offset, content, labelling, seed: 0, reference };
                let (batch, data) = seeded(&loss, batch, reduction);
                let set = if with_set { ", against a set" } else { "" };
                cases.push(Case { name: format!("{}, {loss:?}, [{rows}, {dim}]{set}", T::NAME), loss, batch, data });
            }
        }
    }
    cases
}

/// The batch with the first seed at which small changes of the numbers leave the count of active losses as it is.
fn seeded<L: Recorded, T: Element>(loss: &L, batch: Batch, reduction: Reduction) -> (Batch, Data<T>) {
    for seed in 0..1 << 10 {
        let batch = Batch { seed, ..batch.clone() };
        let data = Data::<T>::new(&batch, reduction);
        let base = perturbed(loss, &batch, &data, 0.0, 0).stats;
        let keeps = |k: u64| perturbed(loss, &batch, &data, 16.0, k).stats.active == base.active;
        if base.active > 0 && (1..=4).all(keeps) {
            return (batch, data);
        }
    }
    panic!("{loss:?}, {batch:?}: no such seed")
}

/// The oracle for numbers that are off by `size` times the error of a sum in T's arithmetic.
fn perturbed<L: Recorded, T: Element>(loss: &L, batch: &Batch, data: &Data<T>, size: f64, seed: u64) -> Output<f64> {
    let mut numbers = Numbers(seed);
    let error = size * ((batch.dim as f64).sqrt() + 4.0) * mined::epsilon::<T>();
    let mut off = |exact: &[f64]| exact.iter().map(|x| x * (1.0 + error * numbers.unit())).collect::<Vec<_>>();
    let of_set = data.reference.as_ref().map_or(Vec::new(), |other| off(&other.exact));
    loss.oracle(batch, data, [&off(&data.exact), &of_set])
}

/// What is recorded of a call: the loss, the statistics; of each gradient the norm, the sum with alternating signs, and
/// three elements.
fn values<T: Element>(output: &Output<T>) -> Vec<(String, f64)> {
    let Stats { valid, active, mean_positive_distance, mean_negative_distance, .. } = output.stats;
    let mut values = vec![
        ("loss".into(), output.loss),
        ("valid".into(), valid as f64),
        ("active".into(), active as f64),
        ("mean positive distance".into(), mean_positive_distance),
        ("mean negative distance".into(), mean_negative_distance),
    ];
    for (which, grad) in output.grads.iter().enumerate().filter(|(_, grad)| !grad.is_empty()) {
        let grad: Vec<f64> = grad.iter().map(|x| x.to_f64()).collect();
        values.extend(of_gradient(which, &grad));
    }
    values
}

/// Another order of the same sums acts as if the numbers were off by the error of a sum. Each figure may move by four
/// times the most that this does in eight tries, and by a rounding of its type.
fn figures<L: Recorded, T: Element>(case: &Case<L, T>, output: &Output<T>) -> Vec<Figure> {
    let Case { loss, batch, data, .. } = case;
    let base = values(&perturbed(loss, batch, data, 0.0, 0));
    let tries: Vec<_> = (1..=8).map(|seed| values(&perturbed(loss, batch, data, 1.0, seed))).collect();
    let norms: Vec<f64> = base.iter().filter(|(name, _)| name.ends_with("norm")).map(|(_, norm)| *norm).collect();
    let figures = values(output).into_iter().zip(&base).enumerate();
    figures
        .map(|(i, ((name, value), (_, exact)))| {
            let moved = tries.iter().map(|of_try| (of_try[i].1 - exact).abs()).fold(0.0, f64::max);
            let of_type = match name.as_str() {
                "valid" | "active" => 0.0,
                // A norm or a sum of many elements: their roundings add up like independent errors.
                _ if name.starts_with("grads[0] ") => mined::rounding::<T>(norms[0]),
                _ if name.starts_with("grads[1] ") => mined::rounding::<T>(norms[1]),
                _ if name.starts_with("grads") => mined::rounding::<T>(value),
                _ => 0.0,
            };
            let bound = 4.0 * (moved + mined::epsilon::<T>() * exact.abs()) + of_type;
            Figure { name, value, bound }
        })
        .collect()
}

fn all_records<L: Recorded, B: Backend<L>>(backend: &B) -> Vec<Record> {
    fn of<T: Element, L: Recorded, B: Backend<L>>(backend: &B) -> impl Iterator<Item = Record> {
        cases::<L, T>().into_iter().map(move |case| {
            let output = backend.run(&case.loss, &case.batch, &case.data);
            Record { figures: figures(&case, &output), bits: output.bits(), name: case.name }
        })
    }
    let mut all: Vec<_> = of::<f32, L, B>(backend).collect();
    if B::TAKES_F64 {
        all.extend(of::<f64, L, B>(backend));
    }
    all.extend(of::<f16, L, B>(backend));
    all.extend(of::<bf16, L, B>(backend));
    all
}

/// Fails if anything has moved since the record `of` a backend was written.
pub fn unchanged<L: Recorded, B: Backend<L>>(backend: &B, of: &str) {
    records::unchanged(L::STEM, of, &all_records(backend));
}

/// A backend whose gradients are a twentieth too large.
struct Wrong<B>(B);

impl<L, B: Backend<L>> Backend<L> for Wrong<B> {
    const NAME: &'static str = "a wrong backend";
    const TAKES_F64: bool = B::TAKES_F64;
    fn run<T: Element>(&self, loss: &L, batch: &Batch, data: &Data<T>) -> Output<T> {
        let mut output = self.0.run(loss, batch, data);
        output.grads.iter_mut().flatten().for_each(|x| *x = T::from_f64(x.to_f64() * 1.05));
        output
    }
}

/// Fails unless every case shows gradients that are a twentieth too large.
pub fn finds_what_is_wrong<L: Recorded>(of: &str) {
    if support::rewrite_records() {
        return; // wrong gradients would be recorded
    }
    let all = all_records::<L, _>(&Wrong(Cpu));
    records::all_gradients_moved(&records::changes(L::STEM, of, &all), &all);
}

/// Fails if a case's hash stays as it was when one bit of anything that the CPU returned is another.
pub fn every_bit_counts<L: Recorded>() {
    let case = cases::<L, f32>().into_iter().find(|case| case.data.reference.is_some()).expect("one against a set");
    let mut output = case.loss.on_cpu(&case.batch, &case.data);
    let bits = output.bits();
    let mut flipped = |what: &str, flip: &dyn Fn(&mut Output<f32>)| {
        flip(&mut output);
        assert_ne!(output.bits(), bits, "{what}");
        flip(&mut output); // back
        assert_eq!(output.bits(), bits, "{what}");
    };
    fn f64_bit(x: &mut f64) {
        *x = f64::from_bits(x.to_bits() ^ 1);
    }
    fn last_bit(grad: &mut [f32]) {
        let last = grad.last_mut().expect("a gradient");
        *last = f32::from_bits(last.to_bits() ^ 1);
    }
    flipped("loss", &|output| f64_bit(&mut output.loss));
    flipped("losses", &|output| f64_bit(&mut output.losses[3]));
    flipped("valid", &|output| output.stats.valid ^= 1);
    flipped("active", &|output| output.stats.active ^= 1);
    flipped("mean positive distance", &|output| f64_bit(&mut output.stats.mean_positive_distance));
    flipped("mean negative distance", &|output| f64_bit(&mut output.stats.mean_negative_distance));
    flipped("gradient", &|output| last_bit(&mut output.grads[0]));
    flipped("gradient of the set", &|output| last_bit(&mut output.grads[1]));
    flipped("selection", &|output| output.selection[2] ^= 1);
    flipped("distances", &|output| f64_bit(&mut output.distances[2]));
}
