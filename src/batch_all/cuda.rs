//! The launches of kernels/batch_all.cu.

use bytemuck::{Pod, Zeroable};

use super::BatchAllTripletLoss;
use super::cpu::Problem;
use crate::constants::{
    BATCH_ALL_COLUMNS, BATCH_ALL_SHARED, COMPARED, COMPARED_FEW, PREPARED_ROWS, STATS, STATS_WRITTEN,
};
use crate::cuda::arguments::{Inputs, Output};
use crate::cuda::batch::{self, PreparedSides, Sides};
use crate::cuda::mined::OnDevice;
use crate::cuda::sweep::TileOf;
use crate::cuda::targets::{self, Sweep};
use crate::cuda::workspace::{Workspace, WorkspaceLayout, count_of};
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Distance, Element, Error, MeanOver, Reduction};

const STEM: &str = "batch_all";

/// What the backward pass of batch_all needs of a forward pass: everything, for it is what makes the gradient.
pub struct Kept<M> {
    sides: Sides,
    /// Of the sweeps over the anchors and over the reference set.
    at: [LossArgs; 2],
    /// The name of the products.
    product: &'static str,
    /// The memory that `sides` and `at` point to.
    _memory: Workspace<M>,
}

/// Part of `Args` of kernels/batch_all.cu: everything after the sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LossArgs {
    start: Address,
    distance: Address,
    threshold: Address,
    place: Address,
    count: Address,
    reach: Address,
    columns: [Address; 2],
    tiles: [Address; 2],
    largest_class: Address,
    tickets: Address,
    left: Address,
    pushed: Address,
    weights: Address,
    sums: Address,
    left_pushed: Address,
    left_weights: Address,
    left_any: Address,
    partials: Address,
    loss: Address,
    stats: Address,
    upstream: Address,
    grad: Address,
    scratch: Address,
    margin: f64,
    capacity: u64,
    left_stride: u32,
    splits: u32,
    kind: u32,
    mean: u32,
    which: u32,
    parts: u32,
    halves: u32,
    swept: u32,
    finds_starts: u32,
    with_grad: u32,
}

/// `Args` of kernels/batch_all.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    sides: Sides,
    at: LossArgs,
}

impl OnDevice for BatchAllTripletLoss {
    type Kept<M: Memory> = Kept<M>;

    unsafe fn forward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Kept<L::Memory>, Error> {
        let shapes = &batch::shapes::<T, _>(problem);
        let (rows, dim, shape, product) = (problem.rows, problem.dim, shapes[0], shapes[0].product);
        let properties = launcher.properties();
        let sweep = Sweep::of(&product, dim, targets::of_batch_all, properties);
        let tiles = shapes.each_ref().map(|shape| shape.tiles());
        let splits = [0, 1].map(|which: usize| sweep.splits(tiles[which], tiles[1 - which], properties));
        let capacity = batch::capacity(rows, shapes[1].rows, problem.options.pairs_at_once);
        let of_tiles = |count: u32| count as usize;
        let itself = problem.references.is_none();

        let mut layout = WorkspaceLayout::default();
        let WorkspaceLayout { kept, passing, zeroed } = &mut layout;
        let stats = kept.part(STATS_WRITTEN, 8);
        let start = passing.part(rows + 1, 8);
        let of_pairs = [(); 4].map(|()| passing.part(capacity, 4));
        let reach = passing.part(rows, 4);
        let of_side = |which: usize| if which == 1 && itself { 0 } else { of_tiles(tiles[which]) };
        let columns = [0, 1].map(|which| passing.part(of_side(which), BATCH_ALL_COLUMNS as usize));
        let partials = passing.part(STATS * of_tiles(tiles[0]), 8);
        let tile_facts = [0, 1].map(|which| zeroed.part(of_side(which), size_of::<TileOf>()));
        let (largest_class, tickets) = (zeroed.part(1, 4), zeroed.part(of_tiles(tiles[0]), 4));
        // The sweep over the anchors makes the loss, that over the reference set its gradient alone.
        let of_sweeps = [0, 1].map(|which: usize| {
            let swept = which == 0 || with_grad[1];
            let (splits, padded) = (splits[which] as usize, shapes[which].padded());
            let halves = splits * sweep.across as usize;
            let left_stride = of_tiles(tiles[1 - which]).div_ceil(splits).next_multiple_of(4);
            let blocks = of_tiles(tiles[which]) * splits;
            let wanted = |count: usize| if swept { count } else { 0 };
            let of_grad = |count: usize| if with_grad[which] { count } else { 0 };
            let width = dim.next_multiple_of(64);
            LossArgs {
                left: passing.part(wanted(count_of([blocks, left_stride])), 1),
                left_any: passing.part(wanted(blocks), 4),
                weights: passing.part(wanted(count_of([halves, padded])), 4),
                sums: passing.part(if which == 0 { count_of([halves + splits, padded, 2]) } else { 0 }, 8),
                pushed: passing.part(of_grad(count_of([splits, sweep.parts() as usize, padded, width])), 4),
                left_pushed: passing.part(of_grad(count_of([splits, padded, dim])), 4),
                left_weights: passing.part(of_grad(count_of([splits, padded])), 4),
                scratch: passing.part(of_grad(count_of([shapes[which].rows, dim])), 4),
                left_stride: left_stride as u32,
                splits: splits as u32,
                parts: splits as u32 * sweep.parts(),
                halves: halves as u32,
                with_grad: with_grad[which].into(),
                which: which as u32,
                ..LossArgs::zeroed()
            }
        });
        // SAFETY: the caller's contract.
        let PreparedSides { sides, workspace } =
            unsafe { batch::prepare_sides::<T, L>(launcher, inputs, shapes, layout)? };

        let in_passing = |at: Address| workspace.passing() + at;
        let in_zeroed = |at: Address| workspace.zeroed().0 + at;
        let [distance, threshold, place, count] = of_pairs.map(in_passing);
        let at = of_sweeps.map(|of_sweep| LossArgs {
            left: in_passing(of_sweep.left),
            left_any: in_passing(of_sweep.left_any),
            weights: in_passing(of_sweep.weights),
            sums: in_passing(of_sweep.sums),
            pushed: in_passing(of_sweep.pushed),
            left_pushed: in_passing(of_sweep.left_pushed),
            left_weights: in_passing(of_sweep.left_weights),
            scratch: in_passing(of_sweep.scratch),
            start: in_passing(start),
            distance,
            threshold,
            place,
            count,
            reach: in_passing(reach),
            columns: columns.map(in_passing),
            tiles: tile_facts.map(in_zeroed),
            largest_class: in_zeroed(largest_class),
            tickets: in_zeroed(tickets),
            partials: in_passing(partials),
            loss: output.loss,
            stats: if output.stats == 0 { workspace.kept() + stats } else { output.stats },
            margin: problem.options.margin,
            capacity: capacity as u64,
            kind: batch::kind(shape.distance),
            mean: match (problem.options.reduction, problem.options.mean_over) {
                (Reduction::Mean, MeanOver::Active) => 1,
                (Reduction::Mean, MeanOver::Valid) => 2,
                _ => 0,
            },
            swept: if sweep.name == "wide" { COMPARED } else { COMPARED_FEW },
            finds_starts: (rows <= PREPARED_ROWS as usize).into(),
            ..of_sweep
        });
        let launch = |kernel: String, grid: Grid, at: LossArgs| {
            let args = Args { sides, at };
            // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above
            // and live as `Memory` says.
            unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args)) }
        };
        let by_rows = |blocks: u32| Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
        if at[0].finds_starts == 0 {
            launch(format!("{STEM}_starts"), by_rows(shape.scans()), at[0])?;
        }
        launch(format!("{STEM}_pairs_{}", T::NAME), by_rows(shape.row_blocks(properties)), at[0])?;
        let root = if shape.distance == Distance::Euclidean { "root_" } else { "" };
        for at in at.iter().filter(|at| at.which == 0 || with_grad[1]) {
            let blocks = tiles[at.which as usize] * at.splits;
            let grid = Grid { blocks, threads: sweep.threads(), shared_bytes: sweep.shared_bytes };
            launch(format!("{STEM}_sweep_{root}{}_{}", product.name, sweep.name), grid, *at)?;
            let grid = Grid { blocks, threads: batch::TILE_THREADS, shared_bytes: product.of_planes(BATCH_ALL_SHARED) };
            launch(format!("{STEM}_left_{}", product.name), grid, *at)?;
        }
        Ok(Kept { sides, at, product: product.name, _memory: workspace })
    }

    unsafe fn backward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Problem,
        kept: &Kept<L::Memory>,
        _: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        let of_side = [problem.rows, problem.references.unwrap_or(0)];
        for which in (0..2).filter(|&which| grads[which] != 0) {
            let at = LossArgs { upstream, grad: grads[which], ..kept.at[which] };
            let args = Args { sides: kept.sides, at };
            let blocks = (of_side[which] as u32).div_ceil(batch::THREADS / 32);
            let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
            let kernel = format!("{STEM}_backward_{}_{}", T::NAME, kept.product);
            // SAFETY: as in `forward`; the memory lives in `kept`.
            unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args))? };
        }
        Ok(())
    }
}
