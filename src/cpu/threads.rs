//! Whose threads tasks run on: rayon's, or those of a library that the caller computes with. Threads of two libraries get
//! into each other's way: those that have just finished wait for more in a loop, and take the processor from the others.

use std::cell::Cell;

/// The threads of another library.
#[derive(Debug)]
pub struct Threads {
    /// How many there are, the caller among them.
    pub count: fn() -> usize,
    /// Calls the function on each of so many of them, the caller among them, and waits for all.
    pub run: fn(usize, &(dyn Fn() + Sync)),
}

thread_local! {
    /// `None`: rayon's.
    static CURRENT: Cell<Option<&'static Threads>> = const { Cell::new(None) };
}

/// Calls `f`, whose tasks run on `threads`; `None`: on rayon's.
#[cfg(feature = "openmp")]
pub(crate) fn on<R>(threads: Option<&'static Threads>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<&'static Threads>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(threads));
    f()
}

/// How many threads there are.
pub(crate) fn count() -> usize {
    CURRENT.get().map_or_else(rayon::current_num_threads, |threads| (threads.count)().max(1))
}

/// Calls `work` on `count` threads or more, the caller among them; `count` is at least 1 and not above [`count()`].
pub(crate) fn run(count: usize, work: impl Fn() + Sync) {
    match CURRENT.get() {
        Some(threads) => (threads.run)((threads.count)().max(1), &work),
        // In place: the caller works from the start, while the other threads wake up.
        None => rayon::in_place_scope(|scope| {
            for _ in 1..count {
                scope.spawn(|_| work());
            }
            work();
        }),
    }
}
