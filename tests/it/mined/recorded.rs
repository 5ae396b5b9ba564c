//! What every mined loss computed on a backend is recorded. A number that has moved further than another order of the
//! same sums can move it fails, and is named. `TERCET_REWRITE_RECORDS=1` writes the records again.

use std::marker::PhantomData;

use tercet::batch_semi_hard::Triplets;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Distance, Element, Matrix, MeanOver, Negative, Negatives, Pairs, Reduction, Reference,
    Stats, batch_all, batch_contrastive, batch_hard, batch_negative, batch_semi_hard,
};

use super::batch::{Batch, Content, Data, Exact, Labelling, OwnRows, Set};
use super::{Case, Mined, OnSlices, bounds};
use crate::support::Numbers;
use crate::support::backends::{Number, Operation};
#[cfg(feature = "cuda")]
use crate::support::devices::TestDevice;
use crate::support::records::{self, Bits, Figure, Listed, of_gradient, wide};

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
pub struct Selected {
    anchor: Vec<u32>,
    positive: Vec<u32>,
    negative: Vec<u32>,
    distances: Vec<f64>,
}

/// A mined loss as its records see it.
pub trait Recorded: Mined {
    /// One variant for each of its own options, for distances of about `scale`.
    fn all(scale: f64, distance: Distance, normalize: bool, reduction: Reduction) -> Vec<Self>;
    /// The losses of the anchors, of a loss that has them.
    fn losses<T: Number>(slices: &OnSlices<'_, Self, T>) -> Vec<f64>;
    fn select<T: Number>(slices: &OnSlices<'_, Self, T>) -> Selected;
    /// The oracle with what the CPU selected; its loss, statistics and gradients.
    fn exact(&self, exact: Exact<'_>, selected: &Selected) -> Figures;
}

/// A mined loss with the results that are recorded.
pub struct Records<L>(PhantomData<L>);

impl<L: Recorded> Operation for Records<L> {
    const STEM: &'static str = <L as Mined>::STEM;
    type Case = Case<L>;
    type Data<T: Number> = Data<T>;
    type Output<T: Number> = Output<T>;

    #[cfg(feature = "emulator")]
    fn seed(case: &Case<L>) -> u64 {
        case.batch.seed
    }

    fn on_cpu<T: Number>(case: &Case<L>, data: &Data<T>) -> Output<T> {
        let slices = OnSlices::new(case.loss, &case.batch, data);
        let (loss, stats) = slices.call().loss_with_stats().unwrap();
        let Selected { anchor, positive, negative, distances } = L::select(&slices);
        Output {
            loss: loss.to_f64(),
            losses: <L as Recorded>::losses(&slices),
            stats,
            grads: slices.grads_of(&data.upstream),
            selection: [anchor, positive, negative].concat(),
            distances,
        }
    }

    #[cfg(feature = "cuda")]
    fn on_device<T: Number, D: TestDevice>(device: &D, case: &Case<L>, data: &Data<T>) -> Output<T> {
        let batch = super::launches::OnDevice::new(device, &case.batch, data);
        let upstreams = [&data.upstream[..]];
        let mut mined = super::launches::mine::<T, _, _>(device, &case.loss, &batch, L::chosen(data), &upstreams);
        Output {
            loss: mined.loss.into(),
            losses: wide(&mined.losses),
            stats: mined.stats,
            grads: mined.grads.remove(0),
            selection: mined.chosen.concat(),
            distances: Vec::new(),
        }
    }
}

impl Selected {
    fn triplets<A: Element>(triplets: Triplets<A>) -> Self {
        let Triplets { anchor, positive, negative, positive_distances, negative_distances, .. } = triplets;
        let distances = [wide(&positive_distances), wide(&negative_distances)].concat();
        Self { anchor, positive, negative, distances }
    }
}

impl Recorded for BatchAllTripletLoss {
    fn all(scale: f64, distance: Distance, normalize: bool, reduction: Reduction) -> Vec<Self> {
        let plain = Self { margin: 0.1 * scale, distance, normalize, reduction, ..Self::default() };
        vec![plain, Self { mean_over: MeanOver::Valid, margin: scale, ..plain }]
    }

    fn losses<T: Number>(_: &OnSlices<'_, Self, T>) -> Vec<f64> {
        Vec::new()
    }

    fn select<T: Number>(_: &OnSlices<'_, Self, T>) -> Selected {
        Selected::default()
    }

    fn exact(&self, Exact { embeddings, labels, set, upstream }: Exact<'_>, _: &Selected) -> Figures {
        let found = batch_all::oracle::run_against(self, embeddings, labels, set, upstream[0]).unwrap();
        (found.loss, found.stats, [found.grad, found.reference_grad])
    }
}

impl Recorded for BatchHardTripletLoss {
    fn all(scale: f64, distance: Distance, normalize: bool, reduction: Reduction) -> Vec<Self> {
        let plain = Self { margin: 0.1 * scale, distance, normalize, reduction, ..Self::default() };
        vec![Self { margin: 0.3 * scale, ..plain }, Self { soft_margin: true, ..plain }]
    }

    fn losses<T: Number>(slices: &OnSlices<'_, Self, T>) -> Vec<f64> {
        wide(&slices.losses())
    }

    fn select<T: Number>(slices: &OnSlices<'_, Self, T>) -> Selected {
        let found = slices.call().select().unwrap();
        let distances = [wide(&found.positive_distances), wide(&found.negative_distances)].concat();
        Selected { positive: found.positive, negative: found.negative, distances, ..Selected::default() }
    }

    fn exact(&self, Exact { embeddings, labels, set, upstream }: Exact<'_>, selected: &Selected) -> Figures {
        let selected = Some((&selected.positive[..], &selected.negative[..]));
        let found = batch_hard::oracle::run_against(self, embeddings, labels, set, upstream, selected).unwrap();
        (found.loss, found.stats, [found.grad, found.reference_grad])
    }
}

impl Recorded for BatchSemiHardTripletLoss {
    fn all(scale: f64, distance: Distance, normalize: bool, reduction: Reduction) -> Vec<Self> {
        let plain = Self { margin: 0.1 * scale, distance, normalize, reduction, ..Self::default() };
        vec![plain]
    }

    fn losses<T: Number>(slices: &OnSlices<'_, Self, T>) -> Vec<f64> {
        wide(&slices.losses())
    }

    fn select<T: Number>(slices: &OnSlices<'_, Self, T>) -> Selected {
        Selected::triplets(slices.call().select().unwrap())
    }

    fn exact(&self, Exact { embeddings, labels, set, upstream }: Exact<'_>, selected: &Selected) -> Figures {
        let negative = Some(&selected.negative[..]);
        let found = batch_semi_hard::oracle::run_against(self, embeddings, labels, set, upstream, negative).unwrap();
        (found.loss, found.stats, [found.grad, found.reference_grad])
    }
}

impl Recorded for BatchNegativeTripletLoss {
    fn all(scale: f64, distance: Distance, normalize: bool, reduction: Reduction) -> Vec<Self> {
        let plain = Self { margin: 0.1 * scale, distance, normalize, reduction, ..Self::default() };
        vec![
            Self { negative: Negative::Hardest, ..plain },
            Self { negative: Negative::Random, seed: 7, ..plain },
            Self { negative: Negative::SemiHard, pairs: Pairs::Once, ..plain },
        ]
    }

    fn losses<T: Number>(slices: &OnSlices<'_, Self, T>) -> Vec<f64> {
        wide(&slices.losses())
    }

    fn select<T: Number>(slices: &OnSlices<'_, Self, T>) -> Selected {
        Selected::triplets(slices.call().select().unwrap())
    }

    fn exact(&self, Exact { embeddings, labels, set, upstream }: Exact<'_>, selected: &Selected) -> Figures {
        let run = |negatives: Option<&[u32]>| {
            batch_negative::oracle::run_against::<f32>(self, embeddings, labels, set, 0, upstream, negatives).unwrap()
        };
        // The oracle takes one negative for each pair, `u32::MAX` if none is selected.
        let of_pair = |[a, p]: &[u32; 2]| {
            let mut pairs = selected.anchor.iter().zip(&selected.positive);
            let at = pairs.position(|(anchor, positive)| anchor == a && positive == p);
            at.map_or(u32::MAX, |at| selected.negative[at])
        };
        let found = run(Some(&run(None).pairs.iter().map(of_pair).collect::<Vec<_>>()));
        (found.loss, found.stats, [found.grad, found.reference_grad])
    }
}

impl Recorded for BatchContrastiveLoss {
    fn all(scale: f64, distance: Distance, normalize: bool, reduction: Reduction) -> Vec<Self> {
        let plain = Self { margin: 0.1 * scale, distance, normalize, reduction, ..Self::default() };
        vec![Self { margin: scale, ..plain }, Self { margin: scale, negatives: Negatives::Hardest, ..plain }]
    }

    fn losses<T: Number>(slices: &OnSlices<'_, Self, T>) -> Vec<f64> {
        wide(&slices.losses())
    }

    fn select<T: Number>(slices: &OnSlices<'_, Self, T>) -> Selected {
        let found = slices.call().select().unwrap();
        let distances = wide(&found.distances);
        Selected { anchor: found.anchor, negative: found.negative, distances, ..Selected::default() }
    }

    fn exact(&self, Exact { embeddings, labels, set, upstream }: Exact<'_>, selected: &Selected) -> Figures {
        let pairs: Vec<_> = selected.anchor.iter().zip(&selected.negative).map(|(a, j)| [*a, *j]).collect();
        let found =
            batch_contrastive::oracle::run_against(self, embeddings, labels, set, upstream, Some(&pairs)).unwrap();
        (found.loss, found.stats, [found.grad, found.reference_grad])
    }
}

/// Every distance, with and without a reference set, each with its own choice of the other options and of the shape.
fn cases<L: Recorded, T: Number>() -> Vec<(String, Case<L>, Data<T>)> {
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
                // The records are of before this option, which changes no number.
                // Records are older than these options, whose defaults they are of.
                let later =
                    [", pairs_at_once: None", ", power: 2, pos_margin: 0.0", ", mean_over: Valid, means_apart: false"];
                let options = later.iter().fold(format!("{loss:?}"), |text, option| text.replace(option, ""));
                cases.push((format!("{}, {options}, [{rows}, {dim}]{set}", T::NAME), Case { loss, batch }, data));
            }
        }
    }
    cases
}

/// The batch with the first seed at which small changes of the numbers leave the count of active losses as it is.
fn seeded<L: Recorded, T: Number>(loss: &L, batch: Batch, reduction: Reduction) -> (Batch, Data<T>) {
    for seed in 0..1 << 10 {
        let batch = Batch { seed, ..batch.clone() };
        let data = Data::<T>::new(&batch, reduction);
        let active = |size: f64, seed: u64| perturbed(loss, &batch, &data, size, seed).1.active;
        let base = active(0.0, 0);
        if base > 0 && (1..=4).all(|seed| active(16.0, seed) == base) {
            return (batch, data);
        }
    }
    panic!("{loss:?}, {batch:?}: no such seed")
}

/// What is recorded of a result, but for the anchors' losses and the selection.
type Figures = (f64, Stats, [Vec<f64>; 2]);

/// The oracle for numbers that are off by `size` times the error of a sum in T's arithmetic, with what the CPU selects for
/// the numbers as they are.
fn perturbed<L: Recorded, T: Number>(loss: &L, batch: &Batch, data: &Data<T>, size: f64, seed: u64) -> Figures {
    let mut numbers = Numbers(seed);
    let error = size * ((batch.dim as f64).sqrt() + 4.0) * bounds::epsilon::<T>();
    let mut off = |exact: &[f64]| exact.iter().map(|x| x * (1.0 + error * numbers.unit())).collect::<Vec<_>>();
    let of_set = data.reference.as_ref().map_or(Vec::new(), |other| off(&other.exact));
    let of_batch = off(&data.exact);
    let matrix = |numbers| Matrix::new(numbers, batch.dim).unwrap();
    let set = data.set().map(|set| Reference { embeddings: matrix(&of_set), labels: set.labels, own: set.own });
    let selected = L::select(&OnSlices::new(*loss, batch, data));
    let (set, upstream) = (set.as_ref(), &data.upstream[..]);
    loss.exact(Exact { embeddings: matrix(&of_batch), labels: &data.labels, set, upstream }, &selected)
}

/// What is recorded of a call: the loss, the statistics; of each gradient the norm, the sum with alternating signs, and
/// three elements.
fn values((loss, stats, grads): &Figures) -> Vec<(String, f64)> {
    let Stats { valid, active, mean_positive_distance, mean_negative_distance, .. } = *stats;
    let mut values = vec![
        ("loss".into(), *loss),
        ("valid".into(), valid as f64),
        ("active".into(), active as f64),
        ("mean positive distance".into(), mean_positive_distance),
        ("mean negative distance".into(), mean_negative_distance),
    ];
    for (which, grad) in grads.iter().enumerate().filter(|(_, grad)| !grad.is_empty()) {
        values.extend(of_gradient(which, grad));
    }
    values
}

/// Another order of the same sums acts as if the numbers were off by the error of a sum. Each figure may move by four
/// times the most that this does in eight tries, and by a rounding of its type.
fn figures<L: Recorded, T: Number>(case: &Case<L>, data: &Data<T>, output: &Output<T>) -> Vec<Figure> {
    let Case { loss, batch } = case;
    let output = (output.loss, output.stats, output.grads.each_ref().map(|grad| wide(grad)));
    let base = values(&perturbed(loss, batch, data, 0.0, 0));
    let tries: Vec<_> = (1..=8).map(|seed| values(&perturbed(loss, batch, data, 1.0, seed))).collect();
    let norms: Vec<f64> = base.iter().filter(|(name, _)| name.ends_with("norm")).map(|(_, norm)| *norm).collect();
    let figures = values(&output).into_iter().zip(&base).enumerate();
    figures
        .map(|(i, ((name, value), (_, exact)))| {
            let moved = tries.iter().map(|of_try| (of_try[i].1 - exact).abs()).fold(0.0, f64::max);
            let of_type = match name.as_str() {
                "valid" | "active" => 0.0,
                // A norm or a sum of many elements: their roundings add up like independent errors.
                _ if name.starts_with("grads[0] ") => bounds::rounding::<T>(norms[0]),
                _ if name.starts_with("grads[1] ") => bounds::rounding::<T>(norms[1]),
                _ if name.starts_with("grads") => bounds::rounding::<T>(value),
                _ => 0.0,
            };
            let bound = 4.0 * (moved + bounds::epsilon::<T>() * exact.abs()) + of_type;
            Figure { name, value, bound }
        })
        .collect()
}

impl<L: Recorded> Listed for Records<L> {
    fn listed<T: Number>(_: bool) -> Vec<(String, Case<L>, Data<T>)> {
        cases()
    }
    fn bits<T: Number>(output: &Output<T>) -> u64 {
        output.bits()
    }
}

impl<L: Recorded> records::Recorded for Records<L> {
    fn figures<T: Number>(case: &Case<L>, data: &Data<T>, output: &Output<T>) -> Vec<Figure> {
        figures(case, data, output)
    }
    fn gradients<T: Number>(output: &mut Output<T>) -> &mut [Vec<T>] {
        &mut output.grads
    }
}

/// Fails if a case's hash stays as it was when one bit of anything that the CPU returned is another.
pub fn every_bit_counts<L: Recorded>() {
    let mut all = cases::<L, f32>().into_iter();
    let (_, case, data) = all.find(|(_, _, data)| data.reference.is_some()).expect("one against a set");
    let mut output = Records::<L>::on_cpu(&case, &data);
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
