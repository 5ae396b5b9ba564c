mod laws;
mod property;
#[cfg(feature = "torch")]
mod torch;
