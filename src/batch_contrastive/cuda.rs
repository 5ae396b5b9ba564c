//! The launches of kernels/batch_contrastive.cu.

use bytemuck::{Pod, Zeroable};

use super::BatchContrastiveLoss;
use super::options::{Negatives, Problem};
use crate::constants::{
    BATCH_CONTRASTIVE_SHARED, DIGITS, PHASE_PUSH as PUSH, PHASE_SUMS as SUMS, STATS_WRITTEN, SUMS_OF_ROW, TOTALS,
};
use crate::cuda::arguments::{Inputs, Output};
use crate::cuda::batch::{self, BatchShape, PreparedSides, Sides};
use crate::cuda::mined::OnDevice;
use crate::cuda::workspace::{Layout, WorkspaceLayout, count_of};
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Element, Error, Reduction};

const STEM: &str = "batch_contrastive";

/// What the backward pass of batch_contrastive needs of a forward pass.
pub struct Kept<M> {
    sides: Sides,
    shapes: [BatchShape; 2],
    at: LossArgs,
    /// The memory that `sides` and `at` point to.
    _memory: (M, Option<M>),
}

/// Part of `Args` of kernels/batch_contrastive.cu: everything after the sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LossArgs {
    choice: Address,
    histogram: Address,
    tied_anchors: Address,
    tied_rows: Address,
    sums: Address,
    pushed: Address,
    partials: Address,
    losses: Address,
    loss: Address,
    stats: Address,
    upstream: Address,
    upstream_stride: i64,
    grad: Address,
    margin: f64,
    splits: u32,
    kind: u32,
    hardest: u32,
    mean: u32,
    phase: u32,
    which: u32,
}

/// `Args` of kernels/batch_contrastive.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    sides: Sides,
    at: LossArgs,
}

/// The phases of the sweep that select pairs, before the one that sums them up.
const SELECTING: std::ops::Range<u32> = 0..SUMS;

/// Which pairs are selected: `Choice` of kernels/batch_contrastive.cu. The host only makes room for it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Choice {
    left: u64,
    key: u32,
    anchor: u32,
    row: u32,
    done: u32,
}
const CHOICE_BYTES: usize = size_of::<Choice>();

/// Launches a sweep over the tiles of one side against the other, with `at.splits` blocks for each row of tiles.
fn sweep<L: Launcher>(launcher: &L, sides: Sides, shape: &BatchShape, at: LossArgs) -> Result<(), Error> {
    let product = shape.product;
    let shared_bytes = product.of_planes(BATCH_CONTRASTIVE_SHARED);
    let grid = Grid { blocks: shape.tiles() * at.splits, threads: batch::TILE_THREADS, shared_bytes };
    let args = Args { sides, at };
    // SAFETY: `Args` is this kernel's argument; the sides are prepared, and both passes lay out what the rest points
    // to.
    unsafe { launcher.launch(STEM, &format!("{STEM}_sweep_{}", product.name), grid, bytemuck::bytes_of(&args)) }
}

impl OnDevice for BatchContrastiveLoss {
    type Kept<M: Memory> = Kept<M>;

    unsafe fn forward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Kept<L::Memory>, Error> {
        let shapes = batch::shapes::<T, _>(problem);
        let (rows, shape) = (problem.rows, shapes[0]);

        let properties = launcher.properties();
        let hardest = problem.options.extra == Negatives::Hardest;
        let splits = shape.splits_of(shapes[1].tiles(), properties);
        let row_blocks = shape.row_blocks(properties);
        let mut layout = WorkspaceLayout::default();
        let WorkspaceLayout { kept, passing } = &mut layout;
        let (choice, stats) = (kept.part(1, CHOICE_BYTES), kept.part(STATS_WRITTEN, 8));
        let of_selecting = |count: usize| if hardest { count } else { 0 };
        let histogram = passing.part(of_selecting(DIGITS as usize), 8);
        let tied_anchors = passing.part(of_selecting(rows), 4);
        let tied_rows = passing.part(of_selecting(shapes[1].rows), 4);
        let sums = passing.part(count_of([splits as usize, shape.padded(), SUMS_OF_ROW]), 8);
        let partials = passing.part(TOTALS * row_blocks as usize, 8);
        // SAFETY: the caller's contract.
        let PreparedSides { sides, workspace } =
            unsafe { batch::prepare_sides::<T, L>(launcher, inputs, &shapes, layout)? };

        let [histogram, tied_anchors, tied_rows, sums, partials] =
            [histogram, tied_anchors, tied_rows, sums, partials].map(|at| workspace.passing() + at);
        let at = LossArgs {
            choice: workspace.kept() + choice,
            histogram,
            tied_anchors,
            tied_rows,
            sums,
            partials,
            losses: output.losses,
            loss: output.loss,
            stats: if output.stats == 0 { workspace.kept() + stats } else { output.stats },
            margin: problem.options.margin,
            splits,
            kind: batch::kind(shape.distance),
            hardest: hardest.into(),
            mean: (problem.options.reduction == Reduction::Mean).into(),
            ..LossArgs::zeroed()
        };
        let launch = |kernel: &str, blocks: u32, at: LossArgs| {
            let args = Args { sides, at };
            let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
            // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above
            // and live as `Memory` says.
            unsafe { launcher.launch(STEM, &format!("{STEM}_{kernel}"), grid, bytemuck::bytes_of(&args)) }
        };
        launch("count", row_blocks, at)?;
        for phase in SELECTING.filter(|_| hardest) {
            sweep(launcher, sides, &shape, LossArgs { phase, ..at })?;
            launch("pick", 1, LossArgs { phase, ..at })?;
        }
        sweep(launcher, sides, &shape, LossArgs { phase: SUMS, ..at })?;
        launch(&format!("finish_{}", T::NAME), row_blocks, at)?;
        // The sweep of the backward pass reads the rows' planes again.
        let (kept, passing) = workspace.into_parts();
        Ok(Kept { sides, shapes, at, _memory: (kept, passing.filter(|_| with_grad != [false; 2])) })
    }

    unsafe fn backward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        kept: &Kept<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        let Kept { shapes, at, .. } = kept;
        let sides = kept.sides.moved_to(inputs);
        for which in (0..2).filter(|&which| grads[which] != 0) {
            let shape = &shapes[which];
            let splits = shape.splits_of(shapes[1 - which].tiles(), launcher.properties());
            let mut layout = Layout::default();
            layout.part(count_of([splits as usize, shape.padded(), problem.dim]), 4);
            let pushed = layout.allocate(launcher)?;
            let at = LossArgs {
                pushed: pushed.address(),
                upstream,
                upstream_stride: (problem.options.reduction == Reduction::None).into(),
                grad: grads[which],
                splits,
                phase: PUSH,
                which: which as u32,
                ..*at
            };
            sweep(launcher, sides, shape, at)?;
            let args = Args { sides, at };
            let blocks = (shape.rows as u32).div_ceil(batch::THREADS / 32);
            let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
            let kernel = format!("{STEM}_backward_{}", T::NAME);
            // SAFETY: as in `forward`; what the selection points to lives in `kept`, and the caller vouches for the
            // rest.
            unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args))? };
        }
        Ok(())
    }
}
