//! The one table of the constants that host and kernels share, and of what was tuned.
//!
//! The build scripts read this file too, and hand every constant of `shared!` to the kernels as a macro, `TERCET_` and its
//! name. So a number that both sides need stands here and nowhere else.
#![allow(dead_code, reason = "each build reads its share")]

/// Declares constants and `definitions`, which has all of them: none can be forgotten there.
macro_rules! shared {
    ($($(#[$documentation:meta])* pub const $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$documentation])* pub const $name: $type = $value;)*

        /// The names and values of the macros that kernels are compiled with.
        pub fn definitions() -> Vec<(String, String)> {
            vec![$((format!("TERCET_{}", stringify!($name)), $name.literal())),*]
        }
    };
}

/// How a constant is written in C++.
trait Literal {
    fn literal(&self) -> String;
}
impl Literal for u32 {
    fn literal(&self) -> String {
        self.to_string()
    }
}
impl Literal for usize {
    fn literal(&self) -> String {
        self.to_string()
    }
}
impl Literal for f64 {
    fn literal(&self) -> String {
        format!("{self:e}")
    }
}
/// Several constants are written as the arguments of a function, or of a template.
impl<const N: usize> Literal for [u32; N] {
    fn literal(&self) -> String {
        self.map(|number| number.to_string()).join(",")
    }
}

shared! {
    // ---- numbers ----

    /// A row whose L2 norm is below this is divided by it instead, as by `torch.nn.functional.normalize`.
    pub const MIN_NORM: f64 = 1e-12;

    /// Numbers whose squares' sum is below the inverse of this may be multiplied by it, and those whose squares' sum overflows
    /// divided, before they are squared: 2^100.
    pub const LIFT_F32: f64 = 1.2676506002282294e30;

    /// What [`LIFT_F32`] is for f32, for f64: 2^800.
    pub const LIFT_F64: f64 = 6.668014432879854e240;

    // ---- paired losses ----

    /// Threads in a block of a paired loss.
    pub const PAIRED_THREADS: u32 = 256;

    // ---- all mined losses ----

    /// Threads in a block of the mined losses' kernels that take rows.
    pub const BATCH_THREADS: u32 = 256;

    /// Rows that a block of `batch_order` or `batch_ranks` ranks, one a lane of each warp.
    pub const RANKED: u32 = 32;

    /// Keys that a block sorts; their ranks are then found by a search in each sorted run.
    pub const RUN: u32 = 1024;

    /// What pulls at a row is added up by one warp up to so many, and beyond by all warps of a block.
    pub const LONG_LIST: u32 = 64;

    /// Rows that a block makes the prefix sums of.
    pub const SCANNED: u32 = 1024;

    /// Batches of at most so many rows, of at most [`PREPARED_WIDTH`] numbers, are prepared by one launch.
    pub const PREPARED_ROWS: u32 = 1024;

    /// See [`PREPARED_ROWS`].
    pub const PREPARED_WIDTH: u32 = 128;

    /// Rows of which a block of `batch_survey` makes one sum.
    pub const SURVEYED: u32 = 64;

    /// What losses over triplets sum up over the anchors: the loss, valid, active, and both distances.
    pub const STATS: usize = 5;

    /// Numbers of 8 bytes that a mined loss writes about a batch: valid, active, means of both distances, what the sum of the
    /// losses is multiplied by, and whether there was no room for the pairs.
    pub const STATS_WRITTEN: usize = 6;

    /// A mined loss's distance is the squared Euclidean one.
    pub const SQUARED: u32 = 0;

    /// A mined loss's distance is the Euclidean one.
    pub const EUCLIDEAN: u32 = 1;

    /// A mined loss's distance is the cosine one.
    pub const COSINE: u32 = 2;

    /// No anchor is one of the rows of the reference set.
    pub const OWN_NONE: u32 = 0;

    /// Anchor i is row i of the reference set and so many further.
    pub const OWN_OFFSET: u32 = 1;

    /// Each anchor says which row of the reference set it is.
    pub const OWN_ROWS: u32 = 2;

    /// Rows and columns of a tile of the Gram matrix.
    pub const TILE: u32 = 64;

    /// Threads in a block that multiplies tiles.
    pub const TILE_THREADS: u32 = 128;

    /// Bytes of a row that one stage of a tile's pipeline brings.
    pub const SLAB: u32 = 64;

    /// Bytes of a row in a panel: planes lie in memory in panels of [`TILE`] rows.
    pub const PANEL_WIDTH: u32 = 128;

    /// Slabs of both sides of a single tile that shared memory holds at a time.
    pub const STAGES: u32 = 3;

    /// Blocks of one row tile, TILE x SLAB bytes each, that stay in shared memory while its row of tiles is multiplied.
    pub const STREAM_RESIDENT: u32 = 8;

    /// Slabs of the column tiles of a row of tiles that shared memory holds at a time.
    pub const STREAM_RING: u32 = 4;

    /// Rows of a block of a strip.
    pub const STRIP_ROWS: u32 = 128;

    /// Panels of a strip's rows that stay in shared memory: rows of up to 128 numbers of 16 bits.
    pub const STRIP_RESIDENT: u32 = 2;

    /// The shape of a strip's blocks: rows and columns of a warp's products, warps across, and stages of columns. For products
    /// of two planes, where a multiprocessor has shared memory for two such blocks.
    pub const STRIP_WIDE_SPLIT: [u32; 4] = [64, 32, 2, 3];

    /// As [`STRIP_WIDE_SPLIT`], for products of one plane.
    pub const STRIP_WIDE_SINGLE: [u32; 4] = [64, 64, 2, 3];

    /// As [`STRIP_WIDE_SPLIT`], for rows that do not stay in shared memory, and one plane or two: 256 numbers are summed up
    /// at a time, so each product takes two registers.
    pub const STRIP_WIDE_LONG: [u32; 4] = [64, 32, 2, 2];

    /// As [`STRIP_WIDE_SPLIT`], for all rows, and one plane or two, where a multiprocessor has shared memory for one block.
    pub const STRIP_NARROW: [u32; 4] = [32, 32, 2, 2];

    /// As [`STRIP_WIDE_SPLIT`], of one plane or two, for kernels that keep much of each row: a thread has half of the rows.
    pub const STRIP_TALL: [u32; 4] = [32, 64, 1, 3];

    /// Blocks of the wide shapes, and of the tall one, that a multiprocessor holds, and of the narrow one.
    pub const STRIP_BLOCKS: [u32; 2] = [2, 1];

    /// Keys that a column keeps of the rows before its own block, where half of the tiles are taken. If the last is not far beyond
    /// the least there may be more, and all rows are looked at: two rows that no product tells apart are no rarity.
    pub const TRIANGLE_KEPT: u32 = 3;

    /// Columns of the embeddings that the second product multiplies with weights at a time.
    pub const PUSH_CHUNK: u32 = 64;

    /// Panels of a sweep's rows that stay in shared memory: rows of up to 128 numbers of 16 bits.
    pub const SWEEP_RESIDENT: u32 = 2;

    /// Bytes of weights of longer rows that shared memory holds at a time, where a multiprocessor has room for two such blocks.
    pub const SWEEP_GROUP_WIDE: u32 = 32 << 10;

    /// As [`SWEEP_GROUP_WIDE`], where it has room for one.
    pub const SWEEP_GROUP_NARROW: u32 = 16 << 10;

    /// Tiles that a block of a sweep takes at most: shared memory holds a byte for each, with what was left of it.
    pub const SWEEP_TILES: u32 = 4096;

    // Dynamic shared memory, in bytes; two numbers are for products of one plane and of two. The kernels assert that each is
    // the size of the struct that they lay over it.

    /// Dynamic shared memory of a block that multiplies single tiles.
    pub const TILE_SHARED: [u32; 2] = [tile_bytes(1), tile_bytes(2)];

    /// Dynamic shared memory of a block that multiplies a row of tiles.
    pub const STREAM_SHARED: [u32; 2] = [stream_bytes(1), stream_bytes(2)];

    /// Dynamic shared memory of a block of a strip of [`STRIP_WIDE_SPLIT`].
    pub const STRIP_WIDE_SPLIT_SHARED: [u32; 2] = [0, strip_bytes(STRIP_WIDE_SPLIT, 2, true)];

    /// Dynamic shared memory of a block of a strip of [`STRIP_WIDE_SINGLE`].
    pub const STRIP_WIDE_SINGLE_SHARED: [u32; 2] = [strip_bytes(STRIP_WIDE_SINGLE, 1, true), 0];

    /// Dynamic shared memory of a block of a strip of [`STRIP_TALL`].
    pub const STRIP_TALL_SHARED: [u32; 2] = [strip_bytes(STRIP_TALL, 1, true), strip_bytes(STRIP_TALL, 2, true)];

    /// Dynamic shared memory of a block of a strip of [`STRIP_WIDE_LONG`].
    pub const STRIP_WIDE_LONG_SHARED: [u32; 2] = [strip_bytes(STRIP_WIDE_LONG, 1, false), strip_bytes(STRIP_WIDE_LONG, 2, false)];

    /// Dynamic shared memory of a block of a strip of [`STRIP_NARROW`] whose rows stay there.
    pub const STRIP_NARROW_SHARED: [u32; 2] = [strip_bytes(STRIP_NARROW, 1, true), strip_bytes(STRIP_NARROW, 2, true)];

    /// Dynamic shared memory of a block of a strip of [`STRIP_NARROW`] whose rows are brought with the columns.
    pub const STRIP_NARROW_LONG_SHARED: [u32; 2] = [strip_bytes(STRIP_NARROW, 1, false), strip_bytes(STRIP_NARROW, 2, false)];

    /// Dynamic shared memory of a sweep over rows that stay there.
    pub const SWEEP_SHORT_SHARED: [u32; 2] = [sweep_bytes(1, 0), sweep_bytes(2, 0)];

    /// Dynamic shared memory of a sweep over longer rows, with room for [`SWEEP_GROUP_WIDE`] bytes of weights.
    pub const SWEEP_WIDE_LONG_SHARED: [u32; 2] = [sweep_bytes(1, SWEEP_GROUP_WIDE), sweep_bytes(2, SWEEP_GROUP_WIDE)];

    /// As [`SWEEP_WIDE_LONG_SHARED`], with room for [`SWEEP_GROUP_NARROW`] bytes of weights.
    pub const SWEEP_NARROW_LONG_SHARED: [u32; 2] = [sweep_bytes(1, SWEEP_GROUP_NARROW), sweep_bytes(2, SWEEP_GROUP_NARROW)];

    /// Dynamic shared memory of a sweep of a loss without thresholds beside a sweep's own, in wide shapes and in narrow ones.
    pub const SWEEP_TERMS_SHARED: [u32; 2] = [TILE * 2 * 4 + SWEEP_TILES, 2 * TILE * 2 * 4 + SWEEP_TILES];

    /// Dynamic shared memory of a block that takes what such a sweep leaves.
    pub const SWEEP_LEFT_SHARED: [u32; 2] = [push_bytes(1), push_bytes(2)];

    // ---- pairwise_distance ----

    /// Dynamic shared memory of a block of `pairwise_distance_push`.
    pub const PUSH_SHARED: u32 = WEIGHTS_BYTES + CHUNKS_BYTES;

    /// Rows of an upstream gradient that a block of `pairwise_distance_units` looks at.
    pub const UNIT_ROWS: u32 = 32;

    // ---- batch_all ----

    /// batch_all on CUDA: classes of at most so many rows are compared threshold by threshold, larger ones sorted and searched.
    pub const COMPARED: u32 = 32;

    /// A sweep of batch_all that has little shared memory takes classes of at most so many rows.
    pub const COMPARED_FEW: u32 = 16;

    /// What a sweep of batch_all needs of a tile's columns, in bytes: terms, shares, and thresholds of up to [`COMPARED`] rows.
    pub const BATCH_ALL_COLUMNS: u32 = 2 * TILE * 8 + COMPARED * TILE * 4;

    /// Dynamic shared memory of a sweep of batch_all beside a sweep's own: for classes of [`COMPARED`] rows, and of
    /// [`COMPARED_FEW`].
    pub const BATCH_ALL_COUNT_SHARED: [u32; 2] = [count_bytes(COMPARED), count_bytes(COMPARED_FEW)];

    /// Dynamic shared memory of a block of `batch_all_left`.
    pub const BATCH_ALL_SHARED: [u32; 2] = [batch_all_bytes(1), batch_all_bytes(2)];

    // ---- batch_contrastive ----

    /// batch_contrastive on CUDA: how many different digits there are; the bits of a distance are three of them.
    pub const DIGITS: u32 = 1 << 11;

    /// The pass of `batch_contrastive_pass` that sums up the loss. Those before it select.
    pub const PHASE_SUMS: u32 = 5;

    /// The pass of `batch_contrastive_pass` that makes the gradient.
    pub const PHASE_PUSH: u32 = 6;

    /// What batch_contrastive sums up over an anchor's negatives: squares, how many are active, distances.
    pub const SUMS_OF_ROW: usize = 3;

    /// What batch_contrastive sums up over the anchors: the loss, pairs of one class and of two, active, distances of both; of
    /// pairs of one class the loss, active; of pairs of two the loss.
    pub const TOTALS: usize = 9;

    /// Dynamic shared memory of a block of `batch_contrastive_pass`.
    pub const BATCH_CONTRASTIVE_SHARED: [u32; 2] = [push_bytes(1) + DIGITS * 4, push_bytes(2) + DIGITS * 4];

    // ---- batch_hard ----

    /// In classes of more rows a block looks for the farthest positives of several anchors at a time.
    pub const LARGE_CLASS: u32 = 64;

    /// Up to so many anchors, and rows, a block of `batch_hard_backward` looks at all choices for those of its rows: its list
    /// of them lies in shared memory, and each block reads all choices. Beyond, two launches make the lists of all rows.
    pub const BATCH_HARD_SEARCHED: u32 = 2048;

    /// A row that at least so many anchors have chosen is a hub: one block would be the last by far, so blocks share what pulls
    /// at it. Batches of fewer choices have none.
    pub const BATCH_HARD_HUB: u32 = 4096;

    /// Choices of hubs that one block of `batch_hard_hubs` sums up.
    pub const BATCH_HARD_HUB_PIECE: u32 = 1024;

    // ---- top_k ----

    /// Keys that a block of `top_k_merge` sorts: a query's nearest rows so far, and rows on its list.
    pub const TOP_K_SORTED: u32 = 2048;

    // ---- batch_semi_hard and batch_negative ----

    /// Dynamic shared memory of a block of `draw`.
    pub const CHOOSE_SHARED: [u32; 2] = [choose_bytes(1), choose_bytes(2)];
}

// ---- what was tuned of the launches alone ----

/// Batches of so many rows and more are ranked by sorted runs. Below, looking at all labels takes less time than a second
/// launch and the sorting of a run.
pub const RUNS_FROM: usize = 4096;

/// Batches of so many rows and more take half of the tiles. On a device of 132 multiprocessors a block then has 5 tiles of 4096
/// rows where it had 8, but of 2048 rows 2 where it had 2: the fewer there are, the worse they can be dealt.
pub const TRIANGLE_FROM: usize = 4096;

/// Batches of more rows take all tiles: a key has 24 bits for which 32 rows a warp has.
pub const TRIANGLE_TO: usize = 32 << 24;

/// Blocks of `draw` that a multiprocessor holds: their shared memory allows no more.
pub const CHOOSE_RESIDENT: u32 = 2;

/// Up to so many rows of either side a block of the backward pass of a loss that chooses a negative for each pair looks at all
/// pairs for those that chose its rows. Beyond, launches of their own list the pairs of all rows.
pub const TRIPLETS_SEARCHED: u32 = 2048;

/// The largest `k` of a search on a device: half of the keys that are sorted, so that as many rows come to them at a time.
pub const TOP_K_MOST: usize = TOP_K_SORTED as usize / 2;

/// Numbers of the rows that a search on a device prepares at a time.
pub const TOP_K_CHUNK: usize = 1 << 23;

/// Bytes of shared memory of a multiprocessor that the driver keeps for each block.
pub const SHARED_OF_DRIVER: u32 = 1 << 10;

/// Blocks of tiles that there should be for each multiprocessor: rows of tiles are split until there are.
pub const TILE_BLOCKS: u32 = 2;

/// Into how many parts a row of tiles may be split at least, if that fills the device in whole turns.
pub const EVEN_SPLITS: u32 = 8;

/// The share of the device that blocks in whole turns must keep busy: the first split that does is taken.
pub const EVEN_ENOUGH: f64 = 0.9;

/// Pairs of an anchor and a row of its class that any batch has room for, if the loss's options do not say.
pub const PAIRS: usize = 1 << 22;

/// Rows of its class for each anchor, on average, that a batch has room for: as many pairs, if these are more than [`PAIRS`].
pub const PAIRS_OF_ROW: usize = 128;

// ---- sizes of what lies in shared memory ----

/// A tile of weights: two threads of a row, and of the 16 rows of a warp, are in 32 banks.
const WEIGHTS_BYTES: u32 = TILE * (TILE + 2) * 4;

/// Columns of the embeddings of a tile's rows and of its columns, in f32.
const CHUNKS_BYTES: u32 = 2 * TILE * (PUSH_CHUNK + 4) * 4;

const fn tile_bytes(planes: u32) -> u32 {
    STAGES * 2 * planes * TILE * SLAB
}

/// What a row of tiles needs: planes, and the norms and scales of two tiles' columns.
const fn stream_bytes(planes: u32) -> u32 {
    (STREAM_RESIDENT + STREAM_RING * planes) * TILE * SLAB + 2 * 2 * TILE * 4
}

/// What a strip needs: its resident rows, or where the struct begins; norm and factor of the columns of two tiles; and the
/// panels of each stage.
const fn strip_bytes([_, warp_columns, across, stages]: [u32; 4], planes: u32, resident: bool) -> u32 {
    let (columns, panel) = (warp_columns * across, planes * TILE * PANEL_WIDTH);
    let of_rows = STRIP_ROWS / TILE * panel;
    let rows = if resident { STRIP_RESIDENT * of_rows } else { PANEL_WIDTH };
    let stage = columns / TILE * panel + if resident { 0 } else { of_rows };
    (rows + 2 * columns * 2 * 4 + stages * stage).next_multiple_of(PANEL_WIDTH)
}

/// What a sweep needs: two panels of rows and three of columns or, of long rows, two stages of both and weights.
const fn sweep_bytes(planes: u32, group: u32) -> u32 {
    let panel = planes * TILE * PANEL_WIDTH;
    (if group == 0 { SWEEP_RESIDENT + 3 } else { 4 }) * panel + group
}

/// What a sweep of batch_all needs besides, for classes of `most` rows: of columns terms, shares and thresholds; thresholds of
/// rows, counts, and what is left.
const fn count_bytes(most: u32) -> u32 {
    2 * TILE * 8 + 3 * most * TILE * 4 + SWEEP_TILES
}

const fn batch_all_bytes(planes: u32) -> u32 {
    larger(tile_bytes(planes), CHUNKS_BYTES) + 2 * WEIGHTS_BYTES + COMPARED * TILE * 4
}

const fn push_bytes(planes: u32) -> u32 {
    larger(tile_bytes(planes), CHUNKS_BYTES) + WEIGHTS_BYTES
}

const fn choose_bytes(planes: u32) -> u32 {
    stream_bytes(planes) + WEIGHTS_BYTES
}

const fn larger(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}
