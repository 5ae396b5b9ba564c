//! The checkpoint of a run.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tercet_fuzz::bounded(bytes, 1 << 20, tercet_fuzz::checks::checkpoint));
