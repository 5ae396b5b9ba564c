//! How exactly products of f32 are computed.

/// How exactly distances are filtered on a CUDA device; the names are PyTorch's for float32 matmul precision.
///
/// The distances of positives, and of every pair that a loss selects, are always computed from the difference of their
/// rows. The negative of [`BatchHardTripletLoss`](crate::BatchHardTripletLoss) with `Highest` is the nearest but for the
/// rounding of a distance, by 4 (2 + log2 D) 2^-24 of it: those that products cannot tell apart are compared by the
/// difference of their rows. By other losses, and with `High` and `Medium`, the filtered distances decide: another negative may
/// be nearer by less than the error of two of them. On the CPU the selected negative is the nearest, and everything is
/// computed as with `Highest`.
///
/// # One product of 11 bits
///
/// `High` and `Medium` multiply each pair of rows once, as f16, and add up in f32. For that a row is normalised or, where
/// nothing normalises, moved with all others by one near their mean if that makes them smaller; and scaled by a power of
/// two so that its largest element is 1 to 2. Then each element is rounded to 11 significant bits: it is off by at most
/// 2^-11 of itself or, below 2^-14, by 2^-25. So a row x of D elements is off by at most u |x|, with u = 2^-11 + 2^-25 √D,
/// and a distance, beside the error of f32 arithmetic, by at most
///
/// | distance d of x and y | error |
/// |---|---|
/// | Euclidean | e = u (\|x\| + \|y\|) |
/// | squared Euclidean, d² | 2 e d + e² |
/// | cosine | 2 u + u² |
///
/// where x and y are normalised or moved as said. TF32 has 11 significant bits too, and the same bound but for the second
/// term of u. Pairs whose d² by the product is below 1/64 of |x|² + |y|² are computed from the difference of their rows,
/// without such an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// Products with the error of f32 arithmetic.
    #[default]
    Highest,
    /// One product of 11 bits, as exact as one of TF32, for f32 embeddings; as `Highest` for others.
    High,
    /// One product of 11 bits, whatever the embeddings' type: for f32 embeddings the same as `High`.
    Medium,
}
