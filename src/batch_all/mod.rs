//! The batch-all triplet loss.

#[cfg(feature = "torch")]
use tch::Tensor;

use crate::call::{Call, Input};
use crate::cpu::comparison::Comparison;
use crate::mined::{Loss, Slices};
use crate::problem::{Options, Sizes};
use crate::{Distance, Element, Error, MeanOver, Precision, Reduction, Scalar, Stats};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod oracle;

use cpu::{Found, Problem};

/// Every triplet of the batch, without a list of triplets.
///
/// ```text
/// loss = Σ max(d(a, p) - d(a, n) + margin, 0) / M      over all a, p, n with y_p = y_a, p ≠ a, y_n ≠ y_a
/// M    = how many of the terms are above 0, or with `MeanOver::Valid` how many terms there are
/// ```
///
/// The batch-all loss of "In Defense of the Triplet Loss for Person Re-Identification" (Hermans, Beyer, Leibe 2017),
/// whose mean over the active triplets keeps its size when most triplets have become easy. With no active triplet the
/// loss and its gradients are 0; an anchor without a positive or without a negative adds nothing.
///
/// A triplet is active only if its term is strictly positive. NaN or infinity anywhere in the embeddings makes the loss
/// and the gradients NaN; so does a distance that overflows.
///
/// In the [`Stats`], `valid` counts all triplets, `active` those whose loss is above 0, and the distances are means
/// over all triplets.
///
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for
/// f64 and f32 for all others. With P positives an anchor there are about `N² P` triplets; time grows with
/// `N² (D + P)`, for large classes with `N² (D + log P)`, and memory with `N (D + P)`: how often each pair is part of
/// an active triplet is counted, the counts are the gradient's weights (the derivation is in `docs/batch-all.md`).
///
/// On CUDA there is room for [`pairs_at_once`](Self::pairs_at_once) pairs of an anchor and a row of its class, 2²² by default: how
/// many there are is known on the device alone, and the host does not wait for it. A batch with more makes the loss and the
/// gradients NaN, and the [`Stats`] tell this from a NaN in the embeddings. Give more room, or pass a few classes
/// of thousands of rows in shards of at most 2²² / N anchors against the whole batch ([`Call::against`]), whose pairs always fit.
///
/// ```
/// use tercet::{BatchAllTripletLoss, Matrix};
///
/// // Two classes on a line, at 0, 1 and at 3, 5; with d = (x - y)² and a margin of 4 the eight triplets' terms are
/// // 1 - 9 + 4, 1 - 25 + 4; 1 - 4 + 4, 1 - 16 + 4; 4 - 9 + 4, 4 - 4 + 4; 4 - 25 + 4, 4 - 16 + 4: two are above 0.
/// let embeddings = [0f32, 1.0, 3.0, 5.0];
/// let loss_fn = BatchAllTripletLoss { margin: 4.0, ..Default::default() };
/// let (loss, stats) = loss_fn.on(Matrix::new(&embeddings, 1)?, &[7, 7, -1, -1]).loss_with_stats()?;
/// assert_eq!((loss, stats.active, stats.valid), ((1.0 + 4.0) / 2.0, 2, 8));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchAllTripletLoss {
    /// How much farther than the positive the negative should be; 0 or more.
    pub margin: f64,
    /// The distance `d`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// `Mean` or `Sum`, not `None`: the sweep that counts also makes the gradient, and cannot weigh each anchor
    /// afterwards.
    pub reduction: Reduction,
    /// What `Reduction::Mean` divides by.
    pub mean_over: MeanOver,
    /// How exactly a CUDA device computes the distances to negatives; see [`Precision`].
    pub precision: Precision,
    /// How many pairs of an anchor and a row of its class, the anchor itself among them, a CUDA device has room for; each takes 16 bytes
    /// until the loss is dropped.
    /// `None`: 2²², or 128 an anchor if that is more. It never has room for more than there could be. A batch with more pairs
    /// has the loss NaN, and [`Stats::too_many_pairs`](crate::Stats::too_many_pairs). The CPU looks at no limit.
    pub pairs_at_once: Option<usize>,
}

impl Default for BatchAllTripletLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            distance: Distance::SquaredEuclidean,
            normalize: false,
            reduction: Reduction::Mean,
            mean_over: MeanOver::Active,
            precision: Precision::Highest,
            pairs_at_once: None,
        }
    }
}

impl BatchAllTripletLoss {
    /// Begins a call on embeddings `[N, D]` and their labels `[N]`: tensors, slices in memory, or cudarc slices.
    /// [`Call`] lists what can be added to it, and the methods that run it.
    pub fn on<'a, I: Input>(&self, embeddings: I, labels: I::Labels) -> Call<'a, Self, I> {
        Call::new(self, embeddings, labels)
    }

    /// The loss of tch tensors, part of the autograd graph. See [`Call::forward`]; a call begun by [`on`](Self::on)
    /// also takes a reference set and gives statistics.
    ///
    /// # Panics
    /// If [`f_forward`](Self::f_forward) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::BatchAllTripletLoss;
    ///
    /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let loss = BatchAllTripletLoss::default().forward(&embeddings, &labels);
    /// loss.backward();
    /// assert_eq!(embeddings.grad().size(), [8, 128]);
    /// ```
    #[cfg(feature = "torch")]
    pub fn forward(&self, embeddings: &Tensor, labels: &Tensor) -> Tensor {
        self.on(embeddings, labels).forward()
    }

    /// The loss of tch tensors as [`forward`](Self::forward) gives it, or an error.
    ///
    /// # Errors
    /// Those of [`Call::f_forward`].
    #[cfg(feature = "torch")]
    pub fn f_forward(&self, embeddings: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
        self.on(embeddings, labels).f_forward()
    }
}

impl Loss for BatchAllTripletLoss {
    const NAME: &'static str = "BatchAllTripletLoss";
    const READS_AGAIN_ON_DEVICE: bool = false;
    type Extra = ();
    type Found<A: Scalar> = Found<A>;

    fn options(&self) -> Options<()> {
        let Self { margin, distance, normalize, reduction, mean_over, precision, pairs_at_once } = *self;
        Options { margin, distance, normalize, reduction, mean_over, precision, pairs_at_once, extra: () }
    }

    fn check(&self, _: &Sizes) -> Result<(), Error> {
        match self.reduction {
            Reduction::None => Err(Error::argument("reduction", "Mean or Sum", "None")),
            Reduction::Mean | Reduction::Sum => Ok(()),
        }
    }

    fn find<T: Element>(problem: &Problem, slices: &Slices<'_, T>, with_grad: [bool; 2]) -> Found<T::Scalar> {
        cpu::sweep(problem, &Comparison::new(problem, slices), with_grad)
    }

    fn sum<A: Scalar>(found: &Found<A>) -> f64 {
        found.sum
    }

    /// Empty: one sweep counts the triplets of all anchors together.
    fn losses<A: Scalar>(_: &Found<A>) -> &[A] {
        &[]
    }

    fn stats<A: Scalar>(found: &Found<A>) -> Stats {
        found.stats
    }

    fn gradients<T: Element>(
        problem: &Problem,
        found: &Found<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) {
        cpu::gradients(problem, found, upstream, grads);
    }
}
