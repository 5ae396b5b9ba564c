//! Memory for large CPU gradients. A fresh allocation of that size costs a page fault every 4 KiB, several times what
//! computing its content takes; here blocks on huge pages are used again.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_char, c_void};
use std::panic::catch_unwind;
use std::ptr::{self, NonNull};
use std::sync::Mutex;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

/// Smaller tensors come from libtorch's own allocator.
const MIN_BYTES: usize = 1 << 20;
/// The size of a huge page, and the unit of block sizes.
const UNIT: usize = 2 << 20;

/// Memory on huge pages, if the system grants them.
struct Block {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block is plain memory with one owner.
unsafe impl Send for Block {}

impl Block {
    /// A block of `bytes` bytes, which must be more than 0.
    fn new(bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes, UNIT).ok()?;
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the range is ours, and aligned to pages. The advice may be refused; nothing depends on it.
        #[cfg(target_os = "linux")]
        unsafe {
            libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
        }
        Some(Self { start, bytes })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this layout, which is a valid one; freed once.
        unsafe { dealloc(self.start.as_ptr(), Layout::from_size_align_unchecked(self.bytes, UNIT)) }
    }
}

/// Blocks in use and blocks kept, together never more bytes than were once in use at a time.
struct Pool {
    kept: Vec<Block>,
    used_bytes: usize,
    peak_bytes: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { kept: Vec::new(), used_bytes: 0, peak_bytes: 0 });

impl Pool {
    fn take(&mut self, bytes: usize) -> Option<Block> {
        // The smallest kept block that fits, unless more than half of it would lie idle.
        let fits = |b: &Block| b.bytes >= bytes && b.bytes / 2 <= bytes;
        let best = self.kept.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.bytes).map(|(i, _)| i);
        let block = match best {
            Some(i) => self.kept.swap_remove(i),
            None => {
                // A request that is refused leaves the peak as it was, or as much would be kept from then on.
                let peak = self.peak_bytes.max(self.used_bytes.checked_add(bytes)?);
                while !self.kept.is_empty() && self.kept_bytes() + self.used_bytes > peak - bytes {
                    self.kept.remove(0);
                }
                Block::new(bytes)?
            }
        };
        self.used_bytes += block.bytes;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
        Some(block)
    }

    fn give_back(&mut self, block: Block) {
        self.used_bytes -= block.bytes;
        self.kept.push(block);
    }

    fn kept_bytes(&self) -> usize {
        self.kept.iter().map(|b| b.bytes).sum()
    }
}

/// Frees the memory that is kept for the next large CPU gradient; memory in use stays.
pub fn release_cpu_memory() {
    let kept = std::mem::take(&mut lock().kept);
    drop(kept);
}

fn lock() -> std::sync::MutexGuard<'static, Pool> {
    // A thread that panicked left the pool consistent: nothing panics between the lines that change it.
    POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An uninitialised contiguous CPU tensor.
pub(crate) fn empty(sizes: &[i64], kind: Kind) -> Result<Tensor, crate::Error> {
    // Sizes of an expanded tensor may multiply to more bytes than there are addresses: libtorch says so.
    let count = sizes.iter().try_fold(1usize, |count, &size| count.checked_mul(usize::try_from(size).ok()?));
    let bytes = count.and_then(|count| count.checked_mul(kind.elt_size_in_bytes()));
    let units = bytes.filter(|bytes| *bytes >= MIN_BYTES).and_then(|bytes| bytes.checked_next_multiple_of(UNIT));
    if let Some(block) = units.and_then(|bytes| lock().take(bytes)) {
        let data = block.start.as_ptr().cast();
        let owner = Box::into_raw(Box::new(block)).cast();
        let mut result = ptr::null_mut();
        let scalar_type = match kind {
            Kind::Half => 5,
            Kind::Float => 6,
            Kind::Double => 7,
            Kind::BFloat16 => 15,
            other => unreachable!("gradients are never {other:?}"),
        };
        // SAFETY: `data` holds at least the bytes that sizes and kind need, for as long as `owner` lives; libtorch
        // (or tercet_from_blob, should it fail) calls `give_back(owner)` exactly once.
        let message =
            unsafe { tercet_from_blob(&mut result, data, sizes.as_ptr(), sizes.len(), scalar_type, owner, give_back) };
        super::autograd::check(message)?;
        // SAFETY: without an error `result` is a new tensor that nobody else owns.
        return Ok(unsafe { Tensor::from_ptr(result) });
    }
    Ok(Tensor::f_empty(sizes, (kind, tch::Device::Cpu))?)
}

/// Gives the block of a tensor back to the pool.
///
/// # Safety
/// `owner` is a `Box<Block>` turned into a pointer, and comes here once.
unsafe extern "C" fn give_back(owner: *mut c_void) {
    // SAFETY: the caller's contract.
    let block = unsafe { Box::from_raw(owner.cast::<Block>()) };
    let _ = catch_unwind(|| lock().give_back(*block));
}

unsafe extern "C" {
    fn tercet_from_blob(
        result: *mut *mut C_tensor,
        data: *mut c_void,
        sizes: *const i64,
        dims: usize,
        scalar_type: i8,
        owner: *mut c_void,
        drop: unsafe extern "C" fn(*mut c_void),
    ) -> *mut c_char;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool { kept: Vec::new(), used_bytes: 0, peak_bytes: 0 }
    }

    #[test]
    fn a_block_given_back_is_used_again() {
        let mut pool = pool();
        let block = pool.take(2 * UNIT).unwrap();
        let start = block.start;
        pool.give_back(block);
        let again = pool.take(UNIT).unwrap();
        assert_eq!(again.start, start, "2 units serve a request for 1");
        pool.give_back(again);
        let small = pool.take(UNIT / 2).unwrap();
        assert_eq!(small.bytes, UNIT / 2, "but not one for a quarter of it");
        pool.give_back(small);
    }

    #[test]
    fn it_never_holds_more_than_was_used_at_once() {
        let mut pool = pool();
        for units in [1, 7, 3, 20, 2, 5, 13] {
            let blocks: Vec<Block> = (0..3).map(|_| pool.take(units * UNIT).unwrap()).collect();
            assert!(pool.kept_bytes() + pool.used_bytes <= 60 * UNIT);
            blocks.into_iter().for_each(|b| pool.give_back(b));
        }
        assert_eq!(pool.used_bytes, 0);
        assert_eq!(pool.peak_bytes, 60 * UNIT);
        for refused in [usize::MAX - UNIT + 1, isize::MAX as usize / UNIT * UNIT, 1 << 60] {
            assert!(pool.take(refused).is_none());
            assert_eq!((pool.used_bytes, pool.peak_bytes), (0, 60 * UNIT));
        }
        assert!(pool.kept_bytes() <= 60 * UNIT);
    }
}
