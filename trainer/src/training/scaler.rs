//! Loss scaling for f16 (Micikevicius et al., 2018): small gradients would round to 0 in 16 bits, so the loss is
//! multiplied before the backward pass, by as much as does not overflow, and the gradients are divided after it.

use serde::{Deserialize, Serialize};

const START: f64 = 65_536.0;
/// After this many steps in a row without overflow, twice the scale is tried.
const PATIENCE: u64 = 2_000;
/// Below this scale an overflow is not the scale's doing.
const LEAST: f64 = 1.0 / 65_536.0;

/// The scale, which is a power of two: multiplying and dividing by it rounds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    scale: f64,
    /// Steps since the last change.
    good: u64,
}

impl Default for Scaler {
    fn default() -> Self {
        Self { scale: START, good: 0 }
    }
}

impl Scaler {
    /// The factor to multiply the loss by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Adapts the scale after a backward pass. `finite` says whether all gradients are; if not, the step must be left
    /// out, and the scale is halved.
    pub fn observe(&mut self, finite: bool) {
        self.good = if finite { self.good + 1 } else { 0 };
        if !finite {
            self.scale *= 0.5;
        } else if self.good == PATIENCE {
            *self = Self { scale: self.scale * 2.0, good: 0 };
        }
    }

    /// Whether the scale has fallen so far that it cannot be what overflows.
    pub fn exhausted(&self) -> bool {
        self.scale < LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_on_overflow_and_doubles_after_a_long_quiet() {
        let mut scaler = Scaler::default();
        scaler.observe(false);
        assert_eq!(scaler.scale(), START / 2.0);
        (1..PATIENCE).for_each(|_| scaler.observe(true));
        assert_eq!(scaler.scale(), START / 2.0, "one short of it");
        scaler.observe(true);
        assert_eq!(scaler.scale(), START);
        // The count of good steps starts again after a change of the scale, and after an overflow.
        (1..PATIENCE).for_each(|_| scaler.observe(true));
        scaler.observe(false);
        scaler.observe(true);
        assert_eq!(scaler.scale(), START / 2.0);
    }

    #[test]
    fn gradients_that_overflow_at_any_scale_are_noticed() {
        let mut scaler = Scaler::default();
        let steps = (1..).find(|_| {
            scaler.observe(false);
            scaler.exhausted()
        });
        assert_eq!(steps, Some(33));
    }

    #[test]
    fn it_is_stored_exactly() {
        let mut scaler = Scaler::default();
        (0..20).for_each(|_| scaler.observe(false));
        scaler.observe(true);
        let text = serde_json::to_string(&scaler).unwrap();
        assert_eq!(serde_json::from_str::<Scaler>(&text).unwrap(), scaler);
    }
}
