//! The losses on `tch` tensors, and what tch lacks for them: custom backward passes.

mod autograd;
#[cfg(feature = "cuda")]
pub(crate) mod launcher;
mod memory;
pub(crate) mod mined;
pub(crate) mod paired;
pub(crate) mod pool;
pub(crate) mod tensors;

pub use autograd::{Backward, BackwardError, CustomFunction, needs_grad};
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use launcher::on_pool_stream;
pub use memory::CrossBatchMemory;
pub use mined::{MinedLoss, TensorStats, WithStats};
pub use pool::release_cpu_memory;
