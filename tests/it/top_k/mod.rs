//! `TopK`: the nearest rows of many for each query.

mod laws;
mod property;
#[cfg(feature = "torch")]
mod torch;
