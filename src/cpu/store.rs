//! Stores past the cache. A large gradient is not read again soon: writing it through the cache would first read the
//! lines it overwrites, a third more traffic, and evict the inputs.

use bytemuck::Pod;

/// Bytes of output from which stores go past the cache: less may still be there when it is read.
const STREAM_BYTES: usize = 16 << 20;

/// Whether `slices`, all of one loss, are large enough.
pub(crate) fn worth_streaming(bytes: usize) -> bool {
    bytes >= STREAM_BYTES
}

/// Copies `from` to `to` past the cache where the processor and the alignment allow it.
/// [`fence`] must follow before another thread reads `to`.
#[inline(always)]
pub(crate) fn stream<T: Pod>(from: &[T], to: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        const WIDTH: usize = size_of::<__m128i>();
        assert_eq!(from.len(), to.len());
        let bytes = size_of_val(from);
        if to.as_ptr().addr().is_multiple_of(WIDTH) && bytes.is_multiple_of(WIDTH) {
            let (from, to) = (from.as_ptr().cast::<u8>(), to.as_mut_ptr().cast::<u8>());
            let mut at = 0;
            while at < bytes {
                // SAFETY: `at + WIDTH <= bytes`, as WIDTH divides both; `bytes` lie behind both pointers, which come
                // from slices of equal length; T is plain data; `to` is aligned (checked) and so is every step from
                // it; SSE2 is part of x86-64.
                unsafe {
                    let x = _mm_loadu_si128(from.add(at).cast());
                    _mm_stream_si128(to.add(at).cast(), x);
                }
                at += WIDTH;
            }
            return;
        }
    }
    to.copy_from_slice(from);
}

/// Orders streamed stores before whatever this thread does next.
#[inline(always)]
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no precondition; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Asks for the cache lines of `slice`. The processor's own prefetching stops at the end of a 4 KiB page, and six matrices
/// come to six such ends every few rows.
#[inline(always)]
pub(crate) fn prefetch<T>(slice: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        let start = slice.as_ptr().cast::<i8>();
        for at in (0..size_of_val(slice)).step_by(LINE) {
            // SAFETY: a hint, which reads nothing; the address is within the slice. SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(at)) };
        }
    }
}
