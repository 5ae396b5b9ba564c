//! The triplet loss of a batch with one chosen negative for each pair.

#[cfg(feature = "torch")]
use tch::Tensor;

use crate::call::{Call, Draws, Input, PerAnchor, Selects};
use crate::cpu::comparison::Comparison;
use crate::cpu::triplets::ChosenTriplets;
use crate::mined::Slices;
use crate::problem::{Options, Sizes};
use crate::triplets::ChoosesNegatives;
use crate::{Distance, Element, Error, MeanOver, Own, Precision, Reduction, Scalar};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod options;
pub mod oracle;

pub use crate::cpu::triplets::Triplets;
pub use options::{Negative, Pairs};
use options::{NegativeOptions, Problem};

/// One negative for each pair of anchor and positive: the hardest, or one at random.
///
/// ```text
/// loss_apn   = d(a, p) - d(a, n) + margin             over all a, p with y_p = y_a, p ≠ a
/// n          = of the rows with y_n ≠ y_a
///   Hardest    the nearest, if d(a, n) < d(a, p) + margin
///   Random     any with d(a, n) < d(a, p) + margin
///   SemiHard   any with d(a, p) < d(a, n) < d(a, p) + margin
/// ```
///
/// A pair without such a row is skipped, so every selected triplet is active, and the mean is over them. With none the
/// loss and its gradients are 0. `SemiHard` is the mining of "FaceNet: A Unified Embedding for Face Recognition and
/// Clustering" (Schroff, Kalenichenko, Philbin 2015); the three, with [`Pairs::Once`], are the selectors of the library
/// siamese-triplet, which falls back to one fixed triplet if none is found in the whole batch.
///
/// # Random choices
/// Each candidate of a pair is as likely as the others. What is drawn depends on `seed`, on the step, and on the bits
/// of the three rows, not on their indices: the same triplets in any order of the batch, for any shard of its anchors,
/// on every backend, within rounding of the bounds above. Therefore equal rows draw alike, and with the same step the
/// same embeddings draw the same triplets again.
///
/// Of equally near negatives the one with the lowest index is taken. On CUDA candidates are searched by products of
/// rows: the hardest is the nearest within their error (see [`Precision`]), and its distance is then computed from the
/// difference of the rows. NaN or infinity anywhere in the embeddings makes the loss and the gradients NaN; so does the
/// distance of a positive that overflows. In the [`Stats`](crate::Stats), `valid` and `active` count the selected
/// triplets, and the distances are means over them.
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
/// use tercet::{BatchNegativeTripletLoss, Matrix, Negative};
///
/// // Two classes on a line, at 0, 2 and at 3, 7; with d = (x - y)² and a margin of 6 the nearest negatives of pairs
/// // (0, 2), (2, 0), (3, 7), (7, 3) give 4 - 9 + 6, 4 - 1 + 6, 16 - 1 + 6 and 16 - 25 + 6: the last is skipped.
/// let embeddings = [0f64, 2.0, 3.0, 7.0];
/// let loss_fn = BatchNegativeTripletLoss { margin: 6.0, negative: Negative::Hardest, ..Default::default() };
/// let rows = Matrix::new(&embeddings, 1)?;
/// let (loss, stats) = loss_fn.on(rows, &[7, 7, -1, -1]).loss_with_stats()?;
/// assert_eq!((loss, stats.valid), ((1.0 + 9.0 + 21.0) / 3.0, 3));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNegativeTripletLoss {
    /// How much farther than the positive the negative should be; 0 or more.
    pub margin: f64,
    /// Which negative each pair of anchor and positive gets.
    pub negative: Negative,
    /// Which pairs of anchor and positive are taken.
    pub pairs: Pairs,
    /// The seed of the random choices.
    pub seed: u64,
    /// The distance `d`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// How the triplets' losses become the result.
    pub reduction: Reduction,
    /// How exactly a CUDA device searches the negatives; see [`Precision`].
    pub precision: Precision,
    /// How many pairs of an anchor and a row of its class, the anchor itself among them, a CUDA device has room for; each takes 20 bytes
    /// until the loss is dropped.
    /// `None`: 2²², or 128 an anchor if that is more. It never has room for more than there could be. A batch with more pairs
    /// has the loss NaN, and [`Stats::too_many_pairs`](crate::Stats::too_many_pairs). The CPU looks at no limit.
    pub pairs_at_once: Option<usize>,
}

impl Default for BatchNegativeTripletLoss {
    fn default() -> Self {
        Self {
            margin: 0.2,
            negative: Negative::SemiHard,
            pairs: Pairs::Ordered,
            seed: 0,
            distance: Distance::SquaredEuclidean,
            normalize: false,
            reduction: Reduction::Mean,
            precision: Precision::Highest,
            pairs_at_once: None,
        }
    }
}

impl BatchNegativeTripletLoss {
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
    /// use tercet::BatchNegativeTripletLoss;
    ///
    /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let loss = BatchNegativeTripletLoss::default().forward(&embeddings, &labels);
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

impl ChoosesNegatives for BatchNegativeTripletLoss {
    const NAME: &'static str = "BatchNegativeTripletLoss";
    type Extra = NegativeOptions;

    fn options(&self) -> Options<NegativeOptions> {
        let Self { margin, negative, pairs, seed, distance, normalize, reduction, precision, pairs_at_once } = *self;
        let extra = NegativeOptions { negative, pairs, seed };
        Options { margin, distance, normalize, reduction, mean_over: MeanOver::Valid, precision, pairs_at_once, extra }
    }

    fn check(&self, sizes: &Sizes) -> Result<(), Error> {
        if self.pairs == Pairs::Once && sizes.reference.is_some_and(|reference| reference.own == Own::None) {
            // Pairs are taken once by comparing indices in the reference set, so anchors need one there.
            let expected = "Ordered where no anchor is in the reference (own: None)";
            return Err(Error::argument("pairs", expected, "Once"));
        }
        Ok(())
    }

    fn choose<T: Element>(
        problem: &Problem,
        comparison: &Comparison<T::Scalar>,
        slices: &Slices<'_, T>,
    ) -> ChosenTriplets<T::Scalar> {
        cpu::select(problem, comparison, slices)
    }
}

impl PerAnchor for BatchNegativeTripletLoss {}

/// The selected triplets: one for each pair that is not skipped.
impl Selects for BatchNegativeTripletLoss {
    type Selection<A: Scalar> = Triplets<A>;

    fn selection<A: Scalar>(_: &Problem, (comparison, chosen): (Comparison<A>, ChosenTriplets<A>)) -> Triplets<A> {
        Triplets::new(&comparison, &chosen)
    }
}

/// Calls of [`BatchNegativeTripletLoss`] have a step: equal steps draw alike, others draw anew. On slices:
///
/// ```
/// use tercet::{BatchNegativeTripletLoss, Matrix, Negative};
///
/// let rows: Vec<f32> = (0..24).map(|i| (i as f32).sin()).collect();
/// let (rows, labels) = (Matrix::new(&rows, 3)?, [0, 0, 1, 1, 2, 2, 3, 3]);
/// let loss_fn = BatchNegativeTripletLoss { negative: Negative::Random, margin: 100.0, ..Default::default() };
/// let loss = loss_fn.on(rows, &labels).step(3).loss()?;
/// assert_eq!(loss, loss_fn.on(rows, &labels).step(3).loss()?);
/// assert_ne!(loss, loss_fn.on(rows, &labels).loss()?); // step 0
/// # Ok::<(), tercet::Error>(())
/// ```
impl Draws for BatchNegativeTripletLoss {}
