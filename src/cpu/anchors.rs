//! What losses that choose among distances look at: each anchor's, in runs. In a batch by itself a tile of distances is
//! looked at from both of its sides.

use std::ops::Range;

use super::comparison::Comparison;
use super::rounds::{Rounds, Tile, Weigh};
use crate::Scalar;

/// Calls `visit(state, i, columns, compared)` for each anchor i and runs of columns, in any order, which together are all;
/// with what their distances are [compared](super::batch::Batch::direct) by. Each state, made by `state(rows)`, is of a block
/// of anchors; they come back in order.
pub fn sweep<A: Scalar, W: Send>(
    comparison: &Comparison<A>,
    state: impl Fn(Range<usize>) -> W + Sync,
    visit: impl Fn(&mut W, usize, Range<usize>, &mut [A]) + Sync,
) -> Vec<W> {
    let both = comparison.products();
    let rounds = Rounds::new(&comparison.anchors, comparison.others(), &both, [false; 2]);
    let [anchors, _] = rounds.sweep(&Visits { comparison, state, visit });
    anchors.into_iter().map(|block| block.of_loss.expect("a state for each block of anchors")).collect()
}

struct Visits<'a, A, S, V> {
    comparison: &'a Comparison<A>,
    state: S,
    visit: V,
}

impl<A, W, S, V> Weigh<A> for Visits<'_, A, S, V>
where
    A: Scalar,
    W: Send,
    S: Fn(Range<usize>) -> W + Sync,
    V: Fn(&mut W, usize, Range<usize>, &mut [A]) + Sync,
{
    const ROOTS: bool = false;
    /// `None` for rows of a reference set.
    type Block = Option<W>;
    /// The tile from its other side.
    type Scratch = Vec<A>;

    fn block(&self, side: usize, rows: &Range<usize>) -> Option<W> {
        (side == 0).then(|| (self.state)(rows.clone()))
    }

    fn left_out(&self, i: usize) -> Range<usize> {
        self.comparison.class(i)
    }

    fn weigh(
        &self,
        tile: &mut Tile<A>,
        other: &mut Vec<A>,
        rows: &mut Option<W>,
        columns: Option<&mut Option<W>>,
    ) -> bool {
        let Tile { rows: of_rows, columns: of_columns, edge, distances, .. } = tile;
        if let Some(columns) = columns.and_then(Option::as_mut) {
            other.resize(distances.len(), A::ZERO);
            let step = of_rows.len();
            transpose(&distances[..step * *edge], *edge, other, step);
            for (j, d) in of_columns.clone().zip(other.chunks_exact_mut(step)) {
                (self.visit)(columns, j, of_rows.clone(), d);
            }
        }
        if let Some(rows) = rows {
            for (i, d) in of_rows.clone().zip(distances.chunks_exact_mut(*edge)) {
                (self.visit)(rows, i, of_columns.clone(), &mut d[..of_columns.len()]);
            }
        }
        false
    }
}

/// Writes column j of `from`, whose rows have `edge` numbers, to `to` from `j * step` on.
fn transpose<A: Scalar>(from: &[A], edge: usize, to: &mut [A], step: usize) {
    // A few columns at a time: the lines of `from` stay in the first-level cache, and those of `to` are written whole.
    const COLUMNS: usize = 16;
    for first in (0..edge).step_by(COLUMNS) {
        for (i, from) in from.chunks_exact(edge).enumerate() {
            for (j, &x) in (first..).zip(&from[first..edge.min(first + COLUMNS)]) {
                to[j * step + i] = x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::transpose;

    #[test]
    fn the_other_side_of_a_tile() {
        let (edge, rows) = (32, 5);
        let from: Vec<f32> = (0..rows * edge).map(|x| x as f32).collect();
        let mut to = vec![0.0; rows * edge];
        transpose(&from, edge, &mut to, rows);
        for (i, j) in (0..rows).flat_map(|i| (0..edge).map(move |j| (i, j))) {
            assert_eq!(to[j * rows + i], from[i * edge + j]);
        }
    }
}
