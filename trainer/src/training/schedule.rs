//! The learning rate of each step.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum Schedule {
    /// The rate stays as it is
    Constant,
    /// Along half a cosine, to 0 at the last step
    Cosine,
    /// To a tenth after half of the steps, to a hundredth after three quarters
    Step,
}

/// The learning rate as a function of the step.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The highest rate.
    pub base: f64,
    /// How the rate falls.
    pub schedule: Schedule,
    /// Steps in which the rate rises to `base`, in a straight line.
    pub warmup: u64,
    /// Steps of the whole run.
    pub total: u64,
}

impl Rate {
    /// The rate at the step with this number, from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.base * (step + 1) as f64 / self.warmup as f64;
        }
        let falling = self.total.saturating_sub(self.warmup).max(1);
        let done = (step - self.warmup) as f64 / falling as f64;
        self.base
            * match self.schedule {
                Schedule::Constant => 1.0,
                Schedule::Cosine => 0.5 * (1.0 + (PI * done.min(1.0)).cos()),
                Schedule::Step if done < 0.5 => 1.0,
                Schedule::Step if done < 0.75 => 0.1,
                Schedule::Step => 0.01,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, warmup: u64, total: u64) -> Vec<f64> {
        let rate = Rate { base: 2.0, schedule, warmup, total };
        (0..total).map(|step| rate.at(step)).collect()
    }

    #[test]
    fn it_rises_in_a_line_and_stays() {
        assert_eq!(rates(Schedule::Constant, 4, 6), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
        assert_eq!(rates(Schedule::Constant, 0, 2), [2.0, 2.0]);
        // A run may end before its warm-up does.
        assert_eq!(rates(Schedule::Cosine, 8, 2), [0.25, 0.5]);
    }

    #[test]
    fn a_cosine_starts_at_the_base_and_falls_to_nothing() {
        let rates = rates(Schedule::Cosine, 0, 100);
        assert_eq!(rates[0], 2.0);
        assert!((rates[50] - 1.0).abs() < 1e-12 && (rates[25] - (1.0 + 0.5f64.sqrt())).abs() < 1e-12);
        assert!(rates.windows(2).all(|w| w[1] < w[0]) && rates[99] > 0.0 && rates[99] < 1e-3);
    }

    #[test]
    fn steps_fall_at_a_half_and_at_three_quarters() {
        let rates = rates(Schedule::Step, 0, 8);
        for (rate, expected) in rates.iter().zip([2.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.02]) {
            assert!((rate - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn a_run_without_an_end_keeps_its_rate() {
        let rate = Rate { base: 1.0, schedule: Schedule::Cosine, warmup: 0, total: u64::MAX };
        assert!(rate.at(1_000_000) > 0.999_999);
    }
}
