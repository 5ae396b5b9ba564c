//! The program `tercet` as users run it.

mod cli;
mod collections;
mod machines;
mod program;
#[cfg(unix)]
mod safe;
mod verification;

#[path = "../../../tests/it/support/made_up.rs"]
mod made_up;
#[path = "../../../tests/it/support/skipped.rs"]
mod skipped;
