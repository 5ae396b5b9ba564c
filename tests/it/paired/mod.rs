//! What the tests of the losses over given pairs and triplets share.

#[cfg(feature = "emulator")]
pub mod bounds;
pub mod by_torch;
#[cfg(feature = "emulator")]
pub mod launches;
pub mod powers;
pub mod property;
pub mod recorded;
pub mod refused;
#[cfg(feature = "emulator")]
pub mod steps;
