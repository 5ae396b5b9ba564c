//! What the property test and the records need of the losses that choose one negative for each pair of an anchor and a
//! positive.

use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tercet::batch_semi_hard::Triplets;
use tercet::{Distance, Element, Matrix, PerAnchor, Precision, Reduction, Scalar, Stats};

use crate::mined::batch::{self, Batch, Content, Data, Exact};
use crate::mined::bounds::{Bounds, check_gradients};
use crate::mined::{Case, Mined, OnSlices, Output};
use crate::support::backends::Number;
use crate::support::property::{Limits, Worst};

/// The options that all these losses have.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub margin: f64,
    pub distance: Distance,
    pub normalize: bool,
    pub reduction: Reduction,
    pub precision: Precision,
}

/// Random options.
pub fn options(limits: Limits) -> impl Strategy<Value = Options> {
    let reductions = prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)];
    let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
    (batch::distances(), reductions, margins, any::<bool>(), batch::precisions(limits)).prop_map(
        |(distance, reduction, margin, normalize, precision)| Options {
            margin,
            distance,
            normalize,
            reduction,
            precision,
        },
    )
}

/// What the oracle of such a loss computes.
pub struct Oracle {
    /// All pairs of an anchor and a positive.
    pub pairs: Vec<[u32; 2]>,
    /// The negative of each pair, `u32::MAX` if the pair is skipped.
    pub negative: Vec<u32>,
    pub losses: Vec<f64>,
    pub loss: f64,
    pub grads: Vec<f64>,
    pub stats: Stats,
}

/// A pair of an anchor and a positive, among the batch's distances.
pub struct Pair<'a, T> {
    data: &'a Data<T>,
    bounds: &'a Bounds,
    pub margin: f64,
    pub a: usize,
    pub p: usize,
}

impl<T: Element> Pair<'_, T> {
    /// The distance of the anchor to row `j` of those that positives and negatives are drawn from.
    pub fn d(&self, j: usize) -> f64 {
        self.bounds.d(self.a, self.data.other(j))
    }

    /// How far the hinge's argument for the negative `n` may be from the oracle's.
    pub fn unsure(&self, n: usize) -> f64 {
        let rounding = 4.0 * self.bounds.epsilon * (self.margin + self.d(self.p).abs() + self.d(n).abs());
        let [p, of_n] = [self.p, n].map(|j| self.data.other(j));
        self.bounds.of_distance(self.a, p) + self.bounds.of_product(self.a, of_n) + rounding
    }

    /// The anchor's negatives.
    pub fn negatives(&self) -> impl Iterator<Item = usize> {
        (0..self.data.other_labels().len()).filter(|&n| self.data.is_negative(self.a, n))
    }
}

/// A loss that chooses one negative for each pair, as its property test sees it.
pub trait Chooses: PerAnchor + Copy + Debug + Send + Sync + 'static {
    const STEM: &'static str;

    fn cases(limits: Limits) -> BoxedStrategy<Case<Self>>;
    fn options(&self) -> Options;
    /// The triplets that the CPU lists.
    fn triplets<T: Number>(slices: &OnSlices<'_, Self, T>) -> Triplets<T::Scalar>;
    /// The oracle, with a negative for each pair in place of its own choice.
    fn oracle<A: Scalar>(&self, exact: Exact<'_>, negative: Option<&[u32]>) -> Oracle;
    /// Whether the negative of a pair is right, as far as rounding does not decide; `truth` is the oracle's.
    fn check_selection<T: Number>(
        &self,
        pair: &Pair<'_, T>,
        negative: Option<usize>,
        truth: Option<usize>,
    ) -> TestCaseResult;
}

fn oracle<L: Chooses, T: Element>(
    case: &Case<L>,
    data: &Data<T>,
    upstream: &[f64],
    negative: Option<&[u32]>,
) -> Oracle {
    let embeddings = Matrix::new(&data.exact, case.batch.dim).unwrap();
    let set = data.exact_set(case.batch.dim);
    let exact = Exact { embeddings, labels: &data.labels, set: set.as_ref(), upstream };
    case.loss.oracle::<T::Scalar>(exact, negative)
}

impl<L: Chooses> Mined for L {
    const STEM: &'static str = <L as Chooses>::STEM;
    const SEQUENCE: u8 = 14;
    /// The negative of each of the oracle's pairs, `u32::MAX` if the pair is skipped.
    type Selected = Vec<u32>;

    fn cases(limits: Limits) -> BoxedStrategy<Case<L>> {
        <L as Chooses>::cases(limits)
    }

    fn reduction(&self) -> Reduction {
        Chooses::options(self).reduction
    }

    fn on_cpu<T: Number>(case: &Case<L>, data: &Data<T>) -> Output<T, Vec<u32>> {
        let slices = OnSlices::new(case.loss, &case.batch, data);
        let triplets = L::triplets(&slices);
        let pairs = oracle(case, data, &data.upstream, None).pairs;
        let mut negative = vec![u32::MAX; pairs.len()];
        let mut at = 0;
        for (k, &n) in triplets.negative.iter().enumerate() {
            let pair = [triplets.anchor[k], triplets.positive[k]];
            at += pairs[at..].iter().position(|p| *p == pair).expect("one of the pairs, in order");
            negative[at] = n;
        }
        let reduced = (case.loss.reduction() != Reduction::None).then(|| slices.reduced());
        let stats = match &reduced {
            Some(_) => slices.stats(),
            None => {
                let mean = |d: &[T::Scalar]| d.iter().map(|d| d.to_f64()).sum::<f64>() / d.len().max(1) as f64;
                let margin = T::Scalar::from_f64(Chooses::options(&case.loss).margin);
                let is_active = |k: &usize| {
                    triplets.positive_distances[*k] - triplets.negative_distances[*k] + margin
                        > T::Scalar::from_f64(0.0)
                };
                let active = (0..triplets.negative.len()).filter(is_active).count();
                let means = [&triplets.positive_distances, &triplets.negative_distances].map(|d| mean(d));
                batch::stats([triplets.negative.len(), active].map(|count| count as u64), means, false)
            }
        };
        let (losses, scaled_grads) = (slices.losses(), slices.grads_of(&data.upstream));
        Output { selected: negative, losses, stats, reduced, scaled_grads }
    }

    #[cfg(feature = "cuda")]
    fn chosen<T: Element>(data: &Data<T>) -> usize {
        data.pairs_of_a_class()
    }

    #[cfg(feature = "cuda")]
    fn selected<T: Number>(case: &Case<L>, data: &Data<T>, [chosen, _]: [Vec<u32>; 2]) -> Vec<u32> {
        let pairs = oracle(case, data, &data.upstream, None).pairs;
        in_order_of_pairs([&data.labels, data.other_labels()], &pairs, &chosen)
    }

    fn compare<T: Number>(
        case: &Case<L>,
        data: &Data<T>,
        output: &Output<T, Vec<u32>>,
        worst: &mut Worst,
    ) -> TestCaseResult {
        let Batch { rows, dim, .. } = case.batch;
        let Options { margin, distance, normalize, reduction, precision } = Chooses::options(&case.loss);
        let bounds = Bounds::of(data, dim, distance, normalize).at::<T>(precision);
        let truth = oracle(case, data, &data.upstream, None);
        prop_assert_eq!(output.selected.len(), truth.pairs.len());
        let lattice = matches!(case.batch.content, Content::Lattice { .. }) && !bounds.units && T::NAME != "bf16";
        if lattice && distance == Distance::SquaredEuclidean {
            prop_assert_eq!(&output.selected, &truth.negative);
        }
        let row = |row: u32| (row != u32::MAX).then_some(row as usize);
        for ((&[a, p], &negative), &of_truth) in truth.pairs.iter().zip(&output.selected).zip(&truth.negative) {
            let pair = Pair { data, bounds: &bounds, margin, a: a as usize, p: p as usize };
            if let Some(n) = row(negative) {
                prop_assert!(data.is_negative(pair.a, n), "{n} is no negative of {a}");
            }
            case.loss.check_selection(&pair, row(negative), row(of_truth))?;
        }

        let own = oracle(case, data, &data.upstream, Some(&output.selected));
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
        check_gradients(worst, &output.scaled_grads, &own.grads, dim, &of_terms(&terms_of_upstream))?;
        if let Some((loss, grads)) = &output.reduced {
            let rounding = bounds.epsilon * own.loss.abs();
            let bound = mean * of_losses.iter().sum::<f64>() + rounding + 1e-35;
            worst.check(|| "loss".into(), loss.to_f64(), own.loss, bound)?;
            let unit = oracle(case, data, &[1.0], Some(&output.selected));
            check_gradients(worst, grads, &unit.grads, dim, &of_terms(&terms))?;
        }
        Ok(())
    }
}

/// The choices that a device wrote, in the order of the oracle's pairs. The device writes one for each row of each
/// anchor's class, in class order.
#[cfg(feature = "cuda")]
pub fn in_order_of_pairs([labels, others]: [&[i64]; 2], pairs: &[[u32; 2]], chosen: &[u32]) -> Vec<u32> {
    let sorted = |labels: &[i64]| {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_by_key(|&i| (labels[i], i));
        order
    };
    let order = sorted(others);
    let mut start = vec![0; labels.len()];
    let mut next = 0;
    for a in sorted(labels) {
        start[a] = next;
        next += others.iter().filter(|label| **label == labels[a]).count();
    }
    let place = |a: usize, p: usize| {
        let class = order.iter().filter(|&&j| others[j] == labels[a]);
        class.into_iter().position(|&j| j == p).expect("of the anchor's class")
    };
    pairs.iter().map(|&[a, p]| chosen[start[a as usize] + place(a as usize, p as usize)]).collect()
}
