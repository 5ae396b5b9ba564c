//! The tests of the emulator itself. The losses' kernels are tested on it by the package in `tests/`.

mod kernels;
mod replay;
mod seeded_bugs;
#[path = "../../../tests/it/support/skipped.rs"]
mod skipped;
