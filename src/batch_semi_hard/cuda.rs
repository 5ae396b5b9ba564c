//! How kernels/batch_semi_hard.cu chooses negatives; `cuda/triplets.rs` launches it.

use super::BatchSemiHardTripletLoss;
use crate::cuda::triplets::{Choice, Chooses};

const STEM: &str = "batch_semi_hard";

impl Chooses for BatchSemiHardTripletLoss {
    fn choice((): &()) -> Choice {
        Choice { stem: STEM, kernels: STEM, once: false, draw: None }
    }
}
