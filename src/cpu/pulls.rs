//! Gradients of losses that choose pairs: each row gathers what pulls at it, in the order of the pairs, so that no two
//! threads write to one row.

use super::batch::{Batch, add_scaled, add_scaled_difference};
use super::blocks;
use super::comparison::Comparison;
use crate::Distance;
use crate::element::{ByScalar, ScalarFn};
use crate::{Element, Scalar};

/// Rows of one task.
const TASK_ROWS: usize = 32;

/// A pair of an anchor and another row, by their places in the order of classes.
pub struct Pull<A> {
    pub anchor: u32,
    pub other: u32,
    /// The derivative of the loss with respect to the distance, times the distance's [slope](Batch::slope).
    pub weight: A,
}

/// The gradients with respect to the anchors and to the reference set, in the order given; if the batch is its own
/// reference set, the first of them is the sum of both. `scale`: what all is multiplied by at last.
pub fn gradients<T: Element>(
    comparison: &Comparison<T::Scalar>,
    pulls: &[Pull<T::Scalar>],
    scale: T::Scalar,
    grads: [Option<&mut [T]>; 2],
) {
    for (side, grad) in [Side::Anchors, Side::Others].into_iter().zip(grads) {
        let Some(grad) = grad else { continue };
        if comparison.poisoned() {
            grad.fill(T::from_f64(f64::NAN));
            continue;
        }
        let lists = Lists::new(comparison, side, pulls);
        let dim = comparison.anchors.dim;
        blocks::for_each(grad.chunks_mut(TASK_ROWS * dim).collect(), |task, grad: &mut [T]| {
            let mut wide = vec![T::Scalar::ZERO; if T::as_scalars(&[]).is_some() { 0 } else { dim }];
            for (i, grad) in grad.chunks_exact_mut(dim).enumerate() {
                let row = task * TASK_ROWS + i;
                match T::as_scalars_mut(grad) {
                    Some(grad) => T::Scalar::of_scalar(&GATHER)(comparison, &lists, pulls, row, scale, grad),
                    None => {
                        T::Scalar::of_scalar(&GATHER)(comparison, &lists, pulls, row, scale, &mut wide);
                        T::narrow(&wide, grad);
                    }
                }
            }
        });
    }
}

/// The rows that gradients are taken with respect to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Anchors,
    Others,
}

/// The pairs that each row of a side is part of.
pub struct Lists {
    side: Side,
    as_anchor: Option<List>,
    as_other: Option<List>,
}

/// Pairs by row: `pairs[starts[r]..starts[r + 1]]` are those of row r.
struct List {
    starts: Vec<usize>,
    pairs: Vec<usize>,
}

impl List {
    fn new(rows: usize, of_pairs: impl Iterator<Item = u32> + Clone) -> Self {
        let mut starts = vec![0; rows + 1];
        for row in of_pairs.clone() {
            starts[row as usize + 1] += 1;
        }
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        let mut pairs = vec![0; starts[rows]];
        let mut filled = starts.clone();
        for (pair, row) in of_pairs.enumerate() {
            pairs[filled[row as usize]] = pair;
            filled[row as usize] += 1;
        }
        Self { starts, pairs }
    }

    fn of(&self, row: usize) -> &[usize] {
        &self.pairs[self.starts[row]..self.starts[row + 1]]
    }
}

impl Lists {
    fn new<A: Scalar>(comparison: &Comparison<A>, side: Side, pulls: &[Pull<A>]) -> Self {
        let as_anchor = || List::new(comparison.anchors.rows, pulls.iter().map(|pull| pull.anchor));
        let as_other = || List::new(comparison.others().rows, pulls.iter().map(|pull| pull.other));
        Self {
            side,
            as_anchor: (side == Side::Anchors).then(as_anchor),
            as_other: (side == Side::Others || comparison.is_itself()).then(as_other),
        }
    }
}

struct Gather;
impl ScalarFn for Gather {
    type Of<A: Scalar> = fn(&Comparison<A>, &Lists, &[Pull<A>], usize, A, &mut [A]);
}
static GATHER: ByScalar<Gather> = ByScalar { f32: gather, f64: gather };

/// The gradient with respect to one row: first from the pairs whose anchor it is, then from those it was chosen for.
fn gather<A: Scalar>(comparison: &Comparison<A>, lists: &Lists, pulls: &[Pull<A>], row: usize, scale: A, to: &mut [A]) {
    let (anchors, others) = (&comparison.anchors, comparison.others());
    let (batch, classes) = match lists.side {
        Side::Anchors => (anchors, &comparison.classes),
        Side::Others => (others, comparison.other_classes()),
    };
    let i = classes.position[row] as usize;
    to.fill(A::ZERO);
    let [as_anchor, as_other] =
        [&lists.as_anchor, &lists.as_other].map(|list| list.as_ref().map_or(&[][..], |list| list.of(i)));
    if as_anchor.is_empty() && as_other.is_empty() {
        return;
    }
    for pull in as_anchor.iter().map(|&pair| &pulls[pair]) {
        add(to, batch, i, others, pull.other as usize, pull.weight);
    }
    for pull in as_other.iter().map(|&pair| &pulls[pair]) {
        add(to, batch, i, anchors, pull.anchor as usize, pull.weight);
    }
    batch.through_normalization(i, to);
    to.iter_mut().for_each(|g| *g = *g * scale);
}

/// Adds `weight` times the gradient, with respect to row i of `batch`, of its distance to row j of `others`; `weight`
/// includes the distance's slope.
pub fn add<A: Scalar>(to: &mut [A], batch: &Batch<A>, i: usize, others: &Batch<A>, j: usize, weight: A) {
    match batch.metric {
        Distance::Cosine => add_scaled(to, -weight, others.row(j)),
        _ => add_scaled_difference(to, weight, batch.row(i), others.row(j)),
    }
}
