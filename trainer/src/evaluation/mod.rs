//! How well embeddings tell identities apart.

pub mod evaluate;
pub mod folds;
pub mod identification;
pub mod metrics;
pub mod mistakes;
pub mod open_set;
pub mod ranking;
#[cfg(test)]
mod recorded;
pub mod tally;
