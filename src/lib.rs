//! Hand-written CUDA and CPU kernels for metric-learning losses: distance, hinge, reduction and gradients in one pass
//! over the embeddings, as drop-in losses for [`tch`](https://github.com/LaurentMazare/tch-rs) training loops and on
//! plain slices.
//!
//! | Loss | Definition | From |
//! |---|---|---|
//! | [`TripletMarginLoss`] | `relu(d(a, p) - d(a, n) + margin)` over pre-formed triplets | FaceNet, Schroff et al. 2015 |
//! | [`BatchAllTripletLoss`] | the triplet margin loss over every triplet of a batch | Hermans et al. 2017 |
//! | [`BatchHardTripletLoss`] | the triplet margin loss of each anchor of a batch, with its farthest positive and its nearest negative | Hermans et al. 2017 |
//! | [`BatchSemiHardTripletLoss`] | the triplet margin loss of each pair of a batch, with the nearest negative that is farther than the positive | FaceNet |
//! | [`BatchNegativeTripletLoss`] | the triplet margin loss of each pair of a batch, with the hardest negative, or with one drawn at random | FaceNet |
//! | [`ContrastiveLoss`] | `d(x1, x2)²/2` if the rows belong together, `relu(margin - d(x1, x2))²/2` if not | Hadsell et al. 2006 |
//! | [`BatchContrastiveLoss`] | the contrastive loss over the pairs of a batch: all, or of different classes only the hardest, as many as there are of one class | Hadsell et al. 2006 |
//! | [`PairwiseDistance`] | the matrix of distances, differentiable: `cdist` without its cancellation | – |
//!
//! Options are public fields with PyTorch's names; each method that can panic has an `f_` twin that returns a
//! [`Result`], as in tch.
//!
//! ```
//! use tercet::{Matrix, PairedDistance, TripletMarginLoss};
//!
//! // Two triplets of embeddings of three numbers.
//! let anchor = [1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0];
//! let positive = [0.9, 0.1, 0.0, 0.0, 0.8, 0.2];
//! let negative = [0.0, 0.0, 1.0, 0.1, 0.9, 0.0];
//! let rows = [Matrix::new(&anchor, 3)?, Matrix::new(&positive, 3)?, Matrix::new(&negative, 3)?];
//! let loss = TripletMarginLoss { margin: 0.5, distance: PairedDistance::Cosine, ..Default::default() }.loss(rows)?;
//! assert!((loss - 0.26187).abs() < 1e-4, "{loss}");
//! # Ok::<(), tercet::Error>(())
//! ```
//!
//! # Calls
//! A loss over a batch begins a [`Call`] with [`on`](BatchHardTripletLoss::on), on tch tensors, slices or cudarc
//! slices. A reference set or a step may be added to the call, and its last method runs it. `forward` is short for the
//! first line:
//!
//! ```text
//! loss_fn.on(&embeddings, &labels).forward()                    // loss_fn.forward(&embeddings, &labels)
//! loss_fn.on(&embeddings, &labels).against(&reference).forward_with_stats()
//! loss_fn.on(matrix, labels).against(&reference).loss_and_grad(&mut grad)
//! ```
//!
//! # Numbers
//! Embeddings are f32, f64, f16 or bf16. Arithmetic is f64 for f64 and f32 for all others; the batch is summed in f64
//! in a fixed order, so that the same inputs give the same bits on the same machine, with any number of threads.
//!
//! # Features
//! - `torch` (default): the losses on tch tensors, and [`torch::CustomFunction`], a backward pass of your own.
//! - `cuda` (default): the CUDA kernels, compiled at build time with NVRTC.
//! - without both: the CPU losses on slices, without libtorch and without CUDA.
//! - `doc-only`: builds the documentation with nothing installed.

#![warn(clippy::must_use_candidate, clippy::print_stdout, clippy::unwrap_used)]
// On docs.rs each item says which feature it belongs to.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod batch_all;
pub mod batch_contrastive;
pub mod batch_hard;
pub mod batch_negative;
pub mod batch_semi_hard;
mod call;
mod constants;
pub mod contrastive;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod distance;
mod element;
mod error;
#[doc(hidden)]
pub mod internal;
mod matrix;
mod mined;
mod oracle;
mod paired;
pub mod pairwise_distance;
mod precision;
mod problem;
mod random;
mod reduction;
mod reference;
mod stats;
#[cfg(feature = "torch")]
pub mod torch;
pub mod triplet_margin;
mod triplets;

pub use batch_all::BatchAllTripletLoss;
pub use batch_contrastive::{BatchContrastiveLoss, Negatives};
pub use batch_hard::BatchHardTripletLoss;
pub use batch_negative::{BatchNegativeTripletLoss, Negative, Pairs};
pub use batch_semi_hard::BatchSemiHardTripletLoss;
pub use call::{Call, Draws, Input, MinedLoss, PerAnchor, Selects};
pub use contrastive::ContrastiveLoss;
pub use distance::{Distance, PairedDistance};
pub use element::{Element, Scalar};
pub use error::Error;
pub use matrix::Matrix;
pub use pairwise_distance::PairwiseDistance;
pub use precision::Precision;
pub use reduction::{MeanOver, Reduction};
pub use reference::{Own, Reference};
pub use stats::Stats;
pub use triplet_margin::TripletMarginLoss;

/// The README, whose Rust code is compiled and run by `cargo test --doc`.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../README.md")]
mod readme {}
