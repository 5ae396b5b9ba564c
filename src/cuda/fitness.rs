//! Whether this build's kernels run on a device, asked before anything is launched.

use cudarc::driver::{result, sys};

use super::driver::{self, error};
use super::images::{CUDA, IMAGES, Image, choose};
use crate::Error;

/// What of a device and its driver decides whether kernels run there.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The device's name.
    pub name: String,
    /// The device's compute capability, such as 9 and 0.
    pub capability: (u32, u32),
    /// The release of CUDA that the driver is of, such as 13 and 0.
    pub driver: (u32, u32),
}

/// Whether the kernels of this build run on CUDA device `ordinal`, by the driver's count, which is also that of
/// `tch::Device::Cuda`. It makes no context and takes no memory of the device.
///
/// ```no_run
/// let device = match tercet::cuda::check_device(0) {
///     Ok(()) => "cuda:0",
///     Err(why) => {
///         eprintln!("on the CPU: {why}");
///         "cpu"
///     }
/// };
/// ```
///
/// # Errors
/// Says why not: no driver, no such device, a compute capability below 8.0, or a driver that is older than the CUDA that
/// compiled the kernels.
pub fn check_device(ordinal: usize) -> Result<(), Error> {
    fit(IMAGES, CUDA, &machine(ordinal)?)
}

/// Reads what decides whether kernels run on a device, without making a context.
fn machine(ordinal: usize) -> Result<Machine, Error> {
    let looking = "looking for CUDA devices";
    if !driver::exists() {
        let reason = "there is no driver: libcuda.so.1 was not found, or is none".into();
        return Err(Error::Cuda { action: looking.into(), reason });
    }
    let refused = |driver| match error(looking, driver) {
        Error::Cuda { action, .. } if driver.0 == sys::CUresult::CUDA_ERROR_STUB_LIBRARY => {
            // In a toolkit, for linking where there is no driver; cudarc takes it before the driver's own.
            let reason = "libcuda.so is CUDA's stub; LD_LIBRARY_PATH must not name its folder".into();
            Error::Cuda { action, reason }
        }
        other => other,
    };
    result::init().map_err(refused)?;
    let count = result::device::get_count().map_err(refused)?;
    let device = i32::try_from(ordinal).ok().filter(|device| *device < count);
    let device =
        device.ok_or_else(|| Error::argument("device", format!("one of {count} CUDA devices"), ordinal.to_string()))?;
    let reading = |driver| error(format!("reading the properties of CUDA device {ordinal}"), driver);
    let handle = result::device::get(device).map_err(reading)?;
    let attribute = |what| {
        // SAFETY: the driver gave the handle.
        let value = unsafe { result::device::get_attribute(handle, what) }.map_err(reading)?;
        Ok::<u32, Error>(u32::try_from(value).unwrap_or(0))
    };
    use sys::CUdevice_attribute as Attribute;
    Ok(Machine {
        name: result::device::get_name(handle).map_err(reading)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        driver: driver::release()?,
    })
}

/// Whether each file of kernels has an image that runs on `machine`; `compiled_by` is the CUDA that made them.
///
/// A cubin runs under any driver of the same major release of CUDA or of a later one; PTX is compiled by the driver, which
/// has to know that very release.
///
/// # Errors
/// Says why not.
pub fn fit(images: &'static [Image], compiled_by: (u32, u32), machine: &Machine) -> Result<(), Error> {
    let Machine { name, capability: (major, minor), driver } = machine;
    let refused = |reason| Err(Error::Cuda { action: format!("choosing kernels for {name}"), reason });
    if images.is_empty() {
        return refused("this build has none".into());
    }
    let mut ptx_alone = false;
    for image in images {
        match choose(images, image.stem, *major, *minor) {
            None => return refused(nothing_for(*major, *minor)),
            Some(image) => ptx_alone |= image.target.starts_with("compute_"),
        }
    }
    match too_old(compiled_by, *driver, ptx_alone) {
        Some(reason) => refused(reason),
        None => Ok(()),
    }
}

pub(crate) fn nothing_for(major: u32, minor: u32) -> String {
    format!("nothing in this build runs on compute capability {major}.{minor}; 8.0 is the least")
}

/// What to say of a driver that does not take what this release of CUDA compiled; `None` if it takes it.
pub(crate) fn too_old(compiled_by: (u32, u32), driver: (u32, u32), ptx: bool) -> Option<String> {
    let release = |(major, minor): (u32, u32)| format!("CUDA {major}.{minor}");
    let (wanted, is) = (release(compiled_by), release(driver));
    if driver.0 < compiled_by.0 {
        let known = if compiled_by.0 == 13 { " (580 or newer)" } else { "" };
        return Some(format!(
            "they were compiled with {wanted}, and the driver is of {is}: a driver of CUDA {}{known} is needed, or a build \
             for which CUDA_HOME names an older toolkit",
            compiled_by.0
        ));
    }
    (ptx && driver < compiled_by).then(|| {
        format!(
            "for this device there is only PTX, of {wanted}, and the driver is of {is}: a newer driver is needed, or a \
             build with this device in TERCET_CUDA_ARCHS"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(stem: &'static str, target: &'static str) -> Image {
        Image { stem, target, size: 0, compressed: &[], kernels: &[] }
    }

    /// The images that build.rs makes by default.
    static DEFAULT: [Image; 5] = [
        image("a", "sm_80"),
        image("a", "sm_90a"),
        image("a", "sm_100"),
        image("a", "sm_120"),
        image("a", "compute_80"),
    ];
    /// The images that build.rs makes with `TERCET_CUDA_ARCHS=90a`.
    static HOPPER: [Image; 2] = [image("a", "sm_90a"), image("a", "compute_80")];
    /// Images of two files of kernels, one of them without PTX.
    static HALF: [Image; 3] = [image("a", "sm_80"), image("a", "compute_80"), image("b", "sm_80")];

    fn said(images: &'static [Image], capability: (u32, u32), driver: (u32, u32)) -> Option<String> {
        let machine = Machine { name: "GPU A".into(), capability, driver };
        fit(images, (13, 1), &machine).err().map(|error| error.to_string())
    }

    #[test]
    fn each_kind_of_device() {
        for images in [&DEFAULT[..], &HOPPER] {
            for fit in [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)] {
                assert_eq!(said(images, fit, (13, 1)), None, "{fit:?}");
            }
            for (major, minor) in [(3, 5), (6, 1), (7, 0), (7, 5)] {
                let said = said(images, (major, minor), (13, 1)).unwrap();
                let reason = format!("runs on compute capability {major}.{minor}; 8.0 is the least");
                assert!(said.contains("GPU A") && said.ends_with(&reason), "{said}");
            }
        }
        assert_eq!(said(&HALF, (8, 9), (13, 1)), None);
        assert!(said(&HALF, (9, 0), (13, 1)).unwrap().contains("compute capability 9.0"));
        assert!(said(&[], (9, 0), (13, 1)).unwrap().ends_with("this build has none"));
    }

    #[test]
    fn each_kind_of_driver() {
        // A later driver takes all, one of the same major release takes cubins, an earlier one nothing.
        for newer in [(13, 1), (13, 4), (14, 0)] {
            assert_eq!(said(&HOPPER, (9, 0), newer), None);
            assert_eq!(said(&HOPPER, (12, 0), newer), None);
        }
        assert_eq!(said(&HOPPER, (9, 0), (13, 0)), None);
        let ptx = said(&HOPPER, (12, 0), (13, 0)).unwrap();
        assert!(ptx.contains("only PTX, of CUDA 13.1, and the driver is of CUDA 13.0"), "{ptx}");
        assert_eq!(said(&DEFAULT, (12, 0), (13, 0)), None);
        for images in [&DEFAULT[..], &HOPPER] {
            let old = said(images, (9, 0), (12, 9)).unwrap();
            assert!(old.contains("compiled with CUDA 13.1, and the driver is of CUDA 12.9"), "{old}");
            assert!(old.contains("CUDA 13 (580 or newer)"), "{old}");
        }
        // If both are unfit, the device is what cannot be mended.
        assert!(said(&DEFAULT, (7, 5), (12, 2)).unwrap().contains("8.0 is the least"));
    }
}
