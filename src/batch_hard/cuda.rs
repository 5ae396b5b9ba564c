//! The launches of kernels/batch_hard.cu.

use bytemuck::{Pod, Zeroable};

use super::{BatchHardTripletLoss, Problem};
use crate::constants::{BATCH_HARD_AT_ONCE as AT_ONCE, BATCH_HARD_RESIDENT as RESIDENT, STATS};
use crate::cuda::batch::{self, Layout, PreparedSides, Product, Sides, count_of};
use crate::cuda::mined::{Inputs, OnDevice, Output};
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Element, Error, Reduction};

crate::cuda::mined::cuda_calls!(BatchHardTripletLoss);

const STEM: &str = "batch_hard";

/// What the backward pass needs of a forward pass.
#[doc(hidden)]
pub struct Mined<M> {
    sides: Sides,
    at: Places,
    /// What they point to.
    _memory: (Vec<M>, M),
}

/// Part of `Args` of kernels/batch_hard.cu: all but the sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Places {
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
    ticket: Address,
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
    at: Places,
}

impl OnDevice for BatchHardTripletLoss {
    type Kept<M: Memory> = Mined<M>;

    /// What is chosen: per anchor the indices of its positive and of its negative, u32; `u32::MAX` without both.
    unsafe fn forward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        inputs: &Inputs,
        output: &Output,
        _: [bool; 2],
    ) -> Result<Mined<L::Memory>, Error> {
        let product = Product::of::<T>(problem.precision);
        let Problem { rows, dim, metric, normalize, others, .. } = *problem;
        let shape = batch::Problem { rows, dim, metric, normalize, product };
        // SAFETY: the caller's contract.
        let PreparedSides { sides, shapes, kept, scratch } =
            unsafe { batch::prepare_sides::<T, L>(launcher, &shape, others, inputs)? };

        let splits = shape.even_splits_of(shapes[1].tiles(), RESIDENT, launcher.properties());
        let row_blocks = shape.row_blocks(launcher.properties());
        let mut selection = Layout::default();
        let (ticket, stats) = (selection.part(1, 4), selection.part(STATS, 8));
        let per_anchor = [(); 5].map(|()| selection.part(rows, 4));
        let mut passing = Layout::default();
        let candidates = [(); 2].map(|()| passing.part(count_of([splits as usize, shape.padded()]), 4));
        let partials = passing.part(STATS * row_blocks as usize, 8);
        let (selection, passing) = (selection.allocate(launcher)?, passing.allocate(launcher)?);

        let [positive, negative, d_ap, d_an, weight] = per_anchor.map(|at| selection.address() + at);
        let or_own = |wanted: Address, own: Address| if wanted == 0 { own } else { wanted };
        let at = Places {
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
            ticket: selection.address() + ticket,
            margin: problem.margin,
            splits,
            kind: batch::kind(problem.metric),
            soft: problem.soft_margin.into(),
            mean: (problem.reduction == Reduction::Mean).into(),
            ..Places::zeroed()
        };
        // SAFETY: the first bytes of our own allocation.
        unsafe { launcher.clear(at.ticket, 4)? };
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
        Ok(Mined { sides, at, _memory: (kept, selection) })
    }

    unsafe fn backward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        mined: &Mined<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        let of_side = [problem.rows, problem.others.unwrap_or(0)];
        for (which, (grad, rows)) in grads.into_iter().zip(of_side).enumerate().filter(|(_, (grad, _))| *grad != 0) {
            let work = match size_of::<T>() {
                2 => Some(launcher.allocate(rows * problem.dim * size_of::<f32>())?),
                _ => None,
            };
            // As many as leave each multiprocessor a block.
            let warps = batch::THREADS / 32;
            let at_once = (rows as u32 / (warps * launcher.properties().multiprocessors)).clamp(1, AT_ONCE);
            let blocks = (rows as u32).div_ceil(warps * at_once);
            let at = Places {
                upstream,
                upstream_stride: (problem.reduction == Reduction::None).into(),
                grad,
                work: work.as_ref().map_or(grad, Memory::address),
                which: which as u32,
                at_once,
                ..mined.at
            };
            let args = Args { sides: mined.sides.moved_to(inputs), at };
            let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
            // SAFETY: as in `forward`; the selection lives in `mined`.
            unsafe { launcher.launch(STEM, &format!("{STEM}_backward_{}", T::NAME), grid, bytemuck::bytes_of(&args))? };
        }
        Ok(())
    }
}
