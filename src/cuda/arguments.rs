//! What a mined loss reads and writes in device memory.

use super::Address;
use crate::Own;

/// Embeddings and their labels in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// The address of the first row.
    pub x: Address,
    /// How many elements lie from one row to the next.
    pub stride: usize,
    /// The labels, one i64 a row; 0: no two rows are of one class.
    pub labels: Address,
}

/// A reference set in device memory.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceInput {
    /// Its embeddings and their labels.
    pub rows: Input,
    /// How many rows the reference set has.
    pub count: usize,
    /// Which reference row each anchor is itself; `Own::Rows` holds one i64 an anchor.
    pub own: Own<Address>,
}

/// What a call of a mined loss reads in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// The batch, whose rows are the anchors.
    pub anchors: Input,
    /// The reference set; `None`: the batch is its own.
    pub reference: Option<ReferenceInput>,
    /// The address of the step of the random choices, an i64; if it is 0 the step is 0.
    pub step: Address,
}

impl Inputs {
    /// The inputs of a batch that is its own reference set, at step 0.
    #[must_use]
    pub fn itself(anchors: Input) -> Self {
        Self { anchors, reference: None, step: 0 }
    }
}

/// What a forward pass writes in device memory. An output with the address 0 is not wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    /// The loss of each anchor, one f32 each.
    pub losses: Address,
    /// The reduced loss, an f32.
    pub loss: Address,
    /// [`STATS_WRITTEN`](crate::constants::STATS_WRITTEN) numbers of 8 bytes: how many are valid and active, i64; the mean
    /// distances to positives and to negatives, 0 without any, and what the sum of the losses is multiplied by, f64; and
    /// whether there was no room for the pairs, 1 or 0, i64.
    pub stats: Address,
    /// What a loss that chooses has chosen; each loss's forward pass documents it.
    pub chosen: [Address; 2],
}
