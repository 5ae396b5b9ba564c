//! Process groups, and losses over the batch of all their processes: what several GPUs or machines need, and tch lacks.
//!
//! The processes are started by PyTorch's launcher, `torchrun --no-python --nproc-per-node 4 PROGRAM`, by slurm or by mpirun. They
//! talk through libtorch's own c10d: gloo between CPUs, NCCL between GPUs. Nothing here is about metric learning only: a tch
//! program of any kind takes a [`ProcessGroup`], [`broadcast_all`](ProcessGroup::broadcast_all), [`average`] and
//! [`BatchNorm`], and is trained as PyTorch's `DistributedDataParallel` trains.
//!
//! ```
//! use tch::nn::{self, Module, OptimizerConfig};
//! use tch::{Device, Kind, Tensor};
//! use tercet::BatchHardTripletLoss;
//! use tercet::torch::distributed::{ProcessGroup, average};
//!
//! let group = ProcessGroup::from_env()?; // one process alone, if nobody launched more
//! let vs = nn::VarStore::new(group.device());
//! let encoder = nn::linear(vs.root(), 16, 8, Default::default());
//! group.broadcast_all(&vs)?; // all begin with the weights of rank 0
//! let variables = vs.trainable_variables();
//! let variables: Vec<&Tensor> = variables.iter().collect();
//!
//! let loss_fn = BatchHardTripletLoss::default();
//! let shards = group.shards(6)?; // this process's rows in each batch
//! for _step in 0..2 {
//!     let images = Tensor::randn([6, 16], (Kind::Float, group.device()));
//!     let labels = Tensor::arange(6, (Kind::Int64, group.device())).remainder(3);
//!     // The loss of the batch of all processes, the same number in each.
//!     let loss = loss_fn.on(&encoder.forward(&images), &labels).over(&shards).f_forward()?;
//!     let mut gradients = Tensor::f_run_backward(&[&loss], &variables, false, false)?;
//!     average(&mut gradients, &group)?; // ∂loss/∂weights, the same in each
//!     for (variable, gradient) in variables.iter().zip(&gradients) {
//!         tch::no_grad(|| variable.shallow_clone().f_sub_(&(gradient * 0.1)))?;
//!     }
//! }
//! # Ok::<(), tercet::Error>(())
//! ```
//!
//! # What the loss of a distributed batch is
//! ```text
//! X  = the rows of all processes, N of them; X_r those of process r, of W
//! S  = Σ_r S_r(X_r, X)        S_r: the sum over the anchors of process r, whose positives and negatives are any rows of X
//! L  = S / max(Σ_r M_r, 1)    M_r: the terms of process r that the mean counts; 1 for `Reduction::Sum`
//! G_r = W ∂L/∂X_r             the gradient of process r's result with respect to its rows
//! ```
//! The value is `L` in each process, to the bit. The gradients' factor of W is what data-parallel training expects: it takes the mean
//! over processes of the gradients of the weights θ, and `(1/W) Σ_r (∂X_r/∂θ)ᵀ W ∂L/∂X_r = ∂L/∂θ`. Ranks come in order, so ties and draws are
//! those of one process with the whole batch.
//!
//! # Rules
//! - All processes make the same calls in the same order, backward passes included. A call that differs, or a tensor of another shape
//!   or dtype, is an error in all processes, before anything is sent ([`Options::checks`]).
//! - A loss needs a gradient in all processes or in none, and each weighs it by the same upstream gradient.
//! - A process that is lost is an error in the others: its text begins with `process 1 of 4`, and a backward pass returns it from
//!   `f_backward` or `f_run_backward`.

mod agreement;
mod batch_norm;
#[cfg(tercet_c10d)]
mod c10d;
#[cfg(not(tercet_c10d))]
#[path = "missing.rs"]
mod c10d;
mod collectives;
mod gradients;
mod group;
pub(crate) mod loss;
mod options;
mod shards;

pub use batch_norm::{BatchNorm, batch_norm};
pub use collectives::Pending;
pub use gradients::{Averaging, average};
pub use group::ProcessGroup;
pub use options::Options;
pub use shards::{Shards, Work};

use crate::Error;

/// Whether groups of several processes can be made, or why not: the libtorch of this build may have been built without c10d or gloo.
///
/// ```
/// if let Err(error) = tercet::torch::distributed::check_available() {
///     println!("one process alone: {error}");
/// }
/// ```
///
/// # Errors
/// If this build has no process groups.
pub fn check_available() -> Result<(), Error> {
    available(cfg!(tercet_c10d), option_env!("TERCET_WITHOUT_C10D"))
}

/// Whether CUDA tensors can travel by NCCL, or why not. Without it gloo takes them, through the host's memory, where
/// [`Options::nccl`] is false.
///
/// # Errors
/// If this build has no NCCL.
pub fn check_nccl() -> Result<(), Error> {
    available(c10d::nccl().is_ok(), c10d::nccl().err())
}

fn available(is: bool, why: Option<&str>) -> Result<(), Error> {
    match is {
        true => Ok(()),
        false => Err(Error::argument("libtorch", "one with c10d, gloo and NCCL", why.unwrap_or("one without"))),
    }
}

/// A group whose calls go through c10d even if this process is alone; for tests, of NCCL on one device above all.
#[doc(hidden)]
pub fn connected(options: &Options) -> Result<ProcessGroup, Error> {
    ProcessGroup::made(options, true)
}

/// The bytes of one of libtorch's groups over gloo, as this crate was compiled and as libtorch has them; for tests.
#[doc(hidden)]
pub fn gloo_sizes(group: &ProcessGroup) -> Result<Option<[usize; 2]>, Error> {
    group.gloo_sizes()
}
