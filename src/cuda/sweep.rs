//! Sweeps (kernels/sweep.cuh): which shape a device and a problem take, and how tiles are dealt.

use bytemuck::{Pod, Zeroable};

use super::DeviceProperties;
use super::batch::{self, Product};
use super::targets::{OfLoss, Shared, Sweep};
use crate::constants::{PANEL_WIDTH, SWEEP_RESIDENT, SWEEP_TILES};

impl Sweep {
    /// The shape for rows of `dim` numbers: as [`fitting`](Self::fitting) has it, and a long one where the rows do not stay in
    /// shared memory.
    pub(crate) fn of(product: &Product, dim: usize, of_loss: OfLoss, device: &DeviceProperties) -> Self {
        let long = dim * product.bytes() as usize > (SWEEP_RESIDENT * PANEL_WIDTH) as usize;
        Self::fitting(long, product.planes(), of_loss, Shared::of_device(device))
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

/// `TileOf` of kernels/ordinary.cuh. The host only makes room for it.
#[repr(C, align(16))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct TileOf {
    norm: u32,
    reach: u32,
    size: u32,
    odd: u32,
}
