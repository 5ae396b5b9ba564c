//! Backward passes written in Rust: the public node `CustomFunction`, and the losses that run through it.
#![cfg(feature = "torch")]

mod drops;
mod failures;
mod functions;
mod gradients;
#[path = "../support/graph.rs"]
mod graph;
mod layouts;
mod lives;
mod threads;
