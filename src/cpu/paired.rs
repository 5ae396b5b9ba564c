//! The CPU engine of paired losses: one pass over the rows, distances, loss and gradients while a row is in the cache.
//! A loss says what it makes of one row ([`RowLoss`]); the rest is here. The functions have the names of those in
//! kernels/paired.cuh and mean the same.

use pulp::{Simd, WithSimd};

use super::distance::{Difference, Elementwise, Inverse, Power};
use super::rows::Rows;
use super::simd::V;
use super::{blocks, store};
use crate::constants::MIN_NORM;
use crate::distance::Metric;
use crate::paired::PairedProblem;
use crate::{Element, Matrix, Reduction, Scalar};

/// What one pass reads and writes. What is not asked for is not computed.
pub struct Pass<'a, T: Element, const K: usize> {
    /// The K matrices, of one shape.
    pub inputs: [Matrix<'a, T>; K],
    /// The upstream gradient: one number, or one a row; `None`: 1.
    pub upstream: Option<&'a [T::Scalar]>,
    /// The loss of each row.
    pub losses: Option<&'a mut [T::Scalar]>,
    /// The gradients with respect to the K matrices, contiguous.
    pub grads: [Option<&'a mut [T]>; K],
}

impl<'a, T: Element, const K: usize> Pass<'a, T, K> {
    /// A pass that computes the reduced loss alone.
    #[must_use]
    pub fn of(inputs: [Matrix<'a, T>; K]) -> Self {
        Self { inputs, upstream: None, losses: None, grads: [(); K].map(|()| None) }
    }
}

/// A paired loss with the options and shape of one call.
pub(crate) trait PairedLoss<const K: usize>: Sync {
    /// The loss of one row, in the type of arithmetic `A`.
    type Row<'a, A: Scalar>: RowLoss<A, K>
    where
        Self: 'a;

    fn problem(&self) -> &PairedProblem;
    fn row_loss<A: Scalar>(&self) -> Self::Row<'_, A>;
}

/// What a loss makes of one row of K matrices, for each kind of distance: writes the gradients to `to`, returns the loss.
pub(crate) trait RowLoss<A: Scalar, const K: usize>: Copy + Sync {
    /// For a distance over elements `x - y + eps`. `unit` normalises by `inverse`, or does nothing if that is `None`.
    fn subtractive<S: Simd, M: Elementwise<A>>(
        &self,
        row: &Row<'_, S, A, K>,
        to: Option<[&mut [A]; K]>,
        metric: &M,
        unit: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
        inverse: Option<&Inverse<A, K>>,
    ) -> A;

    /// For the distance `1 - u_x·u_y` of the normalised rows.
    fn cosine<S: Simd>(&self, row: &Row<'_, S, A, K>, to: Option<[&mut [A]; K]>, inverse: &Inverse<A, K>) -> A;
}

/// One row of K matrices.
pub(crate) struct Row<'a, S, A, const K: usize> {
    pub rows: Rows<'a, S, A, K>,
    /// The row's number in the batch.
    pub number: usize,
    /// What the row's gradients are multiplied by.
    pub weight: A,
}

/// Runs the pass; the reduced loss.
pub(crate) fn run<T: Element, L: PairedLoss<K>, const K: usize>(loss: &L, pass: Pass<'_, T, K>) -> T::Scalar {
    let problem = loss.problem();
    let Pass { inputs, upstream, losses, grads } = pass;
    let block_rows = blocks::block_rows(problem.dim);
    let count = problem.rows.div_ceil(block_rows);
    let stream = store::worth_streaming(grads.iter().flatten().map(|g| size_of_val(&**g)).sum());

    let mut grads = grads.map(|grad| blocks::cut(grad, block_rows * problem.dim, count).into_iter());
    let parts = blocks::cut(losses, block_rows, count).into_iter();
    let parts =
        parts.map(|losses| (losses, grads.each_mut().map(|grad| grad.next().expect("as many blocks")))).collect();

    let sum = blocks::sum_blocks(parts, problem.rows, problem.dim, |i, (losses, grads)| {
        let rows = i * block_rows..problem.rows.min((i + 1) * block_rows);
        let upstream = upstream.map(|u| if u.len() == 1 { u } else { &u[rows.clone()] });
        let pass = Pass { inputs: inputs.map(|m| m.rows_in(rows.clone())), upstream, losses, grads };
        block(loss, rows.start, pass, stream)
    });
    T::Scalar::from_f64(sum * if problem.reduction == Reduction::Mean { 1.0 / problem.rows as f64 } else { 1.0 })
}

/// Numbers of one input that are widened, or whose gradients are held back, at a time: with the other inputs' small
/// enough for the first-level cache, and gradients long enough to be worth streaming.
const HELD_NUMBERS: usize = 2048;

/// A pass over some rows on this thread, from row `start` of the batch on; returns the sum of their losses. 16-bit rows
/// are widened, their gradients rounded, and gradients that go past the cache copied, a few rows at a time.
fn block<T: Element, L: PairedLoss<K>, const K: usize>(
    loss: &L,
    start: usize,
    pass: Pass<'_, T, K>,
    stream: bool,
) -> f64 {
    let Pass { inputs, upstream, mut losses, mut grads } = pass;
    let held = T::as_scalars(&[]).is_none();
    if !held && !stream {
        let inputs = inputs.map(|m| m.as_scalars().expect("are scalars"));
        let grads = grads.map(|grad| grad.and_then(T::as_scalars_mut));
        return scalars(loss, start, Pass { inputs, upstream, losses, grads });
    }
    let (rows, dim) = (inputs[0].rows(), inputs[0].dim());
    let step = (HELD_NUMBERS / dim).clamp(1, rows);
    let buffer = |wanted: bool| if wanted { vec![T::Scalar::ZERO; step * dim] } else { Vec::new() };
    let mut wide = [(); K].map(|()| buffer(held));
    let mut wide_grads = grads.each_ref().map(|g| buffer(g.is_some()));
    let mut sum = 0.0;
    for first in (0..rows).step_by(step) {
        let some = first..rows.min(first + step);
        let numbers = some.len() * dim;
        for (wide, input) in wide.iter_mut().zip(&inputs) {
            for (wide, row) in wide.chunks_exact_mut(dim).zip(some.clone()) {
                T::widen(input.row(row), wide);
            }
        }
        let inputs: [Matrix<'_, T::Scalar>; K] = std::array::from_fn(|k| match inputs[k].as_scalars() {
            Some(scalars) => scalars.rows_in(some.clone()),
            None => Matrix::new(&wide[k][..numbers], dim).expect("whole rows"),
        });
        let pass = Pass {
            inputs,
            upstream: upstream.map(|u| if u.len() == 1 { u } else { &u[some.clone()] }),
            losses: losses.as_mut().map(|l| &mut l[some.clone()]),
            grads: wide_grads.each_mut().map(|g| g.get_mut(..numbers)),
        };
        sum += scalars(loss, start + first, pass);
        for (grad, wide) in grads.iter_mut().zip(&wide_grads) {
            let Some(grad) = grad else { continue };
            let grad = &mut grad[first * dim..][..numbers];
            match T::as_scalars_mut(grad) {
                Some(grad) => store::stream(&wide[..numbers], grad),
                None => T::narrow(&wide[..numbers], grad),
            }
        }
    }
    if stream {
        store::fence();
    }
    sum
}

fn scalars<A: Scalar, L: PairedLoss<K>, const K: usize>(loss: &L, start: usize, pass: Pass<'_, A, K>) -> f64 {
    let (problem, loss) = (loss.problem(), loss.row_loss::<A>());
    match problem.metric {
        Metric::Cosine => dispatch(problem, start, pass, loss, Cosine),
        Metric::Difference { root, eps: 0.0 } => {
            dispatch(problem, start, pass, loss, Subtractive(Difference::<false, A> { root, eps: A::ZERO }))
        }
        Metric::Difference { root, eps } => {
            dispatch(problem, start, pass, loss, Subtractive(Difference::<true, A> { root, eps: A::from_f64(eps) }))
        }
        Metric::Power { p, eps } => {
            let metric = Power { p: A::from_f64(p), eps: A::from_f64(eps) };
            dispatch(problem, start, pass, loss, Subtractive(metric))
        }
    }
}

fn dispatch<A: Scalar, L: RowLoss<A, K>, M: Pairs<A>, const K: usize>(
    problem: &PairedProblem,
    start: usize,
    pass: Pass<'_, A, K>,
    loss: L,
    metric: M,
) -> f64 {
    pulp::Arch::new().dispatch(BlockOfRows { problem, start, pass, loss, metric })
}

/// How many rows ahead of the one being computed are prefetched.
const AHEAD: usize = 4;

/// Some rows' work, compiled for each distance and kind of processor.
struct BlockOfRows<'a, A: Scalar, L, M, const K: usize> {
    problem: &'a PairedProblem,
    start: usize,
    pass: Pass<'a, A, K>,
    loss: L,
    metric: M,
}

impl<A: Scalar, L: RowLoss<A, K>, M: Pairs<A>, const K: usize> WithSimd for BlockOfRows<'_, A, L, M, K> {
    type Output = f64;

    /// The sum of the rows' losses.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { problem, start, pass: Pass { inputs, upstream, mut losses, mut grads }, loss, metric } = self;
        let (rows, dim) = (inputs[0].rows(), problem.dim);
        let scale = A::from_f64(problem.scale());
        // A gradient that is not wanted, beside one that is, is written again and again to a row that nobody reads.
        let wanted = grads.iter().any(Option::is_some);
        let mut unread = vec![A::ZERO; if wanted && grads.iter().any(Option::is_none) { K * dim } else { 0 }];
        let mut unread = unread.chunks_exact_mut(dim);
        let mut sum = 0.0;
        let mut targets = grads.each_mut().map(
            #[inline(always)]
            |grad| match grad {
                Some(grad) => (&mut grad[..], dim),
                None => (unread.next().unwrap_or_default(), 0),
            },
        );
        for row in 0..rows {
            let weight = scale
                * match upstream {
                    None => A::ONE,
                    Some([one]) => *one,
                    Some(each) => each[row],
                };
            if row + AHEAD < rows {
                inputs.iter().for_each(|m| store::prefetch(m.row(row + AHEAD)));
            }
            let to = wanted.then(
                #[inline(always)]
                || {
                    targets.each_mut().map(
                        #[inline(always)]
                        |(to, stride)| &mut to[row * *stride..][..dim],
                    )
                },
            );
            let at = Row { rows: Rows::new(simd, inputs.map(|m| m.row(row))), number: start + row, weight };
            let loss = metric.row(&loss, problem.normalize, &at, to);
            sum += loss.to_f64();
            if let Some(losses) = &mut losses {
                losses[row] = loss;
            }
        }
        sum
    }
}

/// The closure itself: one with `#[inline(always)]` can be an argument, not yet the value of a `let`. Without that
/// attribute the compiler may leave a closure out of line, compiled for the plainest processor, for which a vector
/// instruction is a call.
#[inline(always)]
pub(crate) fn inlined<F>(f: F) -> F {
    f
}

#[inline(always)]
fn inverse_norms<S: Simd, A: Scalar, const K: usize>(rows: &Rows<'_, S, A, K>) -> Inverse<A, K> {
    let squares = rows.sums(
        #[inline(always)]
        |x, mut sums: [V<S, A>; K]| {
            for k in 0..K {
                sums[k] = x[k].mul_add(x[k], sums[k]);
            }
            sums
        },
    );
    let min_norm = A::from_f64(MIN_NORM);
    let norms = squares.map(A::sqrt);
    Inverse {
        // A norm that overflowed must not turn the row into zeros.
        scale: norms.map(|norm| match norm.is_finite() {
            true => A::ONE / if norm < min_norm { min_norm } else { norm },
            false => A::NAN,
        }),
        flat: norms.map(|norm| norm < min_norm),
    }
}

/// The function that normalises elements of the rows.
#[inline(always)]
pub(crate) fn unit<S: Simd, A: Scalar, const K: usize>(
    rows: &Rows<'_, S, A, K>,
    inverse: &Inverse<A, K>,
) -> impl Fn([V<S, A>; K]) -> [V<S, A>; K] {
    let scale = inverse.scale.map(
        #[inline(always)]
        |s| rows.splat(s),
    );
    inlined(
        #[inline(always)]
        move |mut x: [V<S, A>; K]| {
            for k in 0..K {
                x[k] = x[k] * scale[k];
            }
            x
        },
    )
}

/// If the weight is 0 or NaN, fills the gradients with 0 or NaN, whatever the elements, and returns true.
#[inline(always)]
pub(crate) fn filled<S: Simd, A: Scalar, const K: usize>(
    rows: &Rows<'_, S, A, K>,
    to: &mut [&mut [A]; K],
    weight: A,
) -> bool {
    let size = weight.abs();
    if size > A::ZERO {
        return false;
    }
    let same = inlined(
        #[inline(always)]
        |_| [rows.splat(size); K],
    );
    rows.map(to.each_mut().map(|to| &mut **to), same);
    true
}

/// Writes the gradients that `gradient` makes of elements of the rows. With `inverse` these are normalised by `unit`,
/// and the gradients go on through `u = x / norm`: `(g - (g·u) u) / norm`.
#[inline(always)]
pub(crate) fn write_gradient<S: Simd, A: Scalar, const K: usize>(
    rows: &Rows<'_, S, A, K>,
    to: [&mut [A]; K],
    unit: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
    inverse: Option<&Inverse<A, K>>,
    gradient: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
) {
    let Some(inverse) = inverse else {
        return rows.map(to, gradient);
    };
    let along = rows.sums(
        #[inline(always)]
        |x, mut sums: [V<S, A>; K]| {
            let u = unit(x);
            let g = gradient(u);
            for k in 0..K {
                sums[k] = g[k].mul_add(u[k], sums[k]);
            }
            sums
        },
    );
    let along: [A; K] = std::array::from_fn(|k| if inverse.flat[k] { A::ZERO } else { along[k] });
    let along = along.map(|a| rows.splat(a));
    let scale = inverse.scale.map(|s| rows.splat(s));
    let through = inlined(
        #[inline(always)]
        |x| {
            let u = unit(x);
            let g = gradient(u);
            std::array::from_fn(
                #[inline(always)]
                |k| (g[k] - along[k] * u[k]) * scale[k],
            )
        },
    );
    rows.map(to, through);
}

/// A kind of distance, with the function of a loss that is for it.
trait Pairs<A: Scalar>: Copy + Sync {
    fn row<S: Simd, L: RowLoss<A, K>, const K: usize>(
        &self,
        loss: &L,
        normalize: bool,
        row: &Row<'_, S, A, K>,
        to: Option<[&mut [A]; K]>,
    ) -> A;
}

/// An elementwise distance.
#[derive(Clone, Copy)]
struct Subtractive<M>(M);

impl<A: Scalar, M: Elementwise<A>> Pairs<A> for Subtractive<M> {
    #[inline(always)]
    fn row<S: Simd, L: RowLoss<A, K>, const K: usize>(
        &self,
        loss: &L,
        normalize: bool,
        row: &Row<'_, S, A, K>,
        to: Option<[&mut [A]; K]>,
    ) -> A {
        if normalize {
            let inverse = inverse_norms(&row.rows);
            loss.subtractive(row, to, &self.0, unit(&row.rows, &inverse), Some(&inverse))
        } else {
            let same = inlined(
                #[inline(always)]
                |x| x,
            );
            loss.subtractive(row, to, &self.0, same, None)
        }
    }
}

/// The cosine distance.
#[derive(Clone, Copy)]
struct Cosine;

impl<A: Scalar> Pairs<A> for Cosine {
    #[inline(always)]
    fn row<S: Simd, L: RowLoss<A, K>, const K: usize>(
        &self,
        loss: &L,
        _: bool,
        row: &Row<'_, S, A, K>,
        to: Option<[&mut [A]; K]>,
    ) -> A {
        loss.cosine(row, to, &inverse_norms(&row.rows))
    }
}
