//! The CPU version: the tiles of distances that mined losses use too, written out.

use std::ops::Range;

use crate::cpu::batch::Batch;
use crate::cpu::distance_matrix::{DistanceMatrix, TASK_ROWS, TILE_COLUMNS};
use crate::element::{ByScalar, ScalarFn};
use crate::matrix::check_len;
use crate::{Distance, Element, Error, Matrix, Precision, Scalar};

/// The options and shape of one call of [`PairwiseDistance`](super::PairwiseDistance), checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairwiseProblem {
    /// Of each matrix.
    pub rows: [usize; 2],
    pub dim: usize,
    pub distance: Distance,
    pub normalize: bool,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU knows one precision"))]
    pub precision: Precision,
}

impl PairwiseProblem {
    pub fn check_grads(&self, lens: [Option<usize>; 2]) -> Result<(), Error> {
        for ((argument, len), rows) in ["grads[0]", "grads[1]"].into_iter().zip(lens).zip(self.rows) {
            if let Some(len) = len {
                check_len(argument, len, rows * self.dim)?;
            }
        }
        Ok(())
    }
}

/// The distances between all rows of both matrices.
pub(crate) fn distances<T: Element>(problem: &PairwiseProblem, matrices: [&Matrix<'_, T>; 2], to: &mut [T::Scalar]) {
    T::Scalar::of_scalar(&DISTANCES)(&batches(problem, matrices), to);
}

/// The gradients with respect to both matrices.
pub(crate) fn gradients<T: Element>(
    problem: &PairwiseProblem,
    matrices: [&Matrix<'_, T>; 2],
    upstream: &[T::Scalar],
    grads: [Option<&mut [T]>; 2],
) {
    let batches = batches(problem, matrices);
    for (which, grad) in grads.into_iter().enumerate() {
        let Some(grad) = grad else { continue };
        match T::as_scalars_mut(grad) {
            Some(grad) => T::Scalar::of_scalar(&GRADIENT)(&batches, which, upstream, grad),
            None => {
                let mut wide = vec![T::Scalar::ZERO; grad.len()];
                T::Scalar::of_scalar(&GRADIENT)(&batches, which, upstream, &mut wide);
                T::narrow(&wide, grad);
            }
        }
    }
}

fn batches<T: Element>(problem: &PairwiseProblem, matrices: [&Matrix<'_, T>; 2]) -> [Batch<T::Scalar>; 2] {
    matrices.map(|matrix| {
        let order: Vec<u32> = (0..).take(matrix.rows()).collect();
        Batch::new(matrix, &order, problem.distance, problem.normalize)
    })
}

struct Distances;
impl ScalarFn for Distances {
    type Of<A: Scalar> = fn(&[Batch<A>; 2], &mut [A]);
}
static DISTANCES: ByScalar<Distances> = ByScalar { f32: write_distances, f64: write_distances };

struct Gradient;
impl ScalarFn for Gradient {
    type Of<A: Scalar> = fn(&[Batch<A>; 2], usize, &[A], &mut [A]);
}
static GRADIENT: ByScalar<Gradient> = ByScalar { f32: write_gradient, f64: write_gradient };

fn write_distances<A: Scalar>([rows, columns]: &[Batch<A>; 2], to: &mut [A]) {
    DistanceMatrix::new(rows, columns).distances(to);
}

/// The gradient with respect to matrix `which`.
fn write_gradient<A: Scalar>(batches: &[Batch<A>; 2], which: usize, upstream: &[A], to: &mut [A]) {
    let (rows, columns) = (&batches[which], &batches[1 - which]);
    let weigh = |patch: &mut Vec<A>, i: usize, run: Range<usize>, _: &mut [A], weights: &mut [A]| {
        let k = i % TASK_ROWS;
        let from = if which == 0 {
            &upstream[i * columns.rows + run.start..]
        } else {
            // Rows of this side are columns of the upstream gradient. They are gathered for a task's rows at once: read
            // one row at a time, each number would miss the caches.
            if k == 0 {
                let count = TASK_ROWS.min(rows.rows - i);
                patch.resize(TASK_ROWS * TILE_COLUMNS, A::ZERO);
                for (to, j) in run.clone().enumerate() {
                    let from = &upstream[j * rows.rows + i..][..count];
                    patch[to..].iter_mut().step_by(TILE_COLUMNS).zip(from).for_each(|(to, from)| *to = *from);
                }
            }
            &patch[k * TILE_COLUMNS..]
        };
        weights[..run.len()].copy_from_slice(&from[..run.len()]);
        true
    };
    let states = vec![Vec::new(); rows.rows.div_ceil(TASK_ROWS)];
    DistanceMatrix::new(rows, columns).gradient(to, states, weigh, |_, _, _| ());
}
