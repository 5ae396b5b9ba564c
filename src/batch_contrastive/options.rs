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

/// The options and sizes of one call; `extra` is which pairs of different classes are selected.
pub(crate) type Problem = crate::problem::Problem<Negatives>;
