//! The command line, and what each command does.

pub mod cli;
pub mod compare;
pub mod embed;
pub mod enroll;
pub mod eval;
pub mod generate;
pub mod identify;
pub mod mine;
pub mod pairs;
pub mod people;
pub mod train;
pub mod transfer;
pub mod verify;
