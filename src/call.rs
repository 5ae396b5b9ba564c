//! One call of a mined loss: what it is made of, whichever door it comes through.
//!
//! The doors run it: cpu/call.rs on slices, torch/call.rs on tensors, cuda/call.rs on cudarc slices.

use crate::problem::Problem;
use crate::{Element, Matrix, Reference};

/// One call of a mined loss, begun by the loss's [`on`](crate::BatchHardTripletLoss::on). A reference set, a step or
/// processes may be added to it, and the last method runs it:
///
/// ```text
/// loss_fn.on(embeddings, labels)   the batch: tensors, slices in memory, or cudarc slices
///     .against(&reference)         positives and negatives come from a reference set
///     .step(step)                  the draws of a step, for a loss that draws
///     .over(&shards)               tensors: the batch lies over several processes
///     .f_forward()?                tensors: forward, forward_with_stats, or an f_ twin
///     .loss()?                     slices: loss, losses, loss_and_grad, grad, select ..
///     .loss(&stream, &mut loss)?   cudarc: loss, loss_and_grad, grad ..
/// ```
///
/// All parts of the call are checked when it runs, before anything is computed.
///
/// ```
/// use tercet::{BatchSemiHardTripletLoss, Matrix, Own, Reference};
///
/// let loss_fn = BatchSemiHardTripletLoss { margin: 6.0, ..Default::default() };
/// let (rows, labels) = ([0f64, 2.0, 3.0, 5.0], [7i64, 7, -1, -1]);
/// let batch = Matrix::new(&rows, 1)?;
/// assert_eq!(loss_fn.on(batch, &labels).loss()?, 1.0);
///
/// // The same rows as a memory bank, in which each row is its own anchor.
/// let reference = Reference { embeddings: batch, labels: &labels[..], own: Own::Offset(0) };
/// let mut grad = [0f64; 4];
/// assert_eq!(loss_fn.on(batch, &labels).against(&reference).loss_and_grad(&mut grad)?, 1.0);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a call does nothing until its last method runs it"]
pub struct Call<'a, L, I: Input> {
    pub(crate) loss_fn: L,
    pub(crate) embeddings: I,
    pub(crate) labels: I::Labels,
    pub(crate) reference: Option<&'a Reference<I, I::Labels>>,
    pub(crate) step: Option<I::Step>,
    /// How the batch lies over processes; `None`: all of it is here.
    #[cfg(feature = "distributed")]
    pub(crate) shards: Option<&'a crate::torch::distributed::Shards>,
}

impl<L: Copy, I: Input + Copy> Clone for Call<'_, L, I> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<L: Copy, I: Input + Copy> Copy for Call<'_, L, I> {}

impl<'a, L: MinedLoss, I: Input> Call<'a, L, I> {
    /// Begins a call of any mined loss, for code that is generic over the loss; for a known loss
    /// `loss_fn.on(embeddings, labels)` does the same.
    pub fn new(loss_fn: &L, embeddings: I, labels: I::Labels) -> Self {
        Self {
            loss_fn: *loss_fn,
            embeddings,
            labels,
            reference: None,
            step: None,
            #[cfg(feature = "distributed")]
            shards: None,
        }
    }

    /// Takes positives and negatives from a reference set instead of the batch: from a memory bank, or from the batches
    /// of all devices. The anchors are still the rows of the batch.
    pub fn against(self, reference: &'a Reference<I, I::Labels>) -> Self {
        Self { reference: Some(reference), ..self }
    }
}

impl<L: Draws, I: Input> Call<'_, L, I> {
    /// Makes the random choices of this step instead of step 0. Each step draws anew, and equal steps draw alike.
    ///
    /// On slices the step is an `i64`. On tensors it is one i64 on the embeddings' device, on cudarc slices a slice of
    /// one i64: the kernels read it, so that a replayed CUDA graph draws anew if it has been written to meanwhile.
    pub fn step(self, step: I::Step) -> Self {
        Self { step: Some(step), ..self }
    }
}

/// Embeddings that a call takes: a [`Matrix`] in memory, a `&Tensor`, or a cudarc
#[cfg_attr(feature = "cuda", doc = "[`CudaMatrix`](crate::cuda::CudaMatrix).")]
#[cfg_attr(not(feature = "cuda"), doc = "matrix with the feature `cuda`.")]
///
/// The trait is sealed: other crates cannot implement it.
pub trait Input: sealed::Input {
    /// The labels that come with such embeddings: `&[i64]`, `&Tensor`, or `&CudaSlice<i64>`.
    type Labels: Copy;
    /// A step of draws for such embeddings: `i64`, `&Tensor`, or `&CudaSlice<i64>`.
    type Step: Copy;
}

impl<'a, T: Element> Input for Matrix<'a, T> {
    type Labels = &'a [i64];
    type Step = i64;
}
impl<T: Element> sealed::Input for Matrix<'_, T> {}

pub(crate) mod sealed {
    /// Keeps other crates from implementing [`Input`](super::Input).
    pub trait Input {}
}

/// A loss that mines a batch: it finds its pairs or triplets itself, by the labels.
///
/// It is implemented by [`BatchAllTripletLoss`](crate::BatchAllTripletLoss),
/// [`BatchContrastiveLoss`](crate::BatchContrastiveLoss), [`BatchHardTripletLoss`](crate::BatchHardTripletLoss),
/// [`BatchNegativeTripletLoss`](crate::BatchNegativeTripletLoss) and
/// [`BatchSemiHardTripletLoss`](crate::BatchSemiHardTripletLoss), and other crates cannot implement it. Code that is
/// generic over the loss begins with [`Call::new`]:
///
/// ```
/// use tercet::{BatchAllTripletLoss, BatchHardTripletLoss, Call, Error, Matrix, MinedLoss};
///
/// fn loss_of<L: MinedLoss>(loss_fn: &L, rows: &[f32], labels: &[i64]) -> Result<f32, Error> {
///     Call::new(loss_fn, Matrix::new(rows, 1)?, labels).loss()
/// }
/// let (rows, labels) = ([0f32, 1.0, 3.0, 5.0], [7, 7, -1, -1]);
/// assert_eq!(loss_of(&BatchHardTripletLoss { margin: 4.0, ..Default::default() }, &rows, &labels)?, 1.25);
/// assert_eq!(loss_of(&BatchAllTripletLoss { margin: 4.0, ..Default::default() }, &rows, &labels)?, 2.5);
/// # Ok::<(), tercet::Error>(())
/// ```
pub trait MinedLoss: Passes {}
impl<L: Passes> MinedLoss for L {}

/// The passes of a mined loss: those on a device too, with the feature `cuda`.
#[cfg(feature = "cuda")]
pub(crate) use crate::cuda::mined::OnDevice as Passes;
#[cfg(not(feature = "cuda"))]
pub(crate) use crate::mined::Loss as Passes;

/// A mined loss with one number for each anchor: it has [`losses`](Call::losses), and takes `Reduction::None`.
pub trait PerAnchor: MinedLoss {}

/// A mined loss that draws at random, for which a call has a [`step`](Call::step).
pub trait Draws: MinedLoss {}

/// A mined loss that can list what it selects; see [`select`](Call::select).
pub trait Selects: MinedLoss {
    /// The list of what the loss selects.
    type Selection<A: crate::Scalar>;
    #[doc(hidden)]
    fn selection<A: crate::Scalar>(problem: &Problem<Self::Extra>, found: Self::Found<A>) -> Self::Selection<A>;
}
