//! Backward passes written in Rust: the public node `CustomFunction`, and the losses that run through it.

mod drops;
mod failures;
mod functions;
mod gradients;
mod layouts;
mod lives;
mod threads;
