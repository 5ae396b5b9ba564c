//! Process groups, and losses over them: each test starts itself as several processes.

mod collectives;
#[cfg(feature = "cuda")]
mod cuda;
mod failures;
mod gradients;
mod launchers;
mod losses;
mod memory;
mod setting;
