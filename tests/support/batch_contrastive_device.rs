//! `batch_contrastive` on whatever launches its kernels.

use tercet::{Element, Reduction};

use super::launches::{OnDevice, TestDevice, mine};
use super::property::{Case, Output};
use super::support::mined::Data;

pub fn run_case<T: Element, D: TestDevice>(device: &D, case: &Case, data: &Data<T>) -> Output<T> {
    let batch = OnDevice::new(device, &case.batch, data);
    let one = [1.0];
    let per_row = case.loss.reduction == Reduction::None;
    let upstreams = if per_row { vec![&data.upstream[..]] } else { vec![&data.upstream[..], &one] };
    let mut mined = mine::<T, _, _>(device, &case.loss, &batch, 0, &upstreams);
    let wide = |x: f32| T::Scalar::from_f64(f64::from(x));
    let reduced = (!per_row).then(|| (wide(mined.loss), mined.grads.remove(1)));
    Output {
        selected: None,
        losses: mined.losses.into_iter().map(wide).collect(),
        stats: mined.stats,
        reduced,
        scaled_grads: mined.grads.remove(0),
    }
}
