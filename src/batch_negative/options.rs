//! The options that the loss with one chosen negative for each pair has alone.

/// Which negative a pair of anchor and positive gets; see [`BatchNegativeTripletLoss`](super::BatchNegativeTripletLoss).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Negative {
    /// The nearest negative, if the loss with it is above 0.
    Hardest,
    /// A random one of the negatives with which the loss is above 0.
    Random,
    /// A random one of the negatives that are farther than the positive, by less than the margin.
    #[default]
    SemiHard,
}

/// Which pairs of anchor and positive are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pairs {
    /// `(a, p)` and `(p, a)`: each row of a pair is an anchor.
    #[default]
    Ordered,
    /// Only `(a, p)` with `a < p`. Against a reference set only those whose anchor's own row comes before the positive:
    /// an anchor that is not in the reference set has no pairs, and [`Own::None`](crate::Own::None) is an error.
    Once,
}

/// The options that [`BatchNegativeTripletLoss`](super::BatchNegativeTripletLoss) alone has.
#[derive(Clone, Copy, Debug)]
pub struct NegativeOptions {
    pub negative: Negative,
    pub pairs: Pairs,
    pub seed: u64,
}

/// The options and sizes of one call.
pub(crate) type Problem = crate::problem::Problem<NegativeOptions>;
