//! The losses on `cudarc` slices take [`CudaMatrix`]; the rest is the shared GPU engine: compiled images, the launcher,
//! device properties.

#[doc(hidden)]
pub mod batch;
#[doc(hidden)]
pub mod device;
mod fitness;
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
pub use fitness::check_device;
#[doc(hidden)]
pub use fitness::{Machine, fit};
#[doc(hidden)]
pub use images::{IMAGES, Image, KernelReport};
#[doc(hidden)]
pub use launcher::{Address, DeviceProperties, Grid, Launcher, Memory};
pub use matrix::CudaMatrix;

/// What goes over tiles has no kernels for f64.
pub(crate) fn refuse_f64<T: crate::Element>(argument: &'static str) -> Result<(), crate::Error> {
    match T::NAME {
        "f64" => Err(crate::Error::argument(argument, "f32, f16 or bf16 (on the CPU also f64)", "f64")),
        _ => Ok(()),
    }
}
