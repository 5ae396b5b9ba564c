//! Whether each instruction behind kernels/platform.cuh does what it should: the emulator's as defined and as devices
//! answered, and a device's as defined.

mod device;
#[cfg(feature = "emulator")]
mod emulated;
mod probes;
