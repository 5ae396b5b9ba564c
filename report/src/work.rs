//! What each kernel of tiles works on: the one table that turns instructions of a loop into instructions of an element, which is
//! one product of a row with a row. Whoever changes a kernel's tile changes its line here.

use tercet::internal::{OfLoss, Strip, Sweep, of_batch_all, of_terms};

use crate::constants::{
    BATCH_ALL_SHARED, BATCH_CONTRASTIVE_SHARED, CHOOSE_SHARED, PANEL_WIDTH, PUSH_CHUNK, PUSH_SHARED, SLAB,
    STREAM_RESIDENT, STRIP_RESIDENT, STRIP_ROWS, SWEEP_LEFT_SHARED, SWEEP_RESIDENT, TILE, TILE_SHARED, TILE_THREADS,
};

/// A call of a loss.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// Rows of the batch, which is its own reference set.
    pub rows: u32,
    /// Numbers of a row.
    pub dim: u32,
    /// Other rows of each row's class.
    pub positives: u32,
}

impl Default for Problem {
    fn default() -> Self {
        Self { rows: 8192, dim: 128, positives: 7 }
    }
}

/// What a loop inside of a tile's work is for; the instructions in it tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Multiplies a slab of the rows: the innermost loop with tensor instructions.
    Slab,
    /// Takes one threshold, such as the distance of a pair, against the tile's distances.
    Threshold,
    /// Takes some columns of the embeddings for the second product: has [`Role::Bring`] and [`Role::Push`] inside.
    Chunk,
    /// Brings embeddings for the second product into shared memory.
    Bring,
    /// Multiplies weights with embeddings.
    Push,
    /// Takes a tile of a group, whose weights lie in shared memory: has [`Role::Slab`] and [`Role::Threshold`] inside.
    Tile,
    /// Takes some columns of the embeddings for the second product on tensor cores: has [`Role::Weighted`] inside.
    Columns,
    /// Multiplies the weights of a tile with those columns.
    Weighted,
}

/// A precision of the first product, by the last part of a kernel's name.
#[derive(Clone, Copy, Debug)]
struct Precision {
    planes: u32,
    /// Of a number in a plane.
    bytes: u32,
}

/// The work of one kernel.
#[derive(Clone, Debug)]
pub struct Work {
    /// Rows and columns of a block's tile.
    pub tile: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Whether a block takes many tiles in a loop; else it takes one, and all of its code is of that tile.
    pub in_loop: bool,
    /// Bytes of dynamic shared memory.
    pub dynamic: u32,
    precision: Precision,
    /// Bytes of a row that one pass of the slab loop multiplies.
    slab: u32,
    /// Slabs of the rows, those of all planes, that stay in shared memory while columns pass, if there are no more.
    keeps_rows: u32,
    /// Whether sums of the tensor cores are added elsewhere, or the rows are too short.
    sums_apart: bool,
    pushes: bool,
    /// Thresholds of a tile's row, and of its column.
    thresholds: fn(&Problem) -> f64,
    /// Whether only half of the tiles are taken: those with a pair of rows that no other one has, and a block with itself.
    half: bool,
    /// Of a sweep: what its second product is.
    pub sweep: Option<SecondProduct>,
}

/// The second product of a sweep.
#[derive(Clone, Copy, Debug)]
pub struct SecondProduct {
    /// Tiles whose weights lie in shared memory at a time; `None`: weights and sums stay in registers.
    pub group: Option<u32>,
}

/// Thresholds that a sweep takes at a time.
const SWEPT_AT_ONCE: f64 = 2.0;
/// Numbers of the columns that a sweep takes for its second product at a time.
const SWEPT_COLUMNS: u32 = 128;

/// Numbers that are summed up by tensor cores before their sums are added elsewhere: `multiply_slabs` of kernels/tile.cuh.
const SUMMED: u32 = 256;

impl Precision {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "highest" => Self { planes: 2, bytes: 2 },
            "half" => Self { planes: 1, bytes: 2 },
            _ => return None,
        })
    }
}

impl Work {
    /// The work of a kernel, if it is one of tiles on tensor cores.
    #[must_use]
    pub fn of(kernel: &str) -> Option<Self> {
        for (family, half) in [
            ("batch_hard_negatives_", false),
            ("top_k_sweep_", false),
            ("batch_hard_triangle_", true),
            // As many pairs of a row as registers hold; rows of more take all tiles again.
            ("batch_semi_hard_choose_", false),
            ("batch_negative_hardest_choose_", false),
        ] {
            if let Some((precision, shape)) = kernel.strip_prefix(family).and_then(|name| name.split_once('_')) {
                return Some(Self { half, ..Self::of_strip(Precision::named(precision)?, shape)? });
            }
        }
        if let Some(name) = kernel.strip_prefix("batch_all_sweep_") {
            let class = |problem: &Problem| f64::from(problem.positives + 1);
            let (name, planes) = name.strip_prefix("root_").map_or((name, 1), |name| (name, 2));
            return Self::of_sweep(name, of_batch_all, planes, class);
        }
        for family in ["batch_contrastive_sweep_", "pairwise_distance_sweep_"] {
            if let Some(name) = kernel.strip_prefix(family) {
                return Self::of_sweep(name.strip_prefix("root_").unwrap_or(name), of_terms, 2, |_| 0.0);
            }
        }
        let (family, precision) = kernel.rsplit_once('_')?;
        let precision = Precision::named(precision)?;
        let of_planes = |numbers: [u32; 2]| numbers[precision.planes as usize - 1];
        let class = |problem: &Problem| f64::from(problem.positives + 1);
        let plain = Self {
            tile: [TILE; 2],
            threads: TILE_THREADS,
            in_loop: true,
            dynamic: 0,
            precision,
            slab: SLAB,
            keeps_rows: 0,
            sums_apart: true,
            pushes: false,
            thresholds: |_| 0.0,
            half: false,
            sweep: None,
        };
        Some(match family {
            "pairwise_distance_tiles" => Self { in_loop: false, dynamic: of_planes(TILE_SHARED), ..plain },
            "batch_negative_drawn_choose" => {
                Self { keeps_rows: STREAM_RESIDENT, dynamic: of_planes(CHOOSE_SHARED), thresholds: class, ..plain }
            }
            "batch_all_left" => Self { pushes: true, dynamic: of_planes(BATCH_ALL_SHARED), thresholds: class, ..plain },
            "batch_contrastive_left" | "pairwise_distance_left" => {
                Self { pushes: true, dynamic: of_planes(SWEEP_LEFT_SHARED), ..plain }
            }
            "batch_contrastive_pass" => Self { pushes: true, dynamic: of_planes(BATCH_CONTRASTIVE_SHARED), ..plain },
            _ => return None,
        })
    }

    /// The work of a kernel over strips, by the shape in its name.
    fn of_strip(precision: Precision, shape: &str) -> Option<Self> {
        let strip = Strip::named(shape, precision.planes)?;
        Some(Self {
            tile: [STRIP_ROWS, strip.columns],
            threads: strip.threads,
            in_loop: true,
            dynamic: strip.shared_bytes,
            precision,
            slab: PANEL_WIDTH,
            keeps_rows: if strip.long { 0 } else { STRIP_RESIDENT * precision.planes },
            sums_apart: strip.long,
            pushes: false,
            thresholds: |_| 0.0,
            half: false,
            sweep: None,
        })
    }

    /// The work of a sweep, by the precision and the shape in its name. of_loss: shared memory of the loss. planes: of its weights.
    fn of_sweep(name: &str, of_loss: OfLoss, planes: u32, thresholds: fn(&Problem) -> f64) -> Option<Self> {
        let (precision, shape) = name.split_once('_')?;
        let precision = Precision::named(precision)?;
        let shape = Sweep::named(shape, precision.planes, of_loss)?;
        let group = shape.group_bytes / (planes * TILE * PANEL_WIDTH);
        Some(Self {
            tile: [TILE; 2],
            threads: shape.threads(),
            in_loop: true,
            dynamic: shape.shared_bytes,
            precision,
            slab: PANEL_WIDTH,
            keeps_rows: if shape.long { 0 } else { SWEEP_RESIDENT * precision.planes },
            sums_apart: shape.long,
            pushes: false,
            thresholds,
            half: false,
            sweep: Some(SecondProduct { group: shape.long.then_some(group) }),
        })
    }

    /// Tiles that one pass of the loop over a tile's work takes.
    #[must_use]
    pub fn tiles_at_once(&self) -> f64 {
        self.sweep.and_then(|sweep| sweep.group).map_or(1.0, f64::from)
    }

    /// Products that are computed for a problem.
    #[must_use]
    pub fn elements(&self, problem: &Problem) -> f64 {
        let rows = f64::from(problem.rows);
        // Half of all, and half of what a block of rows has with itself.
        if self.half { rows * (rows + f64::from(self.tile[0]).min(rows)) / 2.0 } else { rows * rows }
    }

    /// Products that each thread of a block holds of a tile.
    #[must_use]
    pub fn elements_per_thread(&self) -> u32 {
        self.tile[0] * self.tile[1] / self.threads
    }

    /// How often a loop of that role is gone through for each tile, if it stands in the code once. For thresholds there is one
    /// loop for rows and one for columns where both have some.
    #[must_use]
    pub fn trips(&self, role: Role, problem: &Problem) -> f64 {
        let chunks = f64::from(problem.dim.div_ceil(PUSH_CHUNK));
        let (group, swept) = (self.tiles_at_once(), f64::from(problem.dim.div_ceil(SWEPT_COLUMNS)));
        match role {
            Role::Slab => group * f64::from(self.slabs(problem)),
            Role::Threshold if self.sweep.is_some() => group * ((self.thresholds)(problem) / SWEPT_AT_ONCE).ceil(),
            Role::Threshold => (self.thresholds)(problem),
            Role::Tile => group,
            Role::Columns => swept,
            Role::Weighted => group * swept,
            Role::Chunk if self.pushes => chunks,
            // Pieces of 16 bytes, of the tile's rows and of its columns; the loop is unrolled by 4.
            Role::Bring if self.pushes => {
                f64::from((self.tile[0] + self.tile[1]) * PUSH_CHUNK / 4 / self.threads) / UNROLLED * chunks
            }
            Role::Push if self.pushes => f64::from(self.tile[1]) / UNROLLED * chunks,
            Role::Chunk | Role::Bring | Role::Push => 0.0,
        }
    }

    /// Slabs of a row.
    #[must_use]
    pub fn slabs(&self, problem: &Problem) -> u32 {
        (problem.dim * self.precision.bytes).div_ceil(self.slab)
    }

    /// Which share of the slabs ends with adding the tensor cores' sums to those before.
    #[must_use]
    pub fn share_that_adds(&self, problem: &Problem) -> f64 {
        let slabs = self.slabs(problem);
        f64::from(slabs / self.slabs_summed()) / f64::from(slabs)
    }

    /// Whether there are any sums of the tensor cores before the last.
    #[must_use]
    pub fn adds(&self, problem: &Problem) -> bool {
        self.sums_apart && self.slabs(problem) >= self.slabs_summed()
    }

    fn slabs_summed(&self) -> u32 {
        SUMMED * self.precision.bytes / self.slab
    }

    /// Bytes that a tile brings from L2 to shared memory.
    #[must_use]
    pub fn copied(&self, problem: &Problem) -> f64 {
        let of_row = self.precision.planes * self.slabs(problem) * self.slab;
        let rows_stay = self.precision.planes * self.slabs(problem) <= self.keeps_rows;
        // A long sweep brings the columns once more for its second product.
        let again = if self.sweep.is_some_and(|sweep| sweep.group.is_some()) { self.tile[1] } else { 0 };
        let first = of_row * (self.tile[1] + again + if rows_stay { 0 } else { self.tile[0] });
        f64::from(first) + if self.pushes { f64::from((self.tile[0] + self.tile[1]) * problem.dim * 4) } else { 0.0 }
    }

    /// Bytes that pass L2 for a tile: those copied, and the rows of the second product's sums, read and written.
    #[must_use]
    pub fn through_l2(&self, problem: &Problem) -> f64 {
        let sums = f64::from(2 * self.tile[0] * problem.dim * 4);
        let of_group = self.sweep.and_then(|sweep| sweep.group).map_or(0.0, |group| sums / f64::from(group));
        self.copied(problem) + if self.pushes { sums } else { of_group }
    }
}

/// How often the compiler unrolls the loops of the second product.
const UNROLLED: f64 = 4.0;

/// Bytes of dynamic shared memory that a kernel is launched with.
#[must_use]
pub fn dynamic_shared_bytes(kernel: &str) -> u32 {
    match kernel {
        "pairwise_distance_push" => PUSH_SHARED,
        "pairwise_distance_tiles_plain" => TILE_SHARED[0],
        kernel => Work::of(kernel).map_or(0, |work| work.dynamic),
    }
}
