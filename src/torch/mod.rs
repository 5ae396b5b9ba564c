//! The losses on `tch` tensors, and what tch lacks for them: custom backward passes, and process groups.

mod autograd;
pub(crate) mod call;
#[cfg(feature = "distributed")]
pub mod distributed;
#[cfg(feature = "cuda")]
pub(crate) mod launcher;
mod memory;
pub(crate) mod paired;
pub(crate) mod pool;
pub(crate) mod tensors;
pub(crate) mod threads;

pub use autograd::{Backward, BackwardError, CustomFunction, needs_grad};
pub use call::{TensorStats, WithStats};
pub use memory::CrossBatchMemory;
pub use pool::release_cpu_memory;
