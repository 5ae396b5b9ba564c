//! The shapes of strips (kernels/strip.cuh): which one a device and a problem take.

use super::DeviceProperties;
use super::batch::Product;
use crate::constants::{
    PANEL_WIDTH, SHARED_OF_DRIVER, STRIP_BLOCKS, STRIP_NARROW, STRIP_NARROW_LONG_SHARED, STRIP_NARROW_SHARED,
    STRIP_RESIDENT, STRIP_ROWS, STRIP_TALL, STRIP_TALL_SHARED, STRIP_WIDE_LONG, STRIP_WIDE_LONG_SHARED,
    STRIP_WIDE_SINGLE, STRIP_WIDE_SINGLE_SHARED, STRIP_WIDE_SPLIT, STRIP_WIDE_SPLIT_SHARED,
};

/// The error of a number `norm_j - 2 x.y_j` over the sum of both squared norms, at most; 0 for products of lower precision, whose
/// least is taken as it is.
///
/// Two products `x.y` are no larger than that sum, so an error of the product counts as it is. In units of 2^-24:
///
/// - sums of 256 numbers at most, of 16 numbers of three products at a time: each is truncated by 2^-23 of the sum;
/// - both rows' numbers as hi + lo, off by 2^-22 of themselves, or 2^-25 of the row's largest; and lo lo, 2^-22, left out;
/// - rounded: sums of these sums, and the norm, of which each lane of a warp adds up `D / 32` squares, and lanes are added in
///   five steps; both steps from the product to the number; and the rows' translation, each number by 2^-24 of itself, which
///   with `|x - y| <= |x| + |y|` is 4.
pub(crate) fn error_of(product: &Product, dim: usize) -> f32 {
    if product.planes() == 1 {
        return 0.0;
    }
    let dim = dim as f32;
    let truncated = 2.0 * 3.0 * (dim.min(256.0) / 16.0).ceil();
    let halved = 2.0 * 4.0 + 4.0 + dim.sqrt();
    let rounded = dim / 256.0 + (dim / 32.0 + 6.0) + 3.0 + 4.0;
    (truncated + halved + rounded) * UNIT
}

/// What the errors of f32 are counted in: half of the last place of a number below 2.
pub(crate) const UNIT: f32 = 1.0 / (1 << 24) as f32;

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

    /// The shape for rows of `dim` numbers: the wide one where a multiprocessor has shared memory for its blocks, and a long
    /// one where the rows do not stay in shared memory.
    pub(crate) fn of(product: &Product, dim: usize, device: &DeviceProperties) -> Self {
        let names = if Self::is_short(product, dim) { ["wide", "narrow"] } else { ["wide_long", "narrow_long"] };
        Self::that_fits(names, product, device)
    }

    /// As [`of`](Self::of), for kernels that keep much of each row: long rows take the narrow shape on every device.
    pub(crate) fn of_few_rows(product: &Product, dim: usize, device: &DeviceProperties) -> Self {
        let names = if Self::is_short(product, dim) { ["tall", "narrow"] } else { ["narrow_long", "narrow_long"] };
        Self::that_fits(names, product, device)
    }

    /// Whether rows stay in shared memory.
    fn is_short(product: &Product, dim: usize) -> bool {
        dim * product.bytes() as usize <= (STRIP_RESIDENT * PANEL_WIDTH) as usize
    }

    /// The first of two shapes if a multiprocessor has shared memory for its blocks, else the second.
    fn that_fits(names: [&str; 2], product: &Product, device: &DeviceProperties) -> Self {
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
