//! The launches of kernels/pairwise_distance.cu.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};

use super::PairwiseDistance;
use super::cpu::PairwiseProblem;
use crate::Distance;
use crate::constants::{PUSH_SHARED, SWEEP_LEFT_SHARED, TILE, UNIT_ROWS};
use crate::cuda::arguments::Input;
use crate::cuda::batch::{self, BatchShape, Cores, Places, Product, Sides};
use crate::cuda::sweep::{Swept, TileOf};
use crate::cuda::targets::{self, Sweep};
use crate::cuda::workspace::{Workspace, WorkspaceLayout, count_of};
use crate::cuda::{Address, CudaLauncher, CudaMatrix, Grid, Launcher, Memory, refuse_f64};
use crate::matrix::check_len;
use crate::{Element, Error};

const STEM: &str = "pairwise_distance";

/// `Args` of kernels/pairwise_distance.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    sides: Sides,
    sweep: Swept,
    tiles: [Address; 2],
    largest: [Address; 2],
    out: Address,
    upstream: Address,
    weight: Address,
    grad: Address,
    kind: u32,
    /// Four bytes that a compiler would leave unnamed at the end: `Pod` allows no gaps.
    padding: u32,
}

/// Both matrices, prepared for the kernels.
struct PreparedPair<M> {
    shapes: [BatchShape; 2],
    args: Args,
    /// The memory that `args` points to.
    workspace: Workspace<M>,
}

/// The shapes of both matrices.
fn shapes<T: Element>(problem: &PairwiseProblem, cores: Cores) -> [BatchShape; 2] {
    let PairwiseProblem { rows, dim, distance, normalize, .. } = *problem;
    let product = Product::of::<T>(cores);
    rows.map(|rows| BatchShape { rows, dim, distance, normalize, product, keeps: false })
}

impl<M: Memory> PreparedPair<M> {
    /// Allocates what `layout` has and what the matrices need, and launches the preparation of both.
    ///
    /// # Safety
    /// `inputs` are as `batch::prepare` wants them.
    unsafe fn prepare<T: Element, L: Launcher<Memory = M>>(
        launcher: &L,
        problem: &PairwiseProblem,
        shapes: [BatchShape; 2],
        inputs: &[Input; 2],
        mut layout: WorkspaceLayout,
    ) -> Result<Self, Error> {
        let no_class = layout.zeroed.part(problem.rows[0].max(problem.rows[1]), 4);
        let places = shapes.each_ref().map(|shape| Places::new(shape, false, launcher.properties(), &mut layout));
        let workspace = layout.allocate(launcher, true)?;
        // SAFETY: the caller's contract, for both inputs; the memory is for these places. The second batch is translated by the
        // same row as the first.
        let [x, y] = unsafe {
            let first = batch::prepare::<T, L>(launcher, &shapes[0], &inputs[0], None, &places[0], &workspace)?;
            let second =
                batch::prepare::<T, L>(launcher, &shapes[1], &inputs[1], Some(&first), &places[1], &workspace)?;
            [first, second]
        };
        let sides = Sides::of_no_classes(x, y, workspace.zeroed().0 + no_class);
        let args = Args { sides, kind: batch::kind(problem.distance), ..Args::zeroed() };
        Ok(Self { shapes, args, workspace })
    }

    /// Launches the kernel that writes one number for each pair of rows.
    ///
    /// # Safety
    /// `args` holds both batches as prepared; `out` and, unless it is 0, `upstream` are device memory of `[N, M]` f32
    /// that lives until the kernel has run.
    unsafe fn tiles<L: Launcher>(&self, launcher: &L, args: &Args) -> Result<(), Error> {
        let [rows, columns] = self.shapes.each_ref().map(BatchShape::tiles);
        let product = self.shapes[0].product;
        let grid = Grid {
            blocks: self.blocks(rows, columns)?,
            threads: batch::TILE_THREADS,
            shared_bytes: product.shared_bytes(),
        };
        // SAFETY: `Args` is this kernel's argument, both batches are prepared, and the caller vouches for the rest.
        unsafe { launcher.launch(STEM, &format!("{STEM}_tiles_{}", product.name), grid, bytemuck::bytes_of(args)) }
    }

    /// A block for each of so many parts of the rows and of the columns.
    fn blocks(&self, rows: u32, columns: u32) -> Result<u32, Error> {
        rows.checked_mul(columns).filter(|blocks| i32::try_from(*blocks).is_ok()).ok_or_else(|| {
            let actual = format!("[{}, {}]", self.shapes[0].rows, self.shapes[1].rows);
            Error::argument("x and y", format!("fewer than 2^31 tiles of {TILE} x {TILE}"), actual)
        })
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
    let shapes = shapes::<T>(problem, cores);
    // SAFETY: the caller's contract.
    unsafe {
        let pair = PreparedPair::prepare::<T, L>(launcher, problem, shapes, inputs, WorkspaceLayout::default())?;
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
    unsafe {
        match cores {
            Cores::Tensor(_) => sweep::<T, L>(launcher, problem, cores, inputs, upstream, grads),
            Cores::Cuda => push::<T, L>(launcher, problem, cores, inputs, upstream, grads),
        }
    }
}

/// The gradients by a sweep over each side's rows.
///
/// # Safety
/// As [`backward`].
unsafe fn sweep<T: Element, L: Launcher>(
    launcher: &L,
    problem: &PairwiseProblem,
    cores: Cores,
    inputs: &[Input; 2],
    upstream: Address,
    grads: [Address; 2],
) -> Result<(), Error> {
    let shapes = shapes::<T>(problem, cores);
    let (product, properties) = (shapes[0].product, launcher.properties());
    let sweep = Sweep::of(&product, problem.dim, targets::of_terms, properties);
    let mut layout = WorkspaceLayout::default();
    let WorkspaceLayout { passing, zeroed, .. } = &mut layout;
    let tiles = shapes.each_ref().map(|shape| zeroed.part(shape.tiles() as usize, size_of::<TileOf>()));
    let largest = shapes.each_ref().map(|shape| zeroed.part(shape.padded(), 4));
    let of_sides = [0, 1].map(|which| {
        let wanted = grads[which] != 0;
        Swept::lay_out(&sweep, &shapes, which, wanted, wanted, properties, passing)
    });
    // SAFETY: the caller's contract.
    let pair = unsafe { PreparedPair::prepare::<T, L>(launcher, problem, shapes, inputs, layout)? };
    let (shapes, zeros) = (&pair.shapes, pair.workspace.zeroed().0);
    let args = Args { tiles: tiles.map(|at| zeros + at), largest: largest.map(|at| zeros + at), upstream, ..pair.args };
    let launch = |kernel: String, grid: Grid, args: &Args| {
        // SAFETY: `Args` is these kernels' argument; both batches are prepared, our memory is laid out above and lives as
        // `Memory` says, and the caller vouches for the rest.
        unsafe { launcher.launch(STEM, &format!("{STEM}_{kernel}"), grid, bytemuck::bytes_of(args)) }
    };
    let by_rows = |blocks: u32| Grid { blocks, threads: batch::THREADS, shared_bytes: 0 };
    let of_units = [(shapes[0].rows as u32).div_ceil(UNIT_ROWS), (shapes[1].rows as u32).div_ceil(batch::THREADS)];
    launch("units".into(), by_rows(pair.blocks(of_units[0], of_units[1])?), &args)?;
    let root = if problem.distance == Distance::Euclidean { "root_" } else { "" };
    for (which, grad) in grads.into_iter().enumerate().filter(|(_, grad)| *grad != 0) {
        let of_side = of_sides[which];
        let args = Args { sweep: of_side.at(pair.workspace.passing()), grad, ..args };
        let blocks = shapes[which].tiles() * of_side.splits;
        let grid = Grid { blocks, threads: sweep.threads(), shared_bytes: sweep.shared_bytes };
        launch(format!("sweep_{root}{}_{}", product.name, sweep.name), grid, &args)?;
        let shared_bytes = product.of_planes(SWEEP_LEFT_SHARED);
        launch(format!("left_{}", product.name), Grid { blocks, threads: batch::TILE_THREADS, shared_bytes }, &args)?;
        let rows = (shapes[which].rows as u32).div_ceil(batch::THREADS / 32);
        launch(format!("backward_{}_{}", T::NAME, product.name), by_rows(rows), &args)?;
    }
    Ok(())
}

/// The gradients by differences, on CUDA cores.
///
/// # Safety
/// As [`backward`].
unsafe fn push<T: Element, L: Launcher>(
    launcher: &L,
    problem: &PairwiseProblem,
    cores: Cores,
    inputs: &[Input; 2],
    upstream: Address,
    grads: [Address; 2],
) -> Result<(), Error> {
    let shapes = shapes::<T>(problem, cores);
    let mut layout = WorkspaceLayout::default();
    let root = problem.distance == Distance::Euclidean;
    let distances = layout.passing.part(if root { count_of(problem.rows) } else { 0 }, 4);
    let of_sides = [0, 1].map(|which: usize| {
        let shape = &shapes[which];
        let splits = shape.splits_of(shapes[1 - which].tiles(), launcher.properties());
        let wanted = if grads[which] == 0 { 0 } else { count_of([splits as usize, shape.padded(), problem.dim]) };
        Swept::of_pushes(layout.passing.part(wanted, 4), splits, which)
    });
    // SAFETY: the caller's contract.
    let pair = unsafe { PreparedPair::prepare::<T, L>(launcher, problem, shapes, inputs, layout)? };
    let mut args = Args { weight: upstream, ..pair.args };
    if root {
        args.weight = pair.workspace.passing() + distances;
        // SAFETY: the caller's contract; the weights are `[N, M]` of f32, laid out above.
        unsafe { pair.tiles(launcher, &Args { out: args.weight, upstream, ..pair.args })? };
    }
    for (which, grad) in grads.into_iter().enumerate().filter(|(_, grad)| *grad != 0) {
        let (shape, sweep) = (&pair.shapes[which], of_sides[which].at(pair.workspace.passing()));
        let args = Args { sweep, grad, ..args };
        let launch = |kernel: String, blocks: u32, threads: u32, shared_bytes: u32| {
            let grid = Grid { blocks, threads, shared_bytes };
            // SAFETY: `Args` is these kernels' argument; our memory is laid out above and lives as `Memory` says.
            unsafe { launcher.launch(STEM, &kernel, grid, bytemuck::bytes_of(&args)) }
        };
        launch(format!("{STEM}_push"), shape.tiles() * sweep.splits, batch::TILE_THREADS, PUSH_SHARED)?;
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
