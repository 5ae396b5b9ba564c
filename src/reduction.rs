//! How the losses of a batch become the result.

/// How the losses of a batch become the result; the names are PyTorch's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reduction {
    /// One loss per row, not reduced.
    None,
    /// The mean of the losses. Each loss documents what it counts.
    #[default]
    Mean,
    /// The sum of the losses.
    Sum,
}

/// The triplets that a mean is taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MeanOver {
    /// Those whose loss is above 0.
    #[default]
    Active,
    /// All.
    Valid,
}
