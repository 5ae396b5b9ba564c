//! What the fuzz targets share: [`checks`], the memory that a reader may take, and whose panics count.

pub mod checks;
mod peak;

use std::sync::Once;

/// Calls a check on the bytes of a file, which may take `free` bytes of memory and 256 for each byte of the file.
///
/// A panic ends the process, as libFuzzer wants it, also where the reader of pictures catches it, unless it comes from a
/// decoder that is not the project's.
pub fn bounded(bytes: &[u8], free: usize, check: fn(&[u8]) -> bool) {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        check(b""); // the reader of pictures sets a hook of its own at its first call
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.location().is_some_and(|place| place.file().starts_with("trainer/")) {
                eprintln!("{info}\n{}", std::backtrace::Backtrace::force_capture());
                std::process::abort();
            }
            hook(info);
        }));
    });
    let most = peak::most(|| {
        check(bytes);
    });
    let allowed = free + 256 * bytes.len();
    assert!(most <= allowed, "{most} bytes of memory for a file of {} bytes; at most {allowed} expected", bytes.len());
}
