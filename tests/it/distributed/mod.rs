//! Process groups, and losses over them: each test starts itself as several processes.

mod collectives;
mod failures;
mod gradients;
mod launchers;
mod losses;
mod memory;
mod setting;
