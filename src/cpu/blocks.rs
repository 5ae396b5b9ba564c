//! Rows in fixed blocks, shared among threads: whatever the number of threads, each block is computed in the same way
//! and the blocks' sums are added in the same order, so the result has the same bits.

use std::sync::{Mutex, PoisonError};

use super::threads;
use crate::Element;

/// Numbers of one input in a block: small enough for the second-level cache with all its rows, large enough to be
/// worth a task.
const BLOCK_NUMBERS: usize = 16 * 1024;

/// Below this many numbers in one input, waking other threads costs more than they save.
const SERIAL_NUMBERS: usize = 16 * 1024;

/// Rows in a block of rows of `dim` numbers.
pub(crate) fn block_rows(dim: usize) -> usize {
    (BLOCK_NUMBERS / dim).max(1)
}

/// The sum of `f(i, block)` over all blocks, in order. They have [`block_rows`] rows each, the last one fewer.
pub(crate) fn sum_blocks<W: Send>(blocks: Vec<W>, rows: usize, dim: usize, f: impl Fn(usize, W) -> f64 + Sync) -> f64 {
    if rows * dim <= SERIAL_NUMBERS {
        return blocks.into_iter().enumerate().map(|(i, block)| f(i, block)).sum();
    }
    let mut sums = vec![0.0; blocks.len()];
    for_each(blocks.into_iter().zip(&mut sums).collect(), |i, (block, sum)| *sum = f(i, block));
    sums.into_iter().sum()
}

/// Calls `f(i, item)` for each item and its index, on all threads; items are begun in order.
pub(crate) fn for_each<W: Send>(items: Vec<W>, f: impl Fn(usize, W) + Sync) {
    let threads = threads::count().min(items.len());
    if threads <= 1 {
        return items.into_iter().enumerate().for_each(|(i, item)| f(i, item));
    }
    let queue = Mutex::new(items.into_iter().enumerate());
    threads::run(threads, || {
        // The lock is poisoned only if another thread panicked in `next`, and that panic is passed on.
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some((i, item)) = next() {
            f(i, item);
        }
    });
}

/// `slice` cut into `count` blocks of `block` numbers; `count` times `None` for `None`.
pub(crate) fn cut<T>(slice: Option<&mut [T]>, block: usize, count: usize) -> Vec<Option<&mut [T]>> {
    match slice {
        None => (0..count).map(|_| None).collect(),
        Some(slice) => slice.chunks_mut(block).map(Some).collect(),
    }
}

/// Writes `factor` times each number, `block` numbers a task.
pub(crate) fn scale<T: Element>(from: &[T::Scalar], factor: T::Scalar, to: &mut [T], block: usize) {
    let parts = to.chunks_mut(block).zip(from.chunks(block)).collect();
    for_each(parts, |_, (to, from): (&mut [T], &[T::Scalar])| match T::as_scalars_mut(to) {
        Some(to) => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from * factor),
        None => T::narrow(&from.iter().map(|g| *g * factor).collect::<Vec<_>>(), to),
    });
}
