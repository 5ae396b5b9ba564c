//! The launches of kernels/batch_contrastive.cu.

use bytemuck::{Pod, Zeroable};

use super::BatchContrastiveLoss;
use super::options::{Negatives, Problem};
use crate::constants::{
    BATCH_CONTRASTIVE_SHARED, DIGITS, PHASE_PUSH as PUSH, PHASE_SUMS as SUMS, STATS_WRITTEN, SUMS_OF_ROW,
    SWEEP_LEFT_SHARED, TOTALS,
};
use crate::cuda::arguments::{Inputs, Output};
use crate::cuda::batch::{self, BatchShape, PreparedSides, Sides};
use crate::cuda::mined::OnDevice;
use crate::cuda::sweep::{Swept, TileOf};
use crate::cuda::targets::{self, Sweep};
use crate::cuda::workspace::{Layout, WorkspaceLayout, count_of};
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Distance, Element, Error, MeanOver, Reduction};

const STEM: &str = "batch_contrastive";

/// What the backward pass of batch_contrastive needs of a forward pass.
pub struct Kept<M> {
    sides: Sides,
    shapes: [BatchShape; 2],
    /// Of the anchors and of the reference set.
    at: [LossArgs; 2],
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
    sweep: Swept,
    tiles: [Address; 2],
    partials: Address,
    losses: Address,
    loss: Address,
    stats: Address,
    upstream: Address,
    upstream_stride: i64,
    grad: Address,
    margin: f64,
    pos_margin: f64,
    kind: u32,
    hardest: u32,
    mean: u32,
    phase: u32,
    swept: u32,
    grad_is_swept: u32,
    linear: u32,
    over_active: u32,
    apart: u32,
    padding: u32,
}

/// `Args` of kernels/batch_contrastive.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    sides: Sides,
    at: LossArgs,
}

/// The phases of the passes that select pairs, before the one that sums them up.
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
    share: f32,
    padding: u32,
}
const CHOICE_BYTES: usize = size_of::<Choice>();

/// Launches a pass over the tiles of one side against the other, with `at.sweep.splits` blocks for each row of tiles.
fn pass<L: Launcher>(launcher: &L, sides: Sides, shape: &BatchShape, at: LossArgs) -> Result<(), Error> {
    let product = shape.product;
    let shared_bytes = product.of_planes(BATCH_CONTRASTIVE_SHARED);
    let grid = Grid { blocks: shape.tiles() * at.sweep.splits, threads: batch::TILE_THREADS, shared_bytes };
    let args = Args { sides, at };
    // SAFETY: `Args` is this kernel's argument; the sides are prepared, and both passes lay out what the rest points
    // to.
    unsafe { launcher.launch(STEM, &format!("{STEM}_pass_{}", product.name), grid, bytemuck::bytes_of(&args)) }
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
        let (rows, dim, shape, product) = (problem.rows, problem.dim, shapes[0], shapes[0].product);
        let properties = launcher.properties();
        let extra = problem.options.extra;
        let hardest = extra.negatives == Negatives::Hardest;
        let swept = !hardest && !extra.linear;
        // A sweep makes the gradient with the loss, but for the upstream gradient: that must be one number.
        let grad_is_swept = swept && problem.options.reduction != Reduction::None;
        let sweep = Sweep::of(&product, dim, targets::of_terms, properties);
        let tiles = shapes.each_ref().map(|shape| shape.tiles());
        let itself = problem.references.is_none();
        let row_blocks = shape.row_blocks(properties);

        let mut layout = WorkspaceLayout::default();
        let WorkspaceLayout { kept, passing, zeroed } = &mut layout;
        let (choice, stats) = (kept.part(1, CHOICE_BYTES), kept.part(STATS_WRITTEN, 8));
        let of_selecting = |count: usize| if hardest { count } else { 0 };
        let histogram = passing.part(of_selecting(DIGITS as usize), 8);
        let tied_anchors = passing.part(of_selecting(rows), 4);
        let tied_rows = passing.part(of_selecting(shapes[1].rows), 4);
        let partials = passing.part(TOTALS * row_blocks as usize, 8);
        let of_side = |which: usize| if !swept || (which == 1 && itself) { 0 } else { tiles[which] as usize };
        let tile_facts = [0, 1].map(|which| zeroed.part(of_side(which), size_of::<TileOf>()));
        let of_sides = [0, 1].map(|which| {
            let pushes = grad_is_swept && with_grad[which];
            let sweeps = swept && (which == 0 || pushes);
            let mut of_side = Swept::lay_out(&sweep, &shapes, which, sweeps, pushes, properties, passing);
            if !swept {
                of_side.splits = shapes[which].splits_of(tiles[1 - which], properties);
            }
            of_side
        });
        let of_row = if swept { of_sides[0].of_row() } else { of_sides[0].splits as usize };
        let sums = passing.part(count_of([of_row, shape.padded(), SUMS_OF_ROW]), 8);
        // SAFETY: the caller's contract.
        let PreparedSides { sides, workspace } =
            unsafe { batch::prepare_sides::<T, L>(launcher, inputs, &shapes, layout)? };

        let in_passing = |at: Address| workspace.passing() + at;
        let at = of_sides.map(|of_side| LossArgs {
            sweep: of_side.at(workspace.passing()),
            sums: in_passing(sums),
            tiles: tile_facts.map(|at| workspace.zeroed().0 + at),
            choice: workspace.kept() + choice,
            histogram: in_passing(histogram),
            tied_anchors: in_passing(tied_anchors),
            tied_rows: in_passing(tied_rows),
            partials: in_passing(partials),
            losses: output.losses,
            loss: output.loss,
            stats: if output.stats == 0 { workspace.kept() + stats } else { output.stats },
            margin: problem.options.margin,
            pos_margin: extra.pos_margin,
            kind: batch::kind(shape.distance),
            hardest: hardest.into(),
            mean: (problem.options.reduction == Reduction::Mean).into(),
            swept: swept.into(),
            grad_is_swept: grad_is_swept.into(),
            linear: extra.linear.into(),
            over_active: (problem.options.mean_over == MeanOver::Active).into(),
            apart: extra.means_apart.into(),
            ..LossArgs::zeroed()
        });
        let launch = |kernel: &str, grid: Grid, at: LossArgs| {
            let args = Args { sides, at };
            // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above
            // and live as `Memory` says.
            unsafe { launcher.launch(STEM, &format!("{STEM}_{kernel}"), grid, bytemuck::bytes_of(&args)) }
        };
        let by_rows = |blocks: u32| Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
        launch("count", by_rows(row_blocks), at[0])?;
        if hardest {
            for phase in SELECTING {
                pass(launcher, sides, &shape, LossArgs { phase, ..at[0] })?;
                launch("pick", by_rows(1), LossArgs { phase, ..at[0] })?;
            }
        }
        if !swept {
            pass(launcher, sides, &shape, LossArgs { phase: SUMS, ..at[0] })?;
        } else {
            let root = if shape.distance == Distance::Euclidean { "root_" } else { "" };
            for at in at.iter().filter(|at| at.sweep.which() == 0 || at.sweep.is_with_grad()) {
                let blocks = tiles[at.sweep.which()] * at.sweep.splits;
                let grid = Grid { blocks, threads: sweep.threads(), shared_bytes: sweep.shared_bytes };
                launch(&format!("sweep_{root}{}_{}", product.name, sweep.name), grid, *at)?;
                let shared_bytes = product.of_planes(SWEEP_LEFT_SHARED);
                let grid = Grid { blocks, threads: batch::TILE_THREADS, shared_bytes };
                launch(&format!("left_{}", product.name), grid, *at)?;
            }
        }
        launch(&format!("finish_{}", T::NAME), by_rows(row_blocks), at[0])?;
        // The backward pass reads the rows' planes again, and what they were pushed by.
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
            let mut at = LossArgs {
                upstream,
                upstream_stride: (problem.options.reduction == Reduction::None).into(),
                grad: grads[which],
                phase: PUSH,
                ..at[which]
            };
            let mut memory = None;
            if at.grad_is_swept == 0 {
                at.sweep.splits = shape.splits_of(shapes[1 - which].tiles(), launcher.properties());
                let mut layout = Layout::default();
                let pushed = layout.part(count_of([at.sweep.splits as usize, shape.padded(), problem.dim]), 4);
                let scratch = layout.part(count_of([shape.rows, problem.dim]), 4);
                let address = memory.insert(layout.allocate(launcher)?).address();
                (at.sweep.pushed, at.sweep.scratch) = (address + pushed, address + scratch);
                pass(launcher, sides, shape, at)?;
            }
            let args = Args { sides, at };
            let blocks = (shape.rows as u32).div_ceil(batch::THREADS / 32);
            let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
            let kernel = format!("{STEM}_backward_{}_{}", T::NAME, shape.product.name);
            // SAFETY: as in `forward`; what the selection points to lives in `kept`, and the caller vouches for the
            // rest.
            unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args))? };
        }
        Ok(())
    }
}
