//! The CUDA device that tests of paired losses run on, if there is one.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::paired::{self, Backend, Paired};
use super::powers;
use super::support::records;
use skip::there_is_a_device;

#[path = "skip.rs"]
mod skip;

/// The stream of the first device; `None`, after naming the test as skipped, if there is none.
fn stream(test: &str) -> Option<Arc<CudaStream>> {
    there_is_a_device(test).then(|| CudaContext::new(0).unwrap().default_stream())
}

pub fn agrees_with_the_oracle<L: Paired<K>, B: Backend<L, K>, const K: usize>(on: impl FnOnce(Arc<CudaStream>) -> B) {
    if let Some(stream) = stream(&format!("{}: cuda_agrees_with_the_oracle", L::NAME)) {
        paired::property(&on(stream), 1500);
    }
}

pub fn powers_stay_in_range<L: Paired<K>, B: Backend<L, K>, const K: usize>(on: impl FnOnce(Arc<CudaStream>) -> B) {
    if let Some(stream) = stream(&format!("{}: cuda_powers_stay_in_range", L::NAME)) {
        powers::stay_in_range(&on(stream));
    }
}

/// As recorded on it, if that was recorded or anything is to be written now.
pub fn computes_what_it_did<L: Paired<K>, B: Backend<L, K>, const K: usize>(on: impl FnOnce(Arc<CudaStream>) -> B) {
    let test = format!("{}: cuda_computes_what_it_did", L::NAME);
    let Some(stream) = stream(&test) else { return };
    let name = stream.context().name().unwrap();
    let device = records::slug(&name);
    if !records::wanted(L::NAME, &device) {
        skip::skipped(&format!("nothing recorded on {name}: {test}"));
        return;
    }
    paired::unchanged(&on(stream), &device);
}
