//! The launches of kernels/batch_semi_hard.cu: the shared ones, and how negatives are chosen.

use super::{BatchSemiHardTripletLoss, Problem};
use crate::cuda::mined::{Inputs, OnDevice, Output};
use crate::cuda::triplets::{self, Chosen};
use crate::cuda::{Address, Launcher, Memory};
use crate::{Element, Error};

const STEM: &str = "batch_semi_hard";

/// Every kernel that a call can launch.
#[doc(hidden)]
pub fn kernel_names() -> Vec<String> {
    triplets::kernel_names(STEM, &[STEM])
}

fn of(problem: &Problem) -> triplets::Problem {
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

impl OnDevice for BatchSemiHardTripletLoss {
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
