#[cfg(feature = "emulator")]
mod emulated;
mod laws;
mod property;
