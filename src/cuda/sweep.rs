//! Sweeps (kernels/sweep.cuh): which shape a device and a problem take, and how tiles are dealt.

use bytemuck::{Pod, Zeroable};

use super::batch::{self, BatchShape, Product};
use super::targets::{OfLoss, Shared, Sweep};
use super::workspace::{Layout, count_of};
use super::{Address, DeviceProperties};
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

/// `Swept` of kernels/ordinary.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Swept {
    left: Address,
    left_any: Address,
    pub pushed: Address,
    weights: Address,
    left_pushed: Address,
    left_weights: Address,
    pub scratch: Address,
    left_stride: u32,
    pub splits: u32,
    parts: u32,
    halves: u32,
    with_grad: u32,
    which: u32,
}

impl Swept {
    /// Makes room for what a sweep over one side's rows, number `which`, sums up; its addresses are offsets in `passing`. Without
    /// `swept` there is no sweep, and without `with_grad` rows are not pushed.
    pub fn lay_out(
        sweep: &Sweep,
        shapes: &[BatchShape; 2],
        which: usize,
        swept: bool,
        with_grad: bool,
        device: &DeviceProperties,
        passing: &mut Layout,
    ) -> Self {
        let shape = &shapes[which];
        let (tiles, columns, padded, dim) = (shape.tiles(), shapes[1 - which].tiles(), shape.padded(), shape.dim);
        let splits = sweep.splits(tiles, columns, device);
        let (parts, halves) = (splits * sweep.parts(), splits * sweep.across);
        let left_stride = columns.div_ceil(splits).next_multiple_of(4);
        let blocks = count_of([tiles as usize, splits as usize]);
        let wanted = |count: usize| if swept { count } else { 0 };
        let of_grad = |count: usize| if swept && with_grad { count } else { 0 };
        Self {
            left: passing.part(wanted(count_of([blocks, left_stride as usize])), 1),
            left_any: passing.part(wanted(blocks), 4),
            pushed: passing
                .part(of_grad(count_of([parts as usize, padded, dim.next_multiple_of(PANEL_WIDTH as usize / 2)])), 4),
            weights: passing.part(wanted(count_of([halves as usize, padded])), 4),
            left_pushed: passing.part(of_grad(count_of([splits as usize, padded, dim])), 4),
            left_weights: passing.part(of_grad(count_of([splits as usize, padded])), 4),
            scratch: passing.part(of_grad(count_of([shape.rows, dim])), 4),
            left_stride,
            splits,
            parts,
            halves,
            with_grad: (swept && with_grad).into(),
            which: which as u32,
        }
    }

    /// What `splits` blocks a row tile push one side's rows by without a sweep.
    pub fn of_pushes(pushed: Address, splits: u32, which: usize) -> Self {
        Self { pushed, splits, which: which as u32, ..Self::zeroed() }
    }

    /// How many numbers are summed up for each row: by the sweep, and by the kernel after it.
    pub fn of_row(&self) -> usize {
        self.halves as usize + self.splits as usize
    }

    /// Whether rows are pushed.
    pub fn is_with_grad(&self) -> bool {
        self.with_grad != 0
    }

    /// Which side's rows these are.
    pub fn which(&self) -> usize {
        self.which as usize
    }

    /// The same with the addresses of what lies in memory from `passing` on.
    pub fn at(self, passing: Address) -> Self {
        Self {
            left: passing + self.left,
            left_any: passing + self.left_any,
            pushed: passing + self.pushed,
            weights: passing + self.weights,
            left_pushed: passing + self.left_pushed,
            left_weights: passing + self.left_weights,
            scratch: passing + self.scratch,
            ..self
        }
    }
}
