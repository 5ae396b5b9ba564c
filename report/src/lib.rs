//! What the kernels of this build are made of, read from their machine code: the instructions of each loop by class, how many a
//! product of two rows takes, how many blocks a multiprocessor holds, and how long each unit of a device would be busy at least.
//! No GPU is needed, and for what concerns instructions NVIDIA's disassembler is.
//!
//! None of it is a time that was measured. `cargo xtask kernel-report` prints it, and the tests hold kernels to it.
#![warn(clippy::print_stdout, clippy::unwrap_used)]

pub mod bounds;
pub mod classes;
pub mod code;
pub mod devices;
pub mod disassembler;
pub mod elf;
pub mod flow;
pub mod hash;
pub mod parallel;
pub mod report;
pub mod work;

#[path = "../../src/constants.rs"]
mod constants;
#[path = "../../xtask/src/sha256.rs"]
mod sha256;
