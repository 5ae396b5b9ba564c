//! The launches of kernels/batch_hard.cu.

use bytemuck::{Pod, Zeroable};

use super::{BatchHardTripletLoss, Problem};
use crate::cuda::batch::{self, Batch, Input, Layout, Product};
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Element, Error, Reduction};

const STEM: &str = "batch_hard";

/// Where a forward pass writes, in device memory; 0: not wanted, or to memory of its own.
#[derive(Clone, Copy, Debug, Default)]
#[doc(hidden)]
pub struct Output {
    /// One f32 a row.
    pub losses: Address,
    /// The reduced loss, an f32.
    pub loss: Address,
    /// Per anchor the index of its positive, a u32; `u32::MAX` without both.
    pub positive: Address,
    /// Per anchor the index of its negative.
    pub negative: Address,
    /// Five f64: valid and active anchors, the sums of the valid anchors' two distances, and what the sum of the losses
    /// is multiplied by.
    pub stats: Address,
}

/// What the backward pass needs of a forward pass.
#[doc(hidden)]
pub struct Mined<M> {
    batch: Batch,
    at: Places,
    /// What they point to.
    _memory: [M; 2],
}

/// `Args` of kernels/batch_hard.cu, but for the batch.
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
}

/// `Args` of kernels/batch_hard.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    batch: Batch,
    at: Places,
}
const _: () = assert!(size_of::<Args>() == size_of::<Batch>() + 152, "Args must match kernels/batch_hard.cu");

/// valid, active, sums of the distances, and what the sum of the losses is multiplied by.
const STATS: usize = 5;

/// Every kernel that a call can launch.
#[doc(hidden)]
pub fn kernel_names() -> Vec<String> {
    let tiles = ["highest", "high", "f16", "bf16"].map(|tile| format!("{STEM}_negatives_{tile}"));
    let steps = ["finish", "backward"].into_iter();
    let steps = steps.flat_map(|step| ["f32", "f16", "bf16"].map(|dtype| format!("{STEM}_{step}_{dtype}")));
    tiles.into_iter().chain(steps).collect()
}

fn prepared(problem: &Problem, product: Product) -> batch::Problem {
    batch::Problem {
        rows: problem.rows,
        dim: problem.dim,
        metric: problem.metric,
        normalize: problem.normalize,
        product,
    }
}

/// Mines the batch and writes its loss.
///
/// # Safety
/// `input` as for `batch::prepare`; the outputs are device memory of one f32, or one a row; all alive until the kernels
/// have run.
pub(crate) unsafe fn forward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &Problem,
    input: &Input,
    output: &Output,
) -> Result<Mined<L::Memory>, Error> {
    let product = Product::of::<T>(problem.precision);
    let shape = prepared(problem, product);
    // SAFETY: the caller's contract.
    let batch::Prepared { batch, kept, scratch } = unsafe { batch::prepare::<T, L>(launcher, &shape, input, None)? };

    let (rows, tiles) = (problem.rows, shape.tiles());
    let splits = shape.splits(launcher.properties());
    let row_blocks = shape.row_blocks(launcher.properties());
    let mut selection = Layout::default();
    let (ticket, stats) = (selection.part(1, 4), selection.part(STATS, 8));
    let per_anchor = [(); 5].map(|()| selection.part(rows, 4));
    let mut passing = Layout::default();
    let padded = (tiles * crate::constants::TILE) as usize;
    let candidates = [(); 2].map(|()| passing.part(splits as usize * padded, 4));
    let partials = passing.part(STATS * row_blocks as usize, 8);
    let (selection, passing) = (selection.allocate(launcher)?, passing.allocate(launcher)?);

    let [positive, negative, d_ap, d_an, weight] = per_anchor.map(|at| selection.address() + at);
    let or_own = |wanted: Address, own: Address| if wanted == 0 { own } else { wanted };
    let at = Places {
        candidate: passing.address() + candidates[0],
        candidate_row: passing.address() + candidates[1],
        positive: or_own(output.positive, positive),
        negative: or_own(output.negative, negative),
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
    let args = Args { batch, at };
    let tile_grid = Grid { blocks: tiles * splits, threads: batch::TILE_THREADS, shared_bytes: product.shared_bytes() };
    // SAFETY: `Args` is these kernels' argument; the batch is prepared, and our allocations are laid out above and live
    // as `Memory` says.
    unsafe {
        launcher.launch(STEM, &format!("{STEM}_negatives_{}", product.tile), tile_grid, bytemuck::bytes_of(&args))?;
        let grid = Grid { blocks: row_blocks, threads: batch::THREADS, shared_bytes: 0 };
        launcher.launch(STEM, &format!("{STEM}_finish_{}", T::NAME), grid, bytemuck::bytes_of(&args))?;
    }
    drop((scratch, passing));
    Ok(Mined { batch, at, _memory: [kept, selection] })
}

/// The gradient of what `forward` mined, times `upstream` (one f32, or one a row).
///
/// # Safety
/// `input` holds what it held in the forward pass, wherever it lies now; `grad` is `[rows, dim]` of T, contiguous; all
/// alive until the kernel has run.
pub(crate) unsafe fn backward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &Problem,
    mined: &Mined<L::Memory>,
    input: &Input,
    upstream: (Address, bool),
    grad: Address,
) -> Result<(), Error> {
    let work = match size_of::<T>() {
        2 => Some(launcher.allocate(problem.rows * problem.dim * size_of::<f32>())?),
        _ => None,
    };
    let at = Places {
        upstream: upstream.0,
        upstream_stride: upstream.1.into(),
        grad,
        work: work.as_ref().map_or(grad, Memory::address),
        ..mined.at
    };
    let args = Args { batch: mined.batch.moved_to(input), at };
    let grid =
        Grid { blocks: (problem.rows as u32).div_ceil(batch::THREADS / 32), threads: batch::THREADS, shared_bytes: 0 };
    // SAFETY: as in `forward`; the selection lives in `mined`.
    unsafe { launcher.launch(STEM, &format!("{STEM}_backward_{}", T::NAME), grid, bytemuck::bytes_of(&args)) }
}

/// For callers that hold device memory of their own: tests on whatever implements [`Launcher`].
impl BatchHardTripletLoss {
    /// Forward on the launcher's memory.
    ///
    /// # Safety
    /// As [`forward`], for embeddings `[rows, dim]`.
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    #[doc(hidden)]
    pub unsafe fn forward_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        [rows, dim]: [usize; 2],
        input: &Input,
        output: &Output,
    ) -> Result<Mined<L::Memory>, Error> {
        // SAFETY: the caller's contract.
        unsafe { forward::<T, L>(launcher, &self.checked(rows, dim, rows)?, input, output) }
    }

    /// Backward on the launcher's memory.
    ///
    /// # Safety
    /// As [`backward`], for what `forward_on` made of the same shape.
    ///
    /// # Errors
    /// If the device refuses.
    #[doc(hidden)]
    pub unsafe fn backward_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        [rows, dim]: [usize; 2],
        mined: &Mined<L::Memory>,
        input: &Input,
        upstream: Address,
        grad: Address,
    ) -> Result<(), Error> {
        let per_row = self.reduction == Reduction::None;
        // SAFETY: the caller's contract.
        unsafe { backward::<T, L>(launcher, &self.checked(rows, dim, rows)?, mined, input, (upstream, per_row), grad) }
    }
}
