//! Files of pairs: text as LFW has it, and CSV.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tercet_fuzz::bounded(bytes, 1 << 16, tercet_fuzz::checks::pairs));
