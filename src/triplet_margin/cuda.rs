//! The launch plan of kernels/triplet_margin.cu, and its one launch.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};

use super::{Problem, TripletMarginLoss};
use crate::constants::PAIRED_THREADS;
use crate::cuda::{Address, CudaLauncher, CudaMatrix, DeviceProperties, Grid, Launcher, Memory};
use crate::distance::Metric;
use crate::{Element, Error, Reduction};

const STEM: &str = "triplet_margin";
const VECTOR_BYTES: usize = 16;

/// How a kernel looks at rows: the last part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Up to 8 vectors of 16 bytes a row, held in registers by 8 lanes.
    L8,
    /// Up to 32 vectors, held by a warp.
    L32,
    /// Up to 128 vectors, held by a warp.
    L32x4,
    /// Any number of vectors, read again for each sweep.
    Vector,
    /// Any length and alignment, element by element.
    Scalar,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Shape::L8 => "l8",
            Shape::L32 => "l32",
            Shape::L32x4 => "l32x4",
            Shape::Vector => "vector",
            Shape::Scalar => "scalar",
        }
    }

    fn lanes(self) -> u32 {
        if self == Shape::L8 { 8 } else { 32 }
    }
}

/// Which kernel, on which grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The kernel's name.
    pub kernel: String,
    /// Its launch.
    pub grid: Grid,
    /// How it looks at rows.
    pub shape: Shape,
}

/// What one pass reads and writes, in device memory; 0: not wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass {
    /// Anchor, positive, negative.
    pub inputs: [Address; 3],
    /// From one row to the next, in elements.
    pub strides: [usize; 3],
    /// A scalar, or one a row (see `upstream_per_row`).
    pub upstream: Address,
    /// Whether `upstream` holds one number a row.
    pub upstream_per_row: bool,
    /// Do nothing if `upstream` is 1: the gradients are there already.
    pub idle_if_one: bool,
    /// One scalar a row.
    pub losses: Address,
    /// The reduced loss.
    pub loss: Address,
    /// Contiguous, like the inputs.
    pub grads: [Address; 3],
}

/// The kernel's argument: `Args` of kernels/triplet_margin.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    inputs: [Address; 3],
    strides: [i64; 3],
    grads: [Address; 3],
    losses: Address,
    loss: Address,
    partials: Address,
    ticket: Address,
    upstream: Address,
    upstream_stride: i64,
    rows: i64,
    dim: i64,
    margin: f64,
    p: f64,
    eps: f64,
    grad_scale: f64,
    loss_scale: f64,
    root: u32,
    normalize: u32,
    swap: u32,
    idle_if_one: u32,
}
const _: () = assert!(size_of::<Args>() == 192, "Args must match kernels/triplet_margin.cu");

/// Every kernel that a plan can name.
pub fn kernel_names() -> Vec<String> {
    let streamed = [Shape::Scalar, Shape::Vector];
    let held = [Shape::L8, Shape::L32, Shape::L32x4];
    let mut names = Vec::new();
    for dtype in ["f64", "f32", "f16", "bf16"] {
        names.push(kernel_name("power", dtype, Shape::Scalar));
        for metric in ["difference", "cosine"] {
            names.extend(streamed.map(|shape| kernel_name(metric, dtype, shape)));
            if dtype != "f64" {
                names.extend(held.map(|shape| kernel_name(metric, dtype, shape)));
            }
        }
    }
    names
}

fn kernel_name(metric: &str, dtype: &str, shape: Shape) -> String {
    format!("{STEM}_{metric}_{dtype}_{}", shape.name())
}

/// For callers that hold device memory of their own: tests on whatever implements [`Launcher`].
impl TripletMarginLoss {
    /// Which kernel `run_on` would launch.
    ///
    /// # Errors
    /// If the shape is empty or an option is out of range.
    #[doc(hidden)]
    pub fn plan_on<T: Element>(
        &self,
        device: &DeviceProperties,
        [rows, dim]: [usize; 2],
        pass: &Pass,
    ) -> Result<Plan, Error> {
        Ok(plan::<T>(&self.checked(rows, dim)?, pass, device))
    }

    /// One pass over rows in the launcher's memory.
    ///
    /// # Safety
    /// As [`run`], for inputs `[rows, dim]`.
    ///
    /// # Errors
    /// As `plan_on`, or if the device refuses.
    #[doc(hidden)]
    pub unsafe fn run_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        [rows, dim]: [usize; 2],
        pass: &Pass,
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { run::<T, L>(launcher, &self.checked(rows, dim)?, pass) }
    }
}

/// Chooses kernel and grid; a pure function of the problem and the device.
pub(crate) fn plan<T: Element>(problem: &Problem, pass: &Pass, device: &DeviceProperties) -> Plan {
    let vectors = problem.dim * size_of::<T>() / VECTOR_BYTES;
    let aligned_rows = pass.strides.iter().all(|s| (s * size_of::<T>()).is_multiple_of(VECTOR_BYTES))
        && (problem.dim * size_of::<T>()).is_multiple_of(VECTOR_BYTES);
    let aligned = aligned_rows
        && pass.inputs.iter().chain(&pass.grads).all(|address| address.is_multiple_of(VECTOR_BYTES as Address));
    // Powers take long enough that neither registers nor vectors matter; f64 has too few lanes a vector.
    let (metric, held) = match problem.metric {
        Metric::Difference { .. } => ("difference", size_of::<T>() < 8),
        Metric::Cosine => ("cosine", size_of::<T>() < 8),
        Metric::Power { .. } => ("power", false),
    };
    let shape = match vectors {
        _ if !aligned || metric == "power" => Shape::Scalar,
        0..=8 if held => Shape::L8,
        9..=32 if held => Shape::L32,
        33..=128 if held => Shape::L32x4,
        _ => Shape::Vector,
    };
    let rows_at_once = (PAIRED_THREADS / shape.lanes()) as usize;
    // As many blocks as the device holds at a time: each then takes every so-manieth group of rows.
    let resident = device.multiprocessors * (device.threads_per_multiprocessor / PAIRED_THREADS);
    let blocks = problem.rows.div_ceil(rows_at_once).min(resident as usize).max(1) as u32;
    Plan {
        kernel: kernel_name(metric, T::NAME, shape),
        grid: Grid { blocks, threads: PAIRED_THREADS, shared_bytes: 0 },
        shape,
    }
}

/// Launches the pass.
///
/// # Safety
/// The addresses in `pass` are device memory of the launcher: inputs of `problem.rows` rows of `problem.dim` elements
/// of T, `strides` apart; outputs as [`Pass`] describes; all alive until the kernel has run.
pub(crate) unsafe fn run<T: Element, L: Launcher>(launcher: &L, problem: &Problem, pass: &Pass) -> Result<(), Error> {
    let plan = plan::<T>(problem, pass, launcher.properties());
    let (root, p, eps) = match problem.metric {
        Metric::Difference { root, eps } => (root, 2.0, eps),
        Metric::Power { p, eps } => (false, p, eps),
        Metric::Cosine => (false, 0.0, 0.0),
    };
    let mut args = Args {
        inputs: pass.inputs,
        strides: pass.strides.map(|s| s as i64),
        grads: pass.grads,
        losses: pass.losses,
        loss: pass.loss,
        upstream: pass.upstream,
        upstream_stride: pass.upstream_per_row.into(),
        rows: problem.rows as i64,
        dim: problem.dim as i64,
        margin: problem.margin,
        p,
        eps,
        grad_scale: problem.scale(),
        loss_scale: if problem.reduction == Reduction::Mean { 1.0 / problem.rows as f64 } else { 1.0 },
        root: root.into(),
        normalize: problem.normalize.into(),
        swap: problem.swap.into(),
        idle_if_one: pass.idle_if_one.into(),
        ..Args::zeroed()
    };
    // The ticket first: it needs 0, the partial sums need nothing.
    const TICKET_BYTES: usize = 8;
    let workspace = match pass.loss {
        0 => None,
        _ => Some(launcher.allocate(TICKET_BYTES + plan.grid.blocks as usize * size_of::<f64>())?),
    };
    if let Some(workspace) = &workspace {
        args.ticket = workspace.address();
        args.partials = workspace.address() + TICKET_BYTES as Address;
        // SAFETY: the first bytes of our own workspace.
        unsafe { launcher.clear(args.ticket, TICKET_BYTES)? };
    }
    // SAFETY: `Args` is the kernel's argument; the caller vouches for the pass, and the workspace, one f64 a block,
    // outlives the kernel (`Memory`).
    unsafe { launcher.launch(STEM, &plan.kernel, plan.grid, bytemuck::bytes_of(&args)) }
}

impl TripletMarginLoss {
    /// [`loss_and_grad`](Self::loss_and_grad) on cudarc slices, in the order of `stream`: nothing waits for the device.
    ///
    /// `loss` takes one number, or for `Reduction::None` one a row; `None` in place of a gradient skips it. For
    /// `Reduction::None` the gradients are those of the losses' sum.
    ///
    /// # Errors
    /// If shapes differ or are empty, an option is out of range, an output has the wrong length, or the device refuses.
    pub fn loss_and_grad_cuda<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        rows: [CudaMatrix<'_, T>; 3],
        loss: &mut CudaSlice<T::Scalar>,
        grads: [Option<&mut CudaSlice<T>>; 3],
    ) -> Result<(), Error>
    where
        T::Scalar: DeviceRepr,
    {
        let problem = self.cuda_problem(&rows)?;
        super::check_len("loss", loss.len(), if self.reduction == Reduction::None { problem.rows } else { 1 })?;
        let per_row = self.reduction == Reduction::None;
        run_on_stream(stream, &problem, &rows, grads, |pass, guards| {
            let (address, guard) = loss.device_ptr_mut(stream);
            *(if per_row { &mut pass.losses } else { &mut pass.loss }) = address;
            guards.push(guard);
        })
    }

    /// [`grad`](Self::grad) on cudarc slices.
    ///
    /// # Errors
    /// If shapes differ or are empty, an option is out of range, a slice has the wrong length, or the device refuses.
    pub fn grad_cuda<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        rows: [CudaMatrix<'_, T>; 3],
        upstream: &CudaSlice<T::Scalar>,
        grads: [Option<&mut CudaSlice<T>>; 3],
    ) -> Result<(), Error>
    where
        T::Scalar: DeviceRepr,
    {
        let problem = self.cuda_problem(&rows)?;
        let per_row = self.reduction == Reduction::None;
        super::check_len("upstream", upstream.len(), if per_row { problem.rows } else { 1 })?;
        run_on_stream(stream, &problem, &rows, grads, |pass, guards| {
            let (address, guard) = upstream.device_ptr(stream);
            (pass.upstream, pass.upstream_per_row) = (address, per_row);
            guards.push(guard);
        })
    }

    fn cuda_problem<T>(&self, rows: &[CudaMatrix<'_, T>; 3]) -> Result<Problem, Error> {
        let shape = |m: &CudaMatrix<'_, T>| (m.rows, m.dim);
        for (argument, matrix) in [("positive", &rows[1]), ("negative", &rows[2])] {
            if shape(matrix) != shape(&rows[0]) {
                let expected = format!("the anchors' shape {:?}", shape(&rows[0]));
                return Err(Error::argument(argument, expected, format!("{:?}", shape(matrix))));
            }
        }
        self.checked(rows[0].rows, rows[0].dim)
    }
}

/// Fills in a pass from slices, `rest` the part that callers differ in, and launches it. The guards tell cudarc when the
/// slices are done with.
fn run_on_stream<'a, T: Element + DeviceRepr>(
    stream: &'a Arc<CudaStream>,
    problem: &Problem,
    rows: &'a [CudaMatrix<'a, T>; 3],
    mut grads: [Option<&'a mut CudaSlice<T>>; 3],
    rest: impl FnOnce(&mut Pass, &mut Vec<SyncOnDrop<'a>>),
) -> Result<(), Error> {
    for (argument, grad) in ["grads[0]", "grads[1]", "grads[2]"].into_iter().zip(&grads) {
        if let Some(grad) = grad {
            super::check_len(argument, grad.len(), problem.rows * problem.dim)?;
        }
    }
    let launcher = CudaLauncher::new(stream)?;
    let mut pass = Pass { strides: rows.each_ref().map(|m| m.stride), ..Pass::default() };
    let mut guards = Vec::new();
    for (input, matrix) in pass.inputs.iter_mut().zip(rows) {
        let (address, guard) = matrix.data.device_ptr(stream);
        *input = address;
        guards.push(guard);
    }
    for (output, grad) in pass.grads.iter_mut().zip(&mut grads) {
        if let Some(grad) = grad.take() {
            let (address, guard) = grad.device_ptr_mut(stream);
            *output = address;
            guards.push(guard);
        }
    }
    rest(&mut pass, &mut guards);
    // SAFETY: the addresses come from slices of T and its scalar whose lengths were checked here and by `CudaMatrix`,
    // borrowed for the call; cudarc frees a slice on its stream, after the kernel.
    unsafe { run::<T, _>(&launcher, problem, &pass) }
}
