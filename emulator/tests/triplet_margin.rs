//! `triplet_margin`'s kernels, run by the emulator, against the f64 oracle: the property test that every backend takes,
//! and launches that only the emulator can vary so much.

use half::{bf16, f16};
use tercet::internal::{self, DeviceProperties, Pass, Plan};
use tercet::triplet_margin::oracle;
use tercet::{Element, Error, Matrix, Reduction, TripletMarginLoss};
use tercet_emulator::Emulator;

mod bounds;
mod launches;
#[path = "../../tests/support/paired.rs"]
mod paired;
#[path = "../../tests/support/paired_powers.rs"]
mod powers;
#[path = "../../tests/support/triplet_margin_property.rs"]
mod property;
#[path = "../../tests/support/mod.rs"]
mod support;

use launches::{Emulated, Expected, Launched, Random, nothing_to_report, run_many};

trait BackendElement {}
impl<T> BackendElement for T {}

impl Launched<3> for TripletMarginLoss {
    type Ready = ();

    fn draw(random: &mut Random) -> Self {
        Self {
            margin: random.pick(&[0.0, 0.2, 1.0]),
            distance: random.distance(),
            normalize: random.chance(3),
            swap: random.chance(2),
            reduction: random.reduction(),
        }
    }
    fn each_row(self) -> Self {
        Self { reduction: Reduction::None, ..self }
    }
    fn ready(&self, _: &Emulator, _: usize, _: u64) {}
    fn plan<T: Element>(&self, device: &DeviceProperties, shape: [usize; 2], pass: &Pass<3>) -> Plan {
        internal::triplet_margin_plan::<T>(self, device, shape, pass).expect("valid options")
    }
    unsafe fn launch<T: Element>(
        &self,
        (): &(),
        emulator: &Emulator,
        shape: [usize; 2],
        pass: &Pass<3>,
    ) -> Result<(), Error> {
        // SAFETY: the caller keeps the contract.
        unsafe { internal::triplet_margin::<T, _>(self, emulator, shape, pass) }
    }
    fn expect<T: Element>(&self, x: [Matrix<'_, f64>; 3], _: u64, upstream: &[f64]) -> Expected<3> {
        let oracle = oracle::run(self, x, upstream).expect("valid options");
        let rows = x[0].rows();
        let bounds = (0..rows).map(|b| {
            let weight = launches::weight(self.reduction, rows, upstream, b);
            let (argument, gap) = (oracle.arguments[b], oracle.swap_gaps[b]);
            bounds::triplet_margin::<T>(self, x.map(|m| m.row(b)), weight, argument, gap)
        });
        Expected { bounds: bounds.collect(), losses: oracle.losses, loss: oracle.loss, grads: oracle.grads }
    }
}

#[test]
fn the_emulator_agrees_with_the_oracle() {
    launches::property::<TripletMarginLoss, false, 3>(250);
}
#[test]
fn the_detector_agrees_with_the_oracle() {
    launches::property::<TripletMarginLoss, true, 3>(60);
}

#[test]
fn powers_stay_in_range() {
    powers::stay_in_range::<TripletMarginLoss, _, 3>(&Emulated::<false>::default());
}

#[test]
fn the_emulator_computes_what_it_did() {
    paired::unchanged::<TripletMarginLoss, _, 3>(&Emulated::<false>::default(), "emulator");
}

#[test]
fn f32_meets_the_oracle() {
    run_many::<f32, TripletMarginLoss, 3>(false, 250, 8000);
}
#[test]
fn f64_meets_the_oracle() {
    run_many::<f64, TripletMarginLoss, 3>(false, 250, 8000);
}
#[test]
fn f16_meets_the_oracle() {
    run_many::<f16, TripletMarginLoss, 3>(false, 250, 8000);
}
#[test]
fn bf16_meets_the_oracle() {
    run_many::<bf16, TripletMarginLoss, 3>(false, 250, 8000);
}
#[test]
fn the_detector_has_nothing_to_report() {
    nothing_to_report::<TripletMarginLoss, 3>(250);
}
