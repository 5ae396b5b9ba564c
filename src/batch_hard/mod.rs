//! The batch-hard triplet loss.

#[cfg(feature = "torch")]
use tch::Tensor;

#[cfg(feature = "torch")]
use crate::Error;
use crate::call::{Call, Input, PerAnchor, Selects};
use crate::cpu::comparison::Comparison;
use crate::mined::{Loss, Slices};
use crate::problem::Options;
use crate::{Distance, Element, MeanOver, Precision, Reduction, Scalar, Stats};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod oracle;

use cpu::Problem;
pub use cpu::Selection;

/// For each anchor the farthest positive and the nearest negative of the batch, found and pushed apart in one call.
///
/// ```text
/// loss_a = max(d(a, p) - d(a, n) + margin, 0),  or with `soft_margin`  ln(1 + exp(d(a, p) - d(a, n)))
/// p      = the farthest row with y_p = y_a, p ≠ a
/// n      = the nearest row with y_n ≠ y_a
/// ```
///
/// From "In Defense of the Triplet Loss for Person Re-Identification" (Hermans, Beyer, Leibe 2017), over the batches of
/// FaceNet (Schroff, Kalenichenko, Philbin 2015). The mean is over the anchors that have both a positive and a
/// negative; the others add nothing to the sum or to the count. With no such anchor the loss and its gradients are 0.
///
/// Of equally far positives, and of equally near negatives, the one with the lowest index is taken. Distances are
/// computed from the difference of the rows; on CUDA the nearest negative is first searched by products of rows, and is
/// the nearest within their error (see [`Precision`]). A triplet is active only if its loss is strictly positive. NaN
/// or infinity anywhere in the embeddings makes the loss and the gradients NaN; so does a selected distance that
/// overflows.
///
/// In the [`Stats`], `valid` counts the anchors with both a positive and a negative, `active` those among them whose
/// loss is above 0, and the distances are means over the selected rows.
///
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for
/// f64 and f32 for all others. No `N x N` matrix is made: memory grows with `N D`.
///
/// ```
/// use tercet::{BatchHardTripletLoss, Matrix};
///
/// // Two classes on a line, at 0, 1 and at 3, 5; with d = (x - y)² and a margin of 4 the losses are
/// // 1 - 9 + 4, 1 - 4 + 4, 4 - 4 + 4 and 4 - 16 + 4.
/// let embeddings = [0f32, 1.0, 3.0, 5.0];
/// let loss_fn = BatchHardTripletLoss { margin: 4.0, ..Default::default() };
/// let mut grad = [0f32; 4];
/// let loss = loss_fn.on(Matrix::new(&embeddings, 1)?, &[7, 7, -1, -1]).loss_and_grad(&mut grad)?;
/// assert_eq!(loss, (1.0 + 4.0) / 4.0);
/// assert_eq!(grad, [-0.5, 2.5, -3.0, 1.0]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchHardTripletLoss {
    /// How much farther than the positive the negative should be; 0 or more. Not used with `soft_margin`.
    pub margin: f64,
    /// The distance `d`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// Take `ln(1 + exp(x))` instead of `max(x + margin, 0)`, of `x = d(a, p) - d(a, n)`.
    pub soft_margin: bool,
    /// How the anchors' losses become the result.
    pub reduction: Reduction,
    /// How exactly a CUDA device searches the negatives; see [`Precision`].
    pub precision: Precision,
}

impl Default for BatchHardTripletLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            distance: Distance::SquaredEuclidean,
            normalize: false,
            soft_margin: false,
            reduction: Reduction::Mean,
            precision: Precision::Highest,
        }
    }
}

impl BatchHardTripletLoss {
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
    /// use tercet::BatchHardTripletLoss;
    ///
    /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let loss = BatchHardTripletLoss::default().forward(&embeddings, &labels);
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

impl Loss for BatchHardTripletLoss {
    const NAME: &'static str = "BatchHardTripletLoss";
    const READS_AGAIN_ON_DEVICE: bool = true;
    type Extra = bool;
    type Found<A: Scalar> = (Comparison<A>, Selection<A>);

    fn options(&self) -> Options<bool> {
        let Self { margin, distance, normalize, soft_margin, reduction, precision } = *self;
        Options {
            margin,
            distance,
            normalize,
            reduction,
            mean_over: MeanOver::Valid,
            precision,
            pairs_at_once: None,
            extra: soft_margin,
        }
    }

    fn find<T: Element>(problem: &Problem, slices: &Slices<'_, T>, _: [bool; 2]) -> Self::Found<T::Scalar> {
        cpu::select(problem, Comparison::new(problem, slices))
    }

    fn sum<A: Scalar>((_, selection): &Self::Found<A>) -> f64 {
        selection.sum()
    }

    fn losses<A: Scalar>((_, selection): &Self::Found<A>) -> &[A] {
        &selection.losses
    }

    fn stats<A: Scalar>((_, selection): &Self::Found<A>) -> Stats {
        selection.stats
    }

    fn gradients<T: Element>(
        problem: &Problem,
        (comparison, selection): &Self::Found<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) {
        cpu::gradient(problem, comparison, selection, upstream, grads);
    }
}

impl PerAnchor for BatchHardTripletLoss {}

/// The farthest positive and the nearest negative of each anchor.
///
/// ```
/// use tercet::{BatchHardTripletLoss, Matrix};
///
/// let rows = Matrix::new(&[0f32, 1.0, 3.0, 5.0], 1)?;
/// let selection = BatchHardTripletLoss::default().on(rows, &[0, 0, 0, 1]).select()?;
/// assert_eq!(selection.positive, [2, 2, 0, u32::MAX]);
/// assert_eq!(selection.negative, [3, 3, 3, u32::MAX]);
/// # Ok::<(), tercet::Error>(())
/// ```
impl Selects for BatchHardTripletLoss {
    type Selection<A: Scalar> = Selection<A>;

    fn selection<A: Scalar>(_: &Problem, (_, selection): Self::Found<A>) -> Selection<A> {
        selection
    }
}
