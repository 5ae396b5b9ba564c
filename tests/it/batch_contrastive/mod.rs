#[cfg(feature = "emulator")]
mod emulated;
mod laws;
mod property;
#[cfg(feature = "torch")]
mod torch;
