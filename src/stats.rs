//! What a mined loss found in a batch.

/// What a mined loss found in a batch. Each loss documents what it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// The triplets, or pairs, that the loss is taken over.
    pub valid: u64,
    /// The triplets, or pairs, whose loss is above 0.
    pub active: u64,
    /// The mean distance between anchors and positives, 0 if there is none.
    pub mean_positive_distance: f64,
    /// The mean distance between anchors and negatives, 0 if there is none.
    pub mean_negative_distance: f64,
    /// Whether a CUDA device had no room for the batch's pairs, and the loss is NaN for that (see
    /// [`pairs_at_once`](crate::BatchAllTripletLoss::pairs_at_once)). Always false on the CPU, and of losses that list no
    /// pairs.
    pub too_many_pairs: bool,
}

impl Stats {
    /// The statistics of a batch with NaN or infinity in it.
    pub(crate) fn poisoned() -> Self {
        Self { mean_positive_distance: f64::NAN, mean_negative_distance: f64::NAN, ..Self::default() }
    }
}
