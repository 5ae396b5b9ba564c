//! The tests of Tercet: one folder for each stem, with the property test of every backend in `property.rs`, what holds by
//! definition in `laws.rs`, tensors in `torch.rs`, what only the emulator shows in `emulated.rs`.

mod support;

#[cfg(feature = "torch")]
mod autograd;
mod batch_all;
mod batch_contrastive;
mod batch_hard;
mod batch_negative;
mod batch_semi_hard;
mod build;
#[cfg(feature = "cuda")]
mod conformance;
mod contrastive;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "distributed")]
mod distributed;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "torch")]
mod memory;
mod mined;
mod paired;
mod pairwise_distance;
mod parity;
#[cfg(feature = "cuda")]
mod rates;
mod top_k;
mod triplet_margin;
mod triplets;
