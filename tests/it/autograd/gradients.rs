//! What gradients a backward pass gives: their values, those that nobody asked for, and a graph that runs several times.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{IndexOp, Kind, Tensor};
use tercet::torch::{CustomFunction, needs_grad};
use tercet::{Reduction, TripletMarginLoss};

use super::functions::{composed, leaf, leaves, square, with};
use crate::support::graph::{
    CHANGED, CPU, ONCE, TWICE, assert_close, assert_fails, assert_same_bits, devices, numbers, run_backward,
};

// ---- values ----

#[test]
fn upstreams_are_scaled_and_accumulated() {
    for device in devices() {
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            let [a, p, n] = leaves(&[6, 5], 1, Kind::Double, device);
            let [a2, p2, n2] = leaves(&[6, 5], 1, Kind::Double, device);
            let loss_fn = with(reduction);
            // The loss twice in one expression with different upstreams, then twice more: `grad` accumulates.
            let total = |loss: &dyn Fn() -> Tensor| {
                (loss() * 3.0 - loss().square() * 0.25).sum(None).backward();
                loss().sum(None).backward();
                (loss() * -0.0).sum(None).backward();
            };
            total(&|| loss_fn.forward(&a, &p, &n));
            total(&|| composed(&loss_fn, &a2, &p2, &n2));
            for (x, x2) in [(a, a2), (p, p2), (n, n2)] {
                assert_close(&x.grad(), &x2.grad(), 100.0);
            }
        }
    }
}

#[test]
fn an_upstream_that_is_not_finite_arrives() {
    for device in devices() {
        let [a, p, n] = leaves(&[2, 3], 2, Kind::Float, device);
        let loss = TripletMarginLoss { margin: 1e3, ..Default::default() }.forward(&a, &p, &n);
        (loss * f64::NAN).backward();
        assert!(a.grad().isnan().all().int64_value(&[]) == 1);
    }
}

#[test]
fn one_tensor_may_be_several_inputs() {
    for device in devices() {
        let loss_fn = TripletMarginLoss { margin: 5.0, ..Default::default() };
        for places in [[0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0]] {
            let x = leaves(&[4, 3], 3, Kind::Double, device);
            let y = leaves(&[4, 3], 3, Kind::Double, device);
            let [a, p, n] = places.map(|i| &x[i]);
            let loss = loss_fn.forward(a, p, n);
            loss.backward();
            let [a, p, n] = places.map(|i| &y[i]);
            let expected = composed(&loss_fn, a, p, n);
            expected.backward();
            assert_close(&loss, &expected, 20.0);
            for i in places {
                assert_close(&x[i].grad(), &y[i].grad(), 20.0);
            }
        }
    }
}

#[test]
fn inputs_may_be_results_of_other_operations() {
    let [w, x, y] = leaves(&[5, 5], 4, Kind::Double, CPU);
    let [w2, x2, y2] = leaves(&[5, 5], 4, Kind::Double, CPU);
    let loss_fn = TripletMarginLoss::default();
    let embed = |w: &Tensor, x: &Tensor| x.matmul(w).tanh();
    loss_fn.forward(&embed(&w, &x), &embed(&w, &y), &embed(&w, &(&x + &y))).backward();
    composed(&loss_fn, &embed(&w2, &x2), &embed(&w2, &y2), &embed(&w2, &(&x2 + &y2))).backward();
    for (x, x2) in [(w, w2), (x, x2), (y, y2)] {
        assert_close(&x.grad(), &x2.grad(), 100.0);
    }
}

#[test]
fn a_function_may_follow_a_function() {
    let x = leaf(&[1.0, -2.0]);
    square(&square(&square(&x))).sum(None).backward();
    assert_close(&x.grad(), &Tensor::from_slice(&[8.0, -1024.0]), 1.0);
}

// ---- which gradients ----

#[test]
fn without_gradients_there_is_no_graph() {
    for device in devices() {
        let [a, p, n] = leaves(&[4, 3], 5, Kind::Float, device);
        for reduction in [Reduction::Mean, Reduction::None] {
            let expected = with(reduction).forward(&a, &p, &n);
            assert!(expected.requires_grad() && needs_grad(&a));
            let switched_off = tch::no_grad(|| {
                assert!(!needs_grad(&a));
                with(reduction).forward(&a, &p, &n)
            });
            let detached = with(reduction).forward(&a.detach(), &p.detach(), &n.detach());
            for loss in [switched_off, detached] {
                assert_same_bits(&loss, &expected);
                assert!(!loss.requires_grad());
                assert_fails(loss.sum(None).f_backward(), "does not require grad");
            }
        }
    }
}

#[test]
fn only_the_inputs_that_ask_get_gradients() {
    for device in devices() {
        for reduction in [Reduction::Mean, Reduction::None] {
            let loss_fn = with(reduction);
            let all = leaves(&[4, 3], 6, Kind::Double, device);
            (loss_fn.forward(&all[0], &all[1], &all[2]) * 2.0).sum(None).backward();
            for asked in 1..8 {
                let x: [Tensor; 3] =
                    std::array::from_fn(|i| all[i].detach().copy().set_requires_grad(asked >> i & 1 == 1));
                for upstream in [1.0, 2.0] {
                    let loss = (loss_fn.forward(&x[0], &x[1], &x[2]) * upstream).sum(None);
                    loss.backward();
                    for (x, all) in x.iter().zip(&all) {
                        assert_eq!(x.grad().defined(), x.requires_grad());
                        if x.requires_grad() {
                            assert_close(&(x.grad() * 2.0), &(all.grad() * upstream), 10.0);
                            let _ = x.grad().zero_();
                        }
                    }
                }
                // Backward may ask for fewer inputs than require a gradient.
                let Some(first) = x.iter().position(Tensor::requires_grad) else { unreachable!("asked > 0") };
                for keep_graph in [true, false] {
                    let loss = (loss_fn.forward(&x[0], &x[1], &x[2]) * 2.0).sum(None);
                    let grads = run_backward(&loss, &[&x[first]], keep_graph, false).unwrap();
                    assert_close(&grads[0], &all[first].grad(), 10.0);
                }
            }
        }
    }
}

#[test]
fn a_function_is_told_which_gradients_are_asked_for() {
    let (x, y, z) = (leaf(&[1.0]), leaf(&[2.0]), Tensor::from_slice(&[3.0]));
    let inputs = [&x, &y, &z];
    let told = Arc::new(AtomicUsize::new(usize::MAX));
    let tell = told.clone();
    let result = CustomFunction::new("Told")
        .inputs(&inputs)
        .attach(&z, move |ctx| {
            tell.store((0..3).map(|i| usize::from(ctx.needs(i)) << i).sum(), Ordering::SeqCst);
            // Gradients that nobody asked for are dropped.
            Ok([1.0, 2.0, 3.0].map(|g| Some(ctx.upstream() * g)).into())
        })
        .unwrap();
    for (by, expected) in [(vec![&x], 1), (vec![&y], 2), (vec![&y, &x], 3)] {
        let grads = run_backward(&result, &by, true, false).unwrap();
        assert_eq!(told.load(Ordering::SeqCst), expected);
        assert_eq!(grads.len(), by.len());
        assert_eq!(grads[0].double_value(&[0]), if std::ptr::eq(by[0], &x) { 1.0 } else { 2.0 });
    }
    result.backward();
    assert_eq!(told.load(Ordering::SeqCst), 3);
    assert!(!z.grad().defined());
}

#[test]
fn no_gradient_is_one_too() {
    let (x, y) = (leaf(&[1.0]), leaf(&[2.0]));
    let attach = || {
        CustomFunction::new("Half")
            .inputs(&[&x, &y])
            .attach(&x, |ctx| Ok(vec![Some(ctx.upstream().shallow_clone()), None]))
            .unwrap()
    };
    attach().backward();
    assert!(x.grad().defined() && !y.grad().defined());
    (attach() + &y).backward();
    assert_eq!((x.grad().double_value(&[0]), y.grad().double_value(&[0])), (2.0, 1.0));
}

// ---- one graph, several times ----

#[test]
fn a_retained_graph_runs_again_with_another_upstream() {
    for device in devices() {
        for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
            for reduction in [Reduction::Mean, Reduction::None] {
                let [a, p, n] = leaves(&[8, 6], 7, kind, device);
                let x = [&a, &p, &n];
                let loss = with(reduction).forward(&a, &p, &n);
                let run = |upstream: f64, keep| run_backward(&(&loss * upstream).sum(None), &x, keep, false).unwrap();
                let first = run(1.0, true);
                let kept: Vec<Tensor> = first.iter().map(Tensor::copy).collect();
                let scaled = run(2.5, true);
                let again = run(1.0, true);
                let last_scaled = run(2.5, false);
                for i in 0..3 {
                    assert_same_bits(&first[i], &kept[i]);
                    assert_same_bits(&again[i], &first[i]);
                    assert_same_bits(&last_scaled[i], &scaled[i]);
                    assert_close(&scaled[i], &(&first[i] * 2.5), 4.0);
                }
                // The last run did not keep the graph: what was saved is freed.
                assert_fails(run_backward(&loss.sum(None), &x, false, false), TWICE);
            }
        }
    }
}

/// Gradients that a run returns belong to the caller: writing to them changes no later run.
#[test]
fn results_may_be_overwritten() {
    for device in devices() {
        let [a, p, n] = leaves(&[8, 6], 8, Kind::Float, device);
        let loss = TripletMarginLoss::default().forward(&a, &p, &n);
        let run = |keep| run_backward(&loss, &[&a, &p, &n], keep, false).unwrap();
        let first = run(true);
        let kept: Vec<Tensor> = first.iter().map(Tensor::copy).collect();
        for mut grad in first {
            let _ = grad.fill_(f64::NAN);
        }
        for mut grad in run(true) {
            let _ = grad.fill_(f64::NAN);
        }
        for (grad, kept) in run(false).iter().zip(&kept) {
            assert_same_bits(grad, kept);
        }
    }
}

#[test]
fn a_graph_runs_once_unless_retained() {
    for device in devices() {
        for upstream in [1.0, 2.0] {
            let [a, p, n] = leaves(&[4, 3], 9, Kind::Float, device);
            let loss = TripletMarginLoss::default().forward(&a, &p, &n);
            (&loss * upstream).backward();
            let grad = a.grad().copy();
            assert_fails((&loss * upstream).f_backward(), TWICE);
            assert_fails(run_backward(&loss, &[&a], true, false), TWICE);
            assert_same_bits(&a.grad(), &grad);
        }
    }
    let x = leaf(&[3.0]);
    let y = square(&x);
    y.backward();
    assert_fails(y.f_backward(), TWICE);
}

#[test]
fn a_change_in_place_is_noticed() {
    for device in devices() {
        for reduction in [Reduction::Mean, Reduction::None] {
            for changed in 0..3 {
                for requires_grad in [true, false] {
                    let x: [Tensor; 3] = std::array::from_fn(|i| {
                        let x = numbers(&[4, 3], i as u64, Kind::Float, device);
                        x.set_requires_grad(i != changed || requires_grad)
                    });
                    let loss = with(reduction).forward(&x[0], &x[1], &x[2]).sum(None);
                    // A change through a view, as an optimizer might make it, changes the same memory.
                    tch::no_grad(|| {
                        let _ = x[changed].i((1.., ..)).g_add_scalar_(1.0);
                    });
                    assert_fails(loss.f_backward(), CHANGED);
                    // A change before the forward pass or after the backward pass is allowed.
                    let loss = with(reduction).forward(&x[0], &x[1], &x[2]).sum(None);
                    loss.backward();
                    tch::no_grad(|| {
                        let _ = x[changed].shallow_clone().g_add_scalar_(1.0);
                    });
                }
            }
        }
    }
}

#[test]
fn the_result_may_change_in_place() {
    let [a, p, n] = leaves(&[4, 3], 10, Kind::Float, CPU);
    let mut loss = TripletMarginLoss::default().forward(&a, &p, &n);
    let before = loss.double_value(&[]);
    let _ = loss.g_mul_scalar_(2.0);
    assert_eq!(loss.double_value(&[]), 2.0 * before);
    loss.backward();
    let doubled = a.grad().copy();
    let _ = a.grad().zero_();
    TripletMarginLoss::default().forward(&a, &p, &n).backward();
    assert_close(&doubled, &(a.grad() * 2.0), 1.0);
}

// ---- differentiating twice ----

#[test]
fn create_graph_alone_is_legal() {
    for device in devices() {
        for reduction in [Reduction::Mean, Reduction::None] {
            let [a, p, n] = leaves(&[4, 3], 11, Kind::Float, device);
            let x = [&a, &p, &n];
            let loss = with(reduction).forward(&a, &p, &n).sum(None);
            let expected = run_backward(&loss, &x, true, false).unwrap();
            for keep_graph in [true, false] {
                let grads = run_backward(&loss, &x, keep_graph, true).unwrap();
                for (grad, expected) in grads.iter().zip(&expected) {
                    assert_same_bits(grad, expected);
                    assert!(grad.requires_grad(), "that it is attached is what lets the refusal happen");
                    // Detached, the gradient can be used as a value.
                    assert!(grad.detach().square().sum(None).double_value(&[]) > 0.0);
                }
            }
        }
    }
}

/// A second derivative would be a silent zero: everything that asks for one is refused, on every path to it.
#[test]
fn differentiating_through_the_gradient_is_refused() {
    for device in devices() {
        for reduction in [Reduction::Mean, Reduction::None] {
            let [a, p, n] = leaves(&[4, 3], 12, Kind::Double, device);
            let weight = Tensor::from(2.0).to_device(device).set_requires_grad(true);
            let loss = || (with(reduction).forward(&a, &p, &n) * &weight).sum(None);
            let grad = |of: &Tensor| run_backward(of, &[&a], true, true).unwrap().pop().unwrap();

            assert_fails(grad(&loss()).square().sum(None).f_backward(), ONCE);
            // A gradient penalty: its loss term alone could be differentiated.
            let first = loss();
            let penalty = &first + grad(&first).square().sum(None);
            assert_fails(penalty.f_backward(), ONCE);
            // With respect to one tensor alone: one input, another input, and a tensor that the upstream depends on.
            for by in [&a, &p, &weight] {
                let grad = grad(&loss());
                assert_fails(run_backward(&grad.square().sum(None), &[by], true, false), ONCE);
                let first = loss();
                let penalty = &first + run_backward(&first, &[&a], true, true).unwrap()[0].square().sum(None);
                assert_fails(run_backward(&penalty, &[by], true, false), ONCE);
            }
        }
    }
    let x = leaf(&[3.0]);
    let grad = run_backward(&square(&x), &[&x], true, true).unwrap().pop().unwrap();
    assert_eq!(grad.double_value(&[0]), 6.0);
    assert_fails(run_backward(&grad, &[&x], true, false), "Square");
}
