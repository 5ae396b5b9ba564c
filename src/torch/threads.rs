//! The threads that libtorch computes on, as many as `tch::set_num_threads` says: losses on tensors run on them too.

use crate::cpu::openmp;
use crate::cpu::threads::Threads;

/// Calls `f`, whose tasks run on libtorch's threads if these can be reached, else on rayon's.
pub(crate) fn on_libtorchs<R>(f: impl FnOnce() -> R) -> R {
    openmp::on(&LIBTORCHS, f)
}

static LIBTORCHS: Threads = Threads { count, run: openmp::run };

fn count() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cpu::threads;

    #[test]
    fn work_is_done_once_on_each_thread_and_a_panic_comes_back() {
        // Asking for their number also keeps libtorch in the program, without which there is no OpenMP.
        tch::set_num_threads(3);
        assert_eq!(count(), 3);
        assert!(openmp::gomp_parallel().is_some());
        let done = AtomicUsize::new(0);
        on_libtorchs(|| {
            threads::run(2, || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(done.into_inner(), 3, "all threads, however few are asked for");
        let caught = catch_unwind(|| on_libtorchs(|| threads::run(2, || panic!("a task's"))));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"a task's"));
        assert!(std::ptr::eq(threads::on(None, || &LIBTORCHS), &LIBTORCHS), "rayon's again");
    }
}
