//! The CPU version: tiles of products, and from differences what products cannot tell.

use std::ops::Range;

use super::Problem;
use crate::cpu::batch::{Batch, Products, add_scaled, add_scaled_difference, direct};
use crate::cpu::blocks;
use crate::cpu::gemm::View;
use crate::distance::Metric;
use crate::{Element, Matrix, Scalar};

/// Rows of one task.
const TASK_ROWS: usize = 64;

/// Columns of a tile.
const TILE_COLUMNS: usize = 256;

/// The distances between all rows of both matrices.
pub(crate) fn distances<T: Element>(problem: &Problem, matrices: [&Matrix<'_, T>; 2], to: &mut [T::Scalar]) {
    T::Scalar::distances(&batches(problem, matrices), to);
}

/// The gradients with respect to both matrices.
pub(crate) fn gradients<T: Element>(
    problem: &Problem,
    matrices: [&Matrix<'_, T>; 2],
    upstream: &[T::Scalar],
    grads: [Option<&mut [T]>; 2],
) {
    let batches = batches(problem, matrices);
    for (which, grad) in grads.into_iter().enumerate() {
        let Some(grad) = grad else { continue };
        match T::as_scalars_mut(grad) {
            Some(grad) => T::Scalar::gradient(&batches, which, upstream, grad),
            None => {
                let mut wide = vec![T::Scalar::ZERO; grad.len()];
                T::Scalar::gradient(&batches, which, upstream, &mut wide);
                T::narrow(&wide, grad);
            }
        }
    }
}

fn batches<T: Element>(problem: &Problem, matrices: [&Matrix<'_, T>; 2]) -> [Batch<T::Scalar>; 2] {
    matrices.map(|matrix| {
        let order: Vec<u32> = (0..).take(matrix.rows()).collect();
        Batch::new(matrix, &order, problem.metric, problem.normalize)
    })
}

/// The tiles for each type of arithmetic. A trait, so that they are compiled once, here.
pub trait Tiles: Sized {
    #[doc(hidden)]
    fn distances(batches: &[Batch<Self>; 2], to: &mut [Self]);
    #[doc(hidden)]
    fn gradient(batches: &[Batch<Self>; 2], which: usize, upstream: &[Self], to: &mut [Self]);
}

macro_rules! tiles {
    ($($t:ident),*) => {$(
        impl Tiles for $t {
            fn distances(batches: &[Batch<Self>; 2], to: &mut [Self]) {
                Sides::new(batches, 0).distances(to);
            }
            fn gradient(batches: &[Batch<Self>; 2], which: usize, upstream: &[Self], to: &mut [Self]) {
                Sides::new(batches, which).gradient(upstream, which == 1, to);
            }
        }
    )*};
}
tiles!(f32, f64);

/// The rows and the columns of the matrix, or of its transpose.
struct Sides<'a, A> {
    rows: &'a Batch<A>,
    columns: &'a Batch<A>,
    products: [Products<A>; 2],
    /// Columns that are not finite.
    bad: Vec<bool>,
}

impl<'a, A: Scalar> Sides<'a, A> {
    /// `which` of both batches is the rows.
    fn new(batches: &'a [Batch<A>; 2], which: usize) -> Self {
        let (rows, columns) = (&batches[which], &batches[1 - which]);
        let Ok(products) = <[_; 2]>::try_from(Products::of([rows, columns])) else { unreachable!("two batches") };
        let bad = match columns.poisoned {
            true => (0..columns.rows).map(|j| !is_finite(columns.row(j))).collect(),
            false => Vec::new(),
        };
        Self { rows, columns, products, bad }
    }

    fn distances(&self, to: &mut [A]) {
        let columns = self.columns.rows;
        blocks::for_each(to.chunks_mut(TASK_ROWS * columns).collect(), |block, to: &mut [A]| {
            let rows = block * TASK_ROWS..block * TASK_ROWS + to.len() / columns;
            for start in (0..columns).step_by(TILE_COLUMNS) {
                let tile = start..columns.min(start + TILE_COLUMNS);
                self.fill(rows.clone(), tile, &mut to[start..], columns, |_, _| ());
            }
        });
    }

    /// Fills a tile, whose rows are `step` numbers apart. `near(i, j)` is told what was computed from differences.
    fn fill(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        to: &mut [A],
        step: usize,
        mut near: impl FnMut(usize, usize),
    ) {
        let [of_rows, of_columns] = &self.products;
        let by_difference = of_rows.huge || of_columns.huge;
        let root = self.rows.is_root();
        if !by_difference {
            let (left, right) = (of_rows.rows(self.rows, &rows), of_columns.rows(self.columns, &columns).t());
            A::product(to, step, false, left, right);
        }
        for (k, i) in rows.enumerate() {
            let to = &mut to[k * step..][..columns.len()];
            if self.rows.poisoned && !is_finite(self.rows.row(i)) {
                to.fill(A::NAN);
                continue;
            }
            let (norm, norms) = (of_rows.norms[i], &of_columns.norms[columns.clone()]);
            if by_difference || of_rows.to_distances(to, norm, norms) {
                for ((j, d), other) in columns.clone().zip(to.iter_mut()).zip(norms) {
                    if by_difference || *d < of_rows.near * (norm + *other) {
                        *d = direct(self.rows.metric, self.rows.row(i), self.columns.row(j));
                        near(k, j - columns.start);
                    }
                }
            }
            if root {
                to.iter_mut().for_each(|d| *d = d.sqrt());
            }
            if !self.bad.is_empty() {
                let bad = to.iter_mut().zip(&self.bad[columns.clone()]).filter(|(_, bad)| **bad);
                bad.for_each(|(d, _)| *d = A::NAN);
            }
        }
    }

    /// `Σ_j G_ij ∇_i d_ij`; the upstream gradient is G, or its transpose.
    fn gradient(&self, upstream: &[A], transposed: bool, to: &mut [A]) {
        let Self { rows, columns, products, .. } = self;
        let dim = rows.dim;
        let cosine = rows.metric == Metric::Cosine;
        let steps = if transposed { (1, rows.rows) } else { (columns.rows, 1) };
        blocks::for_each(to.chunks_mut(TASK_ROWS * dim).collect(), |block, to: &mut [A]| {
            let task = block * TASK_ROWS..block * TASK_ROWS + to.len() / dim;
            let mut tile = vec![A::ZERO; task.len() * TILE_COLUMNS];
            // Σ_j W_ij and Σ_j W_ij x_j of pairs by products; the others' part goes to `to`.
            let mut weight = vec![0.0; task.len()];
            let mut pulled = vec![A::ZERO; to.len()];
            let mut near = Vec::new();
            to.fill(A::ZERO);
            for start in (0..columns.rows).step_by(TILE_COLUMNS) {
                let of_tile = start..columns.rows.min(start + TILE_COLUMNS);
                near.clear();
                self.fill(task.clone(), of_tile.clone(), &mut tile, TILE_COLUMNS, |k, j| near.push((k, j)));
                for (k, i) in task.clone().enumerate() {
                    for (d, j) in tile[k * TILE_COLUMNS..].iter_mut().zip(of_tile.clone()) {
                        let g = upstream[i * steps.0 + j * steps.1];
                        *d = g * slope_over_factor(rows, *d);
                    }
                }
                for &(k, j) in &near {
                    let w = std::mem::replace(&mut tile[k * TILE_COLUMNS + j], A::ZERO);
                    if !(w == A::ZERO) {
                        let (x, y) = (rows.row(task.start + k), columns.row(start + j));
                        let to = &mut to[k * dim..(k + 1) * dim];
                        match cosine {
                            true => add_scaled(to, -w, y),
                            false => add_scaled_difference(to, w * rows.slope_factor(), x, y),
                        }
                    }
                }
                for (weight, w) in weight.iter_mut().zip(tile.chunks_exact(TILE_COLUMNS)) {
                    *weight += w[..of_tile.len()].iter().map(|w| w.to_f64()).sum::<f64>();
                }
                let pulls = View::new(&tile, task.len(), of_tile.len(), TILE_COLUMNS);
                A::product(&mut pulled, dim, true, pulls, products[1].rows(columns, &of_tile));
            }
            for (k, i) in task.enumerate() {
                let to = &mut to[k * dim..(k + 1) * dim];
                let pulled = &pulled[k * dim..(k + 1) * dim];
                if cosine {
                    to.iter_mut().zip(pulled).for_each(|(to, p)| *to += -*p);
                } else {
                    let (x, w) = (&products[0].x(rows)[i * dim..][..dim], A::from_f64(weight[k]));
                    let slope = rows.slope_factor();
                    to.iter_mut().zip(pulled).zip(x).for_each(|((to, p), x)| *to += slope * (w * *x - *p));
                }
                rows.through_normalization(i, to);
                if rows.poisoned && !is_finite(rows.row(i)) {
                    to.fill(A::NAN);
                }
            }
        });
    }
}

/// [`Batch::slope`] without its constant.
fn slope_over_factor<A: Scalar>(batch: &Batch<A>, distance: A) -> A {
    if batch.is_root() { batch.slope(distance) } else { A::ONE }
}

fn is_finite<A: Scalar>(row: &[A]) -> bool {
    row.iter().all(|x| x.is_finite())
}
