//! The shared GPU engine: compiled images, the launcher, device properties.

pub mod device;
pub mod images;
pub mod launcher;
mod matrix;

pub use device::{CudaLauncher, Device, device_count};
pub use images::{IMAGES, Image, KernelReport};
pub use launcher::{Address, DeviceProperties, Grid, Launcher, Memory};
pub use matrix::CudaMatrix;
