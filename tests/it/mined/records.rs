//! Every mined loss computes what it did when its records were written.

use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss, BatchSemiHardTripletLoss,
};

use super::recorded::{Records, every_bit_counts};
use crate::support::backends::Cpu;
#[cfg(feature = "cuda")]
use crate::support::cuda::Cuda;
#[cfg(feature = "emulator")]
use crate::support::emulated::Emulated;
#[cfg(feature = "cuda")]
use crate::support::records::unchanged_on_cuda;
use crate::support::records::{finds_what_is_wrong, unchanged};

/// For each mined loss.
macro_rules! of_each {
    ($run:ident::<_ $(, $backend:ty)?>($($argument:expr),*)) => {
        $run::<Records<BatchAllTripletLoss> $(, $backend)?>($($argument),*);
        $run::<Records<BatchHardTripletLoss> $(, $backend)?>($($argument),*);
        $run::<Records<BatchSemiHardTripletLoss> $(, $backend)?>($($argument),*);
        $run::<Records<BatchNegativeTripletLoss> $(, $backend)?>($($argument),*);
        $run::<Records<BatchContrastiveLoss> $(, $backend)?>($($argument),*);
    };
}

#[test]
fn cpu_computes_what_it_did() {
    of_each!(unchanged::<_, Cpu>(&Cpu, "cpu"));
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_computes_what_it_did() {
    of_each!(unchanged::<_, Emulated<false>>(&Emulated::default(), "emulator"));
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_computes_what_it_did() {
    let Some(cuda) = Cuda::first("mined: cuda_computes_what_it_did") else { return };
    of_each!(unchanged_on_cuda::<_>(&cuda));
}

#[test]
fn a_change_is_found_in_every_case() {
    of_each!(finds_what_is_wrong::<_>(None));
}

#[test]
fn every_bit_of_a_result_counts() {
    every_bit_counts::<BatchHardTripletLoss>();
    every_bit_counts::<BatchContrastiveLoss>();
}
