#[cfg(feature = "emulator")]
mod emulated;
mod errors;
mod laws;
mod property;
mod torch;
