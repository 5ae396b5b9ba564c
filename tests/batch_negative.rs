//! Property tests of `batch_negative`: every backend x dtype x distance x option against the f64 oracle, with bounds that
//! follow from the arithmetic, and the laws that hold for any implementation. The emulator takes the same cases in
//! emulator/tests/batch_negative.rs.

#[path = "support/triplets_property.rs"]
mod property;
mod support;

use property::{Cpu, negative_cases, property};
use tercet::Precision;

#[test]
fn cpu_agrees_with_the_oracle() {
    property(&Cpu, negative_cases(&[Precision::Highest]), 250);
}
