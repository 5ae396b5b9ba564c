//! Process groups, and losses over them: each test starts itself as several processes.

mod collectives;
mod gradients;
mod losses;
mod memory;
mod setting;
