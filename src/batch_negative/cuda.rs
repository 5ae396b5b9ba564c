//! How kernels/batch_negative.cu chooses negatives; `cuda/triplets.rs` launches it.

use super::BatchNegativeTripletLoss;
use super::options::{Negative, NegativeOptions, Pairs};
use crate::cuda::triplets::{Chooses, Draw, Rule};

const STEM: &str = "batch_negative";
const HARDEST: &str = "batch_negative_hardest";
const DRAWN: &str = "batch_negative_drawn";

impl Chooses for BatchNegativeTripletLoss {
    fn rule(extra: &NegativeOptions) -> Rule {
        let draw = |beyond| Some(Draw { seed: extra.seed, beyond });
        let (kernels, draw) = match extra.negative {
            Negative::Hardest => (HARDEST, None),
            Negative::Random => (DRAWN, draw(false)),
            Negative::SemiHard => (DRAWN, draw(true)),
        };
        Rule { stem: STEM, kernels, once: extra.pairs == Pairs::Once, draw }
    }
}
