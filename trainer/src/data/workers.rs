//! Threads that decode and augment images while the encoder works on earlier ones.
//!
//! They are not rayon's global threads, on which what else the trainer computes would wait behind images.

use crate::process::bad_input::bad_input;
use anyhow::Result;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// How many items are made at a time: while one ends on few threads, the next one has the others.
const LANES: u64 = 2;

/// Threads that make images.
pub struct Workers(ThreadPool);

impl Workers {
    /// Starts this many threads, or one for each core.
    pub fn new(threads: Option<u64>) -> Result<Self> {
        let builder = ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0) as usize);
        let builder = builder.thread_name(|number| format!("images-{number}"));
        Ok(Self(builder.build().map_err(|error| bad_input(format!("--workers: {error}")))?))
    }

    /// Runs `work` on these threads.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.install(work)
    }

    /// `make(n)` for each `n` of the range, in order, computed ahead: at most four items are ready or in the making.
    pub fn ahead<'scope, 'env, T: Send + 'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        range: Range<u64>,
        make: &'env (impl Fn(u64) -> T + Sync),
    ) -> Ahead<T> {
        let lanes = (0..LANES).map(|lane| {
            let (send, receive) = sync_channel(1);
            let own = (range.start + lane..range.end).step_by(LANES as usize);
            scope.spawn(move || {
                for n in own {
                    // The receiver is gone and wants no more.
                    if send.send(self.run(|| make(n))).is_err() {
                        return;
                    }
                }
            });
            receive
        });
        Ahead { lanes: lanes.collect(), next: 0, waited: Duration::ZERO }
    }
}

/// Items that are made ahead.
pub struct Ahead<T> {
    lanes: Vec<Receiver<T>>,
    next: usize,
    waited: Duration,
}

impl<T> Ahead<T> {
    /// The time that was spent waiting for items that were not ready.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl<T> Iterator for Ahead<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let clock = Instant::now();
        let item = self.lanes[self.next].recv().ok();
        self.waited += clock.elapsed();
        self.next = (self.next + 1) % self.lanes.len();
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn items_come_in_order_and_not_far_ahead() {
        let workers = Workers::new(Some(3)).unwrap();
        let made = AtomicU64::new(0);
        let make = |n: u64| {
            made.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(n * 37 % 5 * 100));
            n
        };
        std::thread::scope(|scope| {
            let mut taken = 0;
            for (expected, item) in (3..40).zip(workers.ahead(scope, 3..40, &make)) {
                assert_eq!(item, expected);
                taken += 1;
                // Two lanes, each with one item ready and one in the making.
                assert!(made.load(Ordering::SeqCst) <= taken + 4);
            }
            assert_eq!(taken, 37);
        });
        assert_eq!(made.load(Ordering::SeqCst), 37);
        // When nobody takes items any more, no more are made.
        made.store(0, Ordering::SeqCst);
        std::thread::scope(|scope| assert_eq!(workers.ahead(scope, 0..1 << 40, &make).next(), Some(0)));
        assert!(made.load(Ordering::SeqCst) <= 5);
    }

    #[test]
    fn waiting_is_counted_and_a_ready_item_costs_none() {
        let workers = Workers::new(Some(2)).unwrap();
        let wait = Duration::from_millis(200);
        let made = AtomicU64::new(0);
        let make = |_| {
            std::thread::sleep(wait);
            made.fetch_add(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            let mut items = workers.ahead(scope, 0..6, &make);
            items.next();
            assert!(items.waited() >= wait / 2);
            while made.load(Ordering::SeqCst) < 4 {
                std::thread::yield_now();
            }
            let before = items.waited();
            items.next();
            items.next();
            assert!(items.waited() - before < wait / 2, "{:?}", items.waited() - before);
        });
    }
}
