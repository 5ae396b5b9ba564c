//! The compiled kernels inside this binary, and the choice among them.

use std::io::Read;

use lzma_rust2::LzmaReader;

use super::compression::{WINDOW, predicted_from};
use super::targets::rank;

/// One file of kernels compiled for one target.
pub struct Image {
    /// The file, without folder and extension: the name of the loss.
    pub stem: &'static str,
    /// `sm_90a` and the like for a cubin, `compute_80` for PTX.
    pub target: &'static str,
    /// Bytes before compression.
    pub size: usize,
    /// The cubin or PTX, as compression.rs has it.
    pub compressed: &'static [u8],
    /// The assembler's report on each kernel; empty for PTX.
    pub kernels: &'static [KernelReport],
}

/// What the assembler said about one kernel.
#[derive(Debug)]
pub struct KernelReport {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Registers per thread.
    pub registers: u32,
    /// Static shared memory per block.
    pub shared_bytes: u32,
    /// Local memory per thread. Spills and indexed local arrays end up there; it should be 0.
    pub stack_bytes: u32,
    /// Register spills, stores and loads together.
    pub spill_bytes: u32,
    /// Whether the assembler made products of a warpgroup (`wgmma`) wait for each other. The build fails where it did.
    pub serialized: bool,
}

/// Every image of this build.
pub static IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The release of CUDA whose NVRTC compiled the images, such as 13 and 0.
pub const CUDA: (u32, u32) = include!(concat!(env!("OUT_DIR"), "/compiler.rs"));

impl Image {
    /// Whether it is machine code, and not PTX.
    #[must_use]
    pub fn is_code(&self) -> bool {
        self.target.starts_with("sm_")
    }

    /// Whether it has this kernel. Of PTX nothing is known: it has those that fit everywhere.
    fn has(&self, kernel: &str) -> bool {
        !self.is_code() || self.kernels.iter().any(|report| report.kernel == kernel)
    }

    /// The cubin, or PTX with a final NUL, as the driver takes it.
    #[must_use]
    pub fn decompressed(&self) -> Vec<u8> {
        let [lc, lp, pb] = predicted_from(self.is_code());
        let mut bytes = vec![0; self.size];
        LzmaReader::new(self.compressed, self.size as u64, lc, lp, pb, WINDOW, None)
            .and_then(|mut reader| reader.read_exact(&mut bytes))
            .expect("build.rs compressed this image");
        bytes
    }
}

/// The image of `stem` in this build with `kernel`, as [`choose_for`] finds it.
pub fn image_for(stem: &str, kernel: &str, major: u32, minor: u32) -> Option<&'static Image> {
    choose_for(IMAGES, stem, kernel, major, minor)
}

/// Whether this build has machine code for a device of compute capability `major.minor`; else it has PTX, if anything.
pub fn has_code_for(major: u32, minor: u32) -> bool {
    IMAGES.iter().any(|image| image.is_code() && rank(image.target, major, minor).is_some())
}

/// The image of `stem` among `images` for a device of compute capability `major.minor`.
#[must_use]
pub fn choose(images: &'static [Image], stem: &str, major: u32, minor: u32) -> Option<&'static Image> {
    best(images, |image| image.stem == stem, major, minor)
}

/// The image of `stem` among `images` that has `kernel`, for a device of compute capability `major.minor`. Machine code leaves out
/// what the devices that are known to run it do not take: one that has less shared memory finds what fits everywhere in PTX.
#[must_use]
pub fn choose_for(
    images: &'static [Image],
    stem: &str,
    kernel: &str,
    major: u32,
    minor: u32,
) -> Option<&'static Image> {
    best(images, |image| image.stem == stem && image.has(kernel), major, minor)
}

fn best(images: &'static [Image], wanted: impl Fn(&Image) -> bool, major: u32, minor: u32) -> Option<&'static Image> {
    let ranked = images
        .iter()
        .filter(|image| wanted(image))
        .filter_map(|image| Some((rank(image.target, major, minor)?, image)));
    ranked.max_by_key(|(rank, _)| *rank).map(|(_, image)| image)
}

#[cfg(test)]
mod tests {
    use super::{Image, KernelReport, choose, choose_for};

    static KERNELS: [KernelReport; 1] = [KernelReport {
        kernel: "a_wide",
        registers: 0,
        shared_bytes: 0,
        stack_bytes: 0,
        spill_bytes: 0,
        serialized: false,
    }];
    static IMAGES: [Image; 2] = [
        Image { stem: "a", target: "sm_100", size: 0, compressed: &[], kernels: &KERNELS },
        Image { stem: "a", target: "compute_80", size: 0, compressed: &[], kernels: &[] },
    ];

    #[test]
    fn what_machine_code_leaves_out_is_in_ptx() {
        let target = |kernel| choose_for(&IMAGES, "a", kernel, 10, 3).map(|image| image.target);
        assert_eq!(target("a_wide"), Some("sm_100"));
        assert_eq!(target("a_narrow"), Some("compute_80"));
        assert_eq!(choose(&IMAGES, "a", 10, 3).map(|image| image.target), Some("sm_100"));
        assert!(choose_for(&IMAGES[..1], "a", "a_narrow", 10, 3).is_none());
    }
}
