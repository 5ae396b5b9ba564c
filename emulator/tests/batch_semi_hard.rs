//! `batch_semi_hard`'s kernels, run by the emulator through the crate's own launches: the property test that every
//! backend takes.

use tercet::Element;

mod emulated;
#[path = "../../tests/support/launches.rs"]
mod launches;
#[path = "../../tests/support/triplets_device.rs"]
mod on_device;
#[path = "../../tests/support/triplets_property.rs"]
mod property;
#[path = "../../tests/support/mod.rs"]
mod support;

use emulated::Emulated;
use on_device::run_case;
use property::{Backend, Case, Output, property, semi_hard_cases};
use support::mined::Data;

impl<const DETECT: bool> Backend for Emulated<DETECT> {
    const NAME: &'static str = Self::NAMED;
    const TAKES_F64: bool = false;

    fn run<T: Element>(&self, case: &Case, data: &Data<T>, pairs: &[[u32; 2]]) -> Output<T> {
        self.on_its_own(case.batch.seed, |emulator| run_case(emulator, case, data, pairs))
    }
}

#[test]
fn the_emulator_agrees_with_the_oracle() {
    Emulated::<false>::takes("batch_semi_hard", |backend| {
        property(backend, semi_hard_cases(support::mined::PRECISIONS, 130), 30)
    });
}
#[test]
fn the_detector_agrees_with_the_oracle() {
    Emulated::<true>::takes("batch_semi_hard", |backend| {
        property(backend, semi_hard_cases(support::mined::PRECISIONS, 130), 3)
    });
}
