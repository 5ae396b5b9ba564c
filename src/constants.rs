//! The constants that host and kernels share. `build/kernels.rs` reads this file too.
#![allow(dead_code, reason = "each build reads its share")]

/// Below this L2 norm a row is divided by it instead of by its norm, as `torch.nn.functional.normalize` does.
pub const MIN_NORM: f64 = 1e-12;

/// Threads in a block of a paired loss.
pub const PAIRED_THREADS: u32 = 256;

/// Rows and columns of a tile of the Gram matrix.
pub const TILE: u32 = 64;

/// Bytes of a row that one stage of a tile's pipeline brings.
pub const SLAB: u32 = 64;

/// batch_all on CUDA: classes of at most so many rows are compared threshold by threshold, larger ones sorted and searched.
pub const COMPARED: u32 = 32;

/// batch_contrastive on CUDA: how many digits there are of which a distance has three.
pub const DIGITS: u32 = 1 << 11;
