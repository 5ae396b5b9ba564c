//! How long each unit of a device is busy at least: a time at 100 % of that unit, below which no run can be, and not a
//! prediction.

use crate::classes::{Class, Counts};
use crate::devices::Multiprocessor;
use crate::work::{Problem, Work};

/// An H200's clock while such kernels run, in Hz.
const CLOCK: f64 = 1.755e9;
/// What L2 moves in a second, in bytes. Nobody has measured it with these kernels.
const L2: f64 = 5.5e12;
/// Instructions of `mma.sync` that a multiprocessor takes in a clock: 63 % of what `wgmma` reaches (arXiv 2402.13499).
const MMA: f64 = 0.629;
/// Bytes of shared memory in a clock.
const SHARED: f64 = 128.0;

/// The bounds of one unit each, in milliseconds.
pub type Bounds = Vec<(&'static str, f64)>;

/// What a tile's instructions occupy of shared memory and of the tensor cores beyond their count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Occupied {
    /// Clocks of shared memory of a warp's instructions.
    pub shared_clocks: f64,
    /// Clocks of the tensor cores of a warp's `wgmma`.
    pub wgmma_clocks: f64,
}

impl Occupied {
    /// So many times more of others.
    pub fn add_times(&mut self, times: f64, others: &Self) {
        self.shared_clocks += times * others.shared_clocks;
        self.wgmma_clocks += times * others.wgmma_clocks;
    }
}

/// What one instruction of a warp occupies.
#[must_use]
pub fn occupied(instruction: &crate::code::Instruction<'_>) -> Occupied {
    let has = |suffix| instruction.has(suffix);
    let shared_clocks = match crate::classes::of(instruction) {
        // A matrix of 8 x 8 is 128 bytes.
        Class::LoadMatrix => ["4", "2"].iter().find(|n| has(n)).map_or(1.0, |n| n.parse().unwrap_or(1.0)),
        // Neighbouring threads mostly read the same pieces of 16 bytes.
        Class::LoadShared | Class::StoreShared if has("128") => 2.0,
        Class::LoadShared | Class::StoreShared | Class::Shuffle => 1.0,
        Class::Wgmma => {
            // A warp has a quarter of the warpgroup's operands: columns from shared memory, 16 x 2 bytes each, and rows too unless
            // they come from registers.
            let columns = columns_of(instruction.name);
            let rows = if instruction.operands.get(1).is_some_and(|a| a.starts_with("gdesc")) { 64.0 } else { 0.0 };
            (columns + rows) * 32.0 / SHARED / 4.0
        }
        _ => 0.0,
    };
    let wgmma = crate::classes::of(instruction) == Class::Wgmma;
    Occupied { shared_clocks, wgmma_clocks: if wgmma { columns_of(instruction.name) / 2.0 / 4.0 } else { 0.0 } }
}

/// The columns of a product: 128 of `HGMMA.64x128x16.F32`.
fn columns_of(name: &str) -> f64 {
    let shape = name.split('.').find_map(|part| part.strip_prefix("64x")?.split('x').next()?.parse().ok());
    shape.unwrap_or(0.0)
}

/// The bounds of a kernel that takes all tiles of a problem, by a warp's instructions of the tiles that it takes at once.
#[must_use]
pub fn of(tile: &Counts, occupied: &Occupied, work: &Work, problem: &Problem, device: &Multiprocessor) -> Bounds {
    let elements = f64::from(work.tile[0]) * f64::from(work.tile[1]);
    let tiles = work.elements(problem) / elements / f64::from(device.count);
    let warps = f64::from(work.threads) / 32.0 / work.tiles_at_once();
    let milliseconds = |clocks: f64| clocks * tiles / CLOCK * 1e3;
    let fma = tile.of(Class::Fma) + tile.of(Class::ImadMove) + 2.0 * tile.of(Class::Imad);
    vec![
        ("issue", milliseconds(tile.total() * warps / 4.0)),
        ("alu", milliseconds(tile.of(Class::Alu) * warps / 2.0)),
        ("fma", milliseconds(fma * warps / 4.0)),
        ("tensor", milliseconds((tile.of(Class::Mma) / MMA + occupied.wgmma_clocks) * warps)),
        ("shared", milliseconds(occupied.shared_clocks * warps + work.copied(problem) / SHARED)),
        ("l2", milliseconds(work.through_l2(problem) / (L2 / f64::from(device.count) / CLOCK))),
    ]
}
