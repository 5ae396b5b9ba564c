//! The contrastive loss over the pairs of a batch.

#[cfg(feature = "torch")]
use tch::Tensor;

use crate::call::{Call, Input, PerAnchor, Selects};
use crate::cpu::comparison::Comparison;
use crate::mined::{Loss, Slices};
use crate::problem::{Options, Sizes, check_margin_of};
use crate::{Distance, Element, Error, MeanOver, Precision, Reduction, Scalar, Stats};

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod options;
pub mod oracle;

use cpu::found::Found;
pub use cpu::found::Selection;
pub use options::Negatives;
use options::{PairOptions, Problem};

/// Pulls the rows of a class together, and pushes those of different classes `margin` apart.
///
/// ```text
/// loss_aj = max(d - pos_margin, 0)²/2    y_j = y_a, j ≠ a
///           max(margin - d, 0)²/2        y_j ≠ y_a,             d = d(x_a, x_j)
/// ```
///
/// `pos_margin` is 0 by default: rows of a class are pulled together without end. With [`power`](Self::power) 1 a pair costs
/// the gap `max(.., 0)` itself, without the half.
///
/// [`ContrastiveLoss`](crate::ContrastiveLoss), of "Dimensionality Reduction by Learning an Invariant Mapping"
/// (Hadsell, Chopra, LeCun 2006), over the pairs that a labelled batch holds. With [`Negatives::All`] that is every
/// pair; with [`Negatives::Hardest`] all pairs of one class, and as many of those of different classes: the ones with
/// the smallest distances, over the whole call (on CUDA within the error of the products that they are computed by, see
/// [`Precision`]).
///
/// Pairs are ordered, (anchor, other row): in a batch that is its own reference each comes twice, so the mean is the
/// mean over each pair once, and the sum twice the sum over each pair once. The mean is over the selected pairs, those
/// with a loss of 0 included, or with [`MeanOver::Active`] over those with a loss above 0; with
/// [`means_apart`](Self::means_apart) it is the mean of the pairs of one class plus that of the pairs of different classes.
/// With none the loss and its gradients are 0: without a pair of one class, `Hardest` selects nothing.
///
/// The default is Hadsell's: Euclidean distance, margin 1. pytorch-metric-learning's `ContrastiveLoss(pos_margin, neg_margin)`
/// has `power: 1`, `means_apart: true`, `mean_over: MeanOver::Active`, `normalize: true` and its `neg_margin` as `margin`. With another distance the formula holds for that `d`. Of
/// equally far pairs `Hardest` takes the one with the lowest anchor, then the lowest other row; in a batch that is its
/// own reference both orders of a pair are selected, or neither. The gradient of coincident rows of different classes,
/// which have no direction to be pushed in, is 0; so is that at `d = margin`, and at `d = pos_margin`. NaN or infinity anywhere in the
/// embeddings makes the loss and the gradients NaN; so does the distance of a selected pair that overflows.
///
/// The embeddings are `[N, D]`, f32, f64, f16 or bf16, the labels `[N]`, any numbers in any order. Losses are f64 for
/// f64 and f32 for all others. With [`Reduction::None`] the result is `[N]`: each anchor's sum over its pairs.
///
/// In the [`Stats`], `valid` counts the selected pairs, `active` those whose loss is above 0, and each distance is the
/// mean over the selected pairs of its kind. Time grows with `N² D`, and memory with `N D`; on the CPU `Hardest` also
/// lists about twice as many pairs as it selects.
///
/// ```
/// use tercet::{BatchContrastiveLoss, Matrix, Negatives};
///
/// // Two classes on a line, at 0, 2 and at 3, 7; with a margin of 4 the pairs of one class cost 2²/2 and 4²/2. Of the
/// // others, at distances of 3, 7, 1 and 5, the two nearest cost (4 - 1)²/2 and (4 - 3)²/2.
/// let embeddings = [0f64, 2.0, 3.0, 7.0];
/// let loss_fn = BatchContrastiveLoss { margin: 4.0, negatives: Negatives::Hardest, ..Default::default() };
/// let rows = Matrix::new(&embeddings, 1)?;
/// let (loss, stats) = loss_fn.on(rows, &[7, 7, -1, -1]).loss_with_stats()?;
/// assert_eq!((loss, stats.valid), ((2.0 + 8.0 + 4.5 + 0.5) / 4.0, 8));
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchContrastiveLoss {
    /// How far apart rows of different classes should be; 0 or more.
    pub margin: f64,
    /// The distance `d`.
    pub distance: Distance,
    /// Divide each row by its L2 norm (at least 1e-12) first. With [`Distance::Cosine`] it changes nothing.
    pub normalize: bool,
    /// Which pairs of different classes are selected.
    pub negatives: Negatives,
    /// 2: a pair costs half of the square of its gap; 1: the gap itself. A CUDA device takes pairs of power 1 in passes of
    /// their own, which are slower than the sweep of power 2.
    pub power: u32,
    /// How near rows of one class may be before they are pulled together no further; 0 or more.
    pub pos_margin: f64,
    /// How the pairs' losses become the result.
    pub reduction: Reduction,
    /// What `Reduction::Mean` divides by.
    pub mean_over: MeanOver,
    /// Whether `Reduction::Mean` is the mean over the pairs of one class plus the mean over the pairs of different classes,
    /// and not the mean over all of them together.
    pub means_apart: bool,
    /// How exactly a CUDA device computes the distances; see [`Precision`].
    pub precision: Precision,
}

impl Default for BatchContrastiveLoss {
    fn default() -> Self {
        Self {
            margin: 1.0,
            distance: Distance::Euclidean,
            normalize: false,
            negatives: Negatives::All,
            power: 2,
            pos_margin: 0.0,
            reduction: Reduction::Mean,
            mean_over: MeanOver::Valid,
            means_apart: false,
            precision: Precision::Highest,
        }
    }
}

impl BatchContrastiveLoss {
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
    /// use tercet::BatchContrastiveLoss;
    ///
    /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let loss = BatchContrastiveLoss::default().forward(&embeddings, &labels);
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

impl Loss for BatchContrastiveLoss {
    const NAME: &'static str = "BatchContrastiveLoss";
    const READS_AGAIN_ON_DEVICE: bool = true;
    const DISTANCES_BY_KIND: bool = true;
    type Extra = PairOptions;
    type Found<A: Scalar> = Found<A>;

    fn options(&self) -> Options<PairOptions> {
        let Self { margin, distance, normalize, negatives, power, pos_margin, .. } = *self;
        let Self { reduction, mean_over, means_apart, precision, .. } = *self;
        let extra = PairOptions { negatives, linear: power == 1, pos_margin, means_apart };
        Options { margin, distance, normalize, reduction, mean_over, precision, pairs_at_once: None, extra }
    }

    fn check(&self, sizes: &Sizes) -> Result<(), Error> {
        if !matches!(self.power, 1 | 2) {
            return Err(Error::argument("power", "1 or 2", self.power.to_string()));
        }
        check_margin_of("pos_margin", self.pos_margin, sizes.largest)
    }

    fn find<T: Element>(problem: &Problem, slices: &Slices<'_, T>, with_grad: [bool; 2]) -> Found<T::Scalar> {
        cpu::find(problem, Comparison::new(problem, slices), with_grad)
    }

    fn is_sum_over_anchors(&self) -> bool {
        // Two means have two divisors, each a count over the whole batch.
        self.negatives == Negatives::All && !(self.means_apart && self.reduction == Reduction::Mean)
    }

    fn sum<A: Scalar>(found: &Found<A>) -> f64 {
        found.sum
    }

    fn loss<A: Scalar>(problem: &Problem, found: &Found<A>) -> A {
        found.loss(problem)
    }

    fn losses<A: Scalar>(found: &Found<A>) -> &[A] {
        &found.losses
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

impl PerAnchor for BatchContrastiveLoss {}

/// The pairs of different classes that are selected, whatever their loss: of [`Negatives::All`] a list of all of them.
///
/// ```
/// use tercet::{BatchContrastiveLoss, Matrix, Negatives};
///
/// let loss_fn = BatchContrastiveLoss { negatives: Negatives::Hardest, ..Default::default() };
/// let selection = loss_fn.on(Matrix::new(&[0f64, 2.0, 3.0, 7.0], 1)?, &[7, 7, -1, -1]).select()?;
/// assert_eq!(selection.anchor, [0, 1, 2, 2]);
/// assert_eq!(selection.negative, [2, 2, 0, 1]);
/// assert_eq!(selection.distances, [3.0, 1.0, 3.0, 1.0]);
/// # Ok::<(), tercet::Error>(())
/// ```
impl Selects for BatchContrastiveLoss {
    type Selection<A: Scalar> = Selection<A>;

    fn selection<A: Scalar>(problem: &Problem, found: Found<A>) -> Selection<A> {
        found.selection(problem)
    }
}
