//! How exactly products of f32 are computed.

/// How exactly distances are filtered on a CUDA device; the names are PyTorch's for float32 matmul precision.
///
/// Positives, and every pair that a loss selects, are always computed from the difference of their rows. Which negative is the
/// nearest is decided by the filtered distances: another one may be nearer by less than their error. On the CPU the selected
/// negative is the nearest, and everything is computed as `Highest` says, whatever is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// The error of f32 arithmetic.
    #[default]
    Highest,
    /// One product of TF32 numbers (10 bits after the point).
    High,
    /// One product of 16-bit numbers.
    Medium,
    /// f32 on CUDA cores, slow, to check the tensor cores against: [`PairwiseDistance`](crate::PairwiseDistance) alone has it,
    /// the losses refuse it on a device.
    Plain,
}
