//! The launch plan and the launch of paired losses, whose kernels build on kernels/paired.cuh.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};

use super::{Address, CudaLauncher, CudaMatrix, DeviceProperties, Grid, Launcher, Memory};
use crate::constants::PAIRED_THREADS;
use crate::distance::Metric;
use crate::matrix::check_len;
use crate::paired::{PairedProblem, check_grads};
use crate::{Element, Error, Reduction};

const VECTOR_BYTES: usize = 16;

/// How a kernel reads rows, which is the last part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowAccess {
    /// Up to 16 vectors of 16 bytes a row, held in registers by 16 lanes.
    L16,
    /// Up to 32 vectors of 16 bytes a row, held in registers by a warp.
    L32,
    /// Up to 128 vectors of 16 bytes a row, held in registers by a warp.
    L32x4,
    /// Any number of vectors of 16 bytes a row, read again for each sweep.
    Vector,
    /// Rows of any length and alignment, read element by element.
    Scalar,
}

impl RowAccess {
    fn name(self) -> &'static str {
        match self {
            RowAccess::L16 => "l16",
            RowAccess::L32 => "l32",
            RowAccess::L32x4 => "l32x4",
            RowAccess::Vector => "vector",
            RowAccess::Scalar => "scalar",
        }
    }

    fn lanes(self) -> u32 {
        if self == RowAccess::L16 { 16 } else { 32 }
    }
}

/// Which kernel a pass launches, and on which grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The kernel's name.
    pub kernel: String,
    /// The shape of the launch.
    pub grid: Grid,
    /// How the kernel reads rows.
    pub access: RowAccess,
}

/// What one pass of a paired loss reads and writes in device memory. An output with the address 0 is not wanted.
#[derive(Clone, Copy, Debug)]
pub struct Pass<const K: usize> {
    /// The first rows of the K matrices.
    pub inputs: [Address; K],
    /// How many elements lie from one row of each matrix to the next.
    pub strides: [usize; K],
    /// The upstream gradient, a scalar or one a row (see `upstream_per_row`); 0: it is 1.
    pub upstream: Address,
    /// Whether `upstream` holds one number a row.
    pub upstream_per_row: bool,
    /// Whether to do nothing if `upstream` is 1, because the gradients are there already.
    pub idle_if_one: bool,
    /// The loss of each row, one scalar each.
    pub losses: Address,
    /// The reduced loss.
    pub loss: Address,
    /// The gradients with respect to the K matrices, contiguous.
    pub grads: [Address; K],
}

impl<const K: usize> Default for Pass<K> {
    fn default() -> Self {
        Self {
            inputs: [0; K],
            strides: [0; K],
            upstream: 0,
            upstream_per_row: false,
            idle_if_one: false,
            losses: 0,
            loss: 0,
            grads: [0; K],
        }
    }
}

/// `Matrices` of kernels/rows.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Matrices<const K: usize> {
    data: [Address; K],
    stride: [i64; K],
}

// SAFETY: all numbers, which may be zero.
unsafe impl<const K: usize> Zeroable for Matrices<K> {}
// SAFETY: two arrays of K numbers of 8 bytes, in C's order: no padding for any K.
unsafe impl<const K: usize> Pod for Matrices<K> {}

/// What the kernels of every paired loss are told: `PairedArgs` of kernels/paired.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PairedArgs<const K: usize> {
    input: Matrices<K>,
    grad: [Address; K],
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
    idle_if_one: u32,
    /// Four bytes that a compiler would leave unnamed at the end: `Pod` allows no gaps.
    padding: u32,
}

impl<const K: usize> PairedArgs<K> {
    /// The struct is as large as its 3 K + 13 words and four half words together, so there is no padding between them.
    const HAS_NO_PADDING: () = assert!(size_of::<Self>() == 8 * (3 * K + 13) + 16);
}

// SAFETY: all numbers, which may be zero.
unsafe impl<const K: usize> Zeroable for PairedArgs<K> {}
// SAFETY: each field is `Pod`, the order is C's, and `HAS_NO_PADDING`, which `run` evaluates, proves that there is no
// padding.
unsafe impl<const K: usize> Pod for PairedArgs<K> {}

fn kernel_name(stem: &str, metric: &str, dtype: &str, access: RowAccess) -> String {
    format!("{stem}_{metric}_{dtype}_{}", access.name())
}

/// Chooses the kernel and the grid of a pass, from nothing but its arguments.
pub(crate) fn plan<T: Element, const K: usize>(
    stem: &str,
    problem: &PairedProblem,
    pass: &Pass<K>,
    device: &DeviceProperties,
) -> Plan {
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
    let access = match vectors {
        _ if !aligned || metric == "power" => RowAccess::Scalar,
        0..=16 if held => RowAccess::L16,
        17..=32 if held => RowAccess::L32,
        33..=128 if held => RowAccess::L32x4,
        _ => RowAccess::Vector,
    };
    let rows_at_once = (PAIRED_THREADS / access.lanes()) as usize;
    // No more blocks than the device holds at a time: each block strides over the groups of rows by the grid size.
    let resident = device.multiprocessors * (device.threads_per_multiprocessor / PAIRED_THREADS);
    let blocks = problem.rows.div_ceil(rows_at_once).min(resident as usize).max(1) as u32;
    Plan {
        kernel: kernel_name(stem, metric, T::NAME, access),
        grid: Grid { blocks, threads: PAIRED_THREADS, shared_bytes: 0 },
        access,
    }
}

/// Launches a pass of the kernels `stem`. `whole` makes their argument from the part that all paired losses share.
///
/// # Safety
/// The addresses in `pass` are device memory of the launcher: inputs of `problem.rows` rows of `problem.dim` elements
/// of T, `strides` apart; outputs as [`Pass`] describes. `whole` returns `Args` of these kernels with what it is given,
/// and the addresses that it adds are as the kernels expect. All memory is alive until the kernel has run.
pub(crate) unsafe fn run<T: Element, L: Launcher, A: Pod, const K: usize>(
    launcher: &L,
    stem: &str,
    problem: &PairedProblem,
    pass: &Pass<K>,
    whole: impl FnOnce(PairedArgs<K>) -> A,
) -> Result<(), Error> {
    const { PairedArgs::<K>::HAS_NO_PADDING };
    let plan = plan::<T, K>(stem, problem, pass, launcher.properties());
    let (root, p, eps) = match problem.metric {
        Metric::Difference { root, eps } => (root, 2.0, eps),
        Metric::Power { p, eps } => (false, p, eps),
        Metric::Cosine => (false, 0.0, 0.0),
    };
    let mut paired = PairedArgs {
        input: Matrices { data: pass.inputs, stride: pass.strides.map(|s| s as i64) },
        grad: pass.grads,
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
        idle_if_one: pass.idle_if_one.into(),
        ..PairedArgs::zeroed()
    };
    // The ticket comes first: it starts as 0, while the partial sums may start as anything.
    const TICKET_BYTES: usize = 8;
    let workspace = match pass.loss {
        0 => None,
        _ => Some(launcher.allocate(TICKET_BYTES + plan.grid.blocks as usize * size_of::<f64>())?),
    };
    if let Some(workspace) = &workspace {
        paired.ticket = workspace.address();
        paired.partials = workspace.address() + TICKET_BYTES as Address;
        // SAFETY: the first bytes of our own workspace.
        unsafe { launcher.clear(paired.ticket, TICKET_BYTES)? };
    }
    // SAFETY: the caller vouches that `whole` makes the kernel's argument, and for the pass; the workspace, one f64 a
    // block, outlives the kernel (`Memory`).
    unsafe { launcher.launch(stem, &plan.kernel, plan.grid, bytemuck::bytes_of(&whole(paired))) }
}

/// What a call on cudarc slices computes.
pub(crate) enum Wanted<'a, A> {
    /// The loss, or for `Reduction::None` one a row, written here, and the gradients.
    Losses(&'a mut CudaSlice<A>),
    /// The gradients times this upstream gradient.
    Upstream(&'a CudaSlice<A>),
}

/// Makes a pass of slices and launches it. When the guards are dropped cudarc takes the slices as no longer in use;
/// `rest` adds the guards of slices that this loss alone needs.
///
/// # Safety
/// `rest` returns a `whole` as [`run`] wants it.
pub(crate) unsafe fn run_on_stream<'a, T: Element + DeviceRepr, A: Pod, W: FnOnce(PairedArgs<K>) -> A, const K: usize>(
    stream: &'a Arc<CudaStream>,
    stem: &str,
    problem: &PairedProblem,
    rows: &'a [CudaMatrix<'a, T>; K],
    wanted: Wanted<'a, T::Scalar>,
    mut grads: [Option<&'a mut CudaSlice<T>>; K],
    rest: impl FnOnce(&mut Vec<SyncOnDrop<'a>>) -> W,
) -> Result<(), Error>
where
    T::Scalar: DeviceRepr,
{
    let per_row = problem.reduction == Reduction::None;
    match &wanted {
        Wanted::Losses(losses) => check_len("loss", losses.len(), problem.upstreams())?,
        Wanted::Upstream(upstream) => check_len("upstream", upstream.len(), problem.upstreams())?,
    }
    check_grads(problem, grads.each_ref().map(|grad| grad.as_ref().map(|g| g.len())))?;
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
    match wanted {
        Wanted::Losses(losses) => {
            let (address, guard) = losses.device_ptr_mut(stream);
            *(if per_row { &mut pass.losses } else { &mut pass.loss }) = address;
            guards.push(guard);
        }
        Wanted::Upstream(upstream) => {
            let (address, guard) = upstream.device_ptr(stream);
            (pass.upstream, pass.upstream_per_row) = (address, per_row);
            guards.push(guard);
        }
    }
    let whole = rest(&mut guards);
    // SAFETY: the addresses come from slices of T and its scalar whose lengths were checked here and by `CudaMatrix`,
    // borrowed for the call; cudarc frees a slice on its stream, after the kernel. The caller vouches for `whole`.
    unsafe { run::<T, _, A, K>(&launcher, stem, problem, &pass, whole) }
}

/// The shapes of matrices on a device.
pub(crate) fn shapes<T, const K: usize>(rows: &[CudaMatrix<'_, T>; K]) -> [[usize; 2]; K] {
    rows.each_ref().map(|m| [m.rows, m.dim])
}
