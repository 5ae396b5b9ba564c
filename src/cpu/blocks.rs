//! Rows in fixed blocks, shared among threads: whatever the number of threads, each block is computed in the same way
//! and the blocks' sums are added in the same order, so the result has the same bits.

use rayon::prelude::*;

/// Numbers of one input in a block: small enough for the second-level cache with all its rows, large enough to be
/// worth a task.
const BLOCK_NUMBERS: usize = 16 * 1024;

/// Below this many numbers in one input, waking other threads costs more than they save.
const SERIAL_NUMBERS: usize = 8 * 1024;

/// Rows in a block of rows of `dim` numbers.
pub(crate) fn block_rows(dim: usize) -> usize {
    (BLOCK_NUMBERS / dim).max(1)
}

/// The sum of `f` over blocks, in order. The blocks are of [`block_rows`] each, the last one shorter.
pub(crate) fn sum_blocks<W: Send>(blocks: Vec<W>, rows: usize, dim: usize, f: impl Fn(usize, W) -> f64 + Sync) -> f64 {
    let sums: Vec<f64> = if blocks.len() == 1 || rows * dim <= SERIAL_NUMBERS {
        blocks.into_iter().enumerate().map(|(i, block)| f(i, block)).collect()
    } else {
        blocks.into_par_iter().enumerate().map(|(i, block)| f(i, block)).collect()
    };
    sums.into_iter().sum()
}

/// `slice` cut into `count` blocks of `block` numbers; `count` times `None` for `None`.
pub(crate) fn cut<T>(slice: Option<&mut [T]>, block: usize, count: usize) -> Vec<Option<&mut [T]>> {
    match slice {
        None => (0..count).map(|_| None).collect(),
        Some(slice) => slice.chunks_mut(block).map(Some).collect(),
    }
}
