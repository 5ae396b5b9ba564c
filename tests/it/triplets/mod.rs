//! What the tests of the losses that choose one negative for each pair share.

pub mod laws;
pub mod property;
