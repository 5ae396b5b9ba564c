//! The settings of a trained model, `model.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tercet_fuzz::bounded(bytes, 1 << 16, tercet_fuzz::checks::settings));
