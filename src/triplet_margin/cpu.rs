//! The fused CPU version: one pass over the rows, distances, hinge and gradients while a row is in the cache.
//! The functions have the names of those in kernels/triplet_margin.cu and mean the same.

use pulp::{Simd, WithSimd};

use super::Problem;
use crate::constants::MIN_NORM;
use crate::cpu::rows::{Rows, Targets};
use crate::cpu::simd::V;
use crate::cpu::{blocks, store};
use crate::distance::Metric;
use crate::{Element, Matrix, Reduction, Scalar};

/// What one pass reads and writes. What is not asked for is not computed.
pub struct Pass<'a, T: Element> {
    pub inputs: [Matrix<'a, T>; 3],
    /// One number, or one a row; `None`: 1.
    pub upstream: Option<&'a [T::Scalar]>,
    pub losses: Option<&'a mut [T::Scalar]>,
    pub grads: [Option<&'a mut [T]>; 3],
}

/// The part of a pass that one block of rows writes.
struct Block<'a, T: Element> {
    losses: Option<&'a mut [T::Scalar]>,
    grads: [Option<&'a mut [T]>; 3],
}

/// The fused version for one element type. A trait, so that it is compiled once, here, and not in every crate that
/// calls a generic function: it is large, times each kind of processor.
pub trait Fused: Sized {
    /// Runs the pass; the reduced loss.
    #[doc(hidden)]
    fn triplet_margin(problem: &Problem, pass: Pass<'_, Self>) -> Self::Scalar
    where
        Self: Element;
}

macro_rules! fused {
    ($($t:ty),*) => {$(
        impl Fused for $t {
            fn triplet_margin(problem: &Problem, pass: Pass<'_, Self>) -> <Self as Element>::Scalar {
                run(problem, pass)
            }
        }
    )*};
}
fused!(f32, f64, half::f16, half::bf16);

fn run<T: Element>(problem: &Problem, pass: Pass<'_, T>) -> T::Scalar {
    let Pass { inputs, upstream, losses, grads } = pass;
    let block_rows = blocks::block_rows(problem.dim);
    let count = problem.rows.div_ceil(block_rows);
    let stream = store::worth_streaming(grads.iter().flatten().map(|g| size_of_val(&**g)).sum());

    let [to_a, to_p, to_n] = grads.map(|grad| blocks::cut(grad, block_rows * problem.dim, count));
    let parts = blocks::cut(losses, block_rows, count).into_iter().zip(to_a).zip(to_p).zip(to_n);
    let parts = parts.map(|(((losses, a), p), n)| Block { losses, grads: [a, p, n] }).collect();

    let arch = pulp::Arch::new();
    let sum = blocks::sum_blocks(parts, problem.rows, problem.dim, |i, part| {
        let first = i * block_rows;
        let rows = first..problem.rows.min(first + block_rows);
        arch.dispatch(BlockOfRows { problem, inputs: &inputs, upstream, rows, part, stream })
    });
    T::Scalar::from_f64(sum * if problem.reduction == Reduction::Mean { 1.0 / problem.rows as f64 } else { 1.0 })
}

/// How many rows ahead of the one being computed are asked for.
const AHEAD: usize = 4;

/// One block's work, compiled for each kind of processor.
struct BlockOfRows<'a, T: Element> {
    problem: &'a Problem,
    inputs: &'a [Matrix<'a, T>; 3],
    upstream: Option<&'a [T::Scalar]>,
    rows: std::ops::Range<usize>,
    part: Block<'a, T>,
    stream: bool,
}

impl<T: Element> WithSimd for BlockOfRows<'_, T> {
    type Output = f64;

    /// The sum of the rows' losses.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { problem, inputs, upstream, rows, mut part, stream } = self;
        let dim = problem.dim;
        let mut widened: [Vec<T::Scalar>; 3] = Default::default();
        let mut sum = 0.0;
        let scale = T::Scalar::from_f64(problem.scale());
        for (i, row) in rows.enumerate() {
            let weight = scale
                * match upstream {
                    None => T::Scalar::ONE,
                    Some([one]) => *one,
                    Some(each) => each[row],
                };
            let mut targets = Targets {
                to: part.grads.each_mut().map(|g| g.as_mut().map(|g| &mut g[i * dim..(i + 1) * dim])),
                stream,
            };
            if row + AHEAD < problem.rows {
                inputs.iter().for_each(|m| store::prefetch(m.row(row + AHEAD)));
            }
            let [a, p, n] = inputs.map(|m| m.row(row));
            let [wide_a, wide_p, wide_n] = &mut widened;
            let x = [as_scalars(a, wide_a), as_scalars(p, wide_p), as_scalars(n, wide_n)];
            let loss = triplet(problem, &Rows { simd, x }, weight, &mut targets);
            sum += loss.to_f64();
            if let Some(losses) = &mut part.losses {
                losses[i] = loss;
            }
        }
        if stream {
            store::fence();
        }
        sum
    }
}

/// The row in the type of arithmetic, widened into `buffer` where it has to be.
#[inline(always)]
fn as_scalars<'a, T: Element>(row: &'a [T], buffer: &'a mut Vec<T::Scalar>) -> &'a [T::Scalar] {
    match T::as_scalars(row) {
        Some(scalars) => scalars,
        None => {
            buffer.resize(row.len(), T::Scalar::ZERO);
            T::widen(row, buffer);
            buffer
        }
    }
}

/// One triplet: writes its gradients, returns its loss.
#[inline(always)]
fn triplet<S: Simd, T: Element>(
    problem: &Problem,
    rows: &Rows<'_, S, T::Scalar, 3>,
    weight: T::Scalar,
    targets: &mut Targets<'_, T, 3>,
) -> T::Scalar {
    match problem.metric {
        Metric::Cosine => cosine(problem, rows, weight, targets),
        Metric::Difference { root, eps } => {
            subtractive(problem, rows, weight, targets, &Difference { root, eps: T::Scalar::from_f64(eps) })
        }
        Metric::Power { p, eps } => {
            let power = Power { p: T::Scalar::from_f64(p), eps: T::Scalar::from_f64(eps) };
            subtractive(problem, rows, weight, targets, &power)
        }
    }
}

struct Hinge<A> {
    loss: A,
    weight: A,
    swapped: bool,
}

#[inline(always)]
fn hinge<A: Scalar>(problem: &Problem, d_ap: A, d_an: A, d_pn: A, weight: A) -> Hinge<A> {
    let swapped = problem.swap && d_pn < d_an;
    let t = d_ap - if swapped { d_pn } else { d_an } + A::from_f64(problem.margin);
    if !(d_ap.is_finite() && d_an.is_finite() && (!problem.swap || d_pn.is_finite())) {
        return Hinge { loss: A::NAN, weight: A::NAN, swapped: false };
    }
    if t > A::ZERO { Hinge { loss: t, weight, swapped } } else { Hinge { loss: A::ZERO, weight: A::ZERO, swapped } }
}

/// `1 / max(norm, MIN_NORM)` of each row; `flat` where the minimum took over.
struct Inverse<A> {
    scale: [A; 3],
    flat: [bool; 3],
}

#[inline(always)]
fn inverse_norms<S: Simd, A: Scalar>(rows: &Rows<'_, S, A, 3>) -> Inverse<A> {
    let squares = rows.sums(
        #[inline(always)]
        |x| [x[0] * x[0], x[1] * x[1], x[2] * x[2]],
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

/// A distance over elements `x - y + eps`; see kernels/distance.cuh.
trait Elementwise<A: Scalar>: Copy {
    /// Whether the terms are maximised instead of summed.
    fn is_maximum(&self) -> bool;
    fn term<S: Simd>(&self, x: V<S, A>, y: V<S, A>) -> V<S, A>;
    fn value(&self, sum: A) -> A;
    /// What `slope` has to know of a pair at distance `d`; `reaching`: how many elements reach the maximum.
    fn aim(&self, d: A, reaching: A) -> Aim<A>;
    /// One element of the gradient with respect to x.
    fn slope<S: Simd>(&self, aim: Aim<A>, x: V<S, A>, y: V<S, A>) -> V<S, A>;
}

#[derive(Clone, Copy)]
struct Aim<A> {
    d: A,
    factor: A,
}

#[derive(Clone, Copy)]
struct Difference<A> {
    root: bool,
    eps: A,
}

impl<A: Scalar> Elementwise<A> for Difference<A> {
    #[inline(always)]
    fn is_maximum(&self) -> bool {
        false
    }
    #[inline(always)]
    fn term<S: Simd>(&self, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        let e = x - y + V::splat(x.simd, self.eps);
        e * e
    }
    #[inline(always)]
    fn value(&self, sum: A) -> A {
        if self.root { sum.sqrt() } else { sum }
    }
    #[inline(always)]
    fn aim(&self, d: A, _: A) -> Aim<A> {
        let factor = match self.root {
            true if d > A::ZERO => A::ONE / d,
            true => A::ZERO,
            false => A::ONE + A::ONE,
        };
        Aim { d, factor }
    }
    #[inline(always)]
    fn slope<S: Simd>(&self, aim: Aim<A>, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        (x - y + V::splat(x.simd, self.eps)) * V::splat(x.simd, aim.factor)
    }
}

#[derive(Clone, Copy)]
struct Power<A> {
    p: A,
    eps: A,
}

impl<A: Scalar> Elementwise<A> for Power<A> {
    #[inline(always)]
    fn is_maximum(&self) -> bool {
        !self.p.is_finite()
    }
    #[inline(always)]
    fn term<S: Simd>(&self, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        x.zip(
            y,
            #[inline(always)]
            |x, y| {
                let size = (x - y + self.eps).abs();
                if self.is_maximum() || self.p == A::ONE { size } else { size.powf(self.p) }
            },
        )
    }
    #[inline(always)]
    fn value(&self, sum: A) -> A {
        if self.is_maximum() || self.p == A::ONE { sum } else { sum.powf(A::ONE / self.p) }
    }
    #[inline(always)]
    fn aim(&self, d: A, reaching: A) -> Aim<A> {
        Aim { d, factor: A::ONE / reaching }
    }
    #[inline(always)]
    fn slope<S: Simd>(&self, aim: Aim<A>, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        x.zip(
            y,
            #[inline(always)]
            |x, y| {
                let e = x - y + self.eps;
                let size = e.abs();
                if size == A::ZERO || aim.d == A::ZERO {
                    return A::ZERO;
                }
                let sign = if e > A::ZERO { A::ONE } else { -A::ONE };
                if self.is_maximum() {
                    return if size == aim.d { sign * aim.factor } else { A::ZERO };
                }
                if self.p == A::ONE { sign } else { sign * (size / aim.d).powf(self.p - A::ONE) }
            },
        )
    }
}

/// A closure with `#[inline(always)]` can be an argument, not yet the value of a `let`. Without it the compiler may
/// leave a closure out of line, compiled for the least of processors, where a vector instruction is a call.
#[inline(always)]
fn inlined<F>(f: F) -> F {
    f
}

#[inline(always)]
fn subtractive<S: Simd, T: Element, M: Elementwise<T::Scalar>>(
    problem: &Problem,
    rows: &Rows<'_, S, T::Scalar, 3>,
    weight: T::Scalar,
    targets: &mut Targets<'_, T, 3>,
    metric: &M,
) -> T::Scalar {
    if problem.normalize {
        let inverse = inverse_norms(rows);
        let scale = inverse.scale.map(|s| V::splat(rows.simd, s));
        let unit = inlined(
            #[inline(always)]
            |x: [V<S, T::Scalar>; 3]| [x[0] * scale[0], x[1] * scale[1], x[2] * scale[2]],
        );
        subtractive_of(problem, rows, weight, targets, metric, unit, Some(&inverse))
    } else {
        subtractive_of(
            problem,
            rows,
            weight,
            targets,
            metric,
            #[inline(always)]
            |x| x,
            None,
        )
    }
}

/// `unit` normalises, or does nothing where `inverse` is `None`.
#[inline(always)]
fn subtractive_of<S: Simd, T: Element, M: Elementwise<T::Scalar>>(
    problem: &Problem,
    rows: &Rows<'_, S, T::Scalar, 3>,
    weight: T::Scalar,
    targets: &mut Targets<'_, T, 3>,
    metric: &M,
    unit: impl Fn([V<S, T::Scalar>; 3]) -> [V<S, T::Scalar>; 3],
    inverse: Option<&Inverse<T::Scalar>>,
) -> T::Scalar {
    let (zero, one) = (T::Scalar::ZERO, T::Scalar::ONE);
    let terms = inlined(
        #[inline(always)]
        |x: [V<S, T::Scalar>; 3]| {
            let [a, p, n] = unit(x);
            [metric.term(a, p), metric.term(a, n), metric.term(p, n)]
        },
    );
    let [ap, an, pn] = if metric.is_maximum() {
        rows.maxima(terms)
    } else if problem.swap {
        rows.sums(terms)
    } else {
        let [ap, an] = rows.sums(
            #[inline(always)]
            |x| {
                let [a, p, n] = unit(x);
                [metric.term(a, p), metric.term(a, n)]
            },
        );
        [ap, an, zero]
    };
    let (d_ap, d_an, d_pn) = (metric.value(ap), metric.value(an), metric.value(pn));
    let hinge = hinge(problem, d_ap, d_an, d_pn, weight);
    if !targets.any() {
        return hinge.loss;
    }
    if hinge.weight == zero {
        rows.map(
            targets,
            #[inline(always)]
            |x| [V::splat(x[0].simd, zero); 3],
        );
        return hinge.loss;
    }

    let swapped = hinge.swapped;
    let d_n = if swapped { d_pn } else { d_an };
    let [reaching_p, reaching_n] = match metric.is_maximum() {
        false => [one; 2],
        true => rows.sums(
            #[inline(always)]
            |x| {
                let [a, p, n] = unit(x);
                let reaches = inlined(
                    #[inline(always)]
                    |term: V<S, T::Scalar>, d| {
                        term.zip(
                            V::splat(term.simd, d),
                            #[inline(always)]
                            |term, d| if term == d { one } else { zero },
                        )
                    },
                );
                [reaches(metric.term(a, p), d_ap), reaches(metric.term(if swapped { p } else { a }, n), d_n)]
            },
        ),
    };
    let (aim_p, aim_n) = (metric.aim(d_ap, reaching_p), metric.aim(d_n, reaching_n));
    let weight = V::splat(rows.simd, hinge.weight);
    // With respect to the (normalised) rows.
    let gradient = inlined(
        #[inline(always)]
        |[a, p, n]: [V<S, T::Scalar>; 3]| {
            let to_p = metric.slope(aim_p, a, p) * weight;
            if swapped {
                let to_n = metric.slope(aim_n, p, n) * weight;
                [to_p, -to_p - to_n, to_n]
            } else {
                let to_n = metric.slope(aim_n, a, n) * weight;
                [to_p - to_n, -to_p, to_n]
            }
        },
    );
    match inverse {
        None => rows.map(targets, gradient),
        Some(inverse) => {
            // Through u = x / norm:  (g - (g . u) u) / norm.
            let along = rows.sums(
                #[inline(always)]
                |x| {
                    let u = unit(x);
                    let g = gradient(u);
                    [g[0] * u[0], g[1] * u[1], g[2] * u[2]]
                },
            );
            let along: [T::Scalar; 3] = std::array::from_fn(|k| if inverse.flat[k] { zero } else { along[k] });
            let along = along.map(|a| V::splat(rows.simd, a));
            let scale = inverse.scale.map(|s| V::splat(rows.simd, s));
            rows.map(
                targets,
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
        }
    }
    hinge.loss
}

/// `d(x, y) = 1 - u_x·u_y`, `grad_x d = -(u_y - (u_x·u_y) u_x) / norm_x`.
#[inline(always)]
fn cosine<S: Simd, T: Element>(
    problem: &Problem,
    rows: &Rows<'_, S, T::Scalar, 3>,
    weight: T::Scalar,
    targets: &mut Targets<'_, T, 3>,
) -> T::Scalar {
    let (zero, one) = (T::Scalar::ZERO, T::Scalar::ONE);
    let inverse = inverse_norms(rows);
    let unit_scale = inverse.scale.map(|s| V::splat(rows.simd, s));
    let unit = inlined(
        #[inline(always)]
        |x: [V<S, T::Scalar>; 3]| [x[0] * unit_scale[0], x[1] * unit_scale[1], x[2] * unit_scale[2]],
    );
    let [ap, an, pn] = rows.sums(
        #[inline(always)]
        |x| {
            let [a, p, n] = unit(x);
            [a * p, a * n, p * n]
        },
    );
    let hinge = hinge(problem, one - ap, one - an, one - pn, weight);
    if !targets.any() {
        return hinge.loss;
    }
    if hinge.weight == zero {
        rows.map(
            targets,
            #[inline(always)]
            |x| [V::splat(x[0].simd, zero); 3],
        );
        return hinge.loss;
    }
    // Each row's share of its own direction: the cosines it takes part in, with their signs.
    let swapped = hinge.swapped;
    let cn = if swapped { pn } else { an };
    let own = [ap - if swapped { zero } else { cn }, ap - if swapped { cn } else { zero }, -cn];
    let own: [V<S, T::Scalar>; 3] =
        std::array::from_fn(|k| V::splat(rows.simd, if inverse.flat[k] { zero } else { own[k] }));
    let scale = inverse.scale.map(|s| V::splat(rows.simd, s * hinge.weight));
    rows.map(
        targets,
        #[inline(always)]
        |x| {
            let [a, p, n] = unit(x);
            if swapped {
                [(own[0] * a - p) * scale[0], (n - a + own[1] * p) * scale[1], (p + own[2] * n) * scale[2]]
            } else {
                [(n - p + own[0] * a) * scale[0], (own[1] * p - a) * scale[1], (a + own[2] * n) * scale[2]]
            }
        },
    );
    hinge.loss
}
