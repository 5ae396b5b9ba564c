//! What a pair adds to the loss, and its derivative, by its distance.

use crate::Scalar;
use crate::batch_contrastive::options::Problem;
use crate::cpu::batch::Batch;

/// The margins, and whether a pair costs its gap or half of the gap's square.
#[derive(Clone, Copy)]
pub struct Terms<A> {
    pub margin: A,
    pub pos_margin: A,
    pub linear: bool,
}

impl<A: Scalar> Terms<A> {
    pub fn of(problem: &Problem) -> Self {
        let extra = &problem.options.extra;
        let (margin, pos_margin) = (A::from_f64(problem.options.margin), A::from_f64(extra.pos_margin));
        Self { margin, pos_margin, linear: extra.linear }
    }

    /// What sums of gaps, or of their squares, are multiplied by.
    pub fn unit(&self) -> f64 {
        if self.linear { 1.0 } else { 0.5 }
    }

    /// The derivative of the loss of a pair of different classes with respect to its distance.
    pub fn derivative(&self, d: A) -> A {
        if d < self.margin {
            if self.linear { -A::ONE } else { d - self.margin }
        } else if d.is_finite() {
            A::ZERO
        } else {
            A::NAN
        }
    }

    /// The loss of a pair of different classes, without the unit.
    pub fn negative(&self, d: A) -> A {
        let gap = if d < self.margin { self.margin - d } else { A::ZERO };
        if !d.is_finite() {
            A::NAN
        } else if self.linear {
            gap
        } else {
            gap * gap
        }
    }

    /// The loss of a pair of one class, and whether it is above 0; `compared`: what its distance is compared by.
    pub fn positive(&self, batch: &Batch<A>, compared: A) -> (f64, bool) {
        let d = batch.distance(compared);
        if !compared.is_finite() {
            return (f64::NAN, d != A::ZERO);
        }
        if !self.linear && self.pos_margin == A::ZERO {
            // The sum of squares itself: squaring its root would only round twice.
            let square = if batch.is_root() { compared } else { d * d };
            return (square.to_f64() / 2.0, d != A::ZERO);
        }
        let gap = if d > self.pos_margin { d - self.pos_margin } else { A::ZERO };
        let of_gap = if self.linear { gap } else { gap * gap };
        (of_gap.to_f64() * self.unit(), gap != A::ZERO)
    }

    /// What the difference of the rows of a pair of one class is multiplied by in the gradient of its loss.
    pub fn pull(&self, batch: &Batch<A>, compared: A) -> A {
        if !compared.is_finite() {
            return A::NAN;
        }
        if !self.linear && self.pos_margin == A::ZERO {
            // The derivative d times the slope: for Euclidean distances d / d.
            return if batch.is_root() { A::ONE } else { compared * batch.slope_factor() };
        }
        let d = batch.distance(compared);
        let derivative = match d > self.pos_margin {
            false => return A::ZERO,
            true if self.linear => A::ONE,
            true => d - self.pos_margin,
        };
        derivative * batch.slope(d)
    }
}
