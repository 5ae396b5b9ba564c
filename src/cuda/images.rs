//! The compiled kernels inside this binary, and the choice among them.

/// One file of kernels compiled for one target.
pub struct Image {
    /// The file, without folder and extension: the name of the loss.
    pub stem: &'static str,
    /// `sm_90a` and the like for a cubin, `compute_80` for PTX.
    pub target: &'static str,
    /// Bytes before compression.
    pub size: usize,
    /// The cubin or PTX, compressed.
    pub deflated: &'static [u8],
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
    /// The cubin, or PTX with a final NUL, as the driver takes it.
    #[must_use]
    pub fn inflate(&self) -> Vec<u8> {
        miniz_oxide::inflate::decompress_to_vec_with_limit(self.deflated, self.size)
            .expect("build.rs compressed this image")
    }
}

/// The image of `stem` in this build, as [`choose`] finds it.
pub fn image_for(stem: &str, major: u32, minor: u32) -> Option<&'static Image> {
    choose(IMAGES, stem, major, minor)
}

/// The image of `stem` among `images` for a device of compute capability `major.minor`, chosen as by `image_for`.
#[must_use]
pub fn choose(images: &'static [Image], stem: &str, major: u32, minor: u32) -> Option<&'static Image> {
    let of_stem = images.iter().filter(|image| image.stem == stem);
    of_stem
        .filter_map(|image| Some((rank(image.target, major, minor)?, image)))
        .max_by_key(|(rank, _)| *rank)
        .map(|(_, image)| image)
}

/// How well a target fits a device; `None`: not at all.
fn rank(target: &str, major: u32, minor: u32) -> Option<u32> {
    let (kind, number) = target.split_once('_')?;
    let exact = number.ends_with('a');
    let number: u32 = number.trim_end_matches('a').parse().ok()?;
    let device = major * 10 + minor;
    match kind {
        // Architecture-specific code (90a) runs on that very device; other cubins also on later minors.
        "sm" if exact => (number == device).then_some(1000 + number * 2 + 1),
        "sm" => (number / 10 == major && number <= device).then_some(1000 + number * 2),
        "compute" => (number <= device).then_some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn cubins_fit_their_own_major_and_ptx_fits_the_rest() {
        assert!(rank("sm_90a", 9, 0) > rank("sm_90", 9, 0));
        assert!(rank("sm_90", 9, 0) > rank("compute_80", 9, 0));
        assert!(rank("sm_80", 8, 6).is_some(), "8.6 and 8.9 run sm_80 code");
        assert_eq!(rank("sm_80", 9, 0), None);
        assert_eq!(rank("sm_90a", 10, 0), None);
        assert_eq!(rank("sm_90a", 9, 1), None);
        assert_eq!(rank("sm_100", 12, 0), None);
        assert!(rank("compute_80", 11, 0).is_some());
        assert_eq!(rank("compute_80", 7, 5), None);
    }
}
