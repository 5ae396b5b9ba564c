//! What the property test and the records of `batch_negative` need: its cases, its oracle, and its choice.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tercet::batch_negative::oracle;
use tercet::batch_semi_hard::Triplets;
use tercet::{BatchNegativeTripletLoss, Negative, Pairs, Scalar};

use crate::mined::batch::{Exact, OwnRows};
use crate::mined::{Case, OnSlices, batch};
use crate::support::backends::Number;
use crate::support::property::{Limits, property_tests};
use crate::triplets::property::{Chooses, Options, Oracle, Pair, options};

property_tests!(BatchNegativeTripletLoss, cpu: 250, emulator: 30, detector: 3);

impl Chooses for BatchNegativeTripletLoss {
    const STEM: &'static str = "batch_negative";

    fn cases(limits: Limits) -> BoxedStrategy<Case<Self>> {
        let negatives = proptest::sample::select(vec![Negative::Hardest, Negative::Random, Negative::SemiHard]);
        let pairs = proptest::sample::select(vec![Pairs::Ordered, Pairs::Once]);
        let choice = (negatives, pairs, any::<u64>());
        let cases = (options(limits), choice, batch::batches(limits.rows)).prop_map(
            |(options, (negative, pairs, seed), mut batch)| {
                if pairs == Pairs::Once
                    && let Some(set) = &mut batch.reference
                    && matches!(set.own, OwnRows::None)
                {
                    set.own = OwnRows::Rows;
                }
                let Options { margin, distance, normalize, reduction, precision } = options;
                let loss = Self {
                    margin,
                    distance,
                    normalize,
                    negative,
                    pairs,
                    seed,
                    reduction,
                    precision,
                    pairs_at_once: None,
                };
                Case { loss, batch }
            },
        );
        cases.boxed()
    }

    fn options(&self) -> Options {
        let Self { margin, distance, normalize, reduction, precision, .. } = *self;
        Options { margin, distance, normalize, reduction, precision }
    }

    fn triplets<T: Number>(slices: &OnSlices<'_, Self, T>) -> Triplets<T::Scalar> {
        slices.call().select().unwrap()
    }

    fn oracle<A: Scalar>(&self, exact: Exact<'_>, negative: Option<&[u32]>) -> Oracle {
        let Exact { embeddings, labels, set, upstream } = exact;
        let found = oracle::run_against::<A>(self, embeddings, labels, set, 0, upstream, negative).unwrap();
        let grads = [found.grad, found.reference_grad].concat();
        let (pairs, negative) = (found.pairs, found.negative);
        Oracle { pairs, negative, losses: found.losses, loss: found.loss, grads, stats: found.stats }
    }

    fn check_selection<T: Number>(
        &self,
        pair: &Pair<'_, T>,
        negative: Option<usize>,
        truth: Option<usize>,
    ) -> TestCaseResult {
        let Pair { a, p, margin, .. } = *pair;
        let (d, unsure) = (|j| pair.d(j), |n| pair.unsure(n));
        let signs = |n: usize| [d(p) - d(n) + margin, d(n) - d(p)];
        let semi = self.negative == Negative::SemiHard;
        let is_sure = |n: usize| signs(n)[0].abs() > unsure(n) && (!semi || signs(n)[1].abs() > unsure(n));
        let is_candidate = |n: usize, slack: f64| signs(n)[0] > -slack && (!semi || signs(n)[1] > -slack);
        match negative {
            Some(n) => prop_assert!(is_candidate(n, unsure(n)), "{n} is no candidate of {a}, {p}"),
            None => {
                let missed = pair.negatives().find(|&n| is_sure(n) && is_candidate(n, 0.0));
                prop_assert!(missed.is_none(), "{a}, {p} skipped {missed:?}");
            }
        }
        if self.negative == Negative::Hardest {
            if let Some(n) = negative {
                let better = pair.negatives().find(|&m| d(m) < d(n) - unsure(n) - unsure(m));
                prop_assert!(better.is_none(), "{better:?} is nearer to {a} than {n}");
            }
        } else if pair.negatives().all(is_sure) {
            prop_assert_eq!(negative, truth, "the draw of {}, {}", a, p);
        }
        Ok(())
    }
}
