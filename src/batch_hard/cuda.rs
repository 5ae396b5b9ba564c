//! The launches of kernels/batch_hard.cu.

use bytemuck::{Pod, Zeroable};

use super::BatchHardTripletLoss;
use super::cpu::Problem;
use crate::constants::{
    BATCH_HARD_HUB as HUB, BATCH_HARD_HUB_PIECE as HUB_PIECE, BATCH_HARD_SEARCHED as SEARCHED, RANKED, RUN, STATS,
    STATS_WRITTEN, TRIANGLE_TO,
};
use crate::cuda::arguments::{Inputs, Output};
use crate::cuda::batch::{self, BatchShape, PreparedSides, Sides};
use crate::cuda::mined::OnDevice;
use crate::cuda::strip::error_of;
use crate::cuda::targets::Strip;
use crate::cuda::workspace::{Layout, WorkspaceLayout, count_of};
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Element, Error, Reduction};

const STEM: &str = "batch_hard";

/// What the backward pass of batch_hard needs of a forward pass.
pub struct Kept<M> {
    sides: Sides,
    at: LossArgs,
    /// The memory that `sides` and `at` point to.
    _memory: M,
}

/// Part of `Args` of kernels/batch_hard.cu: everything after the sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LossArgs {
    candidate: Address,
    candidate_tile: Address,
    positive: Address,
    negative: Address,
    choice: Address,
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
    sorted: Address,
    sorted_at: Address,
    linked: Address,
    link: Address,
    link_end: Address,
    hub_sums: Address,
    margin: f64,
    splits: u32,
    kind: u32,
    soft: u32,
    mean: u32,
    which: u32,
    at_once: u32,
    columns: u32,
    warp_columns: u32,
    error: f32,
    warp_rows: u32,
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
        let rows = problem.rows;
        // Without a reference set d_ij = d_ji, and half of the tiles say all.
        let half = problem.references.is_none() && rows >= launcher.triangle_from() && rows <= TRIANGLE_TO;
        let shapes = batch::shapes::<T, _>(problem).map(|shape| BatchShape { keeps: half, ..shape });
        let (shape, product) = (shapes[0], shapes[0].product);
        // Kernels number an anchor's two choices with u32.
        if rows > u32::MAX as usize / 2 {
            return Err(Error::argument("embeddings", "fewer than 2^31 rows", rows.to_string()));
        }

        let strip = Strip::of(&product, problem.dim, launcher.properties());
        let (splits, of_splits) = if half {
            strip.pairs(rows, launcher.properties())
        } else {
            (strip.splits(rows, shapes[1].rows, launcher.properties()), Strip::row_blocks(rows))
        };
        let (at_once, row_blocks) = shape.anchors_at_once(launcher.properties());
        let mut layout = WorkspaceLayout::default();
        let stats = layout.kept.part(STATS_WRITTEN, 8);
        let choice = layout.kept.part(rows, 8);
        let per_anchor = [(); 3].map(|()| layout.kept.part(rows, 4));
        let of_lanes = count_of([rows, splits as usize, strip.lanes() as usize]);
        let candidates = [(); 2].map(|()| layout.passing.part(of_lanes, 4));
        let partials = layout.passing.part(STATS * row_blocks as usize, 8);
        // SAFETY: the caller's contract.
        let PreparedSides { sides, workspace } =
            unsafe { batch::prepare_sides::<T, L>(launcher, inputs, &shapes, layout)? };

        let [candidate, candidate_tile] = candidates.map(|at| workspace.passing() + at);
        let [d_ap, d_an, weight] = per_anchor.map(|at| workspace.kept() + at);
        let at = LossArgs {
            candidate,
            candidate_tile,
            positive: output.chosen[0],
            negative: output.chosen[1],
            choice: workspace.kept() + choice,
            d_ap,
            d_an,
            weight,
            losses: output.losses,
            loss: output.loss,
            stats: if output.stats == 0 { workspace.kept() + stats } else { output.stats },
            partials: workspace.passing() + partials,
            margin: problem.options.margin,
            splits,
            kind: batch::kind(shape.distance),
            soft: problem.options.extra.into(),
            mean: (problem.options.reduction == Reduction::Mean).into(),
            columns: strip.columns,
            warp_columns: strip.warp_columns,
            error: error_of(&product, problem.dim),
            warp_rows: strip.warp_rows,
            at_once,
            ..LossArgs::zeroed()
        };
        let args = Args { sides, at };
        let tile_grid = Grid { blocks: of_splits * splits, threads: strip.threads, shared_bytes: strip.shared_bytes };
        let tiles = if half { "triangle" } else { "negatives" };
        // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above and
        // live as `Memory` says.
        unsafe {
            launcher.launch(
                STEM,
                &format!("{STEM}_{tiles}_{}_{}", product.name, strip.name),
                tile_grid,
                bytemuck::bytes_of(&args),
            )?;
            let grid = Grid { blocks: row_blocks, threads: batch::THREADS, shared_bytes: 0 };
            launcher.launch(STEM, &format!("{STEM}_finish_{}", T::NAME), grid, bytemuck::bytes_of(&args))?;
        }
        Ok(Kept { sides, at, _memory: workspace.into_kept() })
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
        let choices = 2 * problem.rows as u32;
        for (which, (grad, rows)) in grads.into_iter().zip(of_side).enumerate().filter(|(_, (grad, _))| *grad != 0) {
            // With a reference set an anchor is part of its own triplet alone.
            let may_be_chosen = which == 1 || problem.references.is_none();
            let in_lists = may_be_chosen && rows.max(problem.rows) > SEARCHED as usize;
            let mut lists = Layout::default();
            let of_choices = [(); 3].map(|()| lists.part(if in_lists { problem.rows } else { 0 }, 8));
            let of_rows = [(); 2].map(|()| lists.part(rows, 4));
            let has_hubs = in_lists && choices >= HUB;
            let pieces = if has_hubs { choices.div_ceil(HUB_PIECE) } else { 0 };
            let hub_sums = lists.part(count_of([pieces as usize, 2, problem.dim]), 4);
            let memory = if in_lists { Some(lists.allocate(launcher)?) } else { None };
            let part = |at: Address| memory.as_ref().map_or(0, |memory| memory.address() + at);
            let [sorted, sorted_at, linked] = of_choices.map(part);
            let [link, link_end] = of_rows.map(part);
            let at = LossArgs {
                upstream,
                upstream_stride: (problem.options.reduction == Reduction::None).into(),
                grad,
                sorted,
                sorted_at,
                linked,
                link,
                link_end,
                hub_sums: if has_hubs { part(hub_sums) } else { 0 },
                which: which as u32,
                ..kept.at
            };
            let args = Args { sides: kept.sides.moved_to(inputs), at };
            let launch = |kernel: &str, blocks: u32| {
                let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
                // SAFETY: as in `forward`; the selection lives in `kept`, and the lists are laid out above.
                unsafe { launcher.launch(STEM, &format!("{STEM}_{kernel}"), grid, bytemuck::bytes_of(&args)) }
            };
            if in_lists {
                launch("runs", choices.div_ceil(RUN))?;
                launch("links", choices.div_ceil(RANKED))?;
            }
            if has_hubs {
                launch(&format!("hubs_{}", T::NAME), pieces)?;
            }
            launch(&format!("backward_{}", T::NAME), (rows as u32).div_ceil(batch::THREADS / 32))?;
        }
        Ok(())
    }
}
