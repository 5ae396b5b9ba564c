//! The distances of paired rows, one element at a time, and how their values are found without over- or underflow. The
//! functions have the names of those in kernels/distance.cuh and mean the same.

use pulp::Simd;

use super::rows::Rows;
use super::simd::V;
use crate::Scalar;

#[inline(always)]
pub(crate) fn half<A: Scalar>() -> A {
    A::ONE / (A::ONE + A::ONE)
}

/// The distance of two rows, and what its gradient is computed from.
#[derive(Clone, Copy)]
pub(crate) struct Measured<A> {
    pub d: A,
    /// The sum of the terms of all elements; for p = ∞ the maximum.
    sum: A,
    /// What the elements were divided by before their powers were summed: the largest of them, or 1 for [`Difference`].
    scale: A,
}

/// What `slope` knows of a pair of rows.
#[derive(Clone, Copy)]
pub(crate) struct Aim<A> {
    scale: A,
    factor: A,
}

/// `1 / max(norm, MIN_NORM)` of each row; `flat` if the norm is below `MIN_NORM`.
pub(crate) struct Inverse<A, const K: usize> {
    pub scale: [A; K],
    pub flat: [bool; K],
}

/// A distance over elements `x - y + eps`.
pub(crate) trait Elementwise<A: Scalar>: Copy + Sync {
    /// The distances of P pairs of the K rows. `unit` normalises elements of the rows by `inverse`, or leaves them as
    /// they are if that is `None`.
    fn distances<S: Simd, const K: usize, const P: usize>(
        &self,
        rows: &Rows<'_, S, A, K>,
        unit: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
        inverse: Option<&Inverse<A, K>>,
        pairs: [[usize; 2]; P],
    ) -> [Measured<A>; P];
    /// How many elements of each pair reach its distance, if that is a maximum (p = ∞); else 1.
    fn reaching<S: Simd, const K: usize, const P: usize>(
        &self,
        rows: &Rows<'_, S, A, K>,
        unit: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
        pairs: [[usize; 2]; P],
        lengths: [Measured<A>; P],
    ) -> [A; P];
    /// `d²/2`, of a distance.
    fn half_square(&self, length: Measured<A>) -> A;
    /// What [`slope`](Self::slope) takes for the gradient of d. `reaching`: how many elements reach the maximum.
    fn aim(&self, length: Measured<A>, reaching: A, weight: A) -> Aim<A>;
    /// What [`slope`](Self::slope) takes for the gradient of `d²/2`. `reaching`: how many elements reach the maximum.
    fn half_square_aim(&self, length: Measured<A>, reaching: A, weight: A) -> Aim<A>;
    /// One element of the gradient with respect to x, times the weight that `aim` was made with.
    fn slope<S: Simd>(&self, aim: Aim<A>, x: V<S, A>, y: V<S, A>) -> V<S, A>;
}

/// `Σ e²` or its root, `e = x - y + eps`. `EPS`: whether `eps` is anything but 0.
#[derive(Clone, Copy)]
pub(super) struct Difference<const EPS: bool, A> {
    pub root: bool,
    pub eps: A,
}

impl<const EPS: bool, A: Scalar> Difference<EPS, A> {
    #[inline(always)]
    fn element<S: Simd>(&self, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        if EPS { x - y + V::splat(x.simd, self.eps) } else { x - y }
    }

    /// The Euclidean distance of rows whose squares under- or overflow although their distance does not: from each
    /// element times `lift`, which is a power of two.
    #[cold]
    #[inline(never)]
    fn lifted(&self, [x, y]: [&[A]; 2], [of_x, of_y]: [A; 2], lift: A) -> A {
        let square = |(x, y): (&A, &A)| {
            let e = (*x * of_x - *y * of_y + self.eps) * lift;
            (e * e).to_f64()
        };
        A::from_f64(x.iter().zip(y).map(square).sum::<f64>().sqrt()) / lift
    }
}

impl<const EPS: bool, A: Scalar> Elementwise<A> for Difference<EPS, A> {
    #[inline(always)]
    fn distances<S: Simd, const K: usize, const P: usize>(
        &self,
        rows: &Rows<'_, S, A, K>,
        unit: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
        inverse: Option<&Inverse<A, K>>,
        pairs: [[usize; 2]; P],
    ) -> [Measured<A>; P] {
        let sums = rows.sums(
            #[inline(always)]
            |x, mut sums: [V<S, A>; P]| {
                let x = unit(x);
                for k in 0..P {
                    let e = self.element(x[pairs[k][0]], x[pairs[k][1]]);
                    sums[k] = e.mul_add(e, sums[k]);
                }
                sums
            },
        );
        let mut lengths = sums.map(|sum| Measured { d: if self.root { sum.sqrt() } else { sum }, sum, scale: A::ONE });
        for k in 0..P {
            // The squares have lost digits below the smallest normal number, or overflowed. NaN is neither.
            let low = sums[k] < A::ONE / A::LIFT;
            if self.root && (low || sums[k] == A::INFINITY) {
                let of = pairs[k].map(|i| inverse.map_or(A::ONE, |inverse| inverse.scale[i]));
                let lift = if low { A::LIFT } else { A::ONE / A::LIFT };
                lengths[k].d = self.lifted(pairs[k].map(|i| rows.row(i)), of, lift);
            }
        }
        lengths
    }
    #[inline(always)]
    fn reaching<S: Simd, const K: usize, const P: usize>(
        &self,
        _: &Rows<'_, S, A, K>,
        _: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
        _: [[usize; 2]; P],
        _: [Measured<A>; P],
    ) -> [A; P] {
        [A::ONE; P]
    }
    #[inline(always)]
    fn half_square(&self, Measured { d, sum, .. }: Measured<A>) -> A {
        // The root's square is the sum, unless that has overflowed.
        half::<A>() * if self.root && sum.is_finite() { sum } else { d * d }
    }
    /// The gradient of the Euclidean distance, `e / d`, is taken as 0 at d = 0 and for any d below the normal numbers.
    #[inline(always)]
    fn aim(&self, Measured { d, .. }: Measured<A>, _: A, weight: A) -> Aim<A> {
        let factor = match self.root {
            true if d >= A::TINY => weight / d,
            true => A::ZERO,
            false => weight + weight,
        };
        Aim { scale: A::ONE, factor }
    }
    /// The gradient of half the squared Euclidean distance is the difference itself: no division by d.
    #[inline(always)]
    fn half_square_aim(&self, length: Measured<A>, reaching: A, weight: A) -> Aim<A> {
        if self.root { Aim { scale: A::ONE, factor: weight } } else { self.aim(length, reaching, weight * length.d) }
    }
    #[inline(always)]
    fn slope<S: Simd>(&self, aim: Aim<A>, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        self.element(x, y) * V::splat(x.simd, aim.factor)
    }
}

/// `m (Σ (|e| / m)^p)^(1/p)` with m the largest `|e|`: the powers themselves under- or overflow although the distance
/// is an ordinary number, in f32 at p = 100 for elements below 0.4 or above 2.4.
#[derive(Clone, Copy)]
pub(super) struct Power<A> {
    pub p: A,
    pub eps: A,
}

impl<A: Scalar> Power<A> {
    #[inline(always)]
    fn size(&self, x: A, y: A) -> A {
        (x - y + self.eps).abs()
    }
    #[inline(always)]
    fn is_maximum(&self) -> bool {
        !self.p.is_finite()
    }
}

/// For each pair k, `f(k, x, y)` of its elements, lane by lane.
#[inline(always)]
fn of_pairs<S: Simd, A: Scalar, const K: usize, const P: usize>(
    x: [V<S, A>; K],
    pairs: [[usize; 2]; P],
    f: impl Fn(usize, A, A) -> A,
) -> [V<S, A>; P] {
    let mut found = [V::splat(x[0].simd, A::ZERO); P];
    for k in 0..P {
        found[k] = x[pairs[k][0]].zip(
            x[pairs[k][1]],
            #[inline(always)]
            |x, y| f(k, x, y),
        );
    }
    found
}

/// `(x / y)^p` for x, y > 0, also if the quotient underflows although its power does not.
#[inline(always)]
fn ratio_power<A: Scalar>(x: A, y: A, p: A) -> A {
    let ratio = x / y;
    match p.abs() < A::ONE && ratio < A::TINY {
        true => x.powf(p) * y.powf(-p),
        false => ratio.powf(p),
    }
}

impl<A: Scalar> Elementwise<A> for Power<A> {
    #[inline(always)]
    fn distances<S: Simd, const K: usize, const P: usize>(
        &self,
        rows: &Rows<'_, S, A, K>,
        unit: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
        _: Option<&Inverse<A, K>>,
        pairs: [[usize; 2]; P],
    ) -> [Measured<A>; P] {
        let mut scale = [A::ONE; P];
        if self.p != A::ONE {
            scale = rows.maxima(
                #[inline(always)]
                |x| {
                    of_pairs(
                        unit(x),
                        pairs,
                        #[inline(always)]
                        |_, x, y| self.size(x, y),
                    )
                },
            );
        }
        if self.is_maximum() {
            return scale.map(|d| Measured { d, sum: d, scale: d });
        }
        // For equal rows 1: not 0 / 0.
        let scale = scale.map(|scale| if scale == A::ZERO { A::ONE } else { scale });
        let sums = rows.sums(
            #[inline(always)]
            |x, mut sums: [V<S, A>; P]| {
                let terms = of_pairs(
                    unit(x),
                    pairs,
                    #[inline(always)]
                    |k, x, y| match self.size(x, y) {
                        size if self.p == A::ONE || size == A::ZERO => size,
                        size => ratio_power(size, scale[k], self.p),
                    },
                );
                for k in 0..P {
                    sums[k] = sums[k] + terms[k];
                }
                sums
            },
        );
        std::array::from_fn(|k| {
            let (sum, scale) = (sums[k], scale[k]);
            let d = if self.p == A::ONE || sum == A::ZERO { sum } else { scale * sum.powf(A::ONE / self.p) };
            Measured { d, sum, scale }
        })
    }
    #[inline(always)]
    fn reaching<S: Simd, const K: usize, const P: usize>(
        &self,
        rows: &Rows<'_, S, A, K>,
        unit: impl Fn([V<S, A>; K]) -> [V<S, A>; K],
        pairs: [[usize; 2]; P],
        lengths: [Measured<A>; P],
    ) -> [A; P] {
        if !self.is_maximum() {
            return [A::ONE; P];
        }
        rows.sums(
            #[inline(always)]
            |x, mut sums: [V<S, A>; P]| {
                let reaches = of_pairs(
                    unit(x),
                    pairs,
                    #[inline(always)]
                    |k, x, y| if self.size(x, y) == lengths[k].d { A::ONE } else { A::ZERO },
                );
                for k in 0..P {
                    sums[k] = sums[k] + reaches[k];
                }
                sums
            },
        )
    }
    #[inline(always)]
    fn half_square(&self, Measured { d, .. }: Measured<A>) -> A {
        half::<A>() * d * d
    }
    /// An element of the gradient is `sign(e) (|e| / d)^(p-1)`, and `(m / d)^(p-1) = sum^((1-p)/p)`.
    #[inline(always)]
    fn aim(&self, Measured { sum, scale, .. }: Measured<A>, reaching: A, weight: A) -> Aim<A> {
        let factor = match self.p {
            _ if self.is_maximum() => weight / reaching,
            p if p == A::ONE || sum == A::ZERO => weight,
            p => weight * sum.powf((A::ONE - p) / p),
        };
        Aim { scale, factor }
    }
    #[inline(always)]
    fn half_square_aim(&self, length: Measured<A>, reaching: A, weight: A) -> Aim<A> {
        self.aim(length, reaching, weight * length.d)
    }
    #[inline(always)]
    fn slope<S: Simd>(&self, aim: Aim<A>, x: V<S, A>, y: V<S, A>) -> V<S, A> {
        x.zip(
            y,
            #[inline(always)]
            |x, y| {
                let size = self.size(x, y);
                if size == A::ZERO {
                    return A::ZERO;
                }
                let factor = if x - y + self.eps > A::ZERO { aim.factor } else { -aim.factor };
                match self.p {
                    _ if self.is_maximum() => {
                        if size == aim.scale {
                            factor
                        } else {
                            A::ZERO
                        }
                    }
                    p if p == A::ONE => factor,
                    p => factor * ratio_power(size, aim.scale, p - A::ONE),
                }
            },
        )
    }
}
