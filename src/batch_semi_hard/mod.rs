//! The semi-hard triplet loss of a batch.

#[cfg(feature = "torch")]
use tch::Tensor;

#[cfg(feature = "torch")]
use crate::Error;
use crate::call::{Call, Input, PerAnchor, Selects};
use crate::cpu::comparison::Comparison;
use crate::cpu::triplets::ChosenTriplets;
use crate::mined::Slices;
use crate::problem::Options;
use crate::triplets::ChoosesNegatives;
use crate::{Distance, Element, MeanOver, Precision, Reduction, Scalar};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod oracle;

pub use crate::cpu::triplets::Triplets;
use cpu::Problem;

/// For each pair of anchor and positive the nearest negative that is farther than the positive.
///
/// ```text
/// loss_ap = max(d(a, p) - d(a, n) + margin, 0)         over all a, p with y_p = y_a, p ≠ a
/// n       = the nearest row with y_n ≠ y_a and d(a, n) > d(a, p), else the farthest with y_n ≠ y_a
/// ```
///
/// The semi-hard negatives of "FaceNet: A Unified Embedding for Face Recognition and Clustering" (Schroff,
/// Kalenichenko, Philbin 2015), made deterministic as TensorFlow-Addons' `triplet_semihard_loss` does and
/// sentence-transformers' `BatchSemiHardTripletLoss` after it; both average over pairs as well. FaceNet's own random
/// choice within the margin is [`BatchNegativeTripletLoss`](crate::BatchNegativeTripletLoss). The mean is over all
/// pairs of an anchor that has a negative, the inactive ones included; an anchor without a positive or without a
/// negative adds nothing to the sum or to the count. With no such pair the loss and its gradients are 0.
///
/// Of equally far negatives the one with the lowest index is taken. On CUDA the negative is searched by products of
/// rows, and is the nearest within their error (see [`Precision`]); its distance is then computed from the difference
/// of the rows. A pair is active only if its loss is strictly positive. NaN or infinity anywhere in the embeddings
/// makes the loss and the gradients NaN; so does a selected distance that overflows. In the [`Stats`](crate::Stats),
/// `valid` counts the pairs, `active` those whose loss is above 0, and the distances are means over the pairs.
///
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for
/// f64 and f32 for all others. With [`Reduction::None`] the result is `[N]`: each anchor's sum over its pairs.
///
/// On CUDA there is room for [`pairs_at_once`](Self::pairs_at_once) pairs of an anchor and a row of its class, 2²² by default: how
/// many there are is known on the device alone, and the host does not wait for it. A batch with more makes the loss and the
/// gradients NaN, and the [`Stats`](crate::Stats) tell this from a NaN in the embeddings. Give more room, or pass a few classes
/// of thousands of rows in shards of at most 2²² / N anchors against the whole batch ([`Call::against`]), whose pairs always fit.
///
/// ```
/// use tercet::{BatchSemiHardTripletLoss, Matrix};
///
/// // Two classes on a line, at 0, 2 and at 3, 5; with d = (x - y)² and a margin of 6 the pairs are (0, 2), with the
/// // negative at 3; (2, 0), at 5; (3, 5), at 0; (5, 3), at 2: losses of 4 - 9 + 6, 4 - 9 + 6, 4 - 9 + 6, 4 - 9 + 6.
/// let embeddings = [0f64, 2.0, 3.0, 5.0];
/// let loss_fn = BatchSemiHardTripletLoss { margin: 6.0, ..Default::default() };
/// let rows = Matrix::new(&embeddings, 1)?;
/// assert_eq!(loss_fn.on(rows, &[7, 7, -1, -1]).loss()?, 1.0);
/// assert_eq!(loss_fn.on(rows, &[7, 7, -1, -1]).select()?.negative, [2, 3, 0, 1]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchSemiHardTripletLoss {
    /// How much farther than the positive the negative should be; 0 or more.
    pub margin: f64,
    /// The distance `d`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// How the pairs' losses become the result.
    pub reduction: Reduction,
    /// How exactly a CUDA device searches the negatives; see [`Precision`].
    pub precision: Precision,
    /// How many pairs of an anchor and a row of its class, the anchor itself among them, a CUDA device has room for; each takes 20 bytes
    /// until the loss is dropped.
    /// `None`: 2²², or 128 an anchor if that is more. It never has room for more than there could be. A batch with more pairs
    /// has the loss NaN, and [`Stats::too_many_pairs`](crate::Stats::too_many_pairs). The CPU looks at no limit.
    pub pairs_at_once: Option<usize>,
}

impl Default for BatchSemiHardTripletLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            distance: Distance::SquaredEuclidean,
            normalize: false,
            reduction: Reduction::Mean,
            precision: Precision::Highest,
            pairs_at_once: None,
        }
    }
}

impl BatchSemiHardTripletLoss {
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
    /// use tercet::BatchSemiHardTripletLoss;
    ///
    /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let loss = BatchSemiHardTripletLoss::default().forward(&embeddings, &labels);
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

impl ChoosesNegatives for BatchSemiHardTripletLoss {
    const NAME: &'static str = "BatchSemiHardTripletLoss";
    type Extra = ();

    fn options(&self) -> Options<()> {
        let Self { margin, distance, normalize, reduction, precision, pairs_at_once } = *self;
        Options {
            margin,
            distance,
            normalize,
            reduction,
            mean_over: MeanOver::Valid,
            precision,
            pairs_at_once,
            extra: (),
        }
    }

    fn choose<T: Element>(
        problem: &Problem,
        comparison: &Comparison<T::Scalar>,
        _: &Slices<'_, T>,
    ) -> ChosenTriplets<T::Scalar> {
        cpu::select(problem, comparison)
    }
}

impl PerAnchor for BatchSemiHardTripletLoss {}

/// The selected triplets: one for each pair of an anchor that has a negative.
impl Selects for BatchSemiHardTripletLoss {
    type Selection<A: Scalar> = Triplets<A>;

    fn selection<A: Scalar>(_: &Problem, (comparison, chosen): (Comparison<A>, ChosenTriplets<A>)) -> Triplets<A> {
        Triplets::new(&comparison, &chosen)
    }
}
