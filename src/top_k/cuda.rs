//! The launches of kernels/top_k.cu.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr};
use half::{bf16, f16};

use super::stored::{INT8_ROUNDING, rounding_of};
use super::{Search, SearchInput, TopKProblem, check_exact};
use crate::constants::{OWN_NONE, OWN_OFFSET, OWN_ROWS, TOP_K_CHUNK, TOP_K_MOST, TOP_K_SORTED};
use crate::cuda::arguments::Input;
use crate::cuda::batch::{self, Batch, BatchShape, Places, Product, THREADS};
use crate::cuda::strip::{error_of_planes, rounded_of};
use crate::cuda::targets::Strip;
use crate::cuda::workspace::{Layout, Workspace, WorkspaceLayout, count_of};
use crate::cuda::{Address, CudaLauncher, CudaMatrix, Grid, Launcher, Memory, refuse_f64};
use crate::matrix::check_len;
use crate::{Element, Error, Own};

const STEM: &str = "top_k";

/// `Args` of kernels/top_k.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    queries: Batch,
    rows: Batch,
    exact: Address,
    exact_stride: i64,
    own_rows: Address,
    own_offset: i64,
    stored: Address,
    stored_stride: i64,
    scales: Address,
    wide: Address,
    keys: Address,
    count: Address,
    list: Address,
    limit: Address,
    apart: Address,
    distances: Address,
    indices: Address,
    own_kind: u32,
    kind: u32,
    k: u32,
    room: u32,
    splits: u32,
    first: u32,
    count_of_wide: u32,
    error: f32,
    rounded: f32,
    relative: f32,
    absolute: f32,
    padding: u32,
}

/// A type that rows are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    Bf16,
    /// Integers of 8 bits, with a scale for each row.
    Int8,
}

impl Dtype {
    /// That of the element type T, which is not f64.
    #[must_use]
    pub fn of<T: Element>() -> Self {
        match T::NAME {
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            _ => Self::F32,
        }
    }

    /// The last part of the name of the kernel that reads it, and the bytes of a number.
    fn name_and_bytes(self) -> (&'static str, usize) {
        match self {
            Self::F32 => ("f32", 4),
            Self::F16 => ("f16", 2),
            Self::Bf16 => ("bf16", 2),
            Self::Int8 => ("int8", 1),
        }
    }

    /// How far a number may be from the one that was rounded to it: the first times the number, and the second, of integers
    /// times the row's scale.
    fn rounding(self) -> [f32; 2] {
        match self {
            Self::F32 => rounding_of::<f32>().map(|x| x as f32),
            Self::F16 => rounding_of::<f16>().map(|x| x as f32),
            Self::Bf16 => rounding_of::<bf16>().map(|x| x as f32),
            Self::Int8 => [0.0, INT8_ROUNDING],
        }
    }
}

/// Rows in device memory.
#[derive(Clone, Copy, Debug)]
pub struct StoredInput {
    /// The address of the first row.
    pub x: Address,
    /// Numbers from one row to the next.
    pub stride: usize,
    /// The type of the numbers.
    pub dtype: Dtype,
    /// One f32 a row for integers, else 0.
    pub scales: Address,
}

/// What a search reads in device memory.
#[derive(Clone, Copy, Debug)]
pub struct SearchInputs {
    /// The queries.
    pub queries: StoredInput,
    /// The rows that it looks among.
    pub stored: StoredInput,
    /// The f32 rows that those were rounded from.
    pub exact: Option<Input>,
    /// Which row each query is itself; `Own::Rows` holds one i64 a query.
    pub own: Own<Address>,
}

/// How many rows a search takes at a time.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    /// Rows of a chunk at most.
    pub rows: usize,
    /// Rows on a query's list, and of the first chunk, which all queries look at.
    pub room: usize,
}

impl Chunks {
    fn of(problem: &TopKProblem) -> Self {
        let rows = (TOP_K_CHUNK / problem.dim).next_multiple_of(1024);
        Self { rows, room: TOP_K_SORTED as usize - problem.k }
    }

    /// The rows of the chunk that begins at `first`: so many that about half of a query's list is taken up, if rows come in
    /// any order.
    fn next(&self, problem: &TopKProblem, first: usize) -> usize {
        let grown = if first == 0 { self.room } else { first * (self.room / (2 * problem.k)).max(1) };
        grown.min(self.rows).min(problem.rows - first)
    }
}

/// Writes the distances of the nearest rows, and their indices. `chunks`: `None`, but in tests.
///
/// # Safety
/// `inputs` are device memory of the launcher, of the problem's shape; `distances` is `[Q, k]` of f32 and `indices` of i64,
/// contiguous; all alive until the kernels have run.
pub(crate) unsafe fn search<L: Launcher>(
    launcher: &L,
    problem: &TopKProblem,
    inputs: &SearchInputs,
    [distances, indices]: [Address; 2],
    chunks: Option<Chunks>,
) -> Result<(), Error> {
    let TopKProblem { queries, rows, dim, k, distance, normalize, precision } = *problem;
    if k > TOP_K_MOST {
        return Err(Error::argument("k", format!("at most {TOP_K_MOST} on a CUDA device"), k.to_string()));
    }
    let chunks = chunks.unwrap_or_else(|| Chunks::of(problem));
    let product = Product::of::<f32>(precision.into());
    let shape = |rows| BatchShape { rows, dim, distance, normalize, product, keeps: false };
    let strip = Strip::of(&product, dim, launcher.properties());
    let [relative, absolute] = inputs.stored.dtype.rounding();

    let most = chunks.rows.max(chunks.room).min(rows);
    let (of_queries, of_stored) = (inputs.queries.dtype != Dtype::F32, inputs.stored.dtype != Dtype::F32);
    let mut layout = WorkspaceLayout::default();
    let places = Places::new(&shape(queries), false, launcher.properties(), &mut layout);
    let mut own = Layout::default();
    let wide = [(of_queries, queries), (of_stored, most)]
        .map(|(is, rows)| own.part(if is { count_of([rows, dim]) } else { 0 }, 4));
    let keys = own.part(count_of([queries, k]), 8);
    let [count, limit] = [(); 2].map(|()| own.part(queries, 4));
    let list = own.part(count_of([queries, chunks.room]), 4);
    let apart = own.part(1, 4);
    let (workspace, memory) = (layout.allocate(launcher, true)?, own.allocate(launcher)?);
    let part = |at: Address| memory.address() + at;
    let of_chunk = of_chunk(launcher, &shape(most.max(1)))?;

    let launch = |kernel: &str, grid: Grid, args: &Args| {
        // SAFETY: `Args` is these kernels' argument; our memory is laid out above and lives as `Memory` says, and the caller
        // vouches for the rest.
        unsafe { launcher.launch(STEM, &format!("{STEM}_{kernel}"), grid, bytemuck::bytes_of(args)) }
    };
    let by =
        |count: usize, each: u32| Grid { blocks: (count as u32).div_ceil(each), threads: THREADS, shared_bytes: 0 };
    // Rows as f32: where they are, or widened.
    let widened = |input: &StoredInput, rows: [usize; 2], to: Address| -> Result<Input, Error> {
        let [first, count] = rows;
        let (name, bytes) = input.dtype.name_and_bytes();
        let x = input.x + (first * input.stride * bytes) as Address;
        if input.dtype == Dtype::F32 {
            return Ok(Input { x, stride: input.stride, labels: 0 });
        }
        let scales = if input.scales == 0 { 0 } else { input.scales + first as Address * 4 };
        let (stored_stride, count_of_wide) = (input.stride as i64, count as u32);
        let args = Args { stored: x, stored_stride, scales, wide: to, count_of_wide, ..Args::zeroed() };
        // The kernel asks for the length of the rows.
        let args = Args { queries: Batch::of_dim(dim), ..args };
        launch(&format!("widen_{name}"), by(count, THREADS / 32), &args)?;
        Ok(Input { x: to, stride: dim, labels: 0 })
    };

    let input = widened(&inputs.queries, [0, queries], part(wide[0]))?;
    // SAFETY: the caller's contract, or rows that were just widened; the workspace is for these places.
    let prepared = unsafe { batch::prepare::<f32, L>(launcher, &shape(queries), &input, None, &places, &workspace)? };
    let (own_kind, own_offset, own_rows) = match inputs.own {
        Own::None => (OWN_NONE, 0, 0),
        Own::Offset(offset) => (OWN_OFFSET, offset, 0),
        Own::Rows(rows) => (OWN_ROWS, 0, rows),
    };
    let args = Args {
        queries: prepared,
        own_rows,
        own_offset,
        keys: part(keys),
        count: part(count),
        list: part(list),
        limit: part(limit),
        apart: part(apart),
        own_kind,
        kind: batch::kind(distance),
        k: k as u32,
        room: chunks.room as u32,
        error: error_of_planes(&product, dim),
        rounded: rounded_of(&product, dim),
        relative,
        absolute,
        ..Args::zeroed()
    };
    let outputs = |last: bool| if last { [distances, indices] } else { [0; 2] };
    let [to_distances, to_indices] = outputs(rows == 0);
    let keys = queries * k;
    launch("begin", by(keys, THREADS), &Args { distances: to_distances, indices: to_indices, ..args })?;
    let mut first = 0;
    while first < rows {
        let count = chunks.next(problem, first);
        let input = widened(&inputs.stored, [first, count], part(wide[1]))?;
        let shape = shape(count);
        let places = Places::new(&shape, false, launcher.properties(), &mut WorkspaceLayout::default());
        // SAFETY: the caller's contract, or rows that were just widened; the workspace is for the largest chunk, whose parts are
        // no smaller than this one's, and what was launched before on it has run before this.
        let rows_of_chunk =
            unsafe { batch::prepare::<f32, L>(launcher, &shape, &input, Some(&args.queries), &places, &of_chunk)? };
        let [distances, indices] = outputs(first + count == rows);
        let scales = inputs.stored.scales;
        let splits = strip.splits(queries, count, launcher.properties());
        let args = Args {
            rows: rows_of_chunk,
            exact: inputs.exact.map_or(0, |exact| exact.x + (first * exact.stride * 4) as Address),
            exact_stride: inputs.exact.map_or(0, |exact| exact.stride as i64),
            scales: if scales == 0 { 0 } else { scales + first as Address * 4 },
            distances,
            indices,
            splits,
            first: first as u32,
            ..args
        };
        if inputs.exact.is_some() {
            // SAFETY: laid out above, and what used it before has run before this.
            unsafe { launcher.clear(args.apart, 4)? };
            launch("apart", by(count, THREADS / 32), &args)?;
        }
        launch("limits", by(queries, THREADS), &args)?;
        // No query has enough neighbours before the first chunk.
        if first > 0 {
            let blocks = Strip::row_blocks(queries) * splits;
            let grid = Grid { blocks, threads: strip.threads, shared_bytes: strip.shared_bytes };
            launch(&format!("sweep_{}_{}", product.name, strip.name), grid, &args)?;
        }
        launch("merge", Grid { blocks: queries as u32, threads: THREADS, shared_bytes: 0 }, &args)?;
        first += count;
    }
    Ok(())
}

/// The memory of a prepared chunk.
fn of_chunk<L: Launcher>(launcher: &L, shape: &BatchShape) -> Result<Workspace<L::Memory>, Error> {
    let mut layout = WorkspaceLayout::default();
    let _ = Places::new(shape, false, launcher.properties(), &mut layout);
    layout.allocate(launcher, false)
}

/// Rows in cudarc slices that [`TopK`](crate::TopK) looks among: a [`CudaMatrix`] of f32, f16 or bf16, which turns into this
/// by itself, or integers as [`Int8Rows`](crate::Int8Rows) has them.
#[non_exhaustive]
pub enum CudaStored<'a> {
    /// Rows of f32.
    F32(CudaMatrix<'a, f32>),
    /// Rows of f16.
    F16(CudaMatrix<'a, f16>),
    /// Rows of bf16.
    Bf16(CudaMatrix<'a, bf16>),
    /// Rows of `dim` integers, one after another, and a scale for each.
    Int8 {
        /// The integers, `[M, dim]`.
        data: CudaView<'a, i8>,
        /// The scales, `[M]`.
        scales: CudaView<'a, f32>,
        /// The numbers in a row.
        dim: usize,
    },
}

impl<'a> From<CudaMatrix<'a, f32>> for CudaStored<'a> {
    fn from(rows: CudaMatrix<'a, f32>) -> Self {
        Self::F32(rows)
    }
}
impl<'a> From<CudaMatrix<'a, f16>> for CudaStored<'a> {
    fn from(rows: CudaMatrix<'a, f16>) -> Self {
        Self::F16(rows)
    }
}
impl<'a> From<CudaMatrix<'a, bf16>> for CudaStored<'a> {
    fn from(rows: CudaMatrix<'a, bf16>) -> Self {
        Self::Bf16(rows)
    }
}

impl<'a, T: Element + DeviceRepr> SearchInput for CudaMatrix<'a, T> {
    type Stored = CudaStored<'a>;
    type Exact = CudaMatrix<'a, f32>;
}

impl<T: Element + DeviceRepr> Search<CudaMatrix<'_, T>> {
    /// The distances of the nearest rows, ascending, and their indices, both `[Q, k]`, on cudarc slices in the order of
    /// `stream`: nothing waits for the device. `k` is at most 1024, and the queries f32, f16 or bf16.
    ///
    /// # Errors
    /// If `k` is 0 or too large, there is no query, the queries are f64, rows differ in length, there is not one scale, own
    /// row or exact row for each row, an output has not `Q k` numbers, or the device refuses.
    pub fn search(
        self,
        stream: &Arc<CudaStream>,
        distances: &mut CudaSlice<f32>,
        indices: &mut CudaSlice<i64>,
    ) -> Result<(), Error> {
        refuse_f64::<T>("queries")?;
        let Self { top_k, queries, stored, exact, own } = self;
        let shape = match &stored {
            CudaStored::F32(rows) => [rows.rows, rows.dim],
            CudaStored::F16(rows) => [rows.rows, rows.dim],
            CudaStored::Bf16(rows) => [rows.rows, rows.dim],
            CudaStored::Int8 { data, scales, dim } => {
                check_len("stored.data", data.len(), scales.len() * dim)?;
                [scales.len(), *dim]
            }
        };
        let problem = top_k.checked([queries.rows, queries.dim], shape)?;
        check_exact(exact.as_ref().map(|exact| [exact.rows, exact.dim]), shape)?;
        if let Own::Rows(rows) = own {
            check_len("own", rows.len(), problem.queries)?;
        }
        check_len("distances", distances.len(), problem.queries * problem.k)?;
        check_len("indices", indices.len(), problem.queries * problem.k)?;

        let launcher = CudaLauncher::new(stream)?;
        let mut guards = Vec::new();
        macro_rules! address {
            ($slice:expr) => {{
                let (address, guard) = $slice.device_ptr(stream);
                guards.push(guard);
                address
            }};
        }
        macro_rules! input {
            ($rows:expr, $dtype:expr) => {
                StoredInput { x: address!($rows.data), stride: $rows.stride, dtype: $dtype, scales: 0 }
            };
        }
        let inputs = SearchInputs {
            queries: input!(queries, Dtype::of::<T>()),
            stored: match &stored {
                CudaStored::F32(rows) => input!(rows, Dtype::F32),
                CudaStored::F16(rows) => input!(rows, Dtype::F16),
                CudaStored::Bf16(rows) => input!(rows, Dtype::Bf16),
                CudaStored::Int8 { data, scales, dim } => {
                    let (x, scales) = (address!(data), address!(scales));
                    StoredInput { x, stride: *dim, dtype: Dtype::Int8, scales }
                }
            },
            exact: exact.as_ref().map(|exact| Input { x: address!(exact.data), stride: exact.stride, labels: 0 }),
            own: own.map(|rows| address!(rows)),
        };
        let (to_distances, guard) = distances.device_ptr_mut(stream);
        guards.push(guard);
        let (to_indices, guard) = indices.device_ptr_mut(stream);
        guards.push(guard);
        // SAFETY: the addresses come from slices whose lengths were checked here and by `CudaMatrix`, borrowed for the call;
        // cudarc frees a slice on its stream, after the kernels, and so does the launcher what the search allocates.
        unsafe { search(&launcher, &problem, &inputs, [to_distances, to_indices], None) }
    }
}
