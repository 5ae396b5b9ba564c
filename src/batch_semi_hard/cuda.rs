//! How kernels/batch_semi_hard.cu chooses negatives; `cuda/triplets.rs` launches it.

use super::BatchSemiHardTripletLoss;
use crate::cuda::triplets::{Chooses, Rule};

const STEM: &str = "batch_semi_hard";

impl Chooses for BatchSemiHardTripletLoss {
    fn rule((): &()) -> Rule {
        Rule { stem: STEM, kernels: STEM, once: false, draw: None }
    }
}
