//! Property tests of `batch_semi_hard`: every backend x dtype x distance x option against the f64 oracle, with bounds that
//! follow from the arithmetic, and the laws that hold for any implementation. The emulator takes the same cases in
//! emulator/tests/batch_semi_hard.rs.

#[path = "support/triplets_property.rs"]
mod property;
mod support;

use property::{Cpu, property, semi_hard_cases};
use tercet::Precision;

#[test]
fn cpu_agrees_with_the_oracle() {
    property(&Cpu, semi_hard_cases(&[Precision::Highest]), 250);
}
