//! The launches of kernels/batch_all.cu.

use bytemuck::{Pod, Zeroable};

use super::{BatchAllTripletLoss, MeanOver, Problem};
use crate::constants::{COMPARED, TILE};
use crate::cuda::batch::{self, Batch, Input, Layout, Product};
use crate::cuda::{Address, Grid, Launcher, Memory};
use crate::{Element, Error, Reduction};

const STEM: &str = "batch_all";

/// Where a forward pass writes, in device memory; 0: not wanted, or to memory of its own.
#[derive(Clone, Copy, Debug, Default)]
#[doc(hidden)]
pub struct Output {
    /// The reduced loss, an f32.
    pub loss: Address,
    /// Five f64: valid and active triplets, the sums of the valid triplets' two distances, and what the sum of the losses
    /// is multiplied by.
    pub stats: Address,
}

/// What the backward pass needs of a forward pass.
#[doc(hidden)]
pub struct Swept<M> {
    batch: Batch,
    at: Places,
    /// What they point to.
    _memory: [M; 2],
}

/// `Args` of kernels/batch_all.cu, but for the batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Places {
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
    state: Address,
    loss: Address,
    stats: Address,
    upstream: Address,
    grad: Address,
    margin: f64,
    capacity: u64,
    splits: u32,
    kind: u32,
    mean: u32,
    unused: u32,
}

/// `Args` of kernels/batch_all.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    batch: Batch,
    at: Places,
}
const _: () = assert!(size_of::<Args>() == size_of::<Batch>() + 152, "Args must match kernels/batch_all.cu");

/// valid, active, sums of the distances, and what the sum of the losses is multiplied by.
const STATS: usize = 5;

/// Every kernel that a call can launch.
#[doc(hidden)]
pub fn kernel_names() -> Vec<String> {
    let tiles = ["highest", "high", "f16", "bf16"].map(|tile| format!("{STEM}_sweep_{tile}"));
    let typed = ["pairs", "finish", "backward"].into_iter();
    let typed = typed.flat_map(|step| ["f32", "f16", "bf16"].map(|dtype| format!("{STEM}_{step}_{dtype}")));
    let untyped = ["starts", "sort", "ranks"].map(|step| format!("{STEM}_{step}"));
    tiles.into_iter().chain(typed).chain(untyped).collect()
}

/// How many pairs of rows of one class there is room for. Their number is known on the device alone, and to ask it would
/// be to wait for it; so there is room for any classes of up to 2048 rows in all, and beyond for 128 rows a class.
#[doc(hidden)]
pub fn capacity(rows: usize) -> usize {
    (rows * rows).min((128 * rows).max(1 << 22))
}

/// `sizeof(Shared)` of kernels/batch_all.cu.
fn shared_bytes(product: Product) -> u32 {
    product.shared_bytes().max(batch::ROW_CHUNKS_BYTES) + 2 * batch::WEIGHT_TILE_BYTES + COMPARED * TILE * 4
}

/// Sweeps the batch and writes its loss; with `with_grad` what `backward` needs, too.
///
/// # Safety
/// `input` as for `batch::prepare`; the outputs are device memory of one f32 and of five f64; all alive until the kernels
/// have run.
pub(crate) unsafe fn forward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &Problem,
    input: &Input,
    output: &Output,
    with_grad: bool,
) -> Result<Swept<L::Memory>, Error> {
    let product = Product::of::<T>(problem.precision);
    let Problem { rows, dim, metric, normalize, .. } = *problem;
    let shape = batch::Problem { rows, dim, metric, normalize, product };
    // SAFETY: the caller's contract.
    let batch::Prepared { batch, kept, scratch } = unsafe { batch::prepare::<T, L>(launcher, &shape, input, None)? };

    let tiles = shape.tiles();
    let padded = (tiles * TILE) as usize;
    let splits = shape.splits(launcher.properties());
    let row_blocks = shape.row_blocks(launcher.properties());
    let capacity = capacity(rows);
    let mut result = Layout::default();
    let (state, stats) = (result.part(2, 4), result.part(STATS, 8));
    let gradient = result.part(if with_grad { rows * dim } else { 0 }, 4);
    let mut passing = Layout::default();
    let start = passing.part(rows + 1, 8);
    let of_pairs = [(); 4].map(|()| passing.part(capacity, 4));
    let reach = passing.part(rows, 4);
    let pushed = passing.part(if with_grad { splits as usize * padded * dim } else { 0 }, 4);
    let sums = passing.part(splits as usize * padded * 2, 8);
    let partials = passing.part(STATS * row_blocks as usize, 8);
    let (result, passing) = (result.allocate(launcher)?, passing.allocate(launcher)?);

    let [distance, threshold, owner, count] = of_pairs.map(|at| passing.address() + at);
    let at = Places {
        start: passing.address() + start,
        distance,
        threshold,
        owner,
        count,
        reach: passing.address() + reach,
        pushed: passing.address() + pushed,
        sums: passing.address() + sums,
        gradient: if with_grad { result.address() + gradient } else { 0 },
        partials: passing.address() + partials,
        state: result.address() + state,
        loss: output.loss,
        stats: if output.stats == 0 { result.address() + stats } else { output.stats },
        margin: problem.margin,
        capacity: capacity as u64,
        splits,
        kind: batch::kind(metric),
        mean: match (problem.reduction, problem.mean_over) {
            (Reduction::Mean, MeanOver::Active) => 1,
            (Reduction::Mean, MeanOver::Valid) => 2,
            _ => 0,
        },
        ..Places::zeroed()
    };
    // SAFETY: the first bytes of our own allocation.
    unsafe { launcher.clear(at.state, 8)? };
    let args = Args { batch, at };
    let launch = |kernel: String, blocks: u32| {
        let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
        // SAFETY: `Args` is these kernels' argument; the batch is prepared, and our allocations are laid out above and
        // live as `Memory` says.
        unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args)) }
    };
    launch(format!("{STEM}_starts"), 1)?;
    launch(format!("{STEM}_pairs_{}", T::NAME), row_blocks)?;
    let has_large = rows > COMPARED as usize;
    if has_large {
        launch(format!("{STEM}_sort"), row_blocks)?;
    }
    let grid = Grid { blocks: tiles * splits, threads: batch::TILE_THREADS, shared_bytes: shared_bytes(product) };
    // SAFETY: as above.
    unsafe { launcher.launch(STEM, &format!("{STEM}_sweep_{}", product.tile), grid, bytemuck::bytes_of(&args))? };
    if has_large {
        launch(format!("{STEM}_ranks"), row_blocks)?;
    }
    launch(format!("{STEM}_finish_{}", T::NAME), row_blocks)?;
    drop((scratch, passing));
    Ok(Swept { batch, at, _memory: [kept, result] })
}

/// The gradient of what `forward` swept, times `upstream`, an f32.
///
/// # Safety
/// `swept` is of a forward pass with gradient; `grad` is `[rows, dim]` of T, contiguous; both, and the statistics if the
/// forward pass was given a place for them, alive until the kernel has run.
pub(crate) unsafe fn backward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &Problem,
    swept: &Swept<L::Memory>,
    upstream: Address,
    grad: Address,
) -> Result<(), Error> {
    let args = Args { batch: swept.batch, at: Places { upstream, grad, ..swept.at } };
    let properties = launcher.properties();
    let resident = properties.multiprocessors * (properties.threads_per_multiprocessor / batch::THREADS);
    let wanted = (problem.rows * problem.dim).div_ceil(batch::THREADS as usize);
    let blocks = wanted.min(resident as usize) as u32;
    let grid = Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
    // SAFETY: as in `forward`; the gradient lives in `swept`.
    unsafe { launcher.launch(STEM, &format!("{STEM}_backward_{}", T::NAME), grid, bytemuck::bytes_of(&args)) }
}

/// For callers that hold device memory of their own: tests on whatever implements [`Launcher`].
impl BatchAllTripletLoss {
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
        with_grad: bool,
    ) -> Result<Swept<L::Memory>, Error> {
        // SAFETY: the caller's contract.
        unsafe { forward::<T, L>(launcher, &self.checked(rows, dim, rows)?, input, output, with_grad) }
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
        swept: &Swept<L::Memory>,
        upstream: Address,
        grad: Address,
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { backward::<T, L>(launcher, &self.checked(rows, dim, rows)?, swept, upstream, grad) }
    }
}
