//! The launches of kernels/batch_all.cu.

use bytemuck::{Pod, Zeroable};

use super::BatchAllTripletLoss;
use super::cpu::Problem;
use crate::constants::{BATCH_ALL_SHARED, COMPARED, STATS, STATS_WRITTEN};
use crate::cuda::arguments::{Inputs, Output};
use crate::cuda::batch::{self, PreparedSides, Product, Sides};
use crate::cuda::mined::OnDevice;
use crate::cuda::workspace::{WorkspaceLayout, count_of};
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Element, Error, MeanOver, Reduction};

const STEM: &str = "batch_all";

/// What the backward pass of batch_all needs of a forward pass.
pub struct Kept<M> {
    sides: Sides,
    at: LossArgs,
    /// The gradients of the anchors and of the reference set, not divided; 0: not asked for.
    gradients: [Address; 2],
    /// The memory that `sides`, `at` and `gradients` point to.
    _memory: M,
}

/// Part of `Args` of kernels/batch_all.cu: everything after the sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LossArgs {
    start: Address,
    distance: Address,
    threshold: Address,
    owner: Address,
    count: Address,
    reach: Address,
    pushed: Address,
    sums: Address,
    gradient: Address,
    partials: Address,
    loss: Address,
    stats: Address,
    upstream: Address,
    grad: Address,
    margin: f64,
    capacity: u64,
    splits: u32,
    kind: u32,
    mean: u32,
    which: u32,
}

/// `Args` of kernels/batch_all.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    sides: Sides,
    at: LossArgs,
}

/// Dynamic shared memory of a block of `batch_all_sweep`.
fn shared_bytes(product: Product) -> u32 {
    product.of_planes(BATCH_ALL_SHARED)
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
        let splits = [0, 1].map(|which| shapes[which].splits_of(shapes[1 - which].tiles(), properties));
        let row_blocks = shapes.each_ref().map(|shape| shape.row_blocks(properties));
        let capacity = batch::capacity(rows, shapes[1].rows, problem.options.pairs_at_once);
        let mut layout = WorkspaceLayout::default();
        let WorkspaceLayout { kept, passing } = &mut layout;
        let stats = kept.part(STATS_WRITTEN, 8);
        let gradients = [0, 1]
            .map(|which| with_grad[which].then(|| kept.part(count_of([shapes[which].rows, dim]), size_of::<f32>())));
        let start = passing.part(rows + 1, 8);
        let of_pairs = [(); 4].map(|()| passing.part(capacity, 4));
        let reach = passing.part(rows, 4);
        let room = |which: usize| {
            if with_grad[which] { count_of([splits[which] as usize, shapes[which].padded(), dim]) } else { 0 }
        };
        let pushed = [0, 1].map(|which| passing.part(room(which), 4));
        let sums = passing.part(count_of([splits[0] as usize, shape.padded(), 2]), 8);
        let partials = passing.part(STATS * row_blocks[0] as usize, 8);
        // SAFETY: the caller's contract.
        let PreparedSides { sides, workspace } =
            unsafe { batch::prepare_sides::<T, L>(launcher, inputs, shapes, layout)? };

        let [in_kept, in_passing] = [workspace.kept(), workspace.passing()].map(|from| move |at: Address| from + at);
        let [distance, threshold, owner, count] = of_pairs.map(in_passing);
        let gradients = gradients.map(|at| at.map_or(0, in_kept));
        let pushed = pushed.map(in_passing);
        let at = LossArgs {
            start: in_passing(start),
            distance,
            threshold,
            owner,
            count,
            reach: in_passing(reach),
            pushed: pushed[0],
            sums: in_passing(sums),
            gradient: gradients[0],
            partials: in_passing(partials),
            loss: output.loss,
            stats: if output.stats == 0 { in_kept(stats) } else { output.stats },
            margin: problem.options.margin,
            capacity: capacity as u64,
            splits: splits[0],
            kind: batch::kind(shape.distance),
            mean: match (problem.options.reduction, problem.options.mean_over) {
                (Reduction::Mean, MeanOver::Active) => 1,
                (Reduction::Mean, MeanOver::Valid) => 2,
                _ => 0,
            },
            ..LossArgs::zeroed()
        };
        let launch = |kernel: String, grid: Grid, at: LossArgs| {
            let args = Args { sides, at };
            // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above
            // and live as `Memory` says.
            unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args)) }
        };
        let blocks = |blocks: u32| Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
        launch(format!("{STEM}_starts"), blocks(shape.scans()), at)?;
        launch(format!("{STEM}_pairs_{}", T::NAME), blocks(row_blocks[0]), at)?;
        let has_large = shapes[1].rows > COMPARED as usize;
        if has_large {
            launch(format!("{STEM}_sort"), blocks(row_blocks[0]), at)?;
        }
        let sweep = |which: usize, at: LossArgs| {
            let blocks = shapes[which].tiles() * splits[which];
            let grid = Grid { blocks, threads: batch::TILE_THREADS, shared_bytes: shared_bytes(product) };
            launch(format!("{STEM}_sweep_{}", product.name), grid, at)
        };
        sweep(0, at)?;
        let other = LossArgs { which: 1, gradient: gradients[1], splits: splits[1], pushed: pushed[1], ..at };
        if gradients[1] != 0 {
            sweep(1, other)?;
        }
        // `ranks` overwrites the thresholds, so it follows both sweeps.
        if has_large {
            launch(format!("{STEM}_ranks"), blocks(row_blocks[0]), at)?;
        }
        launch(format!("{STEM}_finish_{}", T::NAME), blocks(row_blocks[0]), at)?;
        if gradients[1] != 0 {
            launch(format!("{STEM}_finish_{}", T::NAME), blocks(row_blocks[1]), other)?;
        }
        Ok(Kept { sides, at, gradients, _memory: workspace.into_kept() })
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
            let at = LossArgs {
                upstream,
                grad: grads[which],
                gradient: kept.gradients[which],
                which: which as u32,
                ..kept.at
            };
            let args = Args { sides: kept.sides, at };
            let properties = launcher.properties();
            let resident = properties.multiprocessors * (properties.threads_per_multiprocessor / batch::THREADS);
            let wanted = (of_side[which] * problem.dim).div_ceil(batch::THREADS as usize);
            let blocks = wanted.min(resident as usize) as u32;
            let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
            // SAFETY: as in `forward`; the gradient lives in `kept`.
            unsafe { launcher.launch(STEM, &format!("{STEM}_backward_{}", T::NAME), grid, bytemuck::bytes_of(&args))? };
        }
        Ok(())
    }
}
