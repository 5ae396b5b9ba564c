//! The launches of kernels/batch_negative.cu: the shared ones, and how negatives are chosen.

use super::{BatchNegativeTripletLoss, Negative, Pairs, Problem};
use crate::cuda::triplets::{self, Draw, Plan};

crate::cuda::mined::cuda_calls!(BatchNegativeTripletLoss);

const STEM: &str = "batch_negative";
const HARDEST: &str = "batch_negative_hardest";
const DRAWN: &str = "batch_negative_drawn";

impl Plan for BatchNegativeTripletLoss {
    fn plan(problem: &Problem) -> triplets::Problem {
        triplets::Problem {
            stem: STEM,
            choice: if problem.negative == Negative::Hardest { HARDEST } else { DRAWN },
            rows: problem.rows,
            others: problem.others,
            dim: problem.dim,
            metric: problem.metric,
            normalize: problem.normalize,
            precision: problem.precision,
            margin: problem.margin,
            reduction: problem.reduction,
            once: problem.pairs == Pairs::Once,
            draw: match problem.negative {
                Negative::Hardest => None,
                Negative::Random => Some(Draw { seed: problem.seed, beyond: false }),
                Negative::SemiHard => Some(Draw { seed: problem.seed, beyond: true }),
            },
        }
    }
}
