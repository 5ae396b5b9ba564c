//! The recorded cases of mined losses on whatever launches their kernels.

use tercet::Element;
use tercet::internal::OnDevice as Mined;

use super::launches::{OnDevice, TestDevice, mine};
use super::records::{Output, Recorded};
use super::support::mined::{Batch, Data};

pub fn run_case<T: Element, D: TestDevice, L: Recorded + Mined>(
    device: &D,
    loss: &L,
    batch: &Batch,
    data: &Data<T>,
) -> Output<T> {
    let on_device = OnDevice::new(device, batch, data);
    let mut mined = mine::<T, _, _>(device, loss, &on_device, L::chosen(data), &[&data.upstream]);
    Output {
        loss: mined.loss.into(),
        losses: mined.losses.into_iter().map(f64::from).collect(),
        stats: mined.stats,
        grads: mined.grads.remove(0),
        selection: mined.chosen.concat(),
        distances: Vec::new(),
    }
}
