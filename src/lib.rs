//! Hand-written CUDA and CPU kernels for metric-learning losses: distance, hinge, reduction and gradients in one pass
//! over the embeddings, as drop-in losses for [`tch`](https://github.com/LaurentMazare/tch-rs) training loops and on
//! plain slices.
//!
//! In a picture, the triplet margin loss: the anchor draws the positive nearer and pushes the negative away, until it is
//! farther by the margin.
//!
#![doc = include_str!("../docs/images/triplet.svg")]
//!
//! On tch tensors, part of the autograd graph:
//!
#![cfg_attr(feature = "torch", doc = "```")]
#![cfg_attr(not(feature = "torch"), doc = "```ignore")]
//! use tch::{Device, Kind, Tensor};
//! use tercet::BatchHardTripletLoss;
//!
//! // 32 embeddings of 8 people, as an encoder gives them.
//! let embeddings = Tensor::randn([32, 128], (Kind::Float, Device::Cpu));
//! let embeddings = embeddings.set_requires_grad(true);
//! let labels = Tensor::arange(32, (Kind::Int64, Device::Cpu)).remainder(8);
//!
//! // For each anchor the farthest positive and the nearest negative of the batch.
//! let loss_fn = BatchHardTripletLoss { margin: 0.2, normalize: true, ..Default::default() };
//! let loss = loss_fn.forward(&embeddings, &labels);
//! loss.backward();
//! assert_eq!(embeddings.grad().size(), [32, 128]);
//! ```
//!
//! and on slices, with neither libtorch nor CUDA:
//!
//! ```
//! use tercet::{Matrix, TripletMarginLoss};
//!
//! // Two triplets of embeddings of three numbers.
//! let anchor = Matrix::new(&[1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0], 3)?;
//! let positive = Matrix::new(&[1.0f32, 0.5, 0.0, 0.0, 1.0, 0.0], 3)?;
//! let negative = Matrix::new(&[0.0f32, 1.0, 0.0, 0.5, 1.0, 0.0], 3)?;
//! let loss_fn = TripletMarginLoss { margin: 1.0, ..Default::default() };
//!
//! // The squared distances are 0.25 and 2 in the first triplet, 0 and 0.25 in the second.
//! let loss = loss_fn.loss([anchor, positive, negative])?;
//! assert_eq!(loss, (0.0 + 0.75) / 2.0);
//! # Ok::<(), tercet::Error>(())
//! ```
//!
//! # Losses
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
//! | Beside the losses | What it is |
//! |---|---|
//! | [`TopK`] | the nearest rows of many for each query: exact search, among rows of fewer bits too |
//! | [`Reference`] | positives and negatives from a memory bank, or from the batches of all devices |
//! | [`torch::CrossBatchMemory`] | the embeddings of the last batches, as such a reference set |
//! | [`Stats`], [`torch::TensorStats`] | how many triplets are valid and active, and the mean distances |
//! | [`Call::select`] | the pairs or triplets that a loss has mined, as indices |
//! | [`Reduction`] | the mean, the sum, or one loss a row: for weights per sample |
//! | [`torch::CustomFunction`] | a backward pass of your own, which tch does not have |
//! | [`torch::distributed`] | process groups for any tch program, and losses over the batch of several GPUs or machines |
//! | [`cuda::CudaMatrix`], [`cuda::check_device`] | cudarc slices; whether the kernels run on a GPU, or why not |
//!
//! More code: [`recipes`], and in the package's folder `examples` a training loop (`triplet`), a mined loss with a memory
//! (`memory`), several processes (`distributed`), slices (`slices`), cudarc slices (`cuda_slices`) and a custom function
//! (`custom_function`).
//!
//! # Calls
//! A loss over a batch begins a [`Call`] with [`on`](BatchHardTripletLoss::on), on tch tensors, slices or cudarc
//! slices. A reference set, a step or processes may be added to the call, and its last method runs it. For the first line there
//! is `loss_fn.forward(&embeddings, &labels)`, too:
//!
//! ```text
//! loss_fn.on(&embeddings, &labels).forward()
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
//! - `distributed` (default): [`torch::distributed`], on the c10d that is inside libtorch; without it only the reason is left.
//! - `cuda` (default): the CUDA kernels, compiled at build time with NVRTC.
//! - `openmp` (part of `torch`): the CPU's tasks may run on the threads of a library that has OpenMP, as the package for
//!   Python lets them run on PyTorch's.
//! - without all of these: the CPU losses on slices, without libtorch and without CUDA.
//! - `doc-only`: builds the documentation with nothing installed.

#![warn(clippy::must_use_candidate, clippy::print_stdout, clippy::unwrap_used)]
#![cfg_attr(
    not(all(feature = "torch", feature = "cuda", feature = "distributed")),
    allow(rustdoc::broken_intra_doc_links, reason = "pages name items of features that may be off")
)]
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
pub mod top_k;
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
pub use top_k::{Int8Rows, Search, Stored, TopK};
pub use triplet_margin::TripletMarginLoss;

/// The README, whose Rust code is compiled and run by `cargo test --doc`.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../README.md")]
mod readme {}

#[cfg(all(doc, feature = "torch"))]
#[doc = include_str!("../docs/recipes.md")]
pub mod recipes {}
