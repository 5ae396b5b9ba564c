//! Strips (kernels/strip.cuh): which shape a device and a problem take, and how tiles are dealt.

use super::DeviceProperties;
use super::batch::Product;
use super::targets::{Shared, Strip};
use crate::constants::{PANEL_WIDTH, STRIP_RESIDENT, STRIP_ROWS};

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
    let halved = 2.0 * 4.0 + 4.0 + (dim as f32).sqrt();
    3.0 * truncated(dim) + (halved + rounded(dim)) * UNIT
}

/// The same for the rows as their planes have them, which are off by [`rounded_of`] of their norm: of lower precision too.
pub(crate) fn error_of_planes(product: &Product, dim: usize) -> f32 {
    match product.planes() {
        1 => truncated(dim) + rounded(dim) * UNIT,
        _ => error_of(product, dim),
    }
}

/// How far a row may be from what its planes hold, over its norm: each number by 2^-11 of itself, or 2^-25 of the row's largest.
/// What two planes lose is part of [`error_of`].
pub(crate) fn rounded_of(product: &Product, dim: usize) -> f32 {
    match product.planes() {
        1 => (1.0 / 2048.0 + (dim as f32).sqrt() * UNIT / 2.0) * 1.001,
        _ => 0.0,
    }
}

fn truncated(dim: usize) -> f32 {
    2.0 * (dim.min(256) as f32 / 16.0).ceil() * UNIT
}

fn rounded(dim: usize) -> f32 {
    let dim = dim as f32;
    dim / 256.0 + (dim / 32.0 + 6.0) + 3.0 + 4.0
}

/// What the errors of f32 are counted in: half of the last place of a number below 2.
pub(crate) const UNIT: f32 = 1.0 / (1 << 24) as f32;

impl Shared {
    /// That of a device.
    pub(crate) fn of_device(device: &DeviceProperties) -> Self {
        Self { of_block: device.shared_bytes_per_block, of_multiprocessor: device.shared_bytes_per_multiprocessor }
    }
}

impl Strip {
    /// The shape for rows of `dim` numbers: as [`fitting`](Self::fitting) has it, and a long one where the rows do not stay in
    /// shared memory.
    pub(crate) fn of(product: &Product, dim: usize, device: &DeviceProperties) -> Self {
        Self::fitting(Self::is_long(product, dim), product.planes(), Shared::of_device(device))
    }

    /// As [`of`](Self::of), for kernels that keep much of each row.
    pub(crate) fn of_few_rows(product: &Product, dim: usize, device: &DeviceProperties) -> Self {
        Self::fitting_few_rows(Self::is_long(product, dim), product.planes(), Shared::of_device(device))
    }

    /// Whether rows do not stay in shared memory.
    fn is_long(product: &Product, dim: usize) -> bool {
        dim * product.bytes() as usize > (STRIP_RESIDENT * PANEL_WIDTH) as usize
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
