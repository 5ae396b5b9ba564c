//! What the property test and the records of `batch_semi_hard` need: its cases, its oracle, and its choice.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tercet::batch_semi_hard::{Triplets, oracle};
use tercet::{BatchSemiHardTripletLoss, Scalar};

use crate::mined::batch::Exact;
use crate::mined::{Case, OnSlices, batch};
use crate::support::backends::Number;
use crate::support::property::{Limits, property_tests};
use crate::triplets::property::{Chooses, Options, Oracle, Pair, options};

property_tests!(BatchSemiHardTripletLoss, cpu: 250, emulator: 30, detector: 3);

impl Chooses for BatchSemiHardTripletLoss {
    const STEM: &'static str = "batch_semi_hard";

    fn cases(limits: Limits) -> BoxedStrategy<Case<Self>> {
        let cases = (options(limits), batch::batches(limits.rows)).prop_map(|(options, batch)| {
            let Options { margin, distance, normalize, reduction, precision } = options;
            Case { loss: Self { margin, distance, normalize, reduction, precision, pairs_at_once: None }, batch }
        });
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
        let found = oracle::run_against(self, embeddings, labels, set, upstream, negative).unwrap();
        let grads = [found.grad, found.reference_grad].concat();
        let (pairs, negative) = (found.pairs, found.negative);
        Oracle { pairs, negative, losses: found.losses, loss: found.loss, grads, stats: found.stats }
    }

    fn check_selection<T: Number>(
        &self,
        pair: &Pair<'_, T>,
        negative: Option<usize>,
        _: Option<usize>,
    ) -> TestCaseResult {
        let Pair { a, p, .. } = *pair;
        let (d, unsure) = (|j| pair.d(j), |n| pair.unsure(n));
        let n = negative.expect("a negative where there is one");
        let sure = |m: usize| d(m) > d(p) + unsure(m);
        if d(n) > d(p) - unsure(n) {
            // Perhaps semi-hard: no negative that is certainly beyond the positive is certainly nearer.
            let better = pair.negatives().find(|&m| sure(m) && d(m) < d(n) - unsure(n) - unsure(m));
            prop_assert!(better.is_none(), "{better:?} is nearer to {a} than {n}, and beyond {p}");
        }
        if d(n) <= d(p) - unsure(n) {
            // Certainly the fall-back: the farthest.
            let farther = pair.negatives().find(|&m| d(m) > d(n) + unsure(n) + unsure(m));
            prop_assert!(farther.is_none(), "{farther:?} is farther from {a} than {n}, and none is beyond {p}");
        }
        if d(n) <= d(p) + unsure(n) {
            // Perhaps the fall-back: nothing farther is certainly beyond the positive.
            let better = pair.negatives().find(|&m| sure(m) && d(m) > d(n) + unsure(n) + unsure(m));
            prop_assert!(better.is_none() || d(n) > d(p) - unsure(n), "{better:?} is beyond {p}, not {n}");
        }
        Ok(())
    }
}
