//! Stores past the cache. A large gradient is not read again soon: writing it through the cache would first read the
//! lines it overwrites, a third more traffic, and evict the inputs.

use bytemuck::Pod;

/// A cache line.
const LINE: usize = 64;

/// Bytes of output from which stores go past the cache: less may still be there when it is read.
const STREAM_BYTES: usize = 16 << 20;

/// Whether `bytes` of output are enough to go past the cache.
pub(crate) fn worth_streaming(bytes: usize) -> bool {
    cfg!(target_arch = "x86_64") && bytes >= STREAM_BYTES
}

/// Copies a few KiB past the cache if the processor can. They should be computed first and copied then: streamed
/// stores wait long, and on some processors a load whose address has the same last 12 bits waits with them, which made
/// rows that were loaded and streamed in turn five times slower at unlucky addresses.
/// [`fence`] must follow before another thread reads `to`.
pub(crate) fn stream<T: Pod>(from: &[T], to: &mut [T]) {
    assert_eq!(from.len(), to.len());
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX.
        unsafe { stream_avx(bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to)) };
        return;
    }
    to.copy_from_slice(from);
}

/// # Safety
/// The processor has AVX.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
fn stream_avx(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_stream_si256};
    const WIDTH: usize = size_of::<__m256i>();
    // Whole cache lines past the cache, what is before and after them through it.
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let body = (to.len() - head) / LINE * LINE;
    to[..head].copy_from_slice(&from[..head]);
    for at in (head..head + body).step_by(WIDTH) {
        // SAFETY: `at + WIDTH <= head + body`, within both slices, which are of one length; `to + at` is a multiple of
        // WIDTH, as `head` leads to a multiple of LINE.
        unsafe {
            let x = _mm256_loadu_si256(from.as_ptr().add(at).cast());
            _mm256_stream_si256(to.as_mut_ptr().add(at).cast(), x);
        }
    }
    to[head + body..].copy_from_slice(&from[head + body..]);
}

/// Orders streamed stores before this thread's later stores.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no precondition; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Prefetches the cache lines of `slice`. The processor's own prefetching stops at the end of a 4 KiB page, and six
/// matrices come to six such ends every few rows.
#[inline(always)]
pub(crate) fn prefetch<T>(slice: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = slice.as_ptr().cast::<i8>();
        for at in (0..size_of_val(slice)).step_by(LINE) {
            // SAFETY: a hint, which reads nothing; the address is within the slice. SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(at)) };
        }
    }
}
