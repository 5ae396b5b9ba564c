//! The launches of kernels/pairwise_distance.cu.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};

use super::PairwiseDistance;
use super::cpu::PairwiseProblem;
use crate::Distance;
use crate::constants::{PUSH_SHARED, TILE};
use crate::cuda::arguments::Input;
use crate::cuda::batch::{self, Batch, BatchShape, Cores, Places, Product};
use crate::cuda::workspace::{Layout, Workspace, WorkspaceLayout, count_of};
use crate::cuda::{Address, CudaLauncher, CudaMatrix, Grid, Launcher, Memory, refuse_f64};
use crate::matrix::check_len;
use crate::{Element, Error};

const STEM: &str = "pairwise_distance";

/// `Args` of kernels/pairwise_distance.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    side: [Batch; 2],
    out: Address,
    upstream: Address,
    weight: Address,
    pushed: Address,
    grad: Address,
    kind: u32,
    which: u32,
    splits: u32,
    /// Four bytes that a compiler would leave unnamed at the end: `Pod` allows no gaps.
    padding: u32,
}

/// Both matrices, prepared for the kernels.
struct PreparedPair<M> {
    shape: [BatchShape; 2],
    args: Args,
    /// The memory that `args` points to.
    _memory: Workspace<M>,
}

impl<M: Memory> PreparedPair<M> {
    /// Launches the preparation of both matrices.
    ///
    /// # Safety
    /// `inputs` are as `batch::prepare` wants them.
    unsafe fn prepare<T: Element, L: Launcher<Memory = M>>(
        launcher: &L,
        problem: &PairwiseProblem,
        cores: Cores,
        inputs: &[Input; 2],
    ) -> Result<Self, Error> {
        let PairwiseProblem { rows, dim, distance, normalize, .. } = *problem;
        let product = Product::of::<T>(cores);
        let shape = rows.map(|rows| BatchShape { rows, dim, distance, normalize, product, keeps: false });
        let mut layout = WorkspaceLayout::default();
        let places = shape.each_ref().map(|shape| Places::new(shape, false, launcher.properties(), &mut layout));
        let memory = layout.allocate(launcher, true)?;
        // SAFETY: the caller's contract, for both inputs; the memory is for these places. The second batch is translated by the
        // same row as the first.
        let side = unsafe {
            let first = batch::prepare::<T, L>(launcher, &shape[0], &inputs[0], None, &places[0], &memory)?;
            let second = batch::prepare::<T, L>(launcher, &shape[1], &inputs[1], Some(&first), &places[1], &memory)?;
            [first, second]
        };
        let args = Args { side, kind: batch::kind(distance), ..Args::zeroed() };
        Ok(Self { shape, args, _memory: memory })
    }

    /// Launches the kernel that writes one number for each pair of rows.
    ///
    /// # Safety
    /// `args` holds both batches as prepared; `out` and, unless it is 0, `upstream` are device memory of `[N, M]` f32
    /// that lives until the kernel has run.
    unsafe fn tiles<L: Launcher>(&self, launcher: &L, args: &Args) -> Result<(), Error> {
        let [rows, columns] = self.shape.each_ref().map(BatchShape::tiles);
        let Some(blocks) = rows.checked_mul(columns).filter(|blocks| i32::try_from(*blocks).is_ok()) else {
            let actual = format!("[{}, {}]", self.shape[0].rows, self.shape[1].rows);
            return Err(Error::argument("x and y", format!("fewer than 2^31 tiles of {TILE} x {TILE}"), actual));
        };
        let product = self.shape[0].product;
        let grid = Grid { blocks, threads: batch::TILE_THREADS, shared_bytes: product.shared_bytes() };
        // SAFETY: `Args` is this kernel's argument, both batches are prepared, and the caller vouches for the rest.
        unsafe { launcher.launch(STEM, &format!("{STEM}_tiles_{}", product.name), grid, bytemuck::bytes_of(args)) }
    }
}

/// Writes the distances to `out`.
///
/// # Safety
/// `inputs` are as `batch::prepare` wants them, without labels; `out` is `[N, M]` of f32, contiguous; all alive until
/// the kernels have run.
pub(crate) unsafe fn forward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &PairwiseProblem,
    cores: Cores,
    inputs: &[Input; 2],
    out: Address,
) -> Result<(), Error> {
    // SAFETY: the caller's contract.
    unsafe {
        let pair = PreparedPair::prepare::<T, L>(launcher, problem, cores, inputs)?;
        pair.tiles(launcher, &Args { out, ..pair.args })
    }
}

/// Writes the gradients with respect to both matrices; 0 in place of a gradient skips it.
///
/// # Safety
/// As [`forward`]; `upstream` is `[N, M]` of f32, and `grads` `[N, D]` and `[M, D]` of T, all contiguous.
pub(crate) unsafe fn backward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &PairwiseProblem,
    cores: Cores,
    inputs: &[Input; 2],
    upstream: Address,
    grads: [Address; 2],
) -> Result<(), Error> {
    // SAFETY: the caller's contract.
    let pair = unsafe { PreparedPair::prepare::<T, L>(launcher, problem, cores, inputs)? };
    let root = problem.distance == Distance::Euclidean;
    let weights = match root {
        true => Some(launcher.allocate(count_of([problem.rows[0], problem.rows[1], size_of::<f32>()]))?),
        false => None,
    };
    if let Some(weights) = &weights {
        // SAFETY: the caller's contract; the weights are `[N, M]` of f32, our own allocation, which lives as `Memory`
        // says.
        unsafe { pair.tiles(launcher, &Args { out: weights.address(), upstream, ..pair.args })? };
    }
    for (which, grad) in grads.into_iter().enumerate().filter(|(_, grad)| *grad != 0) {
        let shape = &pair.shape[which];
        let splits = shape.splits_of(pair.shape[1 - which].tiles(), launcher.properties());
        let padded = shape.padded();
        let mut layout = Layout::default();
        let pushed = layout.part(count_of([splits as usize, padded, problem.dim]), 4);
        let memory = layout.allocate(launcher)?;
        let args = Args {
            weight: weights.as_ref().map_or(upstream, Memory::address),
            pushed: memory.address() + pushed,
            grad,
            which: which as u32,
            splits,
            ..pair.args
        };
        let launch = |kernel: String, blocks: u32, threads: u32, shared_bytes: u32| {
            let grid = Grid { blocks, threads, shared_bytes };
            // SAFETY: `Args` is these kernels' argument; our memory is laid out above and lives as `Memory` says.
            unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args)) }
        };
        launch(format!("{STEM}_push"), shape.tiles() * splits, batch::TILE_THREADS, PUSH_SHARED)?;
        let rows = (shape.rows as u32).div_ceil(batch::THREADS / 32);
        launch(format!("{STEM}_finish_{}", T::NAME), rows, batch::THREADS, 0)?;
    }
    Ok(())
}

impl PairwiseDistance {
    /// [`distances`](Self::distances) on cudarc slices, in the order of `stream`: nothing waits for the device.
    ///
    /// The rows are f32, f16 or bf16.
    ///
    /// # Errors
    /// Those of [`distances`](Self::distances), or if the rows are f64, or the device refuses.
    pub fn distances_cuda<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        x: CudaMatrix<'_, T>,
        y: CudaMatrix<'_, T>,
        to: &mut CudaSlice<f32>,
    ) -> Result<(), Error> {
        refuse_f64::<T>("x and y")?;
        let problem = self.checked([x.rows, y.rows], [x.dim, y.dim])?;
        check_len("to", to.len(), problem.rows[0] * problem.rows[1])?;
        let launcher = CudaLauncher::new(stream)?;
        let (both, mut guards) = ([x, y], Vec::new());
        let inputs = both.each_ref().map(|rows| input(stream, rows, &mut guards));
        let (out, guard) = to.device_ptr_mut(stream);
        guards.push(guard);
        // SAFETY: the addresses come from slices whose lengths were checked here and by `CudaMatrix`, borrowed for the
        // call; cudarc frees a slice on its stream, after the kernels, and so does the launcher what the pass
        // allocates.
        unsafe { forward::<T, _>(&launcher, &problem, problem.precision.into(), &inputs, out) }
    }

    /// [`grad`](Self::grad) on cudarc slices, in the order of `stream`: nothing waits for the device.
    ///
    /// # Errors
    /// Those of [`grad`](Self::grad), or if the rows are f64, or the device refuses.
    pub fn grad_cuda<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        x: CudaMatrix<'_, T>,
        y: CudaMatrix<'_, T>,
        upstream: &CudaSlice<f32>,
        mut grads: [Option<&mut CudaSlice<T>>; 2],
    ) -> Result<(), Error> {
        refuse_f64::<T>("x and y")?;
        let problem = self.checked([x.rows, y.rows], [x.dim, y.dim])?;
        check_len("upstream", upstream.len(), problem.rows[0] * problem.rows[1])?;
        problem.check_grads(grads.each_ref().map(|grad| grad.as_ref().map(|grad| grad.len())))?;
        let launcher = CudaLauncher::new(stream)?;
        let (both, mut guards) = ([x, y], Vec::new());
        let inputs = both.each_ref().map(|rows| input(stream, rows, &mut guards));
        let (upstream, guard) = upstream.device_ptr(stream);
        guards.push(guard);
        let to = grads.each_mut().map(|grad| {
            let Some(grad) = grad else { return 0 };
            let (address, guard) = grad.device_ptr_mut(stream);
            guards.push(guard);
            address
        });
        // SAFETY: as in `distances_cuda`.
        unsafe { backward::<T, _>(&launcher, &problem, problem.precision.into(), &inputs, upstream, to) }
    }
}

fn input<'a, T>(stream: &'a Arc<CudaStream>, rows: &'a CudaMatrix<'_, T>, guards: &mut Vec<SyncOnDrop<'a>>) -> Input {
    let (x, guard) = rows.data.device_ptr(stream);
    guards.push(guard);
    Input { x, stride: rows.stride, labels: 0 }
}
