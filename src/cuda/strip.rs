//! The shapes of strips (kernels/strip.cuh): which one a device and a problem take.

use super::DeviceProperties;
use super::batch::Product;
use crate::constants::{
    PANEL_WIDTH, STRIP_BLOCKS, STRIP_NARROW, STRIP_NARROW_LONG_SHARED, STRIP_NARROW_SHARED, STRIP_RESIDENT, STRIP_ROWS,
    STRIP_WIDE_LONG, STRIP_WIDE_LONG_SHARED, STRIP_WIDE_SINGLE, STRIP_WIDE_SINGLE_SHARED, STRIP_WIDE_SPLIT,
    STRIP_WIDE_SPLIT_SHARED,
};

/// Shared memory of a multiprocessor that the driver keeps for each block.
const OF_DRIVER: u32 = 1 << 10;

/// The shape of the blocks of a strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strip {
    /// The last part of the names of its kernels.
    pub name: &'static str,
    /// Blocks that a multiprocessor holds.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Columns of a tile.
    pub columns: u32,
    /// Columns of a warp.
    pub warp_columns: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Strip {
    /// The shape for rows of `dim` numbers: the wide one where a multiprocessor has shared memory for two of its blocks, and
    /// a long one where the rows do not stay in shared memory.
    pub fn of(product: &Product, dim: usize, device: &DeviceProperties) -> Self {
        let short = dim * product.bytes() as usize <= (STRIP_RESIDENT * PANEL_WIDTH) as usize;
        let single = product.of_planes([1, 2]) == 1;
        let wide = match (short, single) {
            (true, true) => ("wide", STRIP_WIDE_SINGLE, STRIP_WIDE_SINGLE_SHARED),
            (true, false) => ("wide", STRIP_WIDE_SPLIT, STRIP_WIDE_SPLIT_SHARED),
            (false, _) => ("wide_long", STRIP_WIDE_LONG, STRIP_WIDE_LONG_SHARED),
        };
        let narrow = match short {
            true => ("narrow", STRIP_NARROW, STRIP_NARROW_SHARED),
            false => ("narrow_long", STRIP_NARROW, STRIP_NARROW_LONG_SHARED),
        };
        let bytes = product.of_planes(wide.2);
        let fits = bytes <= device.shared_bytes_per_block
            && STRIP_BLOCKS[0] * (bytes + OF_DRIVER) <= device.shared_bytes_per_multiprocessor;
        let (blocks, (name, [warp_rows, warp_columns, across, _], shared)) =
            if fits { (STRIP_BLOCKS[0], wide) } else { (STRIP_BLOCKS[1], narrow) };
        Self {
            name,
            blocks,
            threads: STRIP_ROWS / warp_rows * across * 32,
            columns: warp_columns * across,
            warp_columns,
            shared_bytes: product.of_planes(shared),
        }
    }

    /// Threads that have products of the same row.
    pub fn lanes(&self) -> u32 {
        4 * self.columns / self.warp_columns
    }

    /// Into how many parts the tiles of `columns` columns are split for each of the blocks of `rows` rows: as
    /// [`even_splits`](super::batch::even_splits) has it.
    pub fn splits(&self, rows: usize, columns: usize, device: &DeviceProperties) -> u32 {
        let tiles = (columns as u32).div_ceil(self.columns);
        super::batch::even_splits(Self::row_blocks(rows), tiles, self.blocks, device)
    }

    /// How many blocks of rows there are.
    pub fn row_blocks(rows: usize) -> u32 {
        (rows as u32).div_ceil(STRIP_ROWS)
    }
}
