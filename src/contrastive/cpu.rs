//! The contrastive loss of one pair on the CPU, and its gradient. Functions of the same name in kernels/contrastive.cu
//! do the same.

use pulp::Simd;

use crate::cpu::distance::{Elementwise, Inverse, half};
use crate::cpu::paired::{PairedLoss, Pass, Row, RowLoss, filled, inlined, run, unit, write_gradient};
use crate::cpu::simd::V;
use crate::element::{ByElement, ElementFn};
use crate::{Element, Scalar, paired};

struct Run;
impl ElementFn for Run {
    type Of<T: Element> = fn(&LabelledPairs<'_>, Pass<'_, T, 2>) -> T::Scalar;
}
static RUN: ByElement<Run> = ByElement { f32: all_rows, f64: all_rows, f16: all_rows, bf16: all_rows };

fn all_rows<T: Element>(loss: &LabelledPairs<'_>, pass: Pass<'_, T, 2>) -> T::Scalar {
    run(loss, pass)
}

/// Runs a pass of the contrastive loss on the CPU; returns the reduced loss.
pub(crate) fn contrastive<T: Element>(loss: &LabelledPairs<'_>, pass: Pass<'_, T, 2>) -> T::Scalar {
    T::of(&RUN)(loss, pass)
}

/// The pairs of one call, checked, and which of them belong together.
#[derive(Clone, Copy)]
pub struct LabelledPairs<'a> {
    pub(super) paired: paired::PairedProblem,
    pub(super) same: &'a [bool],
}

impl PairedLoss<2> for LabelledPairs<'_> {
    type Row<'a, A: Scalar>
        = Contrastive<'a, A>
    where
        Self: 'a;

    fn problem(&self) -> &paired::PairedProblem {
        &self.paired
    }

    fn row_loss<A: Scalar>(&self) -> Contrastive<'_, A> {
        Contrastive { margin: A::from_f64(self.paired.margin), same: self.same }
    }
}

/// The loss of one pair in the type of arithmetic A.
#[derive(Clone, Copy)]
pub(crate) struct Contrastive<'a, A> {
    margin: A,
    same: &'a [bool],
}

/// The loss of a pair, and its gradient: `weight` times that of `d²/2` if `same`, else of `d`.
struct Force<A> {
    loss: A,
    weight: A,
    same: bool,
}

impl<A: Scalar> Contrastive<'_, A> {
    #[inline(always)]
    fn force<S>(&self, row: &Row<'_, S, A, 2>, d: A, half_square: A) -> Force<A> {
        // An infinite distance would pass as a pair that is far enough apart.
        if !d.is_finite() {
            return Force { loss: A::NAN, weight: A::NAN, same: false };
        }
        if self.same[row.number] {
            return Force { loss: half_square, weight: row.weight, same: true };
        }
        let gap = self.margin - d;
        if gap > A::ZERO {
            Force { loss: half::<A>() * gap * gap, weight: -gap * row.weight, same: false }
        } else {
            Force { loss: A::ZERO, weight: A::ZERO, same: false }
        }
    }
}

impl<A: Scalar> RowLoss<A, 2> for Contrastive<'_, A> {
    #[inline(always)]
    fn subtractive<S: Simd, M: Elementwise<A>>(
        &self,
        row: &Row<'_, S, A, 2>,
        to: Option<[&mut [A]; 2]>,
        metric: &M,
        unit: impl Fn([V<S, A>; 2]) -> [V<S, A>; 2],
        inverse: Option<&Inverse<A, 2>>,
    ) -> A {
        let rows = &row.rows;
        let [length] = metric.distances(rows, &unit, inverse, [[0, 1]]);
        let Force { loss, weight, same } = self.force(row, length.d, metric.half_square(length));
        let Some(mut to) = to else {
            return loss;
        };
        if filled(rows, &mut to, weight) {
            return loss;
        }
        let [reaching] = metric.reaching(rows, &unit, [[0, 1]], [length]);
        let aim = match same {
            true => metric.half_square_aim(length, reaching, weight),
            false => metric.aim(length, reaching, weight),
        };
        let gradient = inlined(
            #[inline(always)]
            |[x, y]: [V<S, A>; 2]| {
                let to_x = metric.slope(aim, x, y);
                [to_x, -to_x]
            },
        );
        write_gradient(rows, to, unit, inverse, gradient);
        loss
    }

    /// With `d(x, y) = 1 - u_x·u_y` and `grad_x d = -(u_y - (u_x·u_y) u_x) / norm_x`.
    #[inline(always)]
    fn cosine<S: Simd>(&self, row: &Row<'_, S, A, 2>, to: Option<[&mut [A]; 2]>, inverse: &Inverse<A, 2>) -> A {
        let rows = &row.rows;
        let unit = unit(rows, inverse);
        let [cosine] = rows.sums(
            #[inline(always)]
            |x, [sum]| {
                let [x, y] = unit(x);
                [x.mul_add(y, sum)]
            },
        );
        let d = A::ONE - cosine;
        let Force { loss, weight, same } = self.force(row, d, half::<A>() * d * d);
        let Some(mut to) = to else {
            return loss;
        };
        let weight = if same { weight * d } else { weight };
        if filled(rows, &mut to, weight) {
            return loss;
        }
        let own: [V<S, A>; 2] = std::array::from_fn(|k| rows.splat(if inverse.flat[k] { A::ZERO } else { cosine }));
        let scale = inverse.scale.map(|s| rows.splat(s * weight));
        let gradient = inlined(
            #[inline(always)]
            |x| {
                let [x, y] = unit(x);
                [(own[0] * x - y) * scale[0], (own[1] * y - x) * scale[1]]
            },
        );
        rows.map(to, gradient);
        loss
    }
}
