//! The program that tests run, and what they ask of how it ended.

use std::path::PathBuf;
use std::process::{Command, Output};

/// The program's path, by the environment variable if set: in a bundle the path of the build does not exist.
pub fn program() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_tercet").map_or_else(|| env!("CARGO_BIN_EXE_tercet").into(), PathBuf::from)
}

/// Runs the program to its end.
pub fn tercet(arguments: &[&str]) -> Output {
    // One thread each: tests run side by side already.
    Command::new(program()).env("OMP_NUM_THREADS", "1").args(arguments).output().expect("tercet starts")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that the program ended with this code, and that all of the words are on its standard error.
#[track_caller]
pub fn ended(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}
