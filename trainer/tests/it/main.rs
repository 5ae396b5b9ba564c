//! The program `tercet` as users run it.

mod cli;
mod collections;
mod corpus;
mod distributed;
mod gallery;
mod machines;
mod program;
#[cfg(unix)]
mod safe;
mod verification;

#[path = "../../fuzz/src/checks.rs"]
mod checks;
#[path = "../../../tests/it/support/made_up.rs"]
mod made_up;
#[path = "../../../tests/it/support/skipped.rs"]
mod skipped;
