#[cfg(feature = "torch")]
mod autograd;
#[cfg(feature = "emulator")]
mod emulated;
mod errors;
mod laws;
mod property;
mod torch;
