//! Memory for decoding: what a picture needs is known from its header, before anything is allocated.
//!
//! An allocation that fails ends the process, whatever catches panics, and a file of 23 bytes can declare 10^12 pixels.
//! So a picture's whole need is compared with [`ALL`] first, and pictures that are decoded at the same time share that.

use anyhow::{Result, bail};
use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes for all pictures that are being decoded at one moment, and so the most that one picture may need. A fuzzer
/// gets less: small files that declare large pictures would take its time.
pub const ALL: u64 = if cfg!(fuzzing) { 16 << 20 } else { 1 << 30 };

static MEMORY: Memory = Memory::new(ALL);

/// Waits until this many bytes are free, and takes them. `what` names the picture in the error.
///
/// # Errors
/// If there will never be so many bytes.
pub fn take(bytes: u64, what: &str) -> Result<Share<'static>> {
    if bytes > ALL {
        bail!("{what}: decoding takes {}, and the limit is {}", human(bytes), human(ALL));
    }
    Ok(MEMORY.take(bytes))
}

struct Memory {
    free: Mutex<u64>,
    freed: Condvar,
}

impl Memory {
    const fn new(bytes: u64) -> Self {
        Self { free: Mutex::new(bytes), freed: Condvar::new() }
    }

    /// A holder of a share never waits for another one, so every wait ends.
    fn take(&self, bytes: u64) -> Share<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free < bytes {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= bytes;
        Share { of: self, bytes }
    }
}

/// Memory that is taken until this is dropped.
pub struct Share<'a> {
    of: &'a Memory,
    bytes: u64,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.of.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.of.freed.notify_all();
    }
}

/// A number of bytes for people, such as `3.5 GiB`.
fn human(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "bytes");
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if value < 10.0 && unit != "bytes" { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn pictures_that_are_decoded_together_fit_together() {
        let memory = Memory::new(100);
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (memory, now, most) = (&memory, &now, &most);
                scope.spawn(move || {
                    for bytes in [40, 100, 1, 33].map(|b| (b + thread).min(100)) {
                        let share = memory.take(bytes);
                        most.fetch_max(now.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(bytes, Ordering::SeqCst);
                        drop(share);
                    }
                });
            }
        });
        assert!((50..=100).contains(&most.load(Ordering::SeqCst)), "{most:?}");
        assert_eq!(*memory.free.lock().unwrap(), 100);
    }

    #[test]
    fn what_can_never_fit_is_refused_and_named() {
        let error = take(ALL + 1, "9 x 9 pixels").err().unwrap().to_string();
        assert!(error.starts_with("9 x 9 pixels") && error.contains("the limit is 1.0 GiB"), "{error}");
        assert_eq!([0, 1023, 1536, 10 << 40].map(human), ["0 bytes", "1023 bytes", "1.5 KiB", "10 TiB"]);
        assert!(human(u64::MAX).ends_with("EiB"));
    }
}
