//! The launches of kernels/batch_semi_hard.cu: the shared ones, and how negatives are chosen.

use super::{BatchSemiHardTripletLoss, Problem};
use crate::cuda::triplets::{self, Plan};

crate::cuda::mined::cuda_calls!(BatchSemiHardTripletLoss);

const STEM: &str = "batch_semi_hard";

impl Plan for BatchSemiHardTripletLoss {
    fn plan(problem: &Problem) -> triplets::Problem {
        triplets::Problem {
            stem: STEM,
            choice: STEM,
            rows: problem.rows,
            others: problem.others,
            dim: problem.dim,
            metric: problem.metric,
            normalize: problem.normalize,
            precision: problem.precision,
            margin: problem.margin,
            reduction: problem.reduction,
            once: false,
            draw: None,
        }
    }
}
