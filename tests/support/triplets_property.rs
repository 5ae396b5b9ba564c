//! The property test of the losses that choose one negative for each pair, which every backend takes: dtype x distance x
//! option against the f64 oracle, with bounds that follow from the arithmetic.
#![allow(dead_code, reason = "each test uses its share")]

use std::fmt::Debug;

use half::{bf16, f16};
use proptest::prelude::*;
use tercet::{
    BatchNegativeTripletLoss, BatchSemiHardTripletLoss, Distance, Element, Matrix, Negative, Pairs, Precision,
    Reduction, Stats, batch_negative, batch_semi_hard,
};

use super::support::cases as random;
use super::support::mined::{self, Batch, Bounds, Content, Data, OwnRows, Worst};

#[derive(Clone, Copy, Debug)]
pub enum Loss {
    SemiHard(BatchSemiHardTripletLoss),
    Negative(BatchNegativeTripletLoss),
}

/// The options that both losses have.
struct Options {
    margin: f64,
    distance: Distance,
    normalize: bool,
    reduction: Reduction,
    precision: Precision,
}

impl Loss {
    fn options(&self) -> Options {
        match *self {
            Self::SemiHard(BatchSemiHardTripletLoss { margin, distance, normalize, reduction, precision }) => {
                Options { margin, distance, normalize, reduction, precision }
            }
            Self::Negative(BatchNegativeTripletLoss { margin, distance, normalize, reduction, precision, .. }) => {
                Options { margin, distance, normalize, reduction, precision }
            }
        }
    }

    pub fn reduction(&self) -> Reduction {
        self.options().reduction
    }

    fn stem(&self) -> &'static str {
        match self {
            Self::SemiHard(_) => "batch_semi_hard",
            Self::Negative(_) => "batch_negative",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Case {
    pub loss: Loss,
    pub batch: Batch,
}

type Common = (Distance, Reduction, f64, bool, Precision);

fn common(precisions: &'static [Precision]) -> impl Strategy<Value = Common> {
    let reductions = prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)];
    let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
    (mined::distances(), reductions, margins, any::<bool>(), proptest::sample::select(precisions))
}

pub fn semi_hard_cases(precisions: &'static [Precision], largest: usize) -> impl Strategy<Value = Case> {
    (common(precisions), mined::batches(largest)).prop_map(
        |((distance, reduction, margin, normalize, precision), batch)| {
            let loss = BatchSemiHardTripletLoss { margin, distance, normalize, reduction, precision };
            Case { loss: Loss::SemiHard(loss), batch }
        },
    )
}

pub fn negative_cases(precisions: &'static [Precision], largest: usize) -> impl Strategy<Value = Case> {
    let negatives = proptest::sample::select(vec![Negative::Hardest, Negative::Random, Negative::SemiHard]);
    let pairs = proptest::sample::select(vec![Pairs::Ordered, Pairs::Once]);
    let choice = (negatives, pairs, any::<u64>());
    (common(precisions), choice, mined::batches(largest)).prop_map(
        |((distance, reduction, margin, normalize, precision), (negative, pairs, seed), mut batch)| {
            if pairs == Pairs::Once
                && let Some(set) = &mut batch.reference
                && matches!(set.own, OwnRows::None)
            {
                set.own = OwnRows::Rows;
            }
            let options =
                BatchNegativeTripletLoss { margin, distance, normalize, reduction, precision, ..Default::default() };
            let loss = BatchNegativeTripletLoss { negative, pairs, seed, ..options };
            Case { loss: Loss::Negative(loss), batch }
        },
    )
}

/// What a backend returned.
pub struct Output<T: Element> {
    /// The negative of each of the oracle's pairs, `u32::MAX` if the pair is skipped.
    pub negative: Vec<u32>,
    pub losses: Vec<T::Scalar>,
    pub stats: Stats,
    /// The reduced loss and the gradients for an upstream of 1; absent for `Reduction::None`.
    pub reduced: Option<(T::Scalar, [Vec<T>; 2])>,
    /// Gradients for the case's upstream, with respect to the anchors and to the reference set.
    pub scaled_grads: [Vec<T>; 2],
}

pub trait Backend {
    const NAME: &'static str;
    /// Whether the backend takes f64: devices do not, for mined losses.
    const TAKES_F64: bool;
    fn run<T: Element>(&self, case: &Case, data: &Data<T>, pairs: &[[u32; 2]]) -> Output<T>;
}

/// What the oracle of either loss computes.
struct Oracle {
    pairs: Vec<[u32; 2]>,
    negative: Vec<u32>,
    losses: Vec<f64>,
    loss: f64,
    grads: Vec<f64>,
    stats: Stats,
}

fn oracle<T: Element>(case: &Case, data: &Data<T>, upstream: &[f64], selection: Option<&[u32]>) -> Oracle {
    let embeddings = Matrix::new(&data.exact, case.batch.dim).unwrap();
    let set = data.exact_set(case.batch.dim);
    let (labels, set) = (&data.labels, set.as_ref());
    match &case.loss {
        Loss::SemiHard(loss) => {
            let found =
                batch_semi_hard::oracle::run_against(loss, embeddings, labels, set, upstream, selection).unwrap();
            let grads = [found.grad, found.reference_grad].concat();
            let (pairs, negative) = (found.pairs, found.negative);
            Oracle { pairs, negative, losses: found.losses, loss: found.loss, grads, stats: found.stats }
        }
        Loss::Negative(loss) => {
            let run = batch_negative::oracle::run_against::<T::Scalar>;
            let found = run(loss, embeddings, labels, set, 0, upstream, selection).unwrap();
            let grads = [found.grad, found.reference_grad].concat();
            let (pairs, negative) = (found.pairs, found.negative);
            Oracle { pairs, negative, losses: found.losses, loss: found.loss, grads, stats: found.stats }
        }
    }
}

/// Whether a pair's negative is right, as far as rounding does not decide.
fn check_selection<T: Element>(
    case: &Case,
    data: &Data<T>,
    bounds: &Bounds,
    [a, p]: [usize; 2],
    negative: Option<usize>,
    truth: Option<usize>,
) -> Result<(), TestCaseError> {
    let margin = case.loss.options().margin;
    let d = |j: usize| bounds.d(a, data.other(j));
    let unsure = |n: usize| {
        let rounding = 4.0 * bounds.epsilon * (margin + d(p).abs() + d(n).abs());
        bounds.of_distance(a, data.other(p)) + bounds.of_product(a, data.other(n)) + rounding
    };
    let negatives = || (0..data.other_labels().len()).filter(|&n| data.is_negative(a, n));
    if let Some(n) = negative {
        prop_assert!(data.is_negative(a, n), "{n} is no negative of {a}");
    }
    match &case.loss {
        Loss::SemiHard(_) => {
            let n = negative.expect("a negative where there is one");
            let sure = |m: usize| d(m) > d(p) + unsure(m);
            if d(n) > d(p) - unsure(n) {
                // Perhaps semi-hard: no negative that is certainly beyond the positive is certainly nearer.
                let better = negatives().find(|&m| sure(m) && d(m) < d(n) - unsure(n) - unsure(m));
                prop_assert!(better.is_none(), "{better:?} is nearer to {a} than {n}, and beyond {p}");
            }
            if d(n) <= d(p) - unsure(n) {
                // Certainly the fall-back: the farthest.
                let farther = negatives().find(|&m| d(m) > d(n) + unsure(n) + unsure(m));
                prop_assert!(farther.is_none(), "{farther:?} is farther from {a} than {n}, and none is beyond {p}");
            }
            if d(n) <= d(p) + unsure(n) {
                // Perhaps the fall-back: nothing farther is certainly beyond the positive.
                let better = negatives().find(|&m| sure(m) && d(m) > d(n) + unsure(n) + unsure(m));
                prop_assert!(better.is_none() || d(n) > d(p) - unsure(n), "{better:?} is beyond {p}, not {n}");
            }
        }
        Loss::Negative(loss) => {
            let signs = |n: usize| [d(p) - d(n) + margin, d(n) - d(p)];
            let semi = loss.negative == Negative::SemiHard;
            let is_sure = |n: usize| signs(n)[0].abs() > unsure(n) && (!semi || signs(n)[1].abs() > unsure(n));
            let is_candidate = |n: usize, slack: f64| signs(n)[0] > -slack && (!semi || signs(n)[1] > -slack);
            match negative {
                Some(n) => prop_assert!(is_candidate(n, unsure(n)), "{n} is no candidate of {a}, {p}"),
                None => {
                    let missed = negatives().find(|&n| is_sure(n) && is_candidate(n, 0.0));
                    prop_assert!(missed.is_none(), "{a}, {p} skipped {missed:?}");
                }
            }
            if loss.negative == Negative::Hardest {
                if let Some(n) = negative {
                    let better = negatives().find(|&m| d(m) < d(n) - unsure(n) - unsure(m));
                    prop_assert!(better.is_none(), "{better:?} is nearer to {a} than {n}");
                }
            } else if negatives().all(is_sure) {
                prop_assert_eq!(negative, truth, "the draw of {}, {}", a, p);
            }
        }
    }
    Ok(())
}

fn compare<T: Element>(
    case: &Case,
    data: &Data<T>,
    output: &Output<T>,
    worst: &mut Worst,
) -> Result<(), TestCaseError> {
    let Batch { rows, dim, .. } = case.batch;
    let Options { margin, distance, normalize, reduction, precision } = case.loss.options();
    let bounds = Bounds::of(data, dim, distance, normalize).at::<T>(precision);
    let truth = oracle(case, data, &data.upstream, None);
    prop_assert_eq!(output.negative.len(), truth.pairs.len());
    let lattice = matches!(case.batch.content, Content::Lattice { .. }) && !bounds.units && T::NAME != "bf16";
    if lattice && distance == Distance::SquaredEuclidean {
        prop_assert_eq!(&output.negative, &truth.negative);
    }
    let row = |row: u32| (row != u32::MAX).then_some(row as usize);
    for ((&[a, p], &negative), &of_truth) in truth.pairs.iter().zip(&output.negative).zip(&truth.negative) {
        check_selection(case, data, &bounds, [a as usize, p as usize], row(negative), row(of_truth))?;
    }

    let own = oracle(case, data, &data.upstream, Some(&output.negative));
    let mut of_losses = vec![0.0; rows];
    let mut of_distances = [0.0; 2];
    let mut undecided = 0;
    let mean = if reduction == Reduction::Mean { 1.0 / own.stats.valid.max(1) as f64 } else { 1.0 };
    // For each row, for an upstream of 1: the errors of its pairs, and the size and the number of the terms.
    let mut terms: Vec<(f64, f64, f64)> = vec![(0.0, 0.0, 0.0); bounds.x.len()];
    let mut terms_of_upstream = terms.clone();
    let chosen = own.pairs.iter().zip(&own.negative).filter(|(_, negative)| **negative != u32::MAX);
    for (&[a, p], &n) in chosen {
        let (a, p, n) = (a as usize, data.other(p as usize), data.other(n as usize));
        let [d_ap, d_an] = [p, n].map(|j| bounds.of_distance(a, j));
        let argument = bounds.d(a, p) - bounds.d(a, n) + margin;
        let unsure = d_ap + d_an + 4.0 * bounds.epsilon * (margin + bounds.d(a, p).abs() + bounds.d(a, n).abs());
        of_losses[a] += unsure + 4.0 * bounds.epsilon * argument.max(0.0);
        of_distances[0] += d_ap;
        of_distances[1] += d_an;
        if argument <= -unsure {
            continue;
        }
        let is_undecided = f64::from(argument <= unsure);
        undecided += u64::from(argument <= unsure);
        let upstream = data.upstream[if data.upstream.len() == 1 { 0 } else { a }].abs();
        for (i, j) in [(a, p), (p, a), (a, n), (n, a)] {
            let (size, error) = bounds.slope(i, j);
            for (terms, up) in [(&mut terms, mean), (&mut terms_of_upstream, mean * upstream)] {
                terms[i].0 += up * (error + is_undecided * size);
                terms[i].1 += up * size;
                terms[i].2 += 1.0;
            }
        }
    }
    for (a, (&bound, &expected)) in of_losses.iter().zip(&own.losses).enumerate() {
        worst.check(|| format!("losses[{a}]"), output.losses[a].to_f64(), expected, bound + 1e-35)?;
    }
    prop_assert_eq!(output.stats.valid, own.stats.valid);
    let (active, expected) = (output.stats.active, own.stats.active);
    prop_assert!(active.abs_diff(expected) <= undecided, "{active} active for {expected}");
    let valid = own.stats.valid.max(1) as f64;
    let means = [
        (output.stats.mean_positive_distance, own.stats.mean_positive_distance),
        (output.stats.mean_negative_distance, own.stats.mean_negative_distance),
    ];
    for ((actual, expected), bound) in means.into_iter().zip(of_distances) {
        let rounding = (bounds.epsilon + valid * f64::EPSILON) * expected.abs();
        worst.check(|| "a mean distance".into(), actual, expected, bound / valid + rounding)?;
    }
    // Roundings of a long sum are as often up as down, so they grow with the root of their number. But if the terms are
    // all the same number, each rounds alike while the sum is between two powers of two: half of them in the last such
    // range, by at most half a unit.
    let equal = case.batch.content == Content::Far;
    let growth = |count: f64| if equal { (count / 4.0).max(4.0 * count.sqrt()) } else { 4.0 * count.sqrt() };
    let of_terms = |terms: &[(f64, f64, f64)]| -> Vec<f64> {
        terms.iter().map(|(error, size, count)| error + growth(*count) * bounds.epsilon * size).collect()
    };
    mined::check_gradients(worst, &output.scaled_grads, &own.grads, dim, &of_terms(&terms_of_upstream))?;
    if let Some((loss, grads)) = &output.reduced {
        let rounding = bounds.epsilon * own.loss.abs();
        let bound = mean * of_losses.iter().sum::<f64>() + rounding + 1e-35;
        worst.check(|| "loss".into(), loss.to_f64(), own.loss, bound)?;
        let unit = oracle(case, data, &[1.0], Some(&output.negative));
        mined::check_gradients(worst, grads, &unit.grads, dim, &of_terms(&terms))?;
    }
    Ok(())
}

/// Tries `count` cases for each dtype.
pub fn property<B: Backend>(backend: &B, cases: impl Strategy<Value = Case>, count: u32) {
    fn one<B: Backend, T: Element + Debug>(backend: &B, cases: &impl Strategy<Value = Case>, count: u32) {
        let worst = std::cell::RefCell::new(Worst::default());
        let stem = std::cell::Cell::new("");
        let what = format!("{} {}", B::NAME, T::NAME);
        random::check(&what, 14, count, cases, |case| {
            let data = Data::<T>::new(&case.batch, case.loss.reduction());
            let pairs = oracle(&case, &data, &data.upstream, None).pairs;
            let output = backend.run(&case, &data, &pairs);
            stem.set(case.loss.stem());
            let mut worst = worst.borrow_mut();
            worst.cases += 1;
            compare(&case, &data, &output, &mut worst)
        });
        worst.borrow().print(stem.get(), B::NAME, T::NAME);
    }
    one::<B, f32>(backend, &cases, count);
    if B::TAKES_F64 {
        one::<B, f64>(backend, &cases, count);
    }
    one::<B, f16>(backend, &cases, count);
    one::<B, bf16>(backend, &cases, count);
}

/// The CPU backend.
pub struct Cpu;

impl Backend for Cpu {
    const NAME: &'static str = "cpu";
    const TAKES_F64: bool = true;
    fn run<T: Element>(&self, case: &Case, data: &Data<T>, pairs: &[[u32; 2]]) -> Output<T> {
        let (labels, x, set) = (&data.labels, data.matrix(&case.batch), data.set());
        let upstream = Data::<T>::scalars(&data.upstream);
        // Without a reference set there is one gradient; the other is empty.
        let poison = || {
            let others = data.reference.as_ref().map_or(0, |other| other.exact.len());
            [mined::poison(data.exact.len()), mined::poison(others)]
        };
        let (mut grads, mut scaled_grads) = (poison(), poison());
        let mut losses = mined::poison(case.batch.rows);
        macro_rules! run {
            ($loss:ident) => {{
                let ([grad, grad_of_set], [scaled, scaled_of_set]) = (&mut grads, &mut scaled_grads);
                let reduced = $loss.reduction != Reduction::None;
                match &set {
                    None => {
                        $loss.on(x, labels).losses(&mut losses).unwrap();
                        $loss.on(x, labels).grad(&upstream, scaled).unwrap();
                        let both = reduced.then(|| {
                            let both = $loss.on(x, labels).loss_and_grad(grad).unwrap();
                            ($loss.on(x, labels).loss_with_stats().unwrap(), both)
                        });
                        ($loss.on(x, labels).select().unwrap(), both)
                    }
                    Some(set) => {
                        $loss.on(x, labels).against(set).losses(&mut losses).unwrap();
                        $loss.on(x, labels).against(set).grads(&upstream, [Some(scaled), Some(scaled_of_set)]).unwrap();
                        let both = reduced.then(|| {
                            let to = [Some(&mut grad[..]), Some(&mut grad_of_set[..])];
                            let both = $loss.on(x, labels).against(set).loss_and_grads(to).unwrap();
                            ($loss.on(x, labels).against(set).loss_with_stats().unwrap(), both)
                        });
                        ($loss.on(x, labels).against(set).select().unwrap(), both)
                    }
                }
            }};
        }
        let (triplets, both) = match &case.loss {
            Loss::SemiHard(loss) => run!(loss),
            Loss::Negative(loss) => run!(loss),
        };
        let mut negative = vec![u32::MAX; pairs.len()];
        let mut at = 0;
        for (k, &n) in triplets.negative.iter().enumerate() {
            let pair = [triplets.anchor[k], triplets.positive[k]];
            at += pairs[at..].iter().position(|p| *p == pair).expect("one of the pairs, in order");
            negative[at] = n;
        }
        let stats = match &both {
            Some(((forward, stats), both)) => {
                assert_eq!(forward, both, "with and without gradients");
                *stats
            }
            None => {
                let mean = |d: &[T::Scalar]| d.iter().map(|d| d.to_f64()).sum::<f64>() / d.len().max(1) as f64;
                let loss = |k: usize| {
                    let margin = T::Scalar::from_f64(case.loss.options().margin);
                    triplets.positive_distances[k] - triplets.negative_distances[k] + margin > T::Scalar::from_f64(0.0)
                };
                let active = (0..triplets.negative.len()).filter(|&k| loss(k)).count();
                let means = [&triplets.positive_distances, &triplets.negative_distances].map(|d| mean(d));
                mined::stats([triplets.negative.len(), active].map(|count| count as u64), means)
            }
        };
        Output { negative, losses, stats, reduced: both.map(|(_, both)| (both, grads)), scaled_grads }
    }
}

/// The choices that a device wrote, in the order of the oracle's pairs. The device writes one for each row of each
/// anchor's class, in class order.
pub fn in_order_of_pairs<T: Element>(data: &Data<T>, pairs: &[[u32; 2]], chosen: &[u32]) -> Vec<u32> {
    let sorted = |labels: &[i64]| {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_by_key(|&i| (labels[i], i));
        order
    };
    let others = data.other_labels();
    let order = sorted(others);
    let mut start = vec![0; data.labels.len()];
    let mut next = 0;
    for a in sorted(&data.labels) {
        start[a] = next;
        next += others.iter().filter(|label| **label == data.labels[a]).count();
    }
    let place = |a: usize, p: usize| {
        let class = order.iter().filter(|&&j| others[j] == data.labels[a]);
        class.into_iter().position(|&j| j == p).expect("of the anchor's class")
    };
    pairs.iter().map(|&[a, p]| chosen[start[a as usize] + place(a as usize, p as usize)]).collect()
}
