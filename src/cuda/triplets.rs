//! The launches of kernels/triplets.cuh, which the losses that choose one negative for each pair share.

use bytemuck::{Pod, Zeroable};

use super::batch::{self, Layout, PreparedSides, Product, Sides};
use super::mined::{Inputs, OnDevice, Output};
use super::{Address, Grid, Launcher, Memory};
use crate::constants::{CHOOSE_RESIDENT as RESIDENT, CHOOSE_SHARED, STATS};
use crate::distance::Metric;
use crate::mined::Loss;
use crate::{Element, Error, Precision, Reduction};

/// One of these losses, and the options and shape of a call.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// The kernels' file, and the first part of their names.
    pub stem: &'static str,
    /// The first part of the names of those that depend on how negatives are chosen.
    pub choice: &'static str,
    pub rows: usize,
    pub others: Option<usize>,
    pub dim: usize,
    pub metric: Metric,
    pub normalize: bool,
    pub precision: Precision,
    pub margin: f64,
    pub reduction: Reduction,
    /// Pairs (a, p) with a before p alone.
    pub once: bool,
    pub draw: Option<Draw>,
}

/// A loss that launches these kernels.
pub trait Plan: Loss {
    /// How.
    fn plan(problem: &Self::Problem) -> Problem;
}

impl<L: Plan> OnDevice for L {
    type Kept<M: Memory> = Chosen<M>;

    unsafe fn forward<T: Element, D: Launcher>(
        launcher: &D,
        problem: &Self::Problem,
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Chosen<D::Memory>, Error> {
        // SAFETY: the caller's contract.
        unsafe { forward::<T, D>(launcher, &L::plan(problem), inputs, output, with_grad != [false; 2]) }
    }

    unsafe fn backward<T: Element, D: Launcher>(
        launcher: &D,
        problem: &Self::Problem,
        chosen: &Chosen<D::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { backward::<T, D>(launcher, &L::plan(problem), chosen, inputs, upstream, grads) }
    }
}

/// A random choice.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    pub seed: u64,
    /// Of those farther than the positive.
    pub beyond: bool,
}

/// What the backward pass needs of a forward pass.
#[doc(hidden)]
pub struct Chosen<M> {
    sides: Sides,
    at: Places,
    /// What they point to.
    _memory: (Vec<M>, M),
}

/// Part of `Args` of kernels/triplets.cuh: all but the sides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Places {
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
    ticket: Address,
    step: Address,
    upstream: Address,
    upstream_stride: i64,
    grad: Address,
    work: Address,
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
    at: Places,
}

/// Dynamic shared memory of a block of `choose`.
fn shared_bytes(product: Product) -> u32 {
    product.of_planes(CHOOSE_SHARED)
}

/// # Safety
/// As [`OnDevice::forward`](super::mined::OnDevice::forward). What is chosen is one u32 for each pair of an anchor and a row
/// of its class, in class order: the negative's index, `u32::MAX` without one.
unsafe fn forward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &Problem,
    inputs: &Inputs,
    output: &Output,
    with_grad: bool,
) -> Result<Chosen<L::Memory>, Error> {
    let product = Product::of::<T>(problem.precision);
    let Problem { stem, choice, rows, dim, metric, normalize, others, .. } = *problem;
    let shape = batch::Problem { rows, dim, metric, normalize, product };
    // SAFETY: the caller's contract.
    let PreparedSides { sides, shapes, kept, scratch } =
        unsafe { batch::prepare_sides::<T, L>(launcher, &shape, others, inputs)? };
    let others = shapes[1].rows;

    let splits = shape.even_splits_of(shapes[1].tiles(), RESIDENT, launcher.properties());
    let row_blocks = shapes.each_ref().map(|shape| shape.row_blocks(launcher.properties()));
    // Pairs are numbered with u32.
    let capacity = batch::capacity(rows, others).min(u32::MAX as usize);
    let mut selection = Layout::default();
    let (ticket, stats) = (selection.part(1, 4), selection.part(STATS, 8));
    let times = selection.part(others, 4);
    let (start, link) = (selection.part(rows + 1, 8), selection.part(others + 1, 8));
    let per_pair = [(); 5].map(|()| selection.part(capacity, 4));
    let linked = selection.part(if with_grad { capacity } else { 0 }, 4);
    let mut passing = Layout::default();
    let (key, row_key) = (passing.part(capacity, 8), passing.part(rows, 8));
    let drawn = problem.draw.is_some();
    let word = passing.part(if drawn { capacity } else { 0 }, 4);
    let hash = [rows, others].map(|rows| passing.part(if drawn { rows } else { 0 }, 8));
    let row_word = passing.part(if drawn { others } else { 0 }, 4);
    let partials = passing.part(STATS * row_blocks[0] as usize, 8);
    let (selection, passing) = (selection.allocate(launcher)?, passing.allocate(launcher)?);

    let in_selection = |at: Address| selection.address() + at;
    let in_passing = |at: Address| passing.address() + at;
    let [anchor, d_ap, negative, d_an, weight] = per_pair.map(in_selection);
    let draw = problem.draw.unwrap_or(Draw { seed: 0, beyond: false });
    let at = Places {
        start: in_selection(start),
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
        times: in_selection(times),
        link: in_selection(link),
        linked: in_selection(linked),
        losses: output.losses,
        loss: output.loss,
        stats: if output.stats == 0 { in_selection(stats) } else { output.stats },
        partials: in_passing(partials),
        ticket: in_selection(ticket),
        step: inputs.step,
        margin: problem.margin,
        capacity: capacity as u64,
        seed: draw.seed,
        splits,
        kind: batch::kind(metric),
        mean: (problem.reduction == Reduction::Mean).into(),
        beyond: draw.beyond.into(),
        once: problem.once.into(),
        ..Places::zeroed()
    };
    // SAFETY: parts of our own allocation.
    unsafe {
        launcher.clear(at.ticket, 4)?;
        launcher.clear(at.times, others * 4)?;
    }
    let args = Args { sides, at };
    let launch = |kernel: String, grid: Grid| {
        // SAFETY: `Args` is these kernels' argument; the sides are prepared, and our allocations are laid out above and live
        // as `Memory` says.
        unsafe { launcher.launch(stem, &kernel, grid, bytemuck::bytes_of(&args)) }
    };
    let blocks = |blocks: u32| Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
    launch(format!("{stem}_starts"), blocks(1))?;
    if drawn {
        launch(format!("{stem}_words_{}", T::NAME), blocks(row_blocks[0].max(row_blocks[1])))?;
    }
    launch(format!("{choice}_pairs_{}", T::NAME), blocks(row_blocks[0]))?;
    let tile_grid =
        Grid { blocks: shape.tiles() * splits, threads: batch::TILE_THREADS, shared_bytes: shared_bytes(product) };
    launch(format!("{choice}_choose_{}", product.tile), tile_grid)?;
    launch(format!("{choice}_finish_{}", T::NAME), blocks(row_blocks[0]))?;
    if with_grad {
        launch(format!("{stem}_links"), blocks(1))?;
        launch(format!("{stem}_fill"), blocks(row_blocks[0]))?;
        launch(format!("{stem}_order"), blocks(row_blocks[1]))?;
    }
    drop((scratch, passing));
    Ok(Chosen { sides, at, _memory: (kept, selection) })
}

/// # Safety
/// As [`OnDevice::backward`](super::mined::OnDevice::backward), for a forward pass with gradients.
unsafe fn backward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &Problem,
    chosen: &Chosen<L::Memory>,
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
        let at = Places {
            upstream,
            upstream_stride: (problem.reduction == Reduction::None).into(),
            grad,
            work: work.as_ref().map_or(grad, Memory::address),
            which: which as u32,
            ..chosen.at
        };
        let args = Args { sides: chosen.sides.moved_to(inputs), at };
        let blocks = (rows as u32).div_ceil(batch::THREADS / 32);
        let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
        let kernel = format!("{}_backward_{}", problem.stem, T::NAME);
        // SAFETY: as in `forward`; the selection lives in `chosen`.
        unsafe { launcher.launch(problem.stem, &kernel, grid, bytemuck::bytes_of(&args))? };
    }
    Ok(())
}
