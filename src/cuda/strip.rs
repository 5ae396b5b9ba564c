//! Strips (kernels/strip.cuh): which shape a device and a problem take, and how tiles are dealt.

use super::DeviceProperties;
use super::batch::Product;
use super::targets::{Shared, Strip};
use crate::constants::{PANEL_WIDTH, STRIP_RESIDENT, STRIP_ROWS};

impl Strip {
    /// The shape for rows of `dim` numbers: as [`fitting`](Self::fitting) has it, and a long one where the rows do not stay in
    /// shared memory.
    pub(crate) fn of(product: &Product, dim: usize, device: &DeviceProperties) -> Self {
        let long = dim * product.bytes() as usize > (STRIP_RESIDENT * PANEL_WIDTH) as usize;
        let shared = Shared {
            of_block: device.shared_bytes_per_block,
            of_multiprocessor: device.shared_bytes_per_multiprocessor,
        };
        Self::fitting(long, product.planes(), shared)
    }

    /// Threads that have products of the same row.
    pub(crate) fn lanes(&self) -> u32 {
        4 * self.columns / self.warp_columns
    }

    /// Into how many parts the tiles of `columns` columns are split for each of the blocks of `rows` rows: as
    /// [`even_splits`](super::batch::even_splits) has it.
    pub(crate) fn splits(&self, rows: usize, columns: usize, device: &DeviceProperties) -> u32 {
        let tiles = (columns as u32).div_ceil(self.columns);
        super::batch::even_splits(Self::row_blocks(rows), tiles, self.blocks, device)
    }

    /// Into how many parts the tiles of each pair of blocks of rows are split, where half of the tiles are taken of `rows` rows
    /// with themselves (kernels/triangle.cuh), and how many pairs there are.
    pub(crate) fn pairs(&self, rows: usize, device: &DeviceProperties) -> (u32, u32) {
        let (blocks, tiles) = (Self::row_blocks(rows), (rows as u32).div_ceil(self.columns));
        let (pairs, square) = (blocks.div_ceil(2), STRIP_ROWS / self.columns);
        // The tiles of the first block, and those of the last.
        let of_pair = if blocks > 1 { 2 * tiles - (blocks - 1) * square } else { tiles };
        (super::batch::even_parts(pairs, of_pair, self.blocks, device), pairs)
    }

    /// How many blocks of rows there are.
    #[must_use]
    pub fn row_blocks(rows: usize) -> u32 {
        (rows as u32).div_ceil(STRIP_ROWS)
    }
}
