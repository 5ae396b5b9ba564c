//! The fused CPU version: one pass over the rows, distances, hinge and gradients while a row is in the cache.
//! The functions have the names of those in kernels/triplet_margin.cu and mean the same.

use pulp::{Simd, WithSimd};

use super::Problem;
use crate::constants::MIN_NORM;
use crate::cpu::rows::Rows;
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
    let parts = parts.map(|(((losses, a), p), n)| (losses, [a, p, n])).collect();

    let sum = blocks::sum_blocks(parts, problem.rows, problem.dim, |i, (losses, grads)| {
        let rows = i * block_rows..problem.rows.min((i + 1) * block_rows);
        let upstream = upstream.map(|u| if u.len() == 1 { u } else { &u[rows.clone()] });
        block(problem, Pass { inputs: inputs.map(|m| m.rows_in(rows.clone())), upstream, losses, grads }, stream)
    });
    T::Scalar::from_f64(sum * if problem.reduction == Reduction::Mean { 1.0 / problem.rows as f64 } else { 1.0 })
}

/// Numbers of one input that are widened, or whose gradients are held back, at a time: with the others small enough for the
/// first-level cache, and gradients long enough to be worth streaming.
const HELD_NUMBERS: usize = 2048;

/// A pass over some rows on this thread: the sum of their losses. 16-bit rows are widened, and their gradients rounded, a
/// few rows at a time; likewise gradients that go past the cache.
fn block<T: Element>(problem: &Problem, pass: Pass<'_, T>, stream: bool) -> f64 {
    let Pass { inputs, upstream, mut losses, mut grads } = pass;
    let held = T::as_scalars(&[]).is_none();
    if !held && !stream {
        let inputs = inputs.map(|m| m.as_scalars().expect("are scalars"));
        let grads = grads.map(|grad| grad.and_then(T::as_scalars_mut));
        return scalars(problem, Pass { inputs, upstream, losses, grads });
    }
    let (rows, dim) = (inputs[0].rows(), inputs[0].dim());
    let step = (HELD_NUMBERS / dim).clamp(1, rows);
    let buffer = |wanted: bool| if wanted { vec![T::Scalar::ZERO; step * dim] } else { Vec::new() };
    let mut wide = [(); 3].map(|()| buffer(held));
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
        let inputs: [Matrix<'_, T::Scalar>; 3] = std::array::from_fn(|k| match inputs[k].as_scalars() {
            Some(scalars) => scalars.rows_in(some.clone()),
            None => Matrix::new(&wide[k][..numbers], dim).expect("whole rows"),
        });
        sum += scalars(
            problem,
            Pass {
                inputs,
                upstream: upstream.map(|u| if u.len() == 1 { u } else { &u[some.clone()] }),
                losses: losses.as_mut().map(|l| &mut l[some.clone()]),
                grads: wide_grads.each_mut().map(|g| g.get_mut(..numbers)),
            },
        );
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

fn scalars<A: Scalar>(problem: &Problem, pass: Pass<'_, A>) -> f64 {
    match problem.metric {
        Metric::Cosine => dispatch(problem, pass, Cosine),
        Metric::Difference { root, eps: 0.0 } => {
            dispatch(problem, pass, Subtractive(Difference::<false, A> { root, eps: A::ZERO }))
        }
        Metric::Difference { root, eps } => {
            dispatch(problem, pass, Subtractive(Difference::<true, A> { root, eps: A::from_f64(eps) }))
        }
        Metric::Power { p, eps } => {
            dispatch(problem, pass, Subtractive(Power { p: A::from_f64(p), eps: A::from_f64(eps) }))
        }
    }
}

fn dispatch<A: Scalar, M: Triplet<A>>(problem: &Problem, pass: Pass<'_, A>, metric: M) -> f64 {
    pulp::Arch::new().dispatch(BlockOfRows { problem, pass, metric })
}

/// How many rows ahead of the one being computed are asked for.
const AHEAD: usize = 4;

/// Some rows' work, compiled for each distance and kind of processor.
struct BlockOfRows<'a, A: Scalar, M> {
    problem: &'a Problem,
    pass: Pass<'a, A>,
    metric: M,
}

impl<A: Scalar, M: Triplet<A>> WithSimd for BlockOfRows<'_, A, M> {
    type Output = f64;

    /// The sum of the rows' losses.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { problem, pass: Pass { inputs, upstream, mut losses, mut grads }, metric } = self;
        let (rows, dim) = (inputs[0].rows(), problem.dim);
        let options = Options { margin: A::from_f64(problem.margin), swap: problem.swap, normalize: problem.normalize };
        let scale = A::from_f64(problem.scale());
        // A gradient that is not wanted, beside one that is, is written again and again to a row that nobody reads.
        let wanted = grads.iter().any(Option::is_some);
        let mut unread = vec![A::ZERO; if wanted && grads.iter().any(Option::is_none) { 3 * dim } else { 0 }];
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
            let x = Rows::new(simd, inputs.map(|m| m.row(row)));
            let to = wanted.then(
                #[inline(always)]
                || {
                    targets.each_mut().map(
                        #[inline(always)]
                        |(to, stride)| &mut to[row * *stride..][..dim],
                    )
                },
            );
            let loss = metric.triplet(&options, &x, weight, to);
            sum += loss.to_f64();
            if let Some(losses) = &mut losses {
                losses[row] = loss;
            }
        }
        sum
    }
}

/// What rows are computed with, in their type of arithmetic.
struct Options<A> {
    margin: A,
    swap: bool,
    normalize: bool,
}

struct Hinge<A> {
    loss: A,
    weight: A,
    swapped: bool,
}

#[inline(always)]
fn hinge<A: Scalar>(options: &Options<A>, d_ap: A, d_an: A, d_pn: A, weight: A) -> Hinge<A> {
    let swapped = options.swap && d_pn < d_an;
    let t = d_ap - if swapped { d_pn } else { d_an } + options.margin;
    if !(d_ap.is_finite() && d_an.is_finite() && (!options.swap || d_pn.is_finite())) {
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
        |x, sums| [x[0].mul_add(x[0], sums[0]), x[1].mul_add(x[1], sums[1]), x[2].mul_add(x[2], sums[2])],
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

/// A distance, as the loss and gradients of one triplet.
trait Triplet<A: Scalar>: Copy + Sync {
    /// Writes the gradients times `weight` to `to`, returns the loss.
    fn triplet<S: Simd>(
        &self,
        options: &Options<A>,
        rows: &Rows<'_, S, A, 3>,
        weight: A,
        to: Option<[&mut [A]; 3]>,
    ) -> A;
}

/// A distance over elements `x - y + eps`; see kernels/distance.cuh.
trait Elementwise<A: Scalar>: Copy + Sync {
    /// Whether the terms are maximised instead of summed.
    fn is_maximum(&self) -> bool;
    fn term<S: Simd>(&self, x: V<S, A>, y: V<S, A>) -> V<S, A>;
    /// `sum` and the element's term.
    fn add<S: Simd>(&self, x: V<S, A>, y: V<S, A>, sum: V<S, A>) -> V<S, A>;
    fn value(&self, sum: A) -> A;
    /// What `slope` has to know of a pair at distance `d`; `reaching`: how many elements reach the maximum.
    fn aim(&self, d: A, reaching: A, weight: A) -> Aim<A>;
    /// One element of the gradient with respect to x, times the weight.
    fn slope<S: Simd>(&self, aim: Aim<A>, x: V<S, A>, y: V<S, A>) -> V<S, A>;
}

#[derive(Clone, Copy)]
struct Aim<A> {
    d: A,
    factor: A,
}

/// `EPS`: whether there is one.
#[derive(Clone, Copy)]
struct Difference<const EPS: bool, A> {
    root: bool,
    eps: A,
}

impl<const EPS: bool, A: Scalar> Difference<EPS, A> {
    #[inline(always)]
    fn element<S: Simd>(&self, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        if EPS { x - y + V::splat(x.simd, self.eps) } else { x - y }
    }
}

impl<const EPS: bool, A: Scalar> Elementwise<A> for Difference<EPS, A> {
    #[inline(always)]
    fn is_maximum(&self) -> bool {
        false
    }
    #[inline(always)]
    fn term<S: Simd>(&self, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        let e = self.element(x, y);
        e * e
    }
    #[inline(always)]
    fn add<S: Simd>(&self, x: V<S, A>, y: V<S, A>, sum: V<S, A>) -> V<S, A> {
        let e = self.element(x, y);
        e.mul_add(e, sum)
    }
    #[inline(always)]
    fn value(&self, sum: A) -> A {
        if self.root { sum.sqrt() } else { sum }
    }
    #[inline(always)]
    fn aim(&self, d: A, _: A, weight: A) -> Aim<A> {
        let factor = match self.root {
            true if d > A::ZERO => weight / d,
            true => A::ZERO,
            false => weight + weight,
        };
        Aim { d, factor }
    }
    #[inline(always)]
    fn slope<S: Simd>(&self, aim: Aim<A>, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        self.element(x, y) * V::splat(x.simd, aim.factor)
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
    fn add<S: Simd>(&self, x: V<S, A>, y: V<S, A>, sum: V<S, A>) -> V<S, A> {
        sum + self.term(x, y)
    }
    #[inline(always)]
    fn value(&self, sum: A) -> A {
        if self.is_maximum() || self.p == A::ONE { sum } else { sum.powf(A::ONE / self.p) }
    }
    #[inline(always)]
    fn aim(&self, d: A, reaching: A, weight: A) -> Aim<A> {
        Aim { d, factor: if self.is_maximum() { weight / reaching } else { weight } }
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
                let factor = if e > A::ZERO { aim.factor } else { -aim.factor };
                if self.is_maximum() {
                    return if size == aim.d { factor } else { A::ZERO };
                }
                if self.p == A::ONE { factor } else { factor * (size / aim.d).powf(self.p - A::ONE) }
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

/// The loss over an elementwise distance.
#[derive(Clone, Copy)]
struct Subtractive<M>(M);

impl<A: Scalar, M: Elementwise<A>> Triplet<A> for Subtractive<M> {
    #[inline(always)]
    fn triplet<S: Simd>(
        &self,
        options: &Options<A>,
        rows: &Rows<'_, S, A, 3>,
        weight: A,
        to: Option<[&mut [A]; 3]>,
    ) -> A {
        if options.normalize {
            let inverse = inverse_norms(rows);
            let scale = inverse.scale.map(|s| rows.splat(s));
            let unit = inlined(
                #[inline(always)]
                |x: [V<S, A>; 3]| [x[0] * scale[0], x[1] * scale[1], x[2] * scale[2]],
            );
            subtractive(options, rows, weight, to, &self.0, unit, Some(&inverse))
        } else {
            let same = inlined(
                #[inline(always)]
                |x| x,
            );
            subtractive(options, rows, weight, to, &self.0, same, None)
        }
    }
}

/// `unit` normalises, or does nothing where `inverse` is `None`.
#[inline(always)]
fn subtractive<S: Simd, A: Scalar, M: Elementwise<A>>(
    options: &Options<A>,
    rows: &Rows<'_, S, A, 3>,
    weight: A,
    to: Option<[&mut [A]; 3]>,
    metric: &M,
    unit: impl Fn([V<S, A>; 3]) -> [V<S, A>; 3],
    inverse: Option<&Inverse<A>>,
) -> A {
    let [ap, an, pn] = if metric.is_maximum() {
        rows.maxima(
            #[inline(always)]
            |x| {
                let [a, p, n] = unit(x);
                [metric.term(a, p), metric.term(a, n), metric.term(p, n)]
            },
        )
    } else if options.swap {
        rows.sums(
            #[inline(always)]
            |x, sums| {
                let [a, p, n] = unit(x);
                [metric.add(a, p, sums[0]), metric.add(a, n, sums[1]), metric.add(p, n, sums[2])]
            },
        )
    } else {
        let [ap, an] = rows.sums(
            #[inline(always)]
            |x, sums| {
                let [a, p, n] = unit(x);
                [metric.add(a, p, sums[0]), metric.add(a, n, sums[1])]
            },
        );
        [ap, an, A::ZERO]
    };
    let (d_ap, d_an, d_pn) = (metric.value(ap), metric.value(an), metric.value(pn));
    let Hinge { loss, weight, swapped } = hinge(options, d_ap, d_an, d_pn, weight);
    let Some(to) = to else {
        return loss;
    };
    if weight == A::ZERO {
        zeros(rows, to);
        return loss;
    }

    let d_n = if swapped { d_pn } else { d_an };
    let [reaching_p, reaching_n] = match metric.is_maximum() {
        false => [A::ONE; 2],
        true => rows.sums(
            #[inline(always)]
            |x, sums| {
                let [a, p, n] = unit(x);
                let reaches = inlined(
                    #[inline(always)]
                    |term: V<S, A>, d| {
                        term.zip(
                            V::splat(term.simd, d),
                            #[inline(always)]
                            |term, d| if term == d { A::ONE } else { A::ZERO },
                        )
                    },
                );
                let reaches_n = reaches(metric.term(if swapped { p } else { a }, n), d_n);
                [sums[0] + reaches(metric.term(a, p), d_ap), sums[1] + reaches_n]
            },
        ),
    };
    let (aim_p, aim_n) = (metric.aim(d_ap, reaching_p, weight), metric.aim(d_n, reaching_n, weight));
    // With respect to the (normalised) rows.
    let gradient = inlined(
        #[inline(always)]
        |[a, p, n]: [V<S, A>; 3]| {
            let to_p = metric.slope(aim_p, a, p);
            if swapped {
                let to_n = metric.slope(aim_n, p, n);
                [to_p, -to_p - to_n, to_n]
            } else {
                let to_n = metric.slope(aim_n, a, n);
                [to_p - to_n, -to_p, to_n]
            }
        },
    );
    match inverse {
        None => rows.map(to, gradient),
        Some(inverse) => {
            // Through u = x / norm:  (g - (g . u) u) / norm.
            let along = rows.sums(
                #[inline(always)]
                |x, sums| {
                    let u = unit(x);
                    let g = gradient(u);
                    [g[0].mul_add(u[0], sums[0]), g[1].mul_add(u[1], sums[1]), g[2].mul_add(u[2], sums[2])]
                },
            );
            let along: [A; 3] = std::array::from_fn(|k| if inverse.flat[k] { A::ZERO } else { along[k] });
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
    }
    loss
}

#[inline(always)]
fn zeros<S: Simd, A: Scalar>(rows: &Rows<'_, S, A, 3>, to: [&mut [A]; 3]) {
    let zero = rows.splat(A::ZERO);
    let zeros = inlined(
        #[inline(always)]
        |_| [zero; 3],
    );
    rows.map(to, zeros);
}

/// `d(x, y) = 1 - u_x·u_y`, `grad_x d = -(u_y - (u_x·u_y) u_x) / norm_x`.
#[derive(Clone, Copy)]
struct Cosine;

impl<A: Scalar> Triplet<A> for Cosine {
    #[inline(always)]
    fn triplet<S: Simd>(
        &self,
        options: &Options<A>,
        rows: &Rows<'_, S, A, 3>,
        weight: A,
        to: Option<[&mut [A]; 3]>,
    ) -> A {
        let inverse = inverse_norms(rows);
        let unit_scale = inverse.scale.map(|s| rows.splat(s));
        let unit = inlined(
            #[inline(always)]
            |x: [V<S, A>; 3]| [x[0] * unit_scale[0], x[1] * unit_scale[1], x[2] * unit_scale[2]],
        );
        let [ap, an, pn] = rows.sums(
            #[inline(always)]
            |x, sums| {
                let [a, p, n] = unit(x);
                [a.mul_add(p, sums[0]), a.mul_add(n, sums[1]), p.mul_add(n, sums[2])]
            },
        );
        let Hinge { loss, weight, swapped } = hinge(options, A::ONE - ap, A::ONE - an, A::ONE - pn, weight);
        let Some(to) = to else {
            return loss;
        };
        if weight == A::ZERO {
            zeros(rows, to);
            return loss;
        }
        // Each row's share of its own direction: the cosines it takes part in, with their signs.
        let cn = if swapped { pn } else { an };
        let own = [ap - if swapped { A::ZERO } else { cn }, ap - if swapped { cn } else { A::ZERO }, -cn];
        let own: [V<S, A>; 3] = std::array::from_fn(|k| rows.splat(if inverse.flat[k] { A::ZERO } else { own[k] }));
        let scale = inverse.scale.map(|s| rows.splat(s * weight));
        let gradient = inlined(
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
        rows.map(to, gradient);
        loss
    }
}
