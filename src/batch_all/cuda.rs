//! The launches of kernels/batch_all.cu.

use bytemuck::{Pod, Zeroable};

use super::BatchAllTripletLoss;
use super::cpu::Problem;
use crate::constants::{BATCH_ALL_COLUMNS, BATCH_ALL_SHARED, COMPARED, COMPARED_FEW, STATS, STATS_WRITTEN};
use crate::cuda::arguments::{Inputs, Output};
use crate::cuda::batch::{self, PreparedSides, Sides};
use crate::cuda::mined::OnDevice;
use crate::cuda::sweep::{Swept, TileOf};
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
    sweep: Swept,
    sums: Address,
    partials: Address,
    loss: Address,
    stats: Address,
    upstream: Address,
    grad: Address,
    margin: f64,
    capacity: u64,
    kind: u32,
    mean: u32,
    most: u32,
    padding: u32,
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
        let of_sweeps = [0, 1].map(|which| {
            let swept = which == 0 || with_grad[1];
            Swept::lay_out(&sweep, shapes, which, swept, with_grad[which], properties, passing)
        });
        let sums = passing.part(count_of([of_sweeps[0].of_row(), shape.padded(), 2]), 8);
        // SAFETY: the caller's contract.
        let PreparedSides { sides, workspace } =
            unsafe { batch::prepare_sides::<T, L>(launcher, inputs, shapes, layout)? };

        let in_passing = |at: Address| workspace.passing() + at;
        let in_zeroed = |at: Address| workspace.zeroed().0 + at;
        let [distance, threshold, place, count] = of_pairs.map(in_passing);
        let at = of_sweeps.map(|of_sweep| LossArgs {
            sweep: of_sweep.at(workspace.passing()),
            sums: in_passing(sums),
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
            most: if sweep.name == "wide" { COMPARED } else { COMPARED_FEW },
            ..LossArgs::zeroed()
        });
        let launch = |kernel: String, grid: Grid, at: LossArgs| {
            let args = Args { sides, at };
            // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above
            // and live as `Memory` says.
            unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args)) }
        };
        let grid = Grid { blocks: shape.row_blocks(properties), threads: batch::THREADS, shared_bytes: 0 };
        launch(format!("{STEM}_pairs_{}", T::NAME), grid, at[0])?;
        let root = if shape.distance == Distance::Euclidean { "root_" } else { "" };
        for at in at.iter().filter(|at| at.sweep.which() == 0 || with_grad[1]) {
            let blocks = tiles[at.sweep.which()] * at.sweep.splits;
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
