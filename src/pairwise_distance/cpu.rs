//! The CPU version: the tiles of distances that mined losses use too, written out; both gradients in one sweep.

use std::ops::Range;

use crate::cpu::batch::{Batch, Both};
use crate::cpu::distance_matrix::{DistanceMatrix, Near};
use crate::cpu::rounds::{Rounds, Tile, Weigh};
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

/// Both matrices, ready for products.
pub(crate) struct Prepared<A> {
    batches: [Batch<A>; 2],
    both: Both<A>,
}

/// What a forward pass leaves to the gradients.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a, A> {
    pub near: &'a Near,
    /// The distances, if gradients need them.
    pub distances: Option<&'a [A]>,
}

/// A matrix of one number a pair, such as the upstream gradient: element (i, j) is number `i * steps[0] + j * steps[1]`. The
/// second step is 1, or 0 where all columns have one number.
#[derive(Clone, Copy)]
pub(crate) struct OfPairs<'a, A> {
    pub numbers: &'a [A],
    pub steps: [usize; 2],
}

impl<A: Scalar> Prepared<A> {
    pub fn new<T: Element<Scalar = A>>(problem: &PairwiseProblem, matrices: [&Matrix<'_, T>; 2]) -> Self {
        let batches = matrices.map(|matrix| {
            let order: Vec<u32> = (0..).take(matrix.rows()).collect();
            Batch::new(matrix, &order, problem.distance, problem.normalize)
        });
        Self { both: Both::new(&batches[0], &batches[1]), batches }
    }

    /// Writes the distances between all rows of both matrices.
    pub fn distances(&self, to: &mut [A]) -> Near {
        A::of_scalar(&DISTANCES)(self, to)
    }

    /// The gradients with respect to both matrices. `known`: what [`distances`](Self::distances) has found; `None`: it is
    /// computed again.
    pub fn gradients<T: Element<Scalar = A>>(
        &self,
        known: Option<Known<'_, A>>,
        upstream: OfPairs<'_, A>,
        mut grads: [Option<&mut [T]>; 2],
    ) {
        let mut wide = grads.each_ref().map(|grad| match (grad, T::as_scalars(&[])) {
            (Some(grad), None) => vec![A::ZERO; grad.len()],
            _ => Vec::new(),
        });
        let mut of_wide = wide.iter_mut();
        let to = grads.each_mut().map(|grad| {
            let wide = of_wide.next().expect("as many as gradients");
            grad.as_mut().map(|grad| T::as_scalars_mut(grad).unwrap_or(wide))
        });
        A::of_scalar(&GRADIENTS)(self, known, upstream, to);
        for (grad, wide) in grads.into_iter().zip(&wide) {
            if let Some(grad) = grad.filter(|_| !wide.is_empty()) {
                T::narrow(wide, grad);
            }
        }
    }
}

struct Distances;
impl ScalarFn for Distances {
    type Of<A: Scalar> = fn(&Prepared<A>, &mut [A]) -> Near;
}
static DISTANCES: ByScalar<Distances> = ByScalar { f32: write_distances, f64: write_distances };

struct Gradients;
impl ScalarFn for Gradients {
    type Of<A: Scalar> = fn(&Prepared<A>, Option<Known<'_, A>>, OfPairs<'_, A>, [Option<&mut [A]>; 2]);
}
static GRADIENTS: ByScalar<Gradients> = ByScalar { f32: write_gradients, f64: write_gradients };

fn write_distances<A: Scalar>(prepared: &Prepared<A>, to: &mut [A]) -> Near {
    let Prepared { batches: [rows, columns], both } = prepared;
    DistanceMatrix::new(rows, columns, both).distances(to)
}

fn write_gradients<A: Scalar>(
    prepared: &Prepared<A>,
    known: Option<Known<'_, A>>,
    upstream: OfPairs<'_, A>,
    grads: [Option<&mut [A]>; 2],
) {
    let Prepared { batches: [rows, columns], both } = prepared;
    let rounds = Rounds::new(rows, columns, both, grads.each_ref().map(Option::is_some));
    let weights = Weights { metric: rows.metric, across: columns.rows, known, upstream };
    let blocks = rounds.sweep(&weights);
    for (side, (grad, blocks)) in grads.into_iter().zip(&blocks).enumerate() {
        if let Some(grad) = grad {
            rounds.gradient(side, blocks, grad, |row| row, |_, _| ());
        }
    }
}

/// The weights of pairs: the upstream gradient itself.
struct Weights<'a, A> {
    metric: Distance,
    /// Columns of the matrix.
    across: usize,
    known: Option<Known<'a, A>>,
    upstream: OfPairs<'a, A>,
}

impl<A: Scalar> OfPairs<'_, A> {
    /// Copies the part of the matrix that a tile is, with `rest` after each row.
    fn copy(&self, [rows, columns]: [&Range<usize>; 2], to: &mut [A], edge: usize, rest: A) {
        let [across, down] = [self.steps[1], self.steps[0]];
        for (i, to) in rows.clone().zip(to.chunks_exact_mut(edge)) {
            let (to, after) = to.split_at_mut(columns.len());
            let from = &self.numbers[i * down + columns.start * across..];
            match across {
                0 => to.fill(from[0]),
                _ => to.copy_from_slice(&from[..columns.len()]),
            }
            after.fill(rest);
        }
    }
}

impl<A: Scalar> Weigh<A> for Weights<'_, A> {
    type Block = ();
    type Scratch = ();

    fn block(&self, _: usize, _: &Range<usize>) {}

    fn left_out(&self, _: usize) -> Range<usize> {
        0..0
    }

    fn knows(&self, tile: &mut Tile<A>) -> bool {
        let Tile { rows, columns, distances, edge, .. } = tile;
        match (self.metric, self.known) {
            // The gradient of u·v needs no distance, and none is too near.
            (Distance::Cosine, _) => true,
            (_, Some(known)) if known.near.any(rows, columns) => false,
            (Distance::SquaredEuclidean, known) => known.is_some(),
            (Distance::Euclidean, known) => known.and_then(|known| known.distances).is_some_and(|numbers| {
                let all = OfPairs { numbers, steps: [self.across, 1] };
                all.copy([rows, columns], distances, *edge, A::MAX);
                true
            }),
        }
    }

    fn weigh(&self, tile: &mut Tile<A>, _: &mut (), _: &mut (), _: Option<&mut ()>) -> bool {
        let Tile { rows, columns, weights, edge, .. } = tile;
        self.upstream.copy([rows, columns], weights, *edge, A::ZERO);
        true
    }
}
