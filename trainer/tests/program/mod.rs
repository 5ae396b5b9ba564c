//! The program that tests run.

use std::path::PathBuf;

/// By the variable first: where a bundle runs, the path of the build does not exist.
pub fn program() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_tercet").map_or_else(|| env!("CARGO_BIN_EXE_tercet").into(), PathBuf::from)
}
