#[cfg(feature = "emulator")]
mod emulated;
mod laws;
mod nearest;
mod property;
#[cfg(feature = "torch")]
mod torch;
#[cfg(feature = "emulator")]
mod triangle;
