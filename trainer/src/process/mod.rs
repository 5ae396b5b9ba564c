//! What the program is as a process of its system: messages, progress and exit codes, signals, the other processes of a run, files that appear whole, seeds.

pub mod atomic;
pub mod bad_input;
pub mod bar;
pub mod fingerprint;
pub mod interrupt;
pub mod named;
pub mod paths;
pub mod random;
pub mod ranks;
pub mod say;
pub mod shell;
pub mod waiting;
