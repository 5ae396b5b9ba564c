//! The triplet margin loss of one triplet on the CPU, and its gradient. Functions of the same name in
//! kernels/triplet_margin.cu do the same.

use pulp::Simd;

use crate::cpu::distance::{Elementwise, Inverse};
use crate::cpu::paired::{PairedLoss, Pass, Row, RowLoss, filled, inlined, run, unit, write_gradient};
use crate::cpu::simd::V;
use crate::element::{ByElement, ElementFn};
use crate::{Element, Scalar, paired};

/// The options and shape of one call of [`TripletMarginLoss`](super::TripletMarginLoss), checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckedTriplets {
    pub(crate) paired: paired::PairedProblem,
    pub(crate) swap: bool,
}

struct Run;
impl ElementFn for Run {
    type Of<T: Element> = fn(&CheckedTriplets, Pass<'_, T, 3>) -> T::Scalar;
}
static RUN: ByElement<Run> = ByElement { f32: run, f64: run, f16: run, bf16: run };

/// Runs a pass of the triplet margin loss on the CPU; returns the reduced loss.
pub(crate) fn triplet_margin<T: Element>(loss: &CheckedTriplets, pass: Pass<'_, T, 3>) -> T::Scalar {
    T::of(&RUN)(loss, pass)
}

impl PairedLoss<3> for CheckedTriplets {
    type Row<'a, A: Scalar> = Triplet<A>;

    fn problem(&self) -> &paired::PairedProblem {
        &self.paired
    }

    fn row_loss<A: Scalar>(&self) -> Triplet<A> {
        Triplet { margin: A::from_f64(self.paired.margin), swap: self.swap }
    }
}

/// The loss of one triplet in the type of arithmetic A.
#[derive(Clone, Copy)]
pub(crate) struct Triplet<A> {
    margin: A,
    swap: bool,
}

struct Hinge<A> {
    loss: A,
    weight: A,
    swapped: bool,
}

impl<A: Scalar> Triplet<A> {
    #[inline(always)]
    fn hinge(&self, d_ap: A, d_an: A, d_pn: A, weight: A) -> Hinge<A> {
        let swapped = self.swap && d_pn < d_an;
        let t = d_ap - if swapped { d_pn } else { d_an } + self.margin;
        if !(d_ap.is_finite() && d_an.is_finite() && (!self.swap || d_pn.is_finite())) {
            return Hinge { loss: A::NAN, weight: A::NAN, swapped: false };
        }
        if t > A::ZERO { Hinge { loss: t, weight, swapped } } else { Hinge { loss: A::ZERO, weight: A::ZERO, swapped } }
    }
}

impl<A: Scalar> RowLoss<A, 3> for Triplet<A> {
    #[inline(always)]
    fn subtractive<S: Simd, M: Elementwise<A>>(
        &self,
        row: &Row<'_, S, A, 3>,
        to: Option<[&mut [A]; 3]>,
        metric: &M,
        unit: impl Fn([V<S, A>; 3]) -> [V<S, A>; 3],
        inverse: Option<&Inverse<A, 3>>,
    ) -> A {
        let rows = &row.rows;
        let [ap, an, pn] = if self.swap {
            metric.distances(rows, &unit, inverse, [[0, 1], [0, 2], [1, 2]])
        } else {
            let [ap, an] = metric.distances(rows, &unit, inverse, [[0, 1], [0, 2]]);
            [ap, an, an]
        };
        let Hinge { loss, weight, swapped } = self.hinge(ap.d, an.d, pn.d, row.weight);
        let Some(mut to) = to else {
            return loss;
        };
        if filled(rows, &mut to, weight) {
            return loss;
        }

        let (negative, nearer) = if swapped { (pn, 1) } else { (an, 0) };
        let [reaching_p, reaching_n] = metric.reaching(rows, &unit, [[0, 1], [nearer, 2]], [ap, negative]);
        let (aim_p, aim_n) = (metric.aim(ap, reaching_p, weight), metric.aim(negative, reaching_n, weight));
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
        write_gradient(rows, to, unit, inverse, gradient);
        loss
    }

    /// With `d(x, y) = 1 - u_x·u_y` and `grad_x d = -(u_y - (u_x·u_y) u_x) / norm_x`.
    #[inline(always)]
    fn cosine<S: Simd>(&self, row: &Row<'_, S, A, 3>, to: Option<[&mut [A]; 3]>, inverse: &Inverse<A, 3>) -> A {
        let rows = &row.rows;
        let unit = unit(rows, inverse);
        let [ap, an, pn] = rows.sums(
            #[inline(always)]
            |x, sums| {
                let [a, p, n] = unit(x);
                [a.mul_add(p, sums[0]), a.mul_add(n, sums[1]), p.mul_add(n, sums[2])]
            },
        );
        let Hinge { loss, weight, swapped } = self.hinge(A::ONE - ap, A::ONE - an, A::ONE - pn, row.weight);
        let Some(mut to) = to else {
            return loss;
        };
        if filled(rows, &mut to, weight) {
            return loss;
        }
        // The coefficient of each row's own direction in its gradient: the cosines that it takes part in, with their
        // signs.
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
