//! The losses on `cudarc` slices, which take [`CudaMatrix`], and the GPU engine that all losses share: compiled images,
//! the launcher, device properties.

pub(crate) mod arguments;
pub(crate) mod batch;
mod call;
mod compression;
pub(crate) mod device;
mod driver;
pub(crate) mod fitness;
pub(crate) mod images;
pub(crate) mod launcher;
mod matrix;
pub(crate) mod mined;
pub(crate) mod paired;
pub(crate) mod strip;
pub(crate) mod sweep;
pub(crate) mod targets;
pub(crate) mod triplets;
pub(crate) mod workspace;

/// What `targets` asks its parent for: the build scripts have it beside that file.
use crate::constants;
pub(crate) use device::CudaLauncher;
pub use device::device_count;
pub use fitness::check_device;
pub(crate) use launcher::{Address, DeviceProperties, Grid, Launcher, Memory};
pub use matrix::CudaMatrix;

/// Refuses f64, for losses over tiles: their kernels are for f32, f16 and bf16 alone.
pub(crate) fn refuse_f64<T: crate::Element>(argument: &'static str) -> Result<(), crate::Error> {
    match T::NAME {
        "f64" => Err(crate::Error::argument(argument, "f32, f16 or bf16 (on the CPU also f64)", "f64")),
        _ => Ok(()),
    }
}
