//! `triplet_margin` in launches that only the emulator can vary so much, against the f64 oracle.

use half::{bf16, f16};
use tercet::internal::{self, DeviceProperties, Pass, Plan};
use tercet::triplet_margin::oracle;
use tercet::{Element, Matrix, TripletMarginLoss};

use crate::paired::bounds;
use crate::paired::launches::{self, Expected, Launched, Random, nothing_to_report, run_many};
use crate::paired::steps::steps_move_what_their_dtype_needs;

impl Launched<3> for TripletMarginLoss {
    fn draw(random: &mut Random) -> Self {
        Self {
            margin: random.pick(&[0.0, 0.2, 1.0]),
            distance: random.distance(),
            normalize: random.chance(3),
            swap: random.chance(2),
            reduction: random.reduction(),
        }
    }
    fn plan<T: Element>(&self, device: &DeviceProperties, shape: [usize; 2], pass: &Pass<3>) -> Plan {
        internal::triplet_margin_plan::<T>(self, device, shape, pass).expect("valid options")
    }
    fn grads_with_loss<T: Element>(&self, shape: [usize; 2]) -> bool {
        internal::triplet_margin_grads_with_loss::<T>(self, shape).expect("valid options")
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
fn steps_move_each_matrix_as_often_as_their_dtype_needs() {
    steps_move_what_their_dtype_needs::<TripletMarginLoss, 3>();
}
#[test]
fn the_detector_has_nothing_to_report() {
    nothing_to_report::<TripletMarginLoss, 3>(250);
}
