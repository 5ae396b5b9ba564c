//! The launches of kernels/triplets.cuh, for all losses that choose one negative for each pair.

use bytemuck::{Pod, Zeroable};

use super::arguments::{Inputs, Output};
use super::batch::{self, PreparedSides, Product, Sides};
use super::mined::OnDevice;
use super::workspace::WorkspaceLayout;
use super::{Address, Grid, Launcher, Memory};
use crate::constants::{CHOOSE_RESIDENT as RESIDENT, CHOOSE_SHARED, STATS, STATS_WRITTEN};
use crate::mined::Loss;
use crate::problem::Problem;
use crate::{Element, Error, Reduction};

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
    anchor: Address,
    d_ap: Address,
    key: Address,
    row_key: Address,
    word: Address,
    hash: [Address; 2],
    row_word: Address,
    negative: Address,
    d_an: Address,
    weight: Address,
    chosen: Address,
    times: Address,
    link: Address,
    linked: Address,
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
}

/// `Args` of kernels/triplets.cuh.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    sides: Sides,
    at: LossArgs,
}

/// Dynamic shared memory of a block of `choose`.
fn shared_bytes(product: Product) -> u32 {
    product.of_planes(CHOOSE_SHARED)
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

    let splits = shape.even_splits_of(shapes[1].tiles(), RESIDENT, launcher.properties());
    let row_blocks = shapes.each_ref().map(|shape| shape.row_blocks(launcher.properties()));
    // Kernels number pairs with u32.
    let capacity = batch::capacity(rows, others, problem.options.pairs_at_once).min(u32::MAX as usize);
    let mut layout = WorkspaceLayout::default();
    let WorkspaceLayout { kept, passing, .. } = &mut layout;
    let (stats, times) = (kept.part(STATS_WRITTEN, 8), kept.part(others, 4));
    let (start, link) = (kept.part(rows + 1, 8), kept.part(others + 1, 8));
    let per_pair = [(); 5].map(|()| kept.part(capacity, 4));
    let linked = kept.part(if with_grad { capacity } else { 0 }, 4);
    let (key, row_key) = (passing.part(capacity, 8), passing.part(rows, 8));
    let drawn = draw.is_some();
    let word = passing.part(if drawn { capacity } else { 0 }, 4);
    let hash = [rows, others].map(|rows| passing.part(if drawn { rows } else { 0 }, 8));
    let row_word = passing.part(if drawn { others } else { 0 }, 4);
    let partials = passing.part(STATS * row_blocks[0] as usize, 8);
    // SAFETY: the caller's contract.
    let PreparedSides { sides, workspace } = unsafe { batch::prepare_sides::<T, L>(launcher, inputs, shapes, layout)? };

    let [in_kept, in_passing] = [workspace.kept(), workspace.passing()].map(|from| move |at: Address| from + at);
    let [anchor, d_ap, negative, d_an, weight] = per_pair.map(in_kept);
    let draw = draw.unwrap_or(Draw { seed: 0, beyond: false });
    let at = LossArgs {
        start: in_kept(start),
        anchor,
        d_ap,
        key: in_passing(key),
        row_key: in_passing(row_key),
        word: in_passing(word),
        hash: hash.map(in_passing),
        row_word: in_passing(row_word),
        negative,
        d_an,
        weight,
        chosen: output.chosen[0],
        times: in_kept(times),
        link: in_kept(link),
        linked: in_kept(linked),
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
        ..LossArgs::zeroed()
    };
    let args = Args { sides, at };
    let launch = |kernel: String, grid: Grid| {
        // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above and
        // live as `Memory` says.
        unsafe { launcher.launch(stem, &kernel, grid, bytemuck::bytes_of(&args)) }
    };
    let blocks = |blocks: u32| Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
    launch(format!("{stem}_starts"), blocks(shape.scans()))?;
    if drawn {
        launch(format!("{stem}_words_{}", T::NAME), blocks(row_blocks[0].max(row_blocks[1])))?;
    }
    launch(format!("{kernels}_pairs_{}", T::NAME), blocks(row_blocks[0]))?;
    let tile_grid =
        Grid { blocks: shape.tiles() * splits, threads: batch::TILE_THREADS, shared_bytes: shared_bytes(product) };
    launch(format!("{kernels}_choose_{}", product.name), tile_grid)?;
    launch(format!("{kernels}_finish_{}", T::NAME), blocks(row_blocks[0]))?;
    if with_grad {
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
