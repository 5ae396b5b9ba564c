//! How exactly products of f32 are computed.

/// How exactly distances are filtered on a CUDA device; the names are PyTorch's for float32 matmul precision.
///
/// The distances of positives, and of every pair that a loss selects, are always computed from the difference of their
/// rows. Which negative is the nearest is decided by the filtered distances: another one may be nearer by less than
/// their error. On the CPU the selected negative is the nearest, and everything is computed as with `Highest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// Products with the error of f32 arithmetic.
    #[default]
    Highest,
    /// Products of TF32 numbers (10 bits after the point) for f32 embeddings; as `Highest` for others.
    High,
    /// Products of 16-bit numbers: f16 for f16 embeddings, else bf16.
    Medium,
}
