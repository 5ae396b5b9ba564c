//! Tests that need a CUDA device say so if there is none.

mod skipped;

pub use skipped::skipped;

/// Whether there is a device. If not, says that `test` is skipped, or fails if `TERCET_REQUIRE_CUDA` is set.
pub fn there_is_a_device(test: &str) -> bool {
    if tercet::cuda::device_count() > 0 {
        return true;
    }
    assert!(std::env::var_os("TERCET_REQUIRE_CUDA").is_none(), "TERCET_REQUIRE_CUDA is set, and there is no device");
    skipped(&format!("no CUDA device: {test}"));
    false
}
