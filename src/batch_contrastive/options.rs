//! The options that the contrastive loss over a batch has alone.

/// Which pairs of different classes are selected; see [`BatchContrastiveLoss`](super::BatchContrastiveLoss).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Negatives {
    /// All pairs of different classes.
    #[default]
    All,
    /// The pairs of different classes with the smallest distances, as many as there are pairs of one class.
    Hardest,
}

/// The options that [`BatchContrastiveLoss`](super::BatchContrastiveLoss) alone has.
#[derive(Clone, Copy, Debug)]
pub struct PairOptions {
    pub negatives: Negatives,
    /// Whether a pair's loss is its gap itself, and not half of the gap's square.
    pub linear: bool,
    pub pos_margin: f64,
    pub means_apart: bool,
}

/// The options and sizes of one call.
pub(crate) type Problem = crate::problem::Problem<PairOptions>;
