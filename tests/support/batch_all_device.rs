//! `batch_all` on whatever launches its kernels.

use tercet::Element;

use super::launches::{OnDevice, TestDevice, mine};
use super::property::{Case, Output};
use super::support::mined::Data;

pub fn run_case<T: Element, D: TestDevice>(device: &D, case: &Case, data: &Data<T>) -> Output<T> {
    let batch = OnDevice::new(device, &case.batch, data);
    let mined = mine::<T, _, _>(device, &case.loss, &batch, 0, &[&[1.0], &data.upstream]);
    let Ok([grads, scaled_grads]) = <[_; 2]>::try_from(mined.grads) else { unreachable!("two upstreams") };
    Output { loss: T::Scalar::from_f64(f64::from(mined.loss)), stats: mined.stats, grads, scaled_grads }
}
