//! How well embeddings tell identities apart.

pub mod evaluate;
pub mod folds;
pub mod metrics;
pub mod mistakes;
pub mod ranking;
#[cfg(test)]
mod recorded;
pub mod tally;
