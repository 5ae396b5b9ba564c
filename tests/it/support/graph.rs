//! What tests of backward passes share: numbers, comparisons, and the texts of libtorch's errors.

use tch::{Device, Kind, TchError, Tensor};

pub const CPU: Device = Device::Cpu;

pub fn devices() -> Vec<Device> {
    let with_cuda = cfg!(feature = "cuda") && tch::Cuda::is_available();
    if with_cuda { vec![CPU, Device::Cuda(0)] } else { vec![CPU] }
}

/// Multiples of 1/64 by an integer hash, exact in every dtype: the same in every run and on every thread.
pub fn numbers(shape: &[i64], seed: u64, kind: Kind, device: Device) -> Tensor {
    let hash = |i: u64| {
        let x = (i + (seed << 32) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x >> 40) % 257
    };
    let numbers: Vec<f64> =
        (0..shape.iter().product::<i64>() as u64).map(|i| (hash(i) as f64 - 128.0) / 64.0).collect();
    Tensor::from_slice(&numbers).reshape(shape).to_kind(kind).to_device(device)
}

/// Equal up to `roundings` of the dtype, relative to the largest number.
#[track_caller]
pub fn assert_close(actual: &Tensor, expected: &Tensor, roundings: f64) {
    assert_eq!(actual.size(), expected.size());
    assert_eq!(actual.kind(), expected.kind());
    let spacing = match actual.kind() {
        Kind::Double => f64::EPSILON,
        Kind::Float => f32::EPSILON.into(),
        Kind::Half => 1.0 / 1024.0,
        Kind::BFloat16 => 1.0 / 128.0,
        other => panic!("{other:?}"),
    };
    let (actual, expected) = (actual.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let err = (&actual - &expected).abs().max().double_value(&[]);
    let bound = roundings * spacing * expected.abs().max().double_value(&[]);
    assert!(err <= bound, "off by {err:e}, bound {bound:e}\n{actual}\n{expected}");
}

#[track_caller]
pub fn assert_same_bits(actual: &Tensor, expected: &Tensor) {
    assert!(actual.equal(expected), "{actual}\n{expected}");
}

pub fn run_backward(
    of: &Tensor,
    by: &[&Tensor],
    keep_graph: bool,
    create_graph: bool,
) -> Result<Vec<Tensor>, TchError> {
    Tensor::f_run_backward(&[of], by, keep_graph, create_graph)
}

#[track_caller]
pub fn assert_fails<T>(result: Result<T, TchError>, with: &str) {
    let text = result.err().unwrap_or_else(|| panic!("no error; should say {with:?}")).to_string();
    assert!(text.contains(with), "{text}");
}

pub const TWICE: &str = "backward through the graph a second time";
pub const CHANGED: &str = "modified by an inplace operation";
pub const ONCE: &str = "is differentiable once";
