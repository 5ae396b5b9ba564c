//! The NVIDIA driver: whether there is one, its release, and what it says of errors.

use cudarc::driver::{DriverError, sys};

use crate::Error;

/// Whether there is a driver's library that can at least be started; cudarc's other calls panic without it.
pub(super) fn exists() -> bool {
    // SAFETY: only looks for the library and for two functions of it, which are not called.
    unsafe {
        sys::is_culib_present()
            && ["cuInit", "cuDeviceGetCount"].iter().all(|name| sys::culib().get::<*const ()>(name.as_bytes()).is_ok())
    }
}

/// The release of CUDA that the driver is of.
pub(super) fn release() -> Result<(u32, u32), Error> {
    let mut version = 0;
    // SAFETY: an out-pointer to a live integer.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    status.result().map_err(|refused| error("asking for the driver's version", refused))?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10)) // 12080 is 12.8
}

/// What the driver refused, as this crate's error.
pub(super) fn error(action: impl Into<String>, refused: DriverError) -> Error {
    let reason = refused.error_string().map_or_else(|_| format!("{refused:?}"), |s| s.to_string_lossy().into_owned());
    Error::Cuda { action: action.into(), reason }
}
