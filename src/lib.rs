//! Hand-written CUDA and CPU kernels for metric-learning losses: distance, hinge, reduction and gradients in one pass
//! over the embeddings, as drop-in losses for [`tch`](https://github.com/LaurentMazare/tch-rs) training loops and on plain slices.
//!
//! | Loss | Definition | From |
//! |---|---|---|
//! | [`TripletMarginLoss`] | `relu(d(a, p) - d(a, n) + margin)` over pre-formed triplets | FaceNet, Schroff et al. 2015 |
//! | [`BatchAllTripletLoss`] | the same over every triplet of a batch | Hermans et al. 2017 |
//! | [`BatchHardTripletLoss`] | the same per anchor of a batch, with its farthest positive and its nearest negative | Hermans et al. 2017 |
//! | [`ContrastiveLoss`] | `d(x1, x2)²/2` where the rows belong together, `relu(margin - d(x1, x2))²/2` elsewhere | Hadsell et al. 2006 |
//! | [`BatchContrastiveLoss`] | the same over the pairs of a batch: all, or as many of the hardest of different classes as there are of one | Hadsell et al. 2006 |
//! | [`PairwiseDistance`] | the matrix of distances itself, differentiable: `cdist` without its cancellation | – |
//!
//! Options are public fields with PyTorch's names; each method that can panic has an `f_` twin that returns a
//! [`Result`], as in tch.
//!
//! ```
//! use tercet::{Distance, Matrix, TripletMarginLoss};
//!
//! // Two triplets of embeddings of three numbers.
//! let anchor = [1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0];
//! let positive = [0.9, 0.1, 0.0, 0.0, 0.8, 0.2];
//! let negative = [0.0, 0.0, 1.0, 0.1, 0.9, 0.0];
//! let rows = [Matrix::new(&anchor, 3)?, Matrix::new(&positive, 3)?, Matrix::new(&negative, 3)?];
//! let loss = TripletMarginLoss { margin: 0.5, distance: Distance::Cosine, ..Default::default() }.loss(rows)?;
//! assert!((loss - 0.26187).abs() < 1e-4, "{loss}");
//! # Ok::<(), tercet::Error>(())
//! ```
//!
//! # Numbers
//! Embeddings are f32, f64, f16 or bf16. Arithmetic is f64 for f64 and f32 for all others; the batch is summed in f64 in a
//! fixed order, so that the same inputs give the same bits on the same machine, with any number of threads.
//!
//! # Features
//! - `torch` (default): the losses on tch tensors, and [`torch::CustomFunction`], a backward pass of your own.
//! - `cuda` (default): the CUDA kernels, compiled at build time with NVRTC.
//! - neither: the CPU losses on slices, without libtorch and without CUDA.
//! - `doc-only`: builds the documentation with nothing installed.

pub mod batch_all;
pub mod batch_contrastive;
pub mod batch_hard;
pub mod batch_negative;
pub mod batch_semi_hard;
mod constants;
pub mod contrastive;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod distance;
mod element;
mod error;
mod matrix;
mod mined;
mod paired;
pub mod pairwise_distance;
mod precision;
mod random;
mod reduction;
mod reference;
mod stats;
#[cfg(feature = "torch")]
pub mod torch;
pub mod triplet_margin;
mod triplets;

pub use batch_all::{BatchAllTripletLoss, MeanOver};
pub use batch_contrastive::{BatchContrastiveLoss, Negatives};
pub use batch_hard::BatchHardTripletLoss;
pub use batch_negative::{BatchNegativeTripletLoss, Negative, Pairs};
pub use batch_semi_hard::BatchSemiHardTripletLoss;
pub use contrastive::ContrastiveLoss;
pub use distance::Distance;
pub use element::{Element, Scalar};
pub use error::Error;
pub use matrix::Matrix;
pub use mined::{Own, Reference};
pub use pairwise_distance::PairwiseDistance;
pub use precision::Precision;
pub use reduction::Reduction;
pub use stats::Stats;
pub use triplet_margin::TripletMarginLoss;
