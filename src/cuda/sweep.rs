//! The shapes of sweeps (kernels/sweep.cuh): which one a device and a problem take.

use bytemuck::{Pod, Zeroable};

use super::DeviceProperties;
use super::batch::{self, Product};
use crate::constants::{
    BATCH_ALL_COUNT_SHARED, BATCH_CONTRASTIVE_SWEPT_SHARED,
    PANEL_WIDTH, SHARED_OF_DRIVER, SWEEP_GROUP_NARROW, SWEEP_GROUP_WIDE, SWEEP_NARROW_LONG_SHARED, SWEEP_RESIDENT, SWEEP_SHORT_SHARED, SWEEP_TILES,
    SWEEP_WIDE_LONG_SHARED, TILE,
};

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
    /// Dynamic shared memory of a block, the loss's included.
    pub shared_bytes: u32,
}

impl Sweep {
    /// The shape of this name, for products of so many planes; `None`: there is none.
    /// of_loss: what a loss takes of the shared memory in a shape, by its name.
    #[must_use]
    pub fn named(name: &str, planes: u32, of_loss: fn(&str) -> u32) -> Option<Self> {
        let (name, long, blocks, across, shared) = match name {
            "wide" => ("wide", false, 2, 1, SWEEP_SHORT_SHARED),
            "narrow" => ("narrow", false, 1, 2, SWEEP_SHORT_SHARED),
            "wide_long" => ("wide_long", true, 2, 1, SWEEP_WIDE_LONG_SHARED),
            "narrow_long" => ("narrow_long", true, 1, 2, SWEEP_NARROW_LONG_SHARED),
            _ => return None,
        };
        let own = *shared.get(planes.checked_sub(1)? as usize)?;
        Some(Self { name, long, blocks, across, shared_bytes: own + of_loss(name) })
    }

    /// The shape for rows of `dim` numbers: a wide one where a multiprocessor has shared memory for its blocks, and a long one
    /// where rows do not stay in shared memory.
    pub(crate) fn of(product: &Product, dim: usize, of_loss: fn(&str) -> u32, device: &DeviceProperties) -> Self {
        let short = dim * product.bytes() as usize <= (SWEEP_RESIDENT * PANEL_WIDTH) as usize;
        let names = if short { ["wide", "narrow"] } else { ["wide_long", "narrow_long"] };
        let [wide, narrow] =
            names.map(|name| Self::named(name, product.planes(), of_loss).expect("one of the names above"));
        let fits = wide.shared_bytes <= device.shared_bytes_per_block
            && wide.blocks * (wide.shared_bytes + SHARED_OF_DRIVER) <= device.shared_bytes_per_multiprocessor;
        if fits { wide } else { narrow }
    }

    /// Bytes of weights that shared memory holds at a time; 0: they stay in registers.
    #[must_use]
    pub fn group_bytes(&self) -> u32 {
        match self.name {
            "wide_long" => SWEEP_GROUP_WIDE,
            "narrow_long" => SWEEP_GROUP_NARROW,
            _ => 0,
        }
    }

    /// Threads of a block.
    #[must_use]
    pub fn threads(&self) -> u32 {
        TILE / 16 * self.across * 32
    }

    /// How many sums of pushes a block writes for a row: warps that share rows have their own, unless they share weights.
    pub(crate) fn parts(&self) -> u32 {
        if self.long { 1 } else { self.across }
    }

    /// Into how many parts a row of `tiles` tiles is split for each of `row_tiles` blocks: as
    /// [`even_splits`](batch::even_splits) has it, and no block has more tiles than it can tell apart.
    pub(crate) fn splits(&self, row_tiles: u32, tiles: u32, device: &DeviceProperties) -> u32 {
        batch::even_splits(row_tiles, tiles, self.blocks, device).max(tiles.div_ceil(SWEEP_TILES))
    }
}

/// What batch_all takes of the shared memory of a sweep of this shape.
#[must_use]
pub fn of_batch_all(name: &str) -> u32 {
    BATCH_ALL_COUNT_SHARED[usize::from(name != "wide")]
}

/// What batch_contrastive takes of the shared memory of a sweep of this shape.
#[must_use]
pub fn of_batch_contrastive(name: &str) -> u32 {
    BATCH_CONTRASTIVE_SWEPT_SHARED[usize::from(name.starts_with("narrow"))]
}

/// `TileOf` of kernels/ordinary.cuh. The host only makes room for it.
#[repr(C, align(16))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct TileOf {
    norm: u32,
    reach: u32,
    size: u32,
    odd: u32,
}
