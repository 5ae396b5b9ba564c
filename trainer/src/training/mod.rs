//! The loop of a run: batches, losses, Adam, checkpoints.

pub mod batch;
pub mod checkpoint;
pub mod loss;
pub mod loss_options;
pub mod optimiser;
pub mod overwritten;
pub mod plan;
pub mod progress;
pub mod room;
pub mod scaler;
pub mod schedule;
pub mod steps;
pub mod watch;
