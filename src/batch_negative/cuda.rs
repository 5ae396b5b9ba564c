//! The launches of kernels/batch_negative.cu: the shared ones, and how negatives are chosen.

use super::{BatchNegativeTripletLoss, Negative, Pairs, Problem};
use crate::cuda::mined::{Inputs, OnDevice, Output};
use crate::cuda::triplets::{self, Chosen, Draw};
use crate::cuda::{Address, Launcher, Memory};
use crate::{Element, Error};

const STEM: &str = "batch_negative";
const HARDEST: &str = "batch_negative_hardest";
const DRAWN: &str = "batch_negative_drawn";

/// Every kernel that a call can launch.
#[doc(hidden)]
pub fn kernel_names() -> Vec<String> {
    let words = ["f32", "f16", "bf16"].map(|dtype| format!("{STEM}_words_{dtype}"));
    let mut names = triplets::kernel_names(STEM, &[HARDEST, DRAWN]);
    names.extend(words);
    names
}

fn of(problem: &Problem) -> triplets::Problem {
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

impl OnDevice for BatchNegativeTripletLoss {
    type Kept<M: Memory> = Chosen<M>;

    unsafe fn forward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Chosen<L::Memory>, Error> {
        // SAFETY: the caller's contract.
        unsafe { triplets::forward::<T, L>(launcher, &of(problem), inputs, output, with_grad != [false; 2]) }
    }

    unsafe fn backward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        chosen: &Chosen<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { triplets::backward::<T, L>(launcher, &of(problem), chosen, inputs, upstream, grads) }
    }
}
