//! The shapes of strips (kernels/strip.cuh): which one a device and a problem take.

use super::DeviceProperties;
use super::batch::Product;
use crate::constants::{
    PANEL_WIDTH, SHARED_OF_DRIVER, STRIP_BLOCKS, STRIP_NARROW, STRIP_NARROW_LONG_SHARED, STRIP_NARROW_SHARED,
    STRIP_RESIDENT, STRIP_ROWS, STRIP_WIDE_LONG, STRIP_WIDE_LONG_SHARED, STRIP_WIDE_SINGLE, STRIP_WIDE_SINGLE_SHARED,
    STRIP_WIDE_SPLIT, STRIP_WIDE_SPLIT_SHARED,
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

    /// The shape for rows of `dim` numbers: the wide one where a multiprocessor has shared memory for its blocks, and a long
    /// one where the rows do not stay in shared memory.
    pub(crate) fn of(product: &Product, dim: usize, device: &DeviceProperties) -> Self {
        let short = dim * product.bytes() as usize <= (STRIP_RESIDENT * PANEL_WIDTH) as usize;
        let names = if short { ["wide", "narrow"] } else { ["wide_long", "narrow_long"] };
        let [wide, narrow] = names.map(|name| Self::named(name, product.planes()).expect("one of the names above"));
        let fits = wide.shared_bytes <= device.shared_bytes_per_block
            && wide.blocks * (wide.shared_bytes + SHARED_OF_DRIVER) <= device.shared_bytes_per_multiprocessor;
        if fits { wide } else { narrow }
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
