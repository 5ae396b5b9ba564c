//! The threads that libtorch computes on, as many as `torch.set_num_threads` says: operators run on them too.

use tercet::internal::{Threads, on_openmp, run_on_openmp};

use crate::abi::torch;

static LIBTORCHS: Threads = Threads { count, run: run_on_openmp };

fn count() -> usize {
    let mut count = 0;
    // SAFETY: an out-pointer to a live variable.
    let code = unsafe { (torch().threads)(&mut count) };
    if code == 0 { count.max(1) as usize } else { 1 }
}

/// Calls `f`, whose tasks run on libtorch's threads if these can be reached, else on rayon's.
pub fn on_libtorchs<R>(f: impl FnOnce() -> R) -> R {
    on_openmp(&LIBTORCHS, f)
}
