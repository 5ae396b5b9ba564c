//! Prepares batches for mined losses: the launches of kernels/batch.cu.

use bytemuck::{Pod, Zeroable};

use super::arguments::{Input, Inputs};
use super::{Address, DeviceProperties, Grid, Launcher, Memory};
use crate::constants::{
    COSINE, EUCLIDEAN, EVEN_ENOUGH, EVEN_SPLITS, OWN_NONE, OWN_OFFSET, OWN_ROWS, PAIRS, PAIRS_OF_ROW, PANEL_WIDTH,
    PREPARED_ROWS, PREPARED_WIDTH, RANKED, RUN, RUNS_FROM, SCANNED, SLAB, SQUARED, STRIP_ROWS, SURVEYED, TILE,
    TILE_BLOCKS, TILE_SHARED, TRIANGLE_KEPT,
};
use crate::problem::{Options, Problem};
use crate::{Distance, Element, Error, Own, Precision};

pub(crate) use crate::constants::{BATCH_THREADS as THREADS, TILE_THREADS};

const STEM: &str = "batch";

/// How the products of a Gram tile are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    /// The last part of the names of the kernels that prepare rows for these products, or compute tiles of them.
    pub name: &'static str,
    planes: u32,
    /// The bytes of one number in a plane.
    bytes: u32,
}

/// What computes the products of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Tensor cores, with this precision.
    Tensor(Precision),
    /// CUDA cores in f32: slow, to check the tensor cores against. Only `pairwise_distance` has such kernels.
    Cuda,
}

impl From<Precision> for Cores {
    fn from(precision: Precision) -> Self {
        Self::Tensor(precision)
    }
}

impl Product {
    pub fn of<T: Element>(cores: Cores) -> Self {
        match (cores, T::NAME) {
            (Cores::Cuda, _) => Self { name: "plain", planes: 1, bytes: 4 },
            (Cores::Tensor(Precision::Medium), _) | (Cores::Tensor(Precision::High), "f32") => {
                Self { name: "half", planes: 1, bytes: 2 }
            }
            _ => Self { name: "highest", planes: 2, bytes: 2 },
        }
    }

    /// How many planes there are.
    pub fn planes(&self) -> u32 {
        self.planes
    }

    /// The bytes of one number in a plane.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The number for this product, of those for products of one plane and of two.
    pub fn of_planes(&self, numbers: [u32; 2]) -> u32 {
        numbers[self.planes as usize - 1]
    }

    /// Dynamic shared memory of a block that multiplies single tiles.
    pub fn shared_bytes(&self) -> u32 {
        self.of_planes(TILE_SHARED)
    }
}

/// The number by which kernels know a distance.
pub(crate) fn kind(distance: Distance) -> u32 {
    match distance {
        Distance::SquaredEuclidean => SQUARED,
        Distance::Euclidean => EUCLIDEAN,
        Distance::Cosine => COSINE,
    }
}

/// The size of a batch, and how its rows are prepared and multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchShape {
    pub rows: usize,
    pub dim: usize,
    pub distance: Distance,
    pub normalize: bool,
    pub product: Product,
    /// Whether the rows keep, as columns, what half of the tiles find for them (kernels/triangle.cuh).
    pub keeps: bool,
}

impl BatchShape {
    /// The shape of the anchors of a call on embeddings of T.
    pub fn anchors<T: Element, X>(problem: &Problem<X>) -> Self {
        let Options { distance, normalize, precision, .. } = problem.options;
        let product = Product::of::<T>(precision.into());
        Self { rows: problem.rows, dim: problem.dim, distance, normalize, product, keeps: false }
    }

    pub fn tiles(&self) -> u32 {
        (self.rows as u32).div_ceil(TILE)
    }

    /// How many blocks rank the rows.
    fn rankings(&self) -> u32 {
        (self.rows as u32).div_ceil(RANKED)
    }

    /// How many blocks make the prefix sums of one number a row.
    pub fn scans(&self) -> u32 {
        (self.rows as u32).div_ceil(SCANNED)
    }

    /// How many blocks sum up the rows.
    fn surveys(&self) -> u32 {
        (self.rows as u32).div_ceil(SURVEYED)
    }

    /// How many rows there are, rounded up to whole tiles.
    pub fn padded(&self) -> usize {
        self.tiles() as usize * TILE as usize
    }

    /// Into how many parts a row of `columns` tiles is split, so that each multiprocessor has `TILE_BLOCKS` blocks if
    /// it can.
    pub fn splits_of(&self, columns: u32, device: &DeviceProperties) -> u32 {
        splits(self.tiles(), columns, device)
    }

    /// Into how many parts a row of `columns` tiles is split: see [`even_splits`].
    pub fn even_splits_of(&self, columns: u32, resident: u32, device: &DeviceProperties) -> u32 {
        even_splits(self.tiles(), columns, resident, device)
    }

    /// How many blocks to launch if each warp takes a row at a time: as many as the rows need, but no more than the
    /// device holds.
    pub fn row_blocks(&self, device: &DeviceProperties) -> u32 {
        let resident = device.multiprocessors * (device.threads_per_multiprocessor / THREADS);
        (self.rows as u32).div_ceil(THREADS / 32).min(resident).max(1)
    }

    /// How many anchors a block takes at a time, 8, 16 or 32, and how many blocks to launch. The more anchors of a large class
    /// a block has, the fewer times the class is read; but never so many that a multiprocessor has less to do.
    pub fn anchors_at_once(&self, device: &DeviceProperties) -> (u32, u32) {
        let blocks = self.row_blocks(device);
        let rounds = self.rows as u32 / (blocks * (THREADS / 32));
        let at_once = THREADS / 32
            * if rounds < 2 {
                1
            } else if rounds < 4 {
                2
            } else {
                4
            };
        (at_once, (self.rows as u32).div_ceil(at_once).min(blocks))
    }
}

/// Into how many parts each of `rows` rows of `columns` tiles is split, so that each multiprocessor has `TILE_BLOCKS` blocks
/// if it can.
fn splits(rows: u32, columns: u32, device: &DeviceProperties) -> u32 {
    (TILE_BLOCKS * device.multiprocessors).div_ceil(rows).clamp(1, columns)
}

/// Into how many parts each of `rows` rows of `columns` tiles is split, so that the blocks fill the device in whole turns,
/// `resident` on a multiprocessor at a time: the fewest parts that keep `EVEN_ENOUGH` of it busy, or else the number that
/// keeps the most.
pub(crate) fn even_splits(rows: u32, columns: u32, resident: u32, device: &DeviceProperties) -> u32 {
    let slots = resident * device.multiprocessors;
    fewest_splits(rows, columns, device, |parts| {
        let blocks = rows * parts;
        f64::from(blocks) / f64::from(blocks.div_ceil(slots) * slots)
    })
}

/// As [`even_splits`], but counts tiles too: a part may have one more than another.
pub(crate) fn even_parts(rows: u32, columns: u32, resident: u32, device: &DeviceProperties) -> u32 {
    let slots = resident * device.multiprocessors;
    fewest_splits(rows, columns, device, |parts| {
        let turns = (rows * parts).div_ceil(slots);
        f64::from(rows) * f64::from(columns) / (f64::from(turns * slots) * f64::from(columns.div_ceil(parts)))
    })
}

/// The fewest parts of each of `rows` rows of `columns` tiles that keep `EVEN_ENOUGH` of the device busy, or else the number
/// that keeps the most. busy: the share that so many parts keep.
fn fewest_splits(rows: u32, columns: u32, device: &DeviceProperties, busy: impl Fn(u32) -> f64) -> u32 {
    let most = splits(rows, columns, device).max(EVEN_SPLITS).min(columns);
    let enough = (1..=most).find(|&parts| busy(parts) >= EVEN_ENOUGH);
    enough.unwrap_or_else(|| (1..=most).max_by(|&a, &b| busy(a).total_cmp(&busy(b))).unwrap_or(1))
}

/// `Batch` of kernels/batch.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Batch {
    x: Address,
    stride: i64,
    labels: Address,
    order: Address,
    position: Address,
    first: Address,
    end: Address,
    sorted: Address,
    sorted_at: Address,
    y: Address,
    planes: Address,
    norm: Address,
    scale: Address,
    terms: Address,
    inverse: Address,
    sums: Address,
    partials: Address,
    column_key: Address,
    column_most: Address,
    survey: Address,
    origin: Address,
    origin_stride: i64,
    origin_survey: Address,
    rows: u32,
    padded: u32,
    dim: u32,
    slabs: u32,
    centre: u32,
    normalize: u32,
    unit_norms: u32,
    held: u32,
}

impl Batch {
    /// Where `order`, `position`, `first` and `end` lie.
    pub fn class_order(&self) -> [Address; 4] {
        [self.order, self.position, self.first, self.end]
    }

    /// This batch with its embeddings at the address that they have now.
    fn moved_to(self, input: &Input) -> Self {
        Self { x: input.x, stride: input.stride as i64, ..self }
    }
}

/// `Sides` of kernels/batch.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Sides {
    anchors: Batch,
    others: Batch,
    first: Address,
    end: Address,
    own: Address,
    other_first: Address,
    other_end: Address,
    own_rows: Address,
    own_offset: i64,
    own_kind: u32,
    itself: u32,
}

impl Sides {
    /// These sides with their embeddings at the addresses that they have now.
    pub fn moved_to(self, inputs: &Inputs) -> Self {
        let anchors = self.anchors.moved_to(&inputs.anchors);
        let others = inputs.reference.as_ref().map_or(anchors, |other| self.others.moved_to(&other.rows));
        Self { anchors, others, ..self }
    }
}

/// The product of the factors, or the largest number if it overflows: more than any memory holds.
pub(crate) fn count_of<const N: usize>(factors: [usize; N]) -> usize {
    factors.into_iter().fold(1, usize::saturating_mul)
}

/// Lays out the parts of one allocation.
#[derive(Default)]
pub(crate) struct Layout {
    bytes: usize,
}

impl Layout {
    /// Adds a part of `count` numbers of `size` bytes, and returns its offset in the allocation. If the size overflows
    /// it becomes the largest number, which no device can allocate.
    pub fn part(&mut self, count: usize, size: usize) -> Address {
        const ALIGNMENT: usize = 256;
        let at = self.bytes;
        let end = count.checked_mul(size).and_then(|bytes| bytes.checked_add(at));
        self.bytes = end.and_then(|end| end.checked_next_multiple_of(ALIGNMENT)).unwrap_or(usize::MAX);
        at as Address
    }

    pub fn allocate<L: Launcher>(&self, launcher: &L) -> Result<L::Memory, Error> {
        launcher.allocate(self.bytes.max(1))
    }
}

/// A prepared batch, and the memory that it points to.
pub(crate) struct Prepared<M> {
    pub batch: Batch,
    /// Memory that a backward pass needs too.
    pub kept: M,
    /// Memory that is not needed once the forward pass has been launched.
    pub scratch: M,
}

/// What the launches find out about a batch: `Survey` of kernels/batch.cuh. The host only makes room for it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Survey {
    nearest: u64,
    tickets: [u32; 4],
    bad: u32,
    bad_of: [u32; 32],
    shifted: u32,
    overflowed: u32,
    padding: u32,
}
const SURVEY_BYTES: usize = size_of::<Survey>();

/// Launches the preparation of a batch. Batches whose rows are compared with each other are translated by the same row:
/// `origin` is the first of them, prepared before.
///
/// # Safety
/// `input` is device memory of the launcher, alive until the kernels have run: `rows` rows of `dim` elements of T, and
/// labels unless they are 0. So is what `origin` points to.
pub(crate) unsafe fn prepare<T: Element, L: Launcher>(
    launcher: &L,
    shape: &BatchShape,
    input: &Input,
    origin: Option<&Batch>,
) -> Result<Prepared<L::Memory>, Error> {
    let (rows, dim, padded) = (shape.rows, shape.dim, shape.padded());
    let slabs = (dim * shape.product.bytes as usize).div_ceil(SLAB as usize);
    let cosine = shape.distance == Distance::Cosine;
    let normalize = shape.normalize || cosine;
    let row_blocks = shape.row_blocks(launcher.properties());

    let mut kept = Layout::default();
    let (survey, order, position) = (kept.part(1, SURVEY_BYTES), kept.part(rows, 4), kept.part(rows, 4));
    let (first, end, inverse) = (kept.part(rows, 4), kept.part(rows, 4), kept.part(padded, 4));
    let mut scratch = Layout::default();
    let y = scratch.part(count_of([padded, dim]), 4);
    let panels = (dim * shape.product.bytes as usize).div_ceil(PANEL_WIDTH as usize);
    let held = rows.next_multiple_of(STRIP_ROWS as usize);
    let planes = scratch.part(count_of([held, panels, shape.product.planes as usize]), PANEL_WIDTH as usize);
    let (norm, scale, terms) = (scratch.part(padded, 4), scratch.part(padded, 4), scratch.part(held, 2 * 4));
    // Without labels the rows are in order already.
    let in_runs = rows >= RUNS_FROM && input.labels != 0;
    let [sorted, sorted_at] = [8, 4].map(|size| scratch.part(if in_runs { rows } else { 0 }, size));
    let sums = scratch.part(count_of([shape.surveys() as usize + 1, dim]), 8);
    let partials = scratch.part(row_blocks as usize, 8);
    let columns = if shape.keeps { held } else { 0 };
    let (column_key, column_most) =
        (scratch.part(count_of([columns, TRIANGLE_KEPT as usize]), 8), scratch.part(columns, 4));
    let (kept, scratch) = (kept.allocate(launcher)?, scratch.allocate(launcher)?);
    let (in_kept, in_scratch) = (|at| kept.address() + at, |at| scratch.address() + at);

    let mut batch = Batch {
        x: input.x,
        stride: input.stride as i64,
        labels: input.labels,
        order: in_kept(order),
        position: in_kept(position),
        first: in_kept(first),
        end: in_kept(end),
        sorted: in_scratch(sorted),
        sorted_at: in_scratch(sorted_at),
        y: in_scratch(y),
        planes: in_scratch(planes),
        norm: in_scratch(norm),
        scale: in_scratch(scale),
        terms: in_scratch(terms),
        inverse: in_kept(inverse),
        sums: in_scratch(sums),
        partials: in_scratch(partials),
        column_key: if shape.keeps { in_scratch(column_key) } else { 0 },
        column_most: if shape.keeps { in_scratch(column_most) } else { 0 },
        survey: in_kept(survey),
        origin: input.x,
        origin_stride: input.stride as i64,
        origin_survey: in_kept(survey),
        rows: rows as u32,
        padded: padded as u32,
        dim: dim as u32,
        slabs: slabs as u32,
        // Unit vectors are near the origin already: they are not translated.
        centre: (!normalize).into(),
        normalize: normalize.into(),
        unit_norms: cosine.into(),
        held: held as u32,
    };
    if let Some(other) = origin {
        (batch.origin, batch.origin_stride) = (other.origin, other.origin_stride);
        batch.origin_survey = other.origin_survey;
    }
    let launch = |kernel: &str, blocks: u32| {
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
        // SAFETY: `Batch` is these kernels' argument; the caller vouches for the input, and both allocations are laid
        // out above and live as `Memory` says.
        unsafe { launcher.launch(STEM, kernel, grid, bytemuck::bytes_of(&batch)) }
    };
    let few = rows <= PREPARED_ROWS as usize && dim <= PREPARED_WIDTH as usize;
    // Products on CUDA cores, which others are checked against, are prepared in steps.
    if few && shape.product.bytes == 2 {
        launch(&format!("batch_prepare_{}_{}", T::NAME, shape.product.name), (held as u32).div_ceil(THREADS / 32))?;
        return Ok(Prepared { batch, kept, scratch });
    }
    if in_runs {
        launch("batch_runs", (rows as u32).div_ceil(RUN))?;
        launch("batch_ranks", shape.rankings())?;
    } else {
        launch("batch_order", shape.rankings())?;
    }
    if batch.centre == 1 && origin.is_none() {
        launch(&format!("batch_survey_{}", T::NAME), shape.surveys())?;
        launch(&format!("batch_nearest_{}", T::NAME), row_blocks)?;
    }
    launch(&format!("batch_gather_{}_{}", T::NAME, shape.product.name), (held as u32).div_ceil(THREADS / 32))?;
    Ok(Prepared { batch, kept, scratch })
}

/// The anchors and the rows that they are compared with, both prepared; `kept` and `scratch` are those of each
/// [`Prepared`].
pub(crate) struct PreparedSides<M> {
    pub sides: Sides,
    /// The shapes of the anchors and of the others.
    pub shapes: [BatchShape; 2],
    pub kept: Vec<M>,
    pub scratch: Vec<M>,
}

/// Launches the preparation of both sides, and finds each row's class, and each anchor's own row, on the other side.
///
/// # Safety
/// The contract of [`prepare`] for both inputs; own rows are one i64 an anchor, and alive as long.
pub(crate) unsafe fn prepare_sides<T: Element, L: Launcher, X>(
    launcher: &L,
    problem: &Problem<X>,
    inputs: &Inputs,
) -> Result<PreparedSides<L::Memory>, Error> {
    // SAFETY: the caller's contract.
    unsafe { prepare_shaped::<T, L, X>(launcher, problem, inputs, BatchShape::anchors::<T, X>(problem)) }
}

/// [`prepare_sides`] with this shape of the anchors.
///
/// # Safety
/// As [`prepare_sides`].
pub(crate) unsafe fn prepare_shaped<T: Element, L: Launcher, X>(
    launcher: &L,
    problem: &Problem<X>,
    inputs: &Inputs,
    shape: BatchShape,
) -> Result<PreparedSides<L::Memory>, Error> {
    // SAFETY: the caller's contract.
    let anchors = unsafe { prepare::<T, L>(launcher, &shape, &inputs.anchors, None)? };
    let mut kept = vec![anchors.kept];
    let mut scratch = vec![anchors.scratch];
    let anchors = anchors.batch;
    let (Some(reference), Some(rows)) = (&inputs.reference, problem.references) else {
        let sides = Sides {
            anchors,
            others: anchors,
            first: anchors.first,
            end: anchors.end,
            other_first: anchors.first,
            other_end: anchors.end,
            itself: 1,
            ..Sides::zeroed()
        };
        return Ok(PreparedSides { sides, shapes: [shape; 2], kept, scratch });
    };
    let other_shape = BatchShape { rows, ..shape };
    // SAFETY: the caller's contract; the anchors' memory lives as `Memory` says.
    let others = unsafe { prepare::<T, L>(launcher, &other_shape, &reference.rows, Some(&anchors))? };
    kept.push(others.kept);
    scratch.push(others.scratch);
    let others = others.batch;
    let mut layout = Layout::default();
    let of_anchors = [(); 3].map(|()| layout.part(shape.rows, 4));
    let of_others = [(); 2].map(|()| layout.part(rows, 4));
    let memory = layout.allocate(launcher)?;
    let [first, end, own] = of_anchors.map(|at| memory.address() + at);
    let [other_first, other_end] = of_others.map(|at| memory.address() + at);
    kept.push(memory);
    let (own_kind, own_offset, own_rows) = match reference.own {
        Own::None => (OWN_NONE, 0, 0),
        Own::Offset(offset) => (OWN_OFFSET, offset, 0),
        Own::Rows(rows) => (OWN_ROWS, 0, rows),
    };
    let sides =
        Sides { anchors, others, first, end, own, other_first, other_end, own_rows, own_offset, own_kind, itself: 0 };
    let blocks = [shape, other_shape].map(|shape| (shape.rows as u32).div_ceil(THREADS)).iter().sum();
    let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
    // SAFETY: `Sides` is this kernel's argument; both batches are prepared, the caller vouches for own rows, and our
    // memory is laid out above and lives as `Memory` says.
    unsafe { launcher.launch(STEM, "batch_match", grid, bytemuck::bytes_of(&sides))? };
    Ok(PreparedSides { sides, shapes: [shape, other_shape], kept, scratch })
}

/// How many pairs of an anchor and a row of its class there is room for. Their number is known on the device alone, and
/// to ask for it would be to wait; so there is room for `PAIRS`, or for `PAIRS_OF_ROW` an anchor if that is more, but
/// for no more than there could be.
#[must_use]
pub fn capacity(rows: usize, others: usize) -> usize {
    count_of([rows, others]).min((PAIRS_OF_ROW * rows).max(PAIRS))
}
