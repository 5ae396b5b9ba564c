//! `ContrastiveLoss` on tch tensors: what autograd expects, and which tensors it accepts as `same`.

use crate::support::graph::{
    CHANGED, ONCE, TWICE, assert_close, assert_fails, assert_same_bits, devices, numbers, run_backward,
};
use tch::{Device, IndexOp, Kind, Tensor};
use tercet::torch::needs_grad;
use tercet::{ContrastiveLoss, Reduction};

use crate::support::skipped::skipped;

const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

fn leaves(shape: &[i64], seed: u64, kind: Kind, device: Device) -> [Tensor; 2] {
    [0, 1].map(|i| numbers(shape, 2 * seed + i, kind, device).set_requires_grad(true))
}

fn same(rows: i64, device: Device) -> Tensor {
    Tensor::arange(rows, (Kind::Int64, device)).remainder(3).eq(0)
}

/// The loss with a margin that most distances are below.
fn with(reduction: Reduction) -> ContrastiveLoss {
    ContrastiveLoss { margin: 8.0, reduction, ..Default::default() }
}

/// The loss of `with(reduction)` composed of tensor operations.
fn composed(reduction: Reduction, x1: &Tensor, x2: &Tensor, same: &Tensor) -> Tensor {
    let d = (x1 - x2).norm_scalaropt_dim(2.0, [1i64].as_slice(), false);
    let same = same.to_kind(d.kind());
    let apart: Tensor = 8.0 - &d;
    let losses = 0.5 * (&same * d.square() + (1.0 - &same) * apart.relu().square());
    match reduction {
        Reduction::None => losses,
        Reduction::Mean => losses.mean(None),
        Reduction::Sum => losses.sum(None),
        _ => unreachable!("a reduction without a formula here"),
    }
}

/// Copies of both tensors as f64 leaves that require gradients.
fn wide(x: &[Tensor; 2]) -> [Tensor; 2] {
    x.each_ref().map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true))
}

#[test]
fn upstreams_are_scaled_and_accumulated() {
    for device in devices() {
        for reduction in REDUCTIONS {
            let (x, same) = (leaves(&[6, 5], 1, Kind::Double, device), same(6, device));
            let y = wide(&x);
            // The loss twice in one expression with different upstreams, then twice more: `grad` accumulates.
            let total = |loss: &dyn Fn() -> Tensor| {
                (loss() * 3.0 - loss().square() * 0.25).sum(None).backward();
                loss().sum(None).backward();
                (loss() * -0.0).sum(None).backward();
            };
            total(&|| with(reduction).forward(&x[0], &x[1], &same));
            total(&|| composed(reduction, &y[0], &y[1], &same));
            for (x, y) in x.iter().zip(&y) {
                assert_close(&x.grad(), &y.grad(), 100.0);
            }
        }
    }
}

#[test]
fn a_vector_of_upstreams_may_have_any_strides() {
    for device in devices() {
        for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
            let weights = numbers(&[7, 3], 17, Kind::Double, device);
            let uses: [&dyn Fn(&Tensor) -> Tensor; 4] = [
                &|losses| losses.sum(None), // expanded: stride 0
                &|losses| (losses * weights.i((.., 1)).to_kind(losses.kind())).sum(None),
                &|losses| (losses.flip([0]) * weights.i((.., 0)).to_kind(losses.kind())).sum(None),
                &|losses| losses.i(3) * 2.0, // 0 for all other rows
            ];
            for of in uses {
                let (x, same) = (leaves(&[7, 5], 18, kind, device), same(7, device));
                let y = wide(&x);
                of(&with(Reduction::None).forward(&x[0], &x[1], &same)).backward();
                of(&composed(Reduction::None, &y[0], &y[1], &same)).backward();
                for (x, y) in x.iter().zip(&y) {
                    assert_close(&x.grad(), &y.grad().to_kind(kind), 20.0);
                }
            }
        }
    }
}

#[test]
fn one_tensor_may_be_both_inputs() {
    for device in devices() {
        for kind in [Kind::Double, Kind::Half, Kind::BFloat16] {
            let [x, _] = leaves(&[6, 5], 2, kind, device);
            let loss = with(Reduction::Sum).forward(&x, &x, &same(6, device));
            // Four pairs are negative and at distance 0.
            assert_eq!(loss.double_value(&[]), 4.0 * 32.0);
            loss.backward();
            assert_same_bits(&x.grad(), &x.detach().zeros_like());

            let (y, same) = (x.detach().set_requires_grad(true), same(6, device));
            with(Reduction::Mean).forward(&y, &y.flip([0]), &same).backward();
            let z = x.detach().to_kind(Kind::Double).set_requires_grad(true);
            composed(Reduction::Mean, &z, &z.flip([0]), &same).backward();
            assert_close(&y.grad(), &z.grad().to_kind(kind), 20.0);
        }
    }
}

#[test]
fn without_gradients_there_is_no_graph() {
    for device in devices() {
        let ([x1, x2], same) = (leaves(&[6, 5], 3, Kind::Float, device), same(6, device));
        for reduction in REDUCTIONS {
            let expected = with(reduction).forward(&x1, &x2, &same);
            assert!(expected.requires_grad() && needs_grad(&x1));
            let switched_off = tch::no_grad(|| with(reduction).forward(&x1, &x2, &same));
            let detached = with(reduction).forward(&x1.detach(), &x2.detach(), &same);
            for loss in [switched_off, detached] {
                assert_same_bits(&loss, &expected);
                assert_fails(loss.sum(None).f_backward(), "does not require grad");
            }
        }
    }
}

#[test]
fn only_the_inputs_that_ask_get_gradients() {
    for device in devices() {
        for (kind, reduction) in [
            (Kind::Float, Reduction::Mean),
            (Kind::Float, Reduction::None),
            (Kind::Half, Reduction::Mean),
            (Kind::BFloat16, Reduction::Mean),
        ] {
            let (all, same) = (leaves(&[6, 5], 4, kind, device), same(6, device));
            with(reduction).forward(&all[0], &all[1], &same).sum(None).backward();
            for (asked, other) in [(0, 1), (1, 0)] {
                let x: [Tensor; 2] = std::array::from_fn(|i| all[i].detach().copy().set_requires_grad(i == asked));
                for upstream in [1.0, 2.0] {
                    (with(reduction).forward(&x[0], &x[1], &same) * upstream).sum(None).backward();
                    assert!(!x[other].grad().defined());
                    assert_close(&x[asked].grad(), &(all[asked].grad() * upstream), 2.0);
                    let _ = x[asked].grad().zero_();
                }
                // Backward may ask for one of the two inputs.
                for keep_graph in [true, false] {
                    let loss = (with(reduction).forward(&all[0], &all[1], &same) * 2.0).sum(None);
                    let grads = run_backward(&loss, &[&all[asked]], keep_graph, false).unwrap();
                    assert_close(&grads[0], &(all[asked].grad() * 2.0), 2.0);
                }
            }
        }
    }
}

#[test]
fn a_retained_graph_runs_again_with_another_upstream() {
    for device in devices() {
        for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
            for reduction in REDUCTIONS {
                let ([x1, x2], same) = (leaves(&[8, 6], 5, kind, device), same(8, device));
                let loss = with(reduction).forward(&x1, &x2, &same);
                let run = |upstream: f64, keep| {
                    run_backward(&(&loss * upstream).sum(None), &[&x1, &x2], keep, false).unwrap()
                };
                let first = run(1.0, true);
                let kept: Vec<Tensor> = first.iter().map(Tensor::copy).collect();
                let scaled = run(2.5, true);
                // Gradients that a run returned belong to the caller, who may overwrite them.
                first.into_iter().for_each(|mut grad| drop(grad.fill_(f64::NAN)));
                let again = run(1.0, true);
                let last = run(2.5, false);
                for i in 0..2 {
                    assert_same_bits(&again[i], &kept[i]);
                    assert_same_bits(&last[i], &scaled[i]);
                    assert_close(&scaled[i], &(&kept[i] * 2.5), 4.0);
                }
                assert_fails(run_backward(&loss.sum(None), &[&x1], false, false), TWICE);
            }
        }
    }
}

#[test]
fn a_change_in_place_is_noticed() {
    for device in devices() {
        for reduction in REDUCTIONS {
            for changed in 0..3 {
                let [x1, x2] = leaves(&[6, 5], 6, Kind::Float, device);
                let same = same(6, device).to_kind(Kind::Float);
                let loss = with(reduction).forward(&x1, &x2, &same).sum(None);
                // A change through a view changes the same memory.
                tch::no_grad(|| {
                    let _ = [&x1, &x2, &same][changed].i(..2).g_mul_scalar_(0.0);
                });
                assert_fails(loss.f_backward(), CHANGED);
            }
        }
    }
}

#[test]
fn the_gradient_is_differentiable_no_further() {
    for device in devices() {
        for reduction in REDUCTIONS {
            let ([x1, x2], same) = (leaves(&[6, 5], 7, Kind::Double, device), same(6, device));
            let loss = with(reduction).forward(&x1, &x2, &same).sum(None);
            let expected = run_backward(&loss, &[&x1, &x2], true, false).unwrap();
            // `create_graph` alone is legal.
            let grads = run_backward(&loss, &[&x1, &x2], true, true).unwrap();
            assert_same_bits(&grads[0], &expected[0]);
            assert_fails(grads[0].square().sum(None).f_backward(), ONCE);
        }
    }
}

/// The backward pass multiplies by upstream / B in f32 and rounds to 16 bits once.
#[test]
fn sixteen_bit_gradients_survive_the_mean() {
    for device in devices() {
        for kind in [Kind::Half, Kind::BFloat16] {
            let (rows, scale) = (4096, 65536.0);
            // Multiples of 1/64, at most 4 apart: over B, small differences are below f16's smallest normal number.
            let x = leaves(&[rows, 8], 8, kind, device);
            let together = Tensor::ones([rows], (Kind::Bool, device));
            let loss = with(Reduction::Mean).forward(&x[0], &x[1], &together);
            assert_eq!(loss.kind(), Kind::Float);
            (loss * scale).backward();
            for (x, expected) in x.iter().zip([&x[0] - &x[1], &x[1] - &x[0]]) {
                // The difference, times 16: exact in f32, so that rounding once is rounding the exact gradient.
                let expected = (x.detach().to_kind(Kind::Double).zeros_like() + expected.to_kind(Kind::Double)) * 16.0;
                assert_eq!(x.grad().kind(), kind);
                assert_close(&x.grad(), &expected.to_kind(kind), 1.0);
            }
        }
    }
}

#[test]
fn same_may_be_of_any_type_and_any_view() {
    for device in devices() {
        let (x, flags) = (leaves(&[6, 5], 9, Kind::Float, device), same(6, device));
        let run = |same: &Tensor| {
            let loss = with(Reduction::None).forward(&x[0], &x[1], same);
            let grads = run_backward(&(&loss * 2.0).sum(None), &[&x[0], &x[1]], false, false).unwrap();
            Tensor::cat(&[loss.detach().unsqueeze(1), grads[0].shallow_clone(), grads[1].shallow_clone()], 1)
        };
        let expected = run(&flags);
        let kinds = [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64, Kind::Half, Kind::BFloat16];
        for kind in kinds.into_iter().chain([Kind::Bool, Kind::Float, Kind::Double]) {
            let same = flags.to_kind(kind);
            let every_second = Tensor::stack(&[&same, &same.zeros_like()], 1).i((.., 0));
            assert_eq!(every_second.stride(), [2]);
            for same in [same, every_second] {
                assert_same_bits(&run(&same), &expected);
            }
        }
        // A flag of -0.0, and flags with torch's negative bit.
        let floats = flags.to_kind(Kind::Float);
        assert_same_bits(&run(&(&floats - &floats.ones_like() + 1.0).maximum(&(&floats * -0.0))), &expected);
        assert_same_bits(&run(&(&floats * -1.0).internal_neg_view()), &expected);
    }
}

#[test]
fn inputs_may_be_views() {
    type View = (&'static str, &'static [i64], fn(&Tensor) -> Tensor);
    let views: [View; 6] = [
        ("transposed", &[5, 6], |x| x.tr()),
        ("columns of a wider matrix", &[6, 20], |x| x.narrow(1, 3, 5)),
        ("every other column", &[6, 10], |x| x.slice(1, 0, 10, 2)),
        ("every third row", &[18, 5], |x| x.slice(0, 1, 18, 3)),
        ("one row again and again", &[1, 5], |x| x.expand([6, 5], false)),
        ("windows that overlap", &[20], |x| x.unfold(0, 5, 3)),
    ];
    for device in devices() {
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            for (name, shape, view) in views {
                for reduction in REDUCTIONS {
                    let (x, same) = (leaves(shape, 10, kind, device), same(6, device));
                    let y = wide(&x);
                    let loss = with(reduction).forward(&view(&x[0]), &view(&x[1]), &same);
                    let expected = composed(reduction, &view(&y[0]), &view(&y[1]), &same);
                    assert_close(&loss.to_kind(Kind::Float), &expected.to_kind(Kind::Float), 20.0);
                    (loss * 2.0).sum(None).backward();
                    (expected * 2.0).sum(None).backward();
                    for (x, y) in x.iter().zip(&y) {
                        assert_eq!(x.grad().size(), shape, "{name}");
                        // Torch itself sums the gradients of rows that share memory in 16 bits.
                        let roundings = if kind == Kind::BFloat16 { 30.0 } else { 60.0 };
                        assert_close(&x.grad(), &y.grad().to_kind(kind), roundings);
                    }
                }
            }
        }
    }
}

/// On a device only the kernel reads `same`: a value that is neither 0 nor 1 is a NaN, not an error.
#[test]
fn on_a_device_what_is_neither_0_nor_1_is_nan() {
    let Some(device) = devices().into_iter().find(|device| device.is_cuda()) else {
        skipped("no CUDA device: on_a_device_what_is_neither_0_nor_1_is_nan");
        return;
    };
    let [x1, x2] = leaves(&[3, 5], 11, Kind::Float, device);
    for wrong in
        [Tensor::from_slice(&[1i64, 2, 0]), Tensor::from_slice(&[1f32, 0.5, 0.0]), Tensor::from_slice(&[1i8, -1, 0])]
    {
        let losses = with(Reduction::None).forward(&x1, &x2, &wrong.to_device(device));
        let nan = Vec::<bool>::try_from(losses.isnan().to_device(Device::Cpu)).unwrap();
        assert_eq!(nan, [false, true, false]);
    }
}
