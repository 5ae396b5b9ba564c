//! The files of pictures, in all formats that are read.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tercet_fuzz::bounded(bytes, 24 << 20, tercet_fuzz::checks::picture));
