//! The losses on `tch` tensors, and what tch lacks for them: custom backward passes.

mod autograd;
#[cfg(feature = "cuda")]
pub(crate) mod launcher;
pub(crate) mod mined;
pub(crate) mod paired;
pub(crate) mod pool;
pub(crate) mod tensors;

pub use autograd::{Backward, BackwardError, CustomFunction, needs_grad};
pub use mined::{TensorStats, WithStats};
pub use pool::release_cpu_memory;
