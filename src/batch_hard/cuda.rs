//! The launches of kernels/batch_hard.cu.

use bytemuck::{Pod, Zeroable};

use super::BatchHardTripletLoss;
use super::cpu::Problem;
use crate::constants::{BATCH_HARD_AT_ONCE as AT_ONCE, BATCH_HARD_RESIDENT as RESIDENT, STATS};
use crate::cuda::arguments::{Inputs, Output};
use crate::cuda::batch::{self, Layout, PreparedSides, Sides, count_of};
use crate::cuda::mined::OnDevice;
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Element, Error, Reduction};

const STEM: &str = "batch_hard";

/// What the backward pass of batch_hard needs of a forward pass.
pub struct Kept<M> {
    sides: Sides,
    at: LossArgs,
    /// The memory that `sides` and `at` point to.
    _memory: (Vec<M>, M),
}

/// Part of `Args` of kernels/batch_hard.cu: everything after the sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LossArgs {
    candidate: Address,
    candidate_row: Address,
    positive: Address,
    negative: Address,
    d_ap: Address,
    d_an: Address,
    weight: Address,
    losses: Address,
    loss: Address,
    stats: Address,
    partials: Address,
    upstream: Address,
    upstream_stride: i64,
    grad: Address,
    work: Address,
    margin: f64,
    splits: u32,
    kind: u32,
    soft: u32,
    mean: u32,
    which: u32,
    at_once: u32,
}

/// `Args` of kernels/batch_hard.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    sides: Sides,
    at: LossArgs,
}

impl OnDevice for BatchHardTripletLoss {
    type Kept<M: Memory> = Kept<M>;

    /// `output.chosen` takes each anchor's positive, and its negative, as u32 indices; `u32::MAX` for an anchor without
    /// a positive or without a negative.
    unsafe fn forward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        inputs: &Inputs,
        output: &Output,
        _: [bool; 2],
    ) -> Result<Kept<L::Memory>, Error> {
        // SAFETY: the caller's contract.
        let PreparedSides { sides, shapes, kept, scratch } =
            unsafe { batch::prepare_sides::<T, L, _>(launcher, problem, inputs)? };
        let (rows, shape, product) = (problem.rows, shapes[0], shapes[0].product);

        let splits = shape.even_splits_of(shapes[1].tiles(), RESIDENT, launcher.properties());
        let row_blocks = shape.row_blocks(launcher.properties());
        let mut selection = Layout::default();
        let stats = selection.part(STATS, 8);
        let per_anchor = [(); 5].map(|()| selection.part(rows, 4));
        let mut passing = Layout::default();
        let candidates = [(); 2].map(|()| passing.part(count_of([splits as usize, shape.padded()]), 4));
        let partials = passing.part(STATS * row_blocks as usize, 8);
        let (selection, passing) = (selection.allocate(launcher)?, passing.allocate(launcher)?);

        let [positive, negative, d_ap, d_an, weight] = per_anchor.map(|at| selection.address() + at);
        let or_own = |wanted: Address, own: Address| if wanted == 0 { own } else { wanted };
        let at = LossArgs {
            candidate: passing.address() + candidates[0],
            candidate_row: passing.address() + candidates[1],
            positive: or_own(output.chosen[0], positive),
            negative: or_own(output.chosen[1], negative),
            d_ap,
            d_an,
            weight,
            losses: output.losses,
            loss: output.loss,
            stats: or_own(output.stats, selection.address() + stats),
            partials: passing.address() + partials,
            margin: problem.options.margin,
            splits,
            kind: batch::kind(shape.distance),
            soft: problem.options.extra.into(),
            mean: (problem.options.reduction == Reduction::Mean).into(),
            ..LossArgs::zeroed()
        };
        let args = Args { sides, at };
        let tile_grid =
            Grid { blocks: shape.tiles() * splits, threads: batch::TILE_THREADS, shared_bytes: product.stream_bytes() };
        // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above and
        // live as `Memory` says.
        unsafe {
            launcher.launch(
                STEM,
                &format!("{STEM}_negatives_{}", product.tile),
                tile_grid,
                bytemuck::bytes_of(&args),
            )?;
            let grid = Grid { blocks: row_blocks, threads: batch::THREADS, shared_bytes: 0 };
            launcher.launch(STEM, &format!("{STEM}_finish_{}", T::NAME), grid, bytemuck::bytes_of(&args))?;
        }
        drop((scratch, passing));
        Ok(Kept { sides, at, _memory: (kept, selection) })
    }

    unsafe fn backward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        kept: &Kept<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        let of_side = [problem.rows, problem.references.unwrap_or(0)];
        for (which, (grad, rows)) in grads.into_iter().zip(of_side).enumerate().filter(|(_, (grad, _))| *grad != 0) {
            let work = match size_of::<T>() {
                2 => Some(launcher.allocate(rows * problem.dim * size_of::<f32>())?),
                _ => None,
            };
            // As many rows a warp as leave each multiprocessor a block.
            let warps = batch::THREADS / 32;
            let at_once = (rows as u32 / (warps * launcher.properties().multiprocessors)).clamp(1, AT_ONCE);
            let blocks = (rows as u32).div_ceil(warps * at_once);
            let at = LossArgs {
                upstream,
                upstream_stride: (problem.options.reduction == Reduction::None).into(),
                grad,
                work: work.as_ref().map_or(grad, Memory::address),
                which: which as u32,
                at_once,
                ..kept.at
            };
            let args = Args { sides: kept.sides.moved_to(inputs), at };
            let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
            // SAFETY: as in `forward`; the selection lives in `kept`.
            unsafe { launcher.launch(STEM, &format!("{STEM}_backward_{}", T::NAME), grid, bytemuck::bytes_of(&args))? };
        }
        Ok(())
    }
}
