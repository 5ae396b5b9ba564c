//! The launches of kernels/pairwise_distance.cu.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};

use super::{PairwiseDistance, Problem};
use crate::constants::{PUSH_SHARED, TILE};
use crate::cuda::batch::{self, Batch, Input, Layout, Prepared, Product, count_of};
use crate::cuda::{Address, CudaLauncher, CudaMatrix, Grid, Launcher, Memory, refuse_f64};
use crate::distance::Metric;
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

/// Both matrices, made ready.
struct Sides<M> {
    shape: [batch::Problem; 2],
    args: Args,
    _prepared: [Prepared<M>; 2],
}

impl<M: Memory> Sides<M> {
    /// # Safety
    /// `inputs` as for `batch::prepare`.
    unsafe fn prepare<T: Element, L: Launcher<Memory = M>>(
        launcher: &L,
        problem: &Problem,
        inputs: &[Input; 2],
    ) -> Result<Self, Error> {
        let Problem { rows, dim, metric, normalize, precision } = *problem;
        let product = Product::of::<T>(precision);
        let shape = rows.map(|rows| batch::Problem { rows, dim, metric, normalize, product });
        // SAFETY: the caller's contract; both are moved by the first one's nearest row.
        let prepared = unsafe {
            let first = batch::prepare::<T, L>(launcher, &shape[0], &inputs[0], None)?;
            let second = batch::prepare::<T, L>(launcher, &shape[1], &inputs[1], Some(&first.batch))?;
            [first, second]
        };
        let side = prepared.each_ref().map(|side| side.batch);
        let args = Args { side, kind: batch::kind(metric), ..Args::zeroed() };
        Ok(Self { shape, args, _prepared: prepared })
    }

    /// # Safety
    /// The addresses in `args` are those of the kernel's contract.
    unsafe fn tiles<L: Launcher>(&self, launcher: &L, args: &Args) -> Result<(), Error> {
        let [rows, columns] = self.shape.each_ref().map(batch::Problem::tiles);
        let Some(blocks) = rows.checked_mul(columns).filter(|blocks| i32::try_from(*blocks).is_ok()) else {
            let actual = format!("[{}, {}]", self.shape[0].rows, self.shape[1].rows);
            return Err(Error::argument("x and y", format!("fewer than 2^31 tiles of {TILE} x {TILE}"), actual));
        };
        let product = self.shape[0].product;
        let grid = Grid { blocks, threads: batch::TILE_THREADS, shared_bytes: product.shared_bytes() };
        // SAFETY: `Args` is this kernel's argument, and both batches are prepared.
        unsafe { launcher.launch(STEM, &format!("{STEM}_tiles_{}", product.tile), grid, bytemuck::bytes_of(args)) }
    }
}

/// Writes the distances to `out`.
///
/// # Safety
/// `inputs` as for `batch::prepare`, without labels; `out` is `[N, M]` of f32, contiguous; all alive until the kernels have run.
pub(crate) unsafe fn forward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &Problem,
    inputs: &[Input; 2],
    out: Address,
) -> Result<(), Error> {
    // SAFETY: the caller's contract.
    unsafe {
        let sides = Sides::prepare::<T, L>(launcher, problem, inputs)?;
        sides.tiles(launcher, &Args { out, ..sides.args })
    }
}

/// Writes the gradients; 0 in place of one skips it.
///
/// # Safety
/// As [`forward`]; `upstream` is `[N, M]` of f32, and `grads` `[N, D]` and `[M, D]` of T, all contiguous.
pub(crate) unsafe fn backward<T: Element, L: Launcher>(
    launcher: &L,
    problem: &Problem,
    inputs: &[Input; 2],
    upstream: Address,
    grads: [Address; 2],
) -> Result<(), Error> {
    // SAFETY: the caller's contract.
    let sides = unsafe { Sides::prepare::<T, L>(launcher, problem, inputs)? };
    let root = matches!(problem.metric, Metric::Difference { root: true, .. });
    let weights = match root {
        true => Some(launcher.allocate(count_of([problem.rows[0], problem.rows[1], size_of::<f32>()]))?),
        false => None,
    };
    if let Some(weights) = &weights {
        // SAFETY: as above; the weights are of the same shape.
        unsafe { sides.tiles(launcher, &Args { out: weights.address(), upstream, ..sides.args })? };
    }
    for (which, grad) in grads.into_iter().enumerate().filter(|(_, grad)| *grad != 0) {
        let shape = &sides.shape[which];
        let splits = shape.splits_of(sides.shape[1 - which].tiles(), launcher.properties());
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
            ..sides.args
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

/// For callers that hold device memory of their own: tests on whatever implements [`Launcher`].
impl PairwiseDistance {
    /// The distances on the launcher's memory.
    ///
    /// # Safety
    /// As [`forward`].
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    #[doc(hidden)]
    pub unsafe fn forward_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        rows: [usize; 2],
        dim: usize,
        inputs: &[Input; 2],
        out: Address,
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { forward::<T, L>(launcher, &self.checked(rows, [dim; 2])?, inputs, out) }
    }

    /// The gradients on the launcher's memory.
    ///
    /// # Safety
    /// As [`backward`].
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    #[doc(hidden)]
    pub unsafe fn backward_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        rows: [usize; 2],
        dim: usize,
        inputs: &[Input; 2],
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { backward::<T, L>(launcher, &self.checked(rows, [dim; 2])?, inputs, upstream, grads) }
    }
}

impl PairwiseDistance {
    /// [`distances`](Self::distances) on cudarc slices, in the order of `stream`: nothing waits for the device.
    ///
    /// The rows are f32, f16 or bf16.
    ///
    /// # Errors
    /// As [`distances`](Self::distances), or if the device refuses.
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
        // SAFETY: the addresses come from slices whose lengths were checked here and by `CudaMatrix`, borrowed for the call;
        // cudarc frees a slice on its stream, after the kernels, and so does the launcher what the pass allocates.
        unsafe { forward::<T, _>(&launcher, &problem, &inputs, out) }
    }

    /// [`grad`](Self::grad) on cudarc slices.
    ///
    /// # Errors
    /// As [`grad`](Self::grad), or if the device refuses.
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
        unsafe { backward::<T, _>(&launcher, &problem, &inputs, upstream, to) }
    }
}

fn input<'a, T>(stream: &'a Arc<CudaStream>, rows: &'a CudaMatrix<'_, T>, guards: &mut Vec<SyncOnDrop<'a>>) -> Input {
    let (x, guard) = rows.data.device_ptr(stream);
    guards.push(guard);
    Input { x, stride: rows.stride, labels: 0 }
}
