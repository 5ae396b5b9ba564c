//! Prepares batches for mined losses: the launches of kernels/batch.cu.

use bytemuck::{Pod, Zeroable};

use super::arguments::{Input, Inputs};
use super::workspace::{Layout, Workspace, WorkspaceLayout, count_of};
use super::{Address, DeviceProperties, Grid, Launcher};
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

    /// Whether one launch prepares the batch, and its memory is one piece: then a step's time is that of its launches.
    fn is_small(&self) -> bool {
        self.rows <= PREPARED_ROWS as usize && self.dim <= PREPARED_WIDTH as usize
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
    zeros: Address,
    origin: Address,
    origin_stride: i64,
    origin_survey: Address,
    rows: u32,
    padded: u32,
    dim: u32,
    slabs: u32,
    normalize: u32,
    unit_norms: u32,
    held: u32,
    zeros_count: u32,
}

impl Batch {
    /// Nothing but the length of rows, for kernels that look at no more.
    pub fn of_dim(dim: usize) -> Self {
        Self { dim: dim as u32, ..Self::zeroed() }
    }

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
    /// Two batches without labels: no row of one is of any class of the other. `no_class`: zeros, as many as either has rows.
    pub fn of_no_classes(anchors: Batch, others: Batch, no_class: Address) -> Self {
        let [first, end, other_first, other_end] = [no_class; 4];
        Self { anchors, others, first, end, other_first, other_end, ..Self::zeroed() }
    }

    /// These sides with their embeddings at the addresses that they have now.
    pub fn moved_to(self, inputs: &Inputs) -> Self {
        let anchors = self.anchors.moved_to(&inputs.anchors);
        let others = inputs.reference.as_ref().map_or(anchors, |other| self.others.moved_to(&other.rows));
        Self { anchors, others, ..self }
    }
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
    largest: u32,
    largest_of: [u32; 32],
}
const SURVEY_BYTES: usize = size_of::<Survey>();

/// Where the parts of a prepared batch lie in a [`Workspace`].
pub(crate) struct Places {
    survey: Address,
    order: Address,
    position: Address,
    first: Address,
    end: Address,
    inverse: Address,
    y: Address,
    planes: Address,
    norm: Address,
    scale: Address,
    terms: Address,
    sorted: Address,
    sorted_at: Address,
    sums: Address,
    partials: Address,
    column_key: Address,
    column_most: Address,
    /// Bytes of a row's plane are so many slabs.
    slabs: u32,
    /// Rows of the planes, up to whole strips.
    held: u32,
    /// Whether labels are ranked by sorted runs.
    in_runs: bool,
}

impl Places {
    /// Makes room for a batch of this shape. `labelled`: without labels the rows are in order already.
    pub fn new(shape: &BatchShape, labelled: bool, device: &DeviceProperties, layout: &mut WorkspaceLayout) -> Self {
        let (rows, dim, padded) = (shape.rows, shape.dim, shape.padded());
        let bytes = dim * shape.product.bytes as usize;
        let held = rows.next_multiple_of(STRIP_ROWS as usize);
        let in_runs = rows >= RUNS_FROM && labelled;
        let columns = if shape.keeps { held } else { 0 };
        let WorkspaceLayout { kept, passing, .. } = layout;
        let planes = count_of([held, bytes.div_ceil(PANEL_WIDTH as usize), shape.product.planes as usize]);
        let in_runs_alone = |size: usize, passing: &mut Layout| passing.part(if in_runs { rows } else { 0 }, size);
        Self {
            survey: kept.part(1, SURVEY_BYTES),
            order: kept.part(rows, 4),
            position: kept.part(rows, 4),
            first: kept.part(rows, 4),
            end: kept.part(rows, 4),
            inverse: kept.part(padded, 4),
            y: passing.part(count_of([padded, dim]), 4),
            planes: passing.part(planes, PANEL_WIDTH as usize),
            norm: passing.part(padded, 4),
            scale: passing.part(padded, 4),
            terms: passing.part(held, 2 * 4),
            sorted: in_runs_alone(8, passing),
            sorted_at: in_runs_alone(4, passing),
            sums: passing.part(count_of([shape.surveys() as usize + 1, dim]), 8),
            partials: passing.part(shape.row_blocks(device) as usize, 8),
            column_key: passing.part(count_of([columns, TRIANGLE_KEPT as usize]), 8),
            column_most: passing.part(columns, 4),
            slabs: bytes.div_ceil(SLAB as usize) as u32,
            held: held as u32,
            in_runs,
        }
    }
}

/// Launches the preparation of a batch at `places` of `workspace`. Batches whose rows are compared with each other are
/// translated by the same row: `origin` is the first of them, prepared before.
///
/// # Safety
/// `input` is device memory of the launcher, alive until the kernels have run: `rows` rows of `dim` elements of T, and
/// labels unless they are 0. So is what `origin` points to. The workspace was allocated for the layout that `places` are of, and
/// they are those of this shape, with labels if there are any.
pub(crate) unsafe fn prepare<T: Element, L: Launcher>(
    launcher: &L,
    shape: &BatchShape,
    input: &Input,
    origin: Option<&Batch>,
    places: &Places,
    workspace: &Workspace<L::Memory>,
) -> Result<Batch, Error> {
    let (rows, dim) = (shape.rows, shape.dim);
    let cosine = shape.distance == Distance::Cosine;
    let normalize = shape.normalize || cosine;
    let (in_kept, in_passing) = (|at| workspace.kept() + at, |at| workspace.passing() + at);

    let mut batch = Batch {
        x: input.x,
        stride: input.stride as i64,
        labels: input.labels,
        order: in_kept(places.order),
        position: in_kept(places.position),
        first: in_kept(places.first),
        end: in_kept(places.end),
        sorted: in_passing(places.sorted),
        sorted_at: in_passing(places.sorted_at),
        y: in_passing(places.y),
        planes: in_passing(places.planes),
        norm: in_passing(places.norm),
        scale: in_passing(places.scale),
        terms: in_passing(places.terms),
        inverse: in_kept(places.inverse),
        sums: in_passing(places.sums),
        partials: in_passing(places.partials),
        column_key: if shape.keeps { in_passing(places.column_key) } else { 0 },
        column_most: if shape.keeps { in_passing(places.column_most) } else { 0 },
        survey: in_kept(places.survey),
        zeros: 0,
        origin: input.x,
        origin_stride: input.stride as i64,
        origin_survey: in_kept(places.survey),
        rows: rows as u32,
        padded: shape.padded() as u32,
        dim: dim as u32,
        slabs: places.slabs,
        normalize: normalize.into(),
        unit_norms: cosine.into(),
        held: places.held,
        zeros_count: 0,
    };
    if origin.is_none() {
        let (zeros, bytes) = workspace.zeroed();
        (batch.zeros, batch.zeros_count) = (zeros, (bytes / 4) as u32);
    }
    if let Some(other) = origin {
        (batch.origin, batch.origin_stride) = (other.origin, other.origin_stride);
        batch.origin_survey = other.origin_survey;
    }
    let launch = |kernel: &str, blocks: u32| {
        let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
        // SAFETY: `Batch` is these kernels' argument; the caller vouches for the input and the places, and the workspace
        // lives as `Memory` says.
        unsafe { launcher.launch(STEM, kernel, grid, bytemuck::bytes_of(&batch)) }
    };
    let by_warps = places.held.div_ceil(THREADS / 32);
    // Products on CUDA cores, which others are checked against, are prepared in steps.
    if shape.is_small() && shape.product.bytes == 2 {
        launch(&format!("batch_prepare_{}_{}", T::NAME, shape.product.name), by_warps)?;
        return Ok(batch);
    }
    if places.in_runs {
        launch("batch_runs", (rows as u32).div_ceil(RUN))?;
        launch("batch_ranks", shape.rankings())?;
    } else {
        launch("batch_order", shape.rankings())?;
    }
    if origin.is_none() {
        launch(&format!("batch_survey_{}", T::NAME), shape.surveys())?;
        launch(&format!("batch_nearest_{}", T::NAME), shape.row_blocks(launcher.properties()))?;
    }
    launch(&format!("batch_gather_{}_{}", T::NAME, shape.product.name), by_warps)?;
    Ok(batch)
}

/// The anchors and the rows that they are compared with, both prepared, and the memory of the pass.
pub(crate) struct PreparedSides<M> {
    pub sides: Sides,
    pub workspace: Workspace<M>,
}

/// The shapes of the anchors of a call on embeddings of T, and of the rows that they are compared with.
pub(crate) fn shapes<T: Element, X>(problem: &Problem<X>) -> [BatchShape; 2] {
    let Options { distance, normalize, precision, .. } = problem.options;
    let product = Product::of::<T>(precision.into());
    let shape = |rows| BatchShape { rows, dim: problem.dim, distance, normalize, product, keeps: false };
    [shape(problem.rows), shape(problem.references.unwrap_or(problem.rows))]
}

/// Allocates what `layout` has and what both sides need, launches the preparation of both, which writes the zeros too, and finds each row's class, and each
/// anchor's own row, on the other side. shapes: those of [`shapes`], or with what the rows keep besides.
///
/// # Safety
/// The contract of [`prepare`] for both inputs; own rows are one i64 an anchor, and alive as long.
pub(crate) unsafe fn prepare_sides<T: Element, L: Launcher>(
    launcher: &L,
    inputs: &Inputs,
    shapes @ [shape, other_shape]: &[BatchShape; 2],
    mut layout: WorkspaceLayout,
) -> Result<PreparedSides<L::Memory>, Error> {
    let together = shapes.iter().all(BatchShape::is_small);
    let place = |shape: &BatchShape, input: &Input, layout: &mut WorkspaceLayout| {
        Places::new(shape, input.labels != 0, launcher.properties(), layout)
    };
    let anchor_places = place(shape, &inputs.anchors, &mut layout);
    let Some(reference) = &inputs.reference else {
        let workspace = layout.allocate(launcher, together)?;
        // SAFETY: the caller's contract; the workspace is for these places.
        let anchors = unsafe { prepare::<T, L>(launcher, shape, &inputs.anchors, None, &anchor_places, &workspace)? };
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
        return Ok(PreparedSides { sides, workspace });
    };
    let other_places = place(other_shape, &reference.rows, &mut layout);
    let of_anchors = [(); 3].map(|()| layout.kept.part(shape.rows, 4));
    let of_others = [(); 2].map(|()| layout.kept.part(other_shape.rows, 4));
    let workspace = layout.allocate(launcher, together)?;
    // SAFETY: the caller's contract; the workspace is for these places, and lives as `Memory` says.
    let [anchors, others] = unsafe {
        let anchors = prepare::<T, L>(launcher, shape, &inputs.anchors, None, &anchor_places, &workspace)?;
        let others =
            prepare::<T, L>(launcher, other_shape, &reference.rows, Some(&anchors), &other_places, &workspace)?;
        [anchors, others]
    };
    let [first, end, own] = of_anchors.map(|at| workspace.kept() + at);
    let [other_first, other_end] = of_others.map(|at| workspace.kept() + at);
    let (own_kind, own_offset, own_rows) = match reference.own {
        Own::None => (OWN_NONE, 0, 0),
        Own::Offset(offset) => (OWN_OFFSET, offset, 0),
        Own::Rows(rows) => (OWN_ROWS, 0, rows),
    };
    let sides =
        Sides { anchors, others, first, end, own, other_first, other_end, own_rows, own_offset, own_kind, itself: 0 };
    let blocks = shapes.iter().map(|shape| (shape.rows as u32).div_ceil(THREADS)).sum();
    let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
    // SAFETY: `Sides` is this kernel's argument; both batches are prepared, the caller vouches for own rows, and the
    // workspace lives as `Memory` says.
    unsafe { launcher.launch(STEM, "batch_match", grid, bytemuck::bytes_of(&sides))? };
    Ok(PreparedSides { sides, workspace })
}

/// How many pairs of an anchor and a row of its class there is room for. Their number is known on the device alone, and
/// to ask for it would be to wait; so there is room for as many as the options say (`pairs_at_once`), else for `PAIRS`, or
/// for `PAIRS_OF_ROW` an anchor if that is more; but for no more than there could be.
#[must_use]
pub fn capacity(rows: usize, others: usize, pairs_at_once: Option<usize>) -> usize {
    count_of([rows, others]).min(pairs_at_once.unwrap_or((PAIRS_OF_ROW * rows).max(PAIRS)))
}
