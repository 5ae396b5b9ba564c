//! The losses on `cudarc` slices take [`CudaMatrix`]; the rest is the shared GPU engine: compiled images, the launcher,
//! device properties.

#[doc(hidden)]
pub mod batch;
#[doc(hidden)]
pub mod device;
#[doc(hidden)]
pub mod images;
#[doc(hidden)]
pub mod launcher;
mod matrix;
#[doc(hidden)]
pub mod mined;
#[doc(hidden)]
pub mod paired;
#[doc(hidden)]
pub mod triplets;

pub use device::device_count;
#[doc(hidden)]
pub use device::{CudaLauncher, Device};
#[doc(hidden)]
pub use images::{IMAGES, Image, KernelReport};
#[doc(hidden)]
pub use launcher::{Address, DeviceProperties, Grid, Launcher, Memory};
pub use matrix::CudaMatrix;
