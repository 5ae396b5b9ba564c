//! The launches of kernels/triplets.cuh, for all losses that choose one negative for each pair.

use bytemuck::{Pod, Zeroable};

use super::arguments::{Inputs, Output};
use super::batch::{self, PreparedSides, Product, Sides};
use super::mined::OnDevice;
use super::strip::{UNIT, error_of};
use super::targets::Strip;
use super::workspace::WorkspaceLayout;
use super::{Address, Grid, Launcher, Memory};
use crate::constants::{
    CHOOSE_RESIDENT as RESIDENT, CHOOSE_SHARED, STATS, STATS_WRITTEN, TRIPLETS_SEARCHED as SEARCHED,
};
use crate::mined::Loss;
use crate::problem::Problem;
use crate::{Distance, Element, Error, Reduction};

/// The kernels of a loss that chooses one negative for each pair, and how they choose it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The name of the kernels' file, and the first part of their names.
    pub stem: &'static str,
    /// The first part of the names of those kernels that depend on how negatives are chosen.
    pub kernels: &'static str,
    /// Whether only pairs (a, p) with a before p are taken.
    pub once: bool,
    /// How negatives are drawn; `None`: they are not drawn at random.
    pub draw: Option<Draw>,
}

/// A loss that launches the kernels of kernels/triplets.cuh.
pub trait Chooses: Loss {
    fn rule(extra: &Self::Extra) -> Rule;
}

impl<L: Chooses> OnDevice for L {
    type Kept<M: Memory> = Kept<M>;

    unsafe fn forward<T: Element, D: Launcher>(
        launcher: &D,
        problem: &Problem<Self::Extra>,
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Kept<D::Memory>, Error> {
        // SAFETY: the caller's contract.
        unsafe {
            forward::<T, D, _>(
                launcher,
                problem,
                &L::rule(&problem.options.extra),
                inputs,
                output,
                with_grad != [false; 2],
            )
        }
    }

    unsafe fn backward<T: Element, D: Launcher>(
        launcher: &D,
        problem: &Problem<Self::Extra>,
        kept: &Kept<D::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe {
            backward::<T, D, _>(launcher, problem, L::rule(&problem.options.extra).stem, kept, inputs, upstream, grads)
        }
    }
}

/// How the negatives of pairs are drawn at random.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    pub seed: u64,
    /// Whether only negatives farther than the positive are candidates.
    pub beyond: bool,
}

/// What the backward pass of a loss that chooses negatives needs of a forward pass.
pub struct Kept<M> {
    sides: Sides,
    at: LossArgs,
    /// The memory that `sides` and `at` point to.
    _memory: M,
}

/// Part of `Args` of kernels/triplets.cuh: everything after the sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LossArgs {
    start: Address,
    d_ap: Address,
    key: Address,
    chosen: Address,
    found: Address,
    listed: Address,
    row_key: Address,
    row_found: Address,
    hash: [Address; 2],
    row_word: Address,
    indices: Address,
    times: Address,
    link: Address,
    losses: Address,
    loss: Address,
    stats: Address,
    partials: Address,
    step: Address,
    upstream: Address,
    upstream_stride: i64,
    grad: Address,
    margin: f64,
    capacity: u64,
    seed: u64,
    splits: u32,
    kind: u32,
    mean: u32,
    which: u32,
    beyond: u32,
    once: u32,
    columns: u32,
    warp_columns: u32,
    error: f32,
    direct: f32,
}

/// `Args` of kernels/triplets.cuh.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    sides: Sides,
    at: LossArgs,
}

/// The errors that a search allows for (kernels/choose.cuh): of a distance by products, over the sum of both norms, and of one
/// by difference, over the distance. One more rounding is that of the search's own bias.
///
/// A distance by difference is a sum of squares of rounded differences, of which a lane adds up 8 one on the other, and lanes are
/// added in five steps; thresholds are rounded three times. That of a row too short to become a unit vector is 1 less a sum of
/// products, which are no larger than half of both norms together. Unit vectors are such but for the rounding of their norms and elements.
fn errors(product: &Product, dim: usize, distance: Distance) -> [f32; 2] {
    const DIRECT: f32 = (2.0 + 8.0 + 1.0 + 5.0 + 1.0 + 3.0) * UNIT;
    match (error_of(product, dim), distance) {
        (0.0, _) => [0.0; 2],
        (error, Distance::Cosine) => [error + (1.0 + 16.0) * UNIT, DIRECT],
        (error, _) => [error + UNIT, DIRECT],
    }
}

/// Launches a forward pass. `output.chosen[0]` takes one u32 for each pair of an anchor and a row of its class, in
/// class order: the negative's index, `u32::MAX` without one.
///
/// # Safety
/// The contract of [`OnDevice::forward`](super::mined::OnDevice::forward).
unsafe fn forward<T: Element, L: Launcher, X>(
    launcher: &L,
    problem: &Problem<X>,
    rule: &Rule,
    inputs: &Inputs,
    output: &Output,
    with_grad: bool,
) -> Result<Kept<L::Memory>, Error> {
    let Rule { stem, kernels, once, draw } = *rule;
    let shapes = &batch::shapes::<T, X>(problem);
    let (shape, product) = (shapes[0], shapes[0].product);
    let [rows, others] = shapes.each_ref().map(|shape| shape.rows);

    let drawn = draw.is_some();
    let strip = Strip::of_few_rows(&product, problem.dim, launcher.properties());
    let [error, direct] = errors(&product, problem.dim, shape.distance);
    let (splits, choose, tile_grid) = if drawn {
        let splits = shape.even_splits_of(shapes[1].tiles(), RESIDENT, launcher.properties());
        let shared_bytes = product.of_planes(CHOOSE_SHARED);
        let grid = Grid { blocks: shape.tiles() * splits, threads: batch::TILE_THREADS, shared_bytes };
        (splits, format!("{kernels}_choose_{}", product.name), grid)
    } else {
        let splits = strip.splits(rows, others, launcher.properties());
        let Strip { threads, shared_bytes, .. } = strip;
        let grid = Grid { blocks: Strip::row_blocks(rows) * splits, threads, shared_bytes };
        (splits, format!("{kernels}_choose_{}_{}", product.name, strip.name), grid)
    };
    let row_blocks = shapes.each_ref().map(|shape| shape.row_blocks(launcher.properties()));
    // Kernels number pairs with u32.
    let capacity = batch::capacity(rows, others, problem.options.pairs_at_once).min(u32::MAX as usize);
    // Of few rows each block of the backward pass looks for the pairs that chose its own.
    let in_lists = with_grad && rows.max(others) > SEARCHED as usize;
    let mut layout = WorkspaceLayout::default();
    let WorkspaceLayout { kept, passing, .. } = &mut layout;
    let stats = kept.part(STATS_WRITTEN, 8);
    let [times, link] =
        [(others, 4), (others + 1, 8)].map(|(count, bytes)| kept.part(if in_lists { count } else { 0 }, bytes));
    let start = kept.part(rows + 1, 8);
    let (d_ap, key, found) = (kept.part(capacity, 4), kept.part(capacity, 8), kept.part(capacity, 8));
    let of_rows = [(); 2].map(|()| passing.part(rows, 8));
    let hash = [rows, others].map(|rows| passing.part(if drawn { rows } else { 0 }, 8));
    let row_word = passing.part(if drawn { others } else { 0 }, 4);
    let partials = passing.part(STATS * row_blocks[0] as usize, 8);
    // SAFETY: the caller's contract.
    let PreparedSides { sides, workspace } = unsafe { batch::prepare_sides::<T, L>(launcher, inputs, shapes, layout)? };

    let [in_kept, in_passing] = [workspace.kept(), workspace.passing()].map(|from| move |at: Address| from + at);
    let draw = draw.unwrap_or(Draw { seed: 0, beyond: false });
    let [row_key, row_found] = of_rows.map(in_passing);
    let at = LossArgs {
        start: in_kept(start),
        d_ap: in_kept(d_ap),
        key: in_kept(key),
        chosen: in_kept(key),
        found: in_kept(found),
        listed: in_kept(found),
        row_key,
        row_found,
        hash: hash.map(in_passing),
        row_word: in_passing(row_word),
        indices: output.chosen[0],
        times: if in_lists { in_kept(times) } else { 0 },
        link: if in_lists { in_kept(link) } else { 0 },
        losses: output.losses,
        loss: output.loss,
        stats: if output.stats == 0 { in_kept(stats) } else { output.stats },
        partials: in_passing(partials),
        step: inputs.step,
        margin: problem.options.margin,
        capacity: capacity as u64,
        seed: draw.seed,
        splits,
        kind: batch::kind(shape.distance),
        mean: (problem.options.reduction == Reduction::Mean).into(),
        beyond: draw.beyond.into(),
        once: once.into(),
        columns: strip.columns,
        warp_columns: strip.warp_columns,
        error,
        direct,
        ..LossArgs::zeroed()
    };
    let args = Args { sides, at };
    let launch = |kernel: String, grid: Grid| {
        // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above and
        // live as `Memory` says.
        unsafe { launcher.launch(stem, &kernel, grid, bytemuck::bytes_of(&args)) }
    };
    let blocks = |blocks: u32| Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
    if drawn {
        launch(format!("{stem}_words_{}", T::NAME), blocks(row_blocks[0].max(row_blocks[1])))?;
    }
    launch(format!("{kernels}_pairs_{}", T::NAME), blocks(row_blocks[0]))?;
    launch(choose, tile_grid)?;
    launch(format!("{kernels}_finish_{}", T::NAME), blocks(row_blocks[0]))?;
    if in_lists {
        launch(format!("{stem}_links"), blocks(shapes[1].scans()))?;
        launch(format!("{stem}_fill"), blocks(row_blocks[0]))?;
        launch(format!("{stem}_order"), blocks(row_blocks[1]))?;
    }
    Ok(Kept { sides, at, _memory: workspace.into_kept() })
}

/// Launches the backward pass of a forward pass that was launched `with_grad`.
///
/// # Safety
/// The contract of [`OnDevice::backward`](super::mined::OnDevice::backward).
unsafe fn backward<T: Element, L: Launcher, X>(
    launcher: &L,
    problem: &Problem<X>,
    stem: &str,
    kept: &Kept<L::Memory>,
    inputs: &Inputs,
    upstream: Address,
    grads: [Address; 2],
) -> Result<(), Error> {
    let of_side = [problem.rows, problem.references.unwrap_or(0)];
    for (which, (grad, rows)) in grads.into_iter().zip(of_side).enumerate().filter(|(_, (grad, _))| *grad != 0) {
        let at = LossArgs {
            upstream,
            upstream_stride: (problem.options.reduction == Reduction::None).into(),
            grad,
            which: which as u32,
            ..kept.at
        };
        let args = Args { sides: kept.sides.moved_to(inputs), at };
        let blocks = (rows as u32).div_ceil(batch::THREADS / 32);
        let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
        let kernel = format!("{stem}_backward_{}", T::NAME);
        // SAFETY: as in `forward`; the selection lives in `kept`.
        unsafe { launcher.launch(stem, &kernel, grid, bytemuck::bytes_of(&args))? };
    }
    Ok(())
}
