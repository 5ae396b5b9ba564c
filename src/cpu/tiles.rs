//! A symmetric matrix of distances in square tiles, of which only those on and above the diagonal are computed.

use std::ops::Range;

/// Rows cut into blocks of `edge`, the last one shorter.
#[derive(Clone, Copy)]
pub struct Tiling {
    pub rows: usize,
    pub edge: usize,
}

impl Tiling {
    /// A tiling with enough tiles for many threads: `parts` blocks or more, of at most `edge` rows, a multiple of `unit`.
    pub fn at_most(rows: usize, edge: usize, unit: usize, parts: usize) -> Self {
        Self { rows, edge: (rows / parts).next_multiple_of(unit).clamp(unit, edge) }
    }

    pub fn blocks(&self) -> usize {
        self.rows.div_ceil(self.edge)
    }

    pub fn range(&self, block: usize) -> Range<usize> {
        block * self.edge..self.rows.min((block + 1) * self.edge)
    }

    /// The number of tiles on and above the diagonal.
    pub fn tiles(&self) -> usize {
        self.blocks() * (self.blocks() + 1) / 2
    }

    /// Tile `index`: its row block and its column block, which is not before it. The tiles of block rows r and
    /// `blocks - 1 - r` follow each other, together `blocks + 1`.
    pub fn tile(&self, index: usize) -> (usize, usize) {
        let blocks = self.blocks();
        let (r, c) = (index / (blocks + 1), index % (blocks + 1));
        let row = if c < blocks - r { r } else { blocks - 1 - r };
        (row, if c < blocks - r { r + c } else { row + c - (blocks - r) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tile_once() {
        for blocks in 1..12 {
            let tiling = Tiling { rows: blocks * 32 - 5, edge: 32 };
            assert_eq!(tiling.blocks(), blocks);
            let mut all: Vec<_> = (0..tiling.tiles()).map(|i| tiling.tile(i)).collect();
            all.sort_unstable();
            let expected: Vec<_> = (0..blocks).flat_map(|a| (a..blocks).map(move |b| (a, b))).collect();
            assert_eq!(all, expected);
        }
    }
}
