//! Stores past the cache. A large gradient is not read again soon: writing it through the cache would first read the
//! lines it overwrites, a third more traffic, and evict the inputs.

use bytemuck::Pod;

/// Bytes of output from which stores go past the cache: less may still be there when it is read.
const STREAM_BYTES: usize = 16 << 20;

/// What [`put`] asks of an address to go past the cache.
const ALIGNMENT: usize = 16;

/// Whether rows of `dim` numbers, `bytes` of them in all, at `starts`, can and should be written past the cache.
pub(crate) fn worth_streaming<T>(starts: impl IntoIterator<Item = *const T>, dim: usize, bytes: usize) -> bool {
    cfg!(target_arch = "x86_64")
        && bytes >= STREAM_BYTES
        && (dim * size_of::<T>()).is_multiple_of(ALIGNMENT)
        && starts.into_iter().all(|start| start.addr().is_multiple_of(ALIGNMENT))
}

/// Writes a register, past the cache if `STREAM`. [`fence`] must follow before another thread reads it.
///
/// # Safety
/// With `STREAM` the address is a multiple of 16, and R's size too or below 16.
#[inline(always)]
pub(crate) unsafe fn put<const STREAM: bool, R: Pod>(to: &mut R, register: R) {
    #[cfg(target_arch = "x86_64")]
    if STREAM && size_of::<R>() >= ALIGNMENT {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        let (from, to) = ((&raw const register).cast::<__m128i>(), (&raw mut *to).cast::<__m128i>());
        for i in 0..size_of::<R>() / size_of::<__m128i>() {
            // SAFETY: `i` is within R, plain data, on both sides; `to` is aligned (the caller's contract). SSE2 is part
            // of x86-64.
            unsafe { _mm_stream_si128(to.add(i), _mm_loadu_si128(from.add(i))) };
        }
        return;
    }
    *to = register;
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
