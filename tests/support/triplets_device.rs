//! The losses that choose one negative for each pair, on any device that launches their kernels.

use tercet::{Element, Reduction};

use super::launches::{OnDevice, TestDevice, mine};
use super::property::{Case, Loss, Output, in_order_of_pairs};
use super::support::mined::Data;

pub fn run_case<T: Element, D: TestDevice>(device: &D, case: &Case, data: &Data<T>, pairs: &[[u32; 2]]) -> Output<T> {
    let batch = OnDevice::new(device, &case.batch, data);
    let one = [1.0];
    let per_row = case.loss.reduction() == Reduction::None;
    let upstreams = if per_row { vec![&data.upstream[..]] } else { vec![&data.upstream[..], &one] };
    let chosen = data.pairs_of_a_class();
    let mut mined = match &case.loss {
        Loss::SemiHard(loss) => mine::<T, _, _>(device, loss, &batch, chosen, &upstreams),
        Loss::Negative(loss) => mine::<T, _, _>(device, loss, &batch, chosen, &upstreams),
    };
    let wide = |x: f32| T::Scalar::from_f64(f64::from(x));
    let reduced = (!per_row).then(|| (wide(mined.loss), mined.grads.remove(1)));
    Output {
        negative: in_order_of_pairs(data, pairs, &mined.chosen[0]),
        losses: mined.losses.into_iter().map(wide).collect(),
        stats: mined.stats,
        reduced,
        scaled_grads: mined.grads.remove(0),
    }
}
