//! Which devices code for a target runs on, and which kernels of strips these take: an image has no others. The build scripts
//! read this file too.
#![allow(dead_code, reason = "each build reads its share")]

use super::constants::{
    BATCH_ALL_COUNT_SHARED, SHARED_OF_DRIVER, STRIP_BLOCKS, STRIP_NARROW, STRIP_NARROW_LONG_SHARED,
    STRIP_NARROW_SHARED, STRIP_ROWS, STRIP_TALL, STRIP_TALL_SHARED, STRIP_WIDE_LONG, STRIP_WIDE_LONG_SHARED,
    STRIP_WIDE_SINGLE, STRIP_WIDE_SINGLE_SHARED, STRIP_WIDE_SPLIT, STRIP_WIDE_SPLIT_SHARED, SWEEP_GROUP_NARROW,
    SWEEP_GROUP_WIDE, SWEEP_NARROW_LONG_SHARED, SWEEP_SHORT_SHARED, SWEEP_TERMS_SHARED, SWEEP_WIDE_LONG_SHARED, TILE,
};

/// The shape of the blocks of a strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strip {
    /// The last part of the names of its kernels.
    pub name: &'static str,
    /// Whether the rows are brought with the columns, because they are too long to stay in shared memory.
    pub long: bool,
    /// Blocks that a multiprocessor holds.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Rows of a warp.
    pub warp_rows: u32,
    /// Columns of a tile.
    pub columns: u32,
    /// Columns of a warp.
    pub warp_columns: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Strip {
    /// The shape of this name, for products of so many planes; `None`: there is none.
    #[must_use]
    pub fn named(name: &str, planes: u32) -> Option<Self> {
        let [wide_blocks, narrow_blocks] = STRIP_BLOCKS;
        let (name, long, blocks, [warp_rows, warp_columns, across, _], shared) = match (name, planes) {
            ("wide", 1) => ("wide", false, wide_blocks, STRIP_WIDE_SINGLE, STRIP_WIDE_SINGLE_SHARED),
            ("wide", _) => ("wide", false, wide_blocks, STRIP_WIDE_SPLIT, STRIP_WIDE_SPLIT_SHARED),
            ("wide_long", _) => ("wide_long", true, wide_blocks, STRIP_WIDE_LONG, STRIP_WIDE_LONG_SHARED),
            ("tall", _) => ("tall", false, wide_blocks, STRIP_TALL, STRIP_TALL_SHARED),
            ("narrow", _) => ("narrow", false, narrow_blocks, STRIP_NARROW, STRIP_NARROW_SHARED),
            ("narrow_long", _) => ("narrow_long", true, narrow_blocks, STRIP_NARROW, STRIP_NARROW_LONG_SHARED),
            _ => return None,
        };
        Some(Self {
            name,
            long,
            blocks,
            threads: STRIP_ROWS / warp_rows * across * 32,
            warp_rows,
            columns: warp_columns * across,
            warp_columns,
            shared_bytes: *shared.get(planes.checked_sub(1)? as usize)?,
        })
    }

    /// The shape that a device takes: the wide one where a multiprocessor has shared memory for its blocks. `long`: the rows do
    /// not stay in shared memory.
    #[must_use]
    pub fn fitting(long: bool, planes: u32, shared: Shared) -> Self {
        Self::first_that_fits(if long { ["wide_long", "narrow_long"] } else { ["wide", "narrow"] }, planes, shared)
    }

    /// As [`fitting`](Self::fitting), for kernels that keep much of each row: long rows take the narrow shape on every device.
    #[must_use]
    pub fn fitting_few_rows(long: bool, planes: u32, shared: Shared) -> Self {
        let names = if long { ["narrow_long", "narrow_long"] } else { ["tall", "narrow"] };
        Self::first_that_fits(names, planes, shared)
    }

    /// The first of two shapes if a multiprocessor has shared memory for its blocks, else the second.
    #[must_use]
    pub fn first_that_fits(names: [&str; 2], planes: u32, shared: Shared) -> Self {
        let [wide, narrow] = names.map(|name| Self::named(name, planes).expect("the name of a shape"));
        let fits = wide.shared_bytes <= shared.of_block
            && wide.blocks * (wide.shared_bytes + SHARED_OF_DRIVER) <= shared.of_multiprocessor;
        if fits { wide } else { narrow }
    }
}

/// What a loss takes of the shared memory of a sweep, by the shape's name.
pub type OfLoss = fn(&str) -> u32;

/// The losses that have sweeps, by the first part of their kernels' names.
const SWEPT: [(&str, OfLoss); 3] =
    [("batch_all", of_batch_all), ("batch_contrastive", of_terms), ("pairwise_distance", of_terms)];

/// What batch_all takes of the shared memory of a sweep.
#[must_use]
pub fn of_batch_all(shape: &str) -> u32 {
    BATCH_ALL_COUNT_SHARED[if shape == "wide" { 0 } else { 1 }]
}

/// What a loss without thresholds takes of the shared memory of a sweep.
#[must_use]
pub fn of_terms(shape: &str) -> u32 {
    SWEEP_TERMS_SHARED[if shape.starts_with("wide") { 0 } else { 1 }]
}

/// The shape of the blocks of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// The last part of the names of its kernels.
    pub name: &'static str,
    /// Whether rows do not stay in shared memory, and sums do not stay in registers.
    pub long: bool,
    /// Blocks that a multiprocessor holds.
    pub blocks: u32,
    /// Warps that share 16 rows.
    pub across: u32,
    /// Bytes of weights that shared memory holds at a time; 0: they stay in registers.
    pub group_bytes: u32,
    /// Dynamic shared memory of a block, the loss's included.
    pub shared_bytes: u32,
}

impl Sweep {
    /// The shape of this name, for products of so many planes; `None`: there is none.
    #[must_use]
    pub fn named(name: &str, planes: u32, of_loss: OfLoss) -> Option<Self> {
        let (name, long, blocks, across, group_bytes, shared) = match name {
            "wide" => ("wide", false, 2, 1, 0, SWEEP_SHORT_SHARED),
            "narrow" => ("narrow", false, 1, 2, 0, SWEEP_SHORT_SHARED),
            "wide_long" => ("wide_long", true, 2, 1, SWEEP_GROUP_WIDE, SWEEP_WIDE_LONG_SHARED),
            "narrow_long" => ("narrow_long", true, 1, 2, SWEEP_GROUP_NARROW, SWEEP_NARROW_LONG_SHARED),
            _ => return None,
        };
        let shared_bytes = *shared.get(planes.checked_sub(1)? as usize)? + of_loss(name);
        Some(Self { name, long, blocks, across, group_bytes, shared_bytes })
    }

    /// The shape that a device takes: the wide one where a multiprocessor has shared memory for its blocks. `long`: the rows do
    /// not stay in shared memory.
    #[must_use]
    pub fn fitting(long: bool, planes: u32, of_loss: OfLoss, shared: Shared) -> Self {
        let names = if long { ["wide_long", "narrow_long"] } else { ["wide", "narrow"] };
        let [wide, narrow] = names.map(|name| Self::named(name, planes, of_loss).expect("one of the names above"));
        let fits = wide.shared_bytes <= shared.of_block
            && wide.blocks * (wide.shared_bytes + SHARED_OF_DRIVER) <= shared.of_multiprocessor;
        if fits { wide } else { narrow }
    }

    /// Threads of a block.
    #[must_use]
    pub fn threads(&self) -> u32 {
        TILE / 16 * self.across * 32
    }
}

/// The kinds of products that strips and sweeps have, by the middle part of their kernels' names, and their planes.
const PRODUCTS: [(&str, u32); 2] = [("highest", 2), ("half", 1)];

/// Whether the image for `target` has kernels that some devices take: one that it runs on takes them. PTX is for devices that are
/// not known, which take what fits everywhere ([`Shared::LEAST`]); code for such devices has all.
fn has(target: &str, takes: impl Fn(Shared) -> bool) -> bool {
    if target.starts_with("compute_") {
        return takes(Shared::LEAST);
    }
    let mut devices = DEVICES.iter().filter(|((major, minor), _)| is_code_for(target, *major, *minor)).peekable();
    devices.peek().is_none() || devices.any(|(_, shared)| takes(*shared))
}

/// For each kind of product, and for rows that stay in shared memory and longer ones, the names of all shapes, such as
/// `highest_wide`, each with whether the image for `target` has its kernels. fitting: the name of what a device takes.
fn shapes(
    target: &str,
    names: [&[&str]; 2],
    fitting: impl Fn(bool, u32, Shared) -> &'static str,
) -> Vec<(String, bool)> {
    let mut shapes = Vec::new();
    for (product, planes) in PRODUCTS {
        for (long, names) in [false, true].into_iter().zip(names) {
            for name in names {
                let taken = has(target, |shared| fitting(long, planes, shared) == *name);
                shapes.push((format!("{product}_{name}"), taken));
            }
        }
    }
    shapes
}

/// The shapes of strips, and of sweeps.
const SHAPES: [&[&str]; 2] = [&["wide", "narrow"], &["wide_long", "narrow_long"]];

/// The last parts of the names of all kernels of strips, such as `highest_wide`, each with whether the image for `target` has it.
pub fn strips(target: &str) -> Vec<(String, bool)> {
    shapes(target, SHAPES, |long, planes, shared| Strip::fitting(long, planes, shared).name)
}

/// The same of the kernels that search candidates in strips.
pub fn searches(target: &str) -> Vec<(String, bool)> {
    let names: [&[&str]; 2] = [&["tall", "narrow"], &["narrow_long"]];
    shapes(target, names, |long, planes, shared| Strip::fitting_few_rows(long, planes, shared).name)
}

/// The same of the kernels of a loss's sweeps, such as `batch_all_highest_wide`.
pub fn sweeps(target: &str) -> Vec<(String, bool)> {
    let of_loss = |(loss, of_loss): &(&str, OfLoss)| {
        let shapes = shapes(target, SHAPES, |long, planes, shared| Sweep::fitting(long, planes, *of_loss, shared).name);
        shapes.into_iter().map(|(name, taken)| (format!("{loss}_{name}"), taken)).collect::<Vec<_>>()
    };
    SWEPT.iter().flat_map(of_loss).collect()
}

/// The macros that say of each of these kernels whether the image for `target` has it, 1 or 0.
pub fn definitions(target: &str) -> Vec<(String, String)> {
    [("STRIP", strips(target)), ("SEARCH", searches(target)), ("SWEEP", sweeps(target))]
        .into_iter()
        .flat_map(|(kind, kernels)| kernels.into_iter().map(move |(name, taken)| (kind, name, taken)))
        .map(|(kind, name, taken)| (format!("TERCET_{kind}_{name}"), u32::from(taken).to_string()))
        .collect()
}

/// Whether the image for `target` lacks a kernel that others have.
#[must_use]
pub fn is_left_out(target: &str, kernel: &str) -> bool {
    let lacks =
        |kernels: Vec<(String, bool)>, wanted: &str| kernels.iter().any(|(name, taken)| name == wanted && !taken);
    let strip = ["batch_hard_negatives_", "batch_hard_triangle_", "top_k_sweep_"]
        .into_iter()
        .find_map(|of| kernel.strip_prefix(of));
    let search = kernel.split_once("_choose_").map(|(_, name)| name);
    let swept = kernel.split_once("_sweep_").filter(|(loss, _)| *loss != "top_k");
    let sweep = swept.map(|(loss, name)| format!("{loss}_{}", name.trim_start_matches("root_")));
    strip.is_some_and(|name| lacks(strips(target), name))
        || search.is_some_and(|name| lacks(searches(target), name))
        || sweep.is_some_and(|name| lacks(sweeps(target), &name))
}

/// Bytes of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The most that a block may ask for.
    pub of_block: u32,
    /// What a multiprocessor has.
    pub of_multiprocessor: u32,
}

impl Shared {
    /// The least of [`DEVICES`].
    pub const LEAST: Self = Self::kib(100);

    /// Of a multiprocessor with so many KiB, of which the driver keeps one for a block.
    const fn kib(of_multiprocessor: u32) -> Self {
        let of_multiprocessor = of_multiprocessor << 10;
        Self { of_block: of_multiprocessor - SHARED_OF_DRIVER, of_multiprocessor }
    }

    /// Of devices of this compute capability, if it is in [`DEVICES`].
    #[must_use]
    pub const fn of(major: u32, minor: u32) -> Option<Self> {
        let mut at = 0;
        while at < DEVICES.len() {
            let ((its_major, its_minor), shared) = DEVICES[at];
            if its_major == major && its_minor == minor {
                return Some(shared);
            }
            at += 1;
        }
        None
    }
}

/// Devices by compute capability, from the table of CUDA's programming guide.
pub const DEVICES: [((u32, u32), Shared); 10] = [
    ((8, 0), Shared::kib(164)),
    ((8, 6), Shared::kib(100)),
    ((8, 7), Shared::kib(164)),
    ((8, 9), Shared::kib(100)),
    ((9, 0), Shared::kib(228)),
    ((10, 0), Shared::kib(228)),
    ((10, 3), Shared::kib(228)),
    ((11, 0), Shared::kib(228)),
    ((12, 0), Shared::kib(100)),
    ((12, 1), Shared::kib(100)),
];

/// Whether `target` is machine code that runs on a device.
fn is_code_for(target: &str, major: u32, minor: u32) -> bool {
    target.starts_with("sm_") && rank(target, major, minor).is_some()
}

/// How well a target fits a device; `None`: not at all.
pub fn rank(target: &str, major: u32, minor: u32) -> Option<u32> {
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
    use super::*;

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

    /// What each default target leaves out, written out.
    #[test]
    fn images_have_the_shapes_that_their_devices_take() {
        let taken = |target: &str| -> Vec<String> {
            strips(target).into_iter().filter(|(_, taken)| *taken).map(|(name, _)| name).collect()
        };
        let wide = ["highest_wide", "highest_wide_long", "half_wide", "half_wide_long"];
        let narrow = ["highest_narrow", "highest_narrow_long", "half_narrow", "half_narrow_long"];
        assert_eq!(taken("sm_90a"), wide);
        assert_eq!(taken("sm_100"), wide);
        assert_eq!(taken("sm_120"), narrow);
        assert_eq!(
            taken("sm_86"),
            ["highest_narrow", "highest_narrow_long", "half_narrow", "half_wide_long", "half_narrow_long"]
        );
        // 8.0 has room for two blocks of one plane whose rows are long.
        assert_eq!(taken("sm_80"), taken("sm_86"));
        assert_eq!(taken("compute_80"), narrow);
        assert!(strips("sm_900").iter().all(|(_, taken)| *taken) && strips("sm_900").len() == 8);
        let searches_taken = |target: &str| searches(target).into_iter().filter(|(_, taken)| *taken).count();
        assert_eq!(["sm_90a", "sm_120", "sm_900"].map(searches_taken), [4, 4, 6]);
        assert!(is_left_out("sm_90a", "batch_semi_hard_choose_half_narrow"));
        assert!(!is_left_out("sm_90a", "batch_negative_drawn_choose_half"));
        assert!(DEVICES.iter().all(|(_, shared)| {
            shared.of_block >= Shared::LEAST.of_block && shared.of_multiprocessor >= Shared::LEAST.of_multiprocessor
        }));
        assert!(is_left_out("sm_90a", "batch_hard_triangle_half_narrow_long"));
        assert!(!is_left_out("sm_90a", "batch_hard_triangle_half_wide_long"));
        assert!(!is_left_out("sm_90a", "batch_hard_finish_f32"));
    }
}
