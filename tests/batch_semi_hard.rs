//! Property tests of `batch_semi_hard`: every backend x dtype x distance x option against the f64 oracle, with bounds that
//! follow from the arithmetic, and the laws that hold for any implementation. The emulator takes the same cases in
//! emulator/tests/batch_semi_hard.rs.

#[cfg(feature = "cuda")]
#[path = "support/cuda_device.rs"]
mod cuda_device;
#[cfg(feature = "cuda")]
#[path = "support/launches.rs"]
mod launches;
#[cfg(feature = "cuda")]
#[path = "support/triplets_device.rs"]
mod on_device;
#[path = "support/triplets_property.rs"]
mod property;
mod support;

use property::{Cpu, property, semi_hard_cases};
use tercet::Precision;

#[test]
fn cpu_agrees_with_the_oracle() {
    property(&Cpu, semi_hard_cases(&[Precision::Highest], 300), 250);
}

#[cfg(feature = "cuda")]
impl property::Backend for cuda_device::Cuda {
    const NAME: &'static str = "cuda";
    const TAKES_F64: bool = false;
    fn run<T: tercet::Element>(
        &self,
        case: &property::Case,
        data: &support::mined::Data<T>,
        pairs: &[[u32; 2]],
    ) -> property::Output<T> {
        on_device::run_case(self, case, data, pairs)
    }
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_agrees_with_the_oracle() {
    if let Some(cuda) = cuda_device::Cuda::first("cuda_agrees_with_the_oracle") {
        property(&cuda, semi_hard_cases(support::mined::PRECISIONS, 300), 250);
    }
}
