//! The constants that host and kernels share. `build/kernels.rs` reads this file too.
#![allow(dead_code, reason = "each build reads its share")]

/// A row whose L2 norm is below this is divided by it instead, as by `torch.nn.functional.normalize`.
pub const MIN_NORM: f64 = 1e-12;

/// Numbers whose squares' sum is below the inverse of this may be multiplied by it, and those whose squares' sum overflows
/// divided, before they are squared: 2^100.
pub const LIFT_F32: f64 = 1.2676506002282294e30;

/// What [`LIFT_F32`] is for f32, for f64: 2^800.
pub const LIFT_F64: f64 = 6.668014432879854e240;

/// Threads in a block of a paired loss.
pub const PAIRED_THREADS: u32 = 256;

/// Rows and columns of a tile of the Gram matrix.
pub const TILE: u32 = 64;

/// Bytes of a row that one stage of a tile's pipeline brings.
pub const SLAB: u32 = 64;

/// batch_all on CUDA: classes of at most so many rows are compared threshold by threshold, larger ones sorted and searched.
pub const COMPARED: u32 = 32;

/// batch_contrastive on CUDA: how many different digits there are; the bits of a distance are three of them.
pub const DIGITS: u32 = 1 << 11;
