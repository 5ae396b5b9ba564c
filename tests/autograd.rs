//! Backward passes written in Rust: the public node `CustomFunction`, and the losses that run through it.
#![cfg(feature = "torch")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

#[path = "support/graph.rs"]
mod graph;

use graph::{CHANGED, CPU, ONCE, TWICE, assert_close, assert_fails, assert_same_bits, devices, numbers, run_backward};
use tch::{Device, IndexOp, Kind, Tensor};
use tercet::torch::{Backward, BackwardError, CustomFunction, needs_grad, release_cpu_memory};
use tercet::{PairedDistance, Reduction, TripletMarginLoss};

/// Three leaf tensors that require gradients.
fn leaves(shape: &[i64], seed: u64, kind: Kind, device: Device) -> [Tensor; 3] {
    [0, 1, 2].map(|i| numbers(shape, 3 * seed + i, kind, device).set_requires_grad(true))
}

/// The loss of `loss_fn` composed of tensor operations; only its margin and reduction may differ from the default.
fn composed(loss_fn: &TripletMarginLoss, a: &Tensor, p: &Tensor, n: &Tensor) -> Tensor {
    assert_eq!((loss_fn.distance, loss_fn.normalize, loss_fn.swap), (PairedDistance::SquaredEuclidean, false, false));
    let d = |x: &Tensor, y: &Tensor| (x - y).square().sum_dim_intlist([1i64].as_slice(), false, None);
    let losses = (d(a, p) - d(a, n) + loss_fn.margin).relu();
    match loss_fn.reduction {
        Reduction::None => losses,
        Reduction::Mean => losses.mean(None),
        Reduction::Sum => losses.sum(None),
    }
}

fn with(reduction: Reduction) -> TripletMarginLoss {
    TripletMarginLoss { reduction, ..Default::default() }
}

type Gradients = Result<Vec<Option<Tensor>>, BackwardError>;

/// `x` itself, with the given backward pass.
fn custom(x: &Tensor, backward: impl FnMut(&Backward<'_>) -> Gradients + Send + 'static) -> Tensor {
    CustomFunction::new("Custom").inputs(&[x]).saved(&[x]).attach(x, backward).unwrap()
}

/// `x²`, with a backward pass written in Rust.
fn square(x: &Tensor) -> Tensor {
    let value = tch::no_grad(|| x * x);
    let backward = |ctx: &Backward<'_>| Ok(vec![Some(2.0 * ctx.saved(0) * ctx.upstream())]);
    CustomFunction::new("Square").inputs(&[x]).saved(&[x]).attach(&value, backward).unwrap()
}

fn leaf(numbers: &[f64]) -> Tensor {
    Tensor::from_slice(numbers).set_requires_grad(true)
}

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
                let penalty = &first + graph::run_backward(&first, &[&a], true, true).unwrap()[0].square().sum(None);
                assert_fails(run_backward(&penalty, &[by], true, false), ONCE);
            }
        }
    }
    let x = leaf(&[3.0]);
    let grad = run_backward(&square(&x), &[&x], true, true).unwrap().pop().unwrap();
    assert_eq!(grad.double_value(&[0]), 6.0);
    assert_fails(run_backward(&grad, &[&x], true, false), "Square");
}

// ---- errors and panics ----

type BackwardFn = fn(&Backward<'_>) -> Gradients;

fn failing_ways() -> Vec<(&'static str, BackwardFn)> {
    vec![
        ("Custom: no luck today", |_| Err("no luck today".into())),
        ("Custom: größer als 5 µm", |_| Err("größer als 5 µm".into())),
        ("Custom: before and after", |_| Err("before \0and after".into())),
        ("number", |_| Err("x".parse::<f32>().map_err(|_| "not a number").unwrap_err().into())),
        ("the backward pass panicked: out of cheese", |_| panic!("out of cheese")),
        ("the backward pass panicked: row 7", |ctx| panic!("row {}", 6 + ctx.upstream().numel())),
        ("the backward pass panicked: no message", |_| std::panic::panic_any(7)),
        ("the backward pass panicked: index out of bounds", |ctx| Ok(vec![Some(ctx.saved(1).shallow_clone())])),
        ("returned 0 gradients for 1 inputs", |_| Ok(vec![])),
        ("returned 2 gradients for 1 inputs", |ctx| Ok(vec![Some(ctx.upstream().shallow_clone()), None])),
        ("Custom", |_| Err(Tensor::ones([2], (Kind::Float, CPU)).f_reshape([3]).unwrap_err().into())),
    ]
}

#[test]
fn an_error_or_panic_arrives_as_an_err() {
    for (text, backward) in failing_ways() {
        let x = leaf(&[1.0]);
        let y = custom(&x, backward);
        assert_fails(y.f_backward(), text);
        assert_fails((&y * 2.0 + &x).f_backward(), text);
        assert_fails(Tensor::f_run_backward(&[&y], &[&x], true, false), text);
        assert_fails(Tensor::f_run_backward(&[&y], &[&x], false, true), text);
        assert!(!x.grad().defined(), "{text}");
    }
}

#[test]
fn a_gradient_that_does_not_fit_is_an_err() {
    let x = leaf(&[1.0, 2.0]);
    let of = |shape: &'static [i64]| custom(&x, move |_| Ok(vec![Some(Tensor::ones(shape, (Kind::Double, CPU)))]));
    assert_fails(of(&[3]).sum(None).f_backward(), "invalid gradient");
    assert_fails(of(&[0]).sum(None).f_backward(), "invalid gradient");
    let undefined = custom(&x, |_| Ok(vec![Some(Tensor::new())]));
    undefined.sum(None).backward();
    assert!(!x.grad().defined(), "an undefined gradient is none");
    // A gradient of another dtype is converted, as torch does for its own functions.
    custom(&x, |_| Ok(vec![Some(Tensor::ones([2], (Kind::Float, CPU)))])).sum(None).backward();
    assert_eq!(x.grad().kind(), Kind::Double);
}

#[test]
fn what_cannot_be_attached_is_an_err() {
    let x = leaf(&[1.0]);
    let attach = |output: &Tensor, state: Counted| {
        CustomFunction::new("Custom").inputs(&[&x]).attach(output, move |ctx| {
            let _ = &state;
            Ok(vec![Some(ctx.upstream().shallow_clone())])
        })
    };
    let drops = Drops::default();
    assert!(attach(&Tensor::new(), drops.counted()).is_err());
    assert!(attach(&Tensor::from_slice(&[1i64]), drops.counted()).is_err());
    assert_eq!(drops.count(), 2);
}

#[test]
fn a_failed_pass_may_be_tried_again() {
    let x = leaf(&[3.0]);
    let mut tries = 0;
    let y = custom(&x, move |ctx| {
        tries += 1;
        if tries == 1 { Err("not yet".into()) } else { Ok(vec![Some(ctx.upstream() * 7.0)]) }
    });
    assert_fails(y.f_backward(), "not yet");
    y.backward();
    assert_eq!(x.grad().double_value(&[0]), 7.0);
}

// ---- lives ----

#[derive(Clone, Default)]
struct Drops(Arc<AtomicUsize>);

/// Counts one drop when it is dropped.
struct Counted(Drops);

impl Drops {
    fn counted(&self) -> Counted {
        Counted(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.0).0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_state_is_dropped_once_in_every_life() {
    let x = leaf(&[1.0]);
    let counted = |x: &Tensor| {
        let drops = Drops::default();
        let state = drops.counted();
        let y = custom(x, move |ctx| {
            let _ = &state;
            Ok(vec![Some(ctx.upstream().shallow_clone())])
        });
        (y, drops)
    };

    let (y, drops) = counted(&x); // never run
    assert_eq!(drops.count(), 0);
    let shared = y.shallow_clone();
    drop(y);
    assert_eq!(drops.count(), 0);
    drop(shared);
    assert_eq!(drops.count(), 1);

    let (y, drops) = counted(&x); // run: dropped at once, not only with the result
    y.backward();
    assert_eq!(drops.count(), 1);
    assert!(y.f_backward().is_err());
    drop(y);
    assert_eq!(drops.count(), 1);

    let (y, drops) = counted(&x); // retained
    for _ in 0..3 {
        run_backward(&y, &[&x], true, false).unwrap();
    }
    assert_eq!(drops.count(), 0);
    drop(y);
    assert_eq!(drops.count(), 1);

    let (y, drops) = counted(&x); // retained, then not
    run_backward(&y, &[&x], true, false).unwrap();
    run_backward(&y, &[&x], false, false).unwrap();
    assert_eq!(drops.count(), 1);
    drop(y);
    assert_eq!(drops.count(), 1);

    let (y, drops) = counted(&x); // the gradient's graph keeps nothing of it alive
    let grad = run_backward(&y, &[&x], false, true).unwrap();
    drop(y);
    assert_eq!(drops.count(), 1);
    drop(grad);
    assert_eq!(drops.count(), 1);

    let (y, drops) = tch::no_grad(|| counted(&x)); // never attached
    assert_eq!(drops.count(), 1);
    drop(y);
    assert_eq!(drops.count(), 1);
    let (y, drops) = counted(&x.detach());
    assert_eq!(drops.count(), 1);
    drop(y);
    assert_eq!(drops.count(), 1);

    let (y, drops) = counted(&x); // in a graph that is only part of what runs
    let z = &y * &x;
    drop(y);
    assert_eq!(drops.count(), 0);
    z.backward();
    assert_eq!(drops.count(), 1);

    for (_, backward) in failing_ways() {
        let drops = Drops::default();
        let state = drops.counted();
        let y = custom(&x, move |ctx| {
            let _ = &state;
            backward(ctx)
        });
        let _ = y.f_backward().unwrap_err();
        drop(y);
        assert_eq!(drops.count(), 1);
    }
}

/// A panic in a destructor does not unwind into C++.
#[test]
fn a_state_whose_destructor_panics_does_no_harm() {
    struct Rude;
    impl Drop for Rude {
        fn drop(&mut self) {
            panic!("rude");
        }
    }
    let x = leaf(&[1.0]);
    for run in [true, false] {
        let state = Rude;
        let y = custom(&x, move |ctx| {
            let _ = &state;
            Ok(vec![Some(ctx.upstream().shallow_clone())])
        });
        if run {
            y.backward();
        }
    }
    assert_eq!(x.grad().double_value(&[0]), 1.0);
}

/// A long chain of functions is dropped without recursion.
#[test]
fn a_long_chain_fits_the_stack() {
    const LENGTH: usize = 50_000;
    let drops = Drops::default();
    let chain = |x: &Tensor| {
        let mut y = x.shallow_clone();
        for _ in 0..LENGTH {
            let state = drops.counted();
            y = custom(&y, move |ctx| {
                let _ = &state;
                Ok(vec![Some(ctx.upstream().shallow_clone())])
            });
        }
        y
    };
    let x = leaf(&[1.0]);
    drop(chain(&x));
    assert_eq!(drops.count(), LENGTH);
    chain(&x).backward();
    assert_eq!(drops.count(), 2 * LENGTH);
    assert_eq!(x.grad().double_value(&[0]), 1.0);
}

#[test]
fn a_backward_pass_may_run_another_graph() {
    let x = leaf(&[3.0]);
    let y = custom(&x, |ctx| {
        assert!(!needs_grad(ctx.saved(0)), "gradients are switched off");
        let inner = ctx.saved(0).detach().set_requires_grad(true);
        tch::with_grad(|| square(&inner).backward());
        Ok(vec![Some(inner.grad() * ctx.upstream())])
    });
    y.backward();
    assert_eq!(x.grad().double_value(&[0]), 6.0);
}

/// Otherwise the closure would be entered while it runs, and its thread would wait for a lock that it holds itself.
#[test]
fn a_backward_pass_that_runs_backward_through_itself_is_an_err() {
    let (x, itself) = (leaf(&[3.0]), Arc::new(Mutex::new(None::<Tensor>)));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inner, texts) = (itself.clone(), seen.clone());
    let y = custom(&x, move |ctx| {
        let result = inner.lock().unwrap().take();
        if let Some(result) = result {
            for keep_graph in [true, false] {
                let again = run_backward(&result, &[ctx.saved(0)], keep_graph, false);
                texts.lock().unwrap().push(again.unwrap_err().to_string());
            }
        }
        Ok(vec![Some(ctx.upstream() * 2.0)])
    });
    *itself.lock().unwrap() = Some(y.shallow_clone());
    // The outer pass is unaffected by the error.
    let grad = run_backward(&y, &[&x], true, false).unwrap();
    assert_eq!(grad[0].double_value(&[0]), 2.0);
    let texts = seen.lock().unwrap();
    assert_eq!(texts.len(), 2);
    assert!(
        texts.iter().all(|text| text.contains("Custom ran backward through the graph that it belongs to")),
        "{texts:?}"
    );
    assert_eq!(run_backward(&y, &[&x], false, false).unwrap()[0].double_value(&[0]), 2.0);
}

// ---- threads ----

#[test]
fn threads_run_graphs_of_their_own() {
    let expected = {
        let [a, p, n] = leaves(&[64, 32], 13, Kind::Float, CPU);
        (TripletMarginLoss::default().forward(&a, &p, &n) * 3.0).backward();
        [a, p, n].map(|x| x.grad())
    };
    thread::scope(|scope| {
        for _ in 0..8 {
            let expected = expected.each_ref().map(Tensor::shallow_clone);
            scope.spawn(move || {
                for _ in 0..20 {
                    let [a, p, n] = leaves(&[64, 32], 13, Kind::Float, CPU);
                    (TripletMarginLoss::default().forward(&a, &p, &n) * 3.0).backward();
                    for (x, expected) in [a, p, n].iter().zip(&expected) {
                        assert_same_bits(&x.grad(), expected);
                    }
                }
            });
        }
    });
}

#[test]
fn threads_run_one_retained_graph() {
    let [a, p, n] = leaves(&[64, 32], 14, Kind::Float, CPU);
    let loss = TripletMarginLoss::default().forward(&a, &p, &n);
    let expected: [Tensor; 2] =
        [1.0, 2.5].map(|upstream| run_backward(&(&loss * upstream), &[&a], true, false).unwrap().pop().unwrap());
    thread::scope(|scope| {
        for (upstream, expected) in [1.0, 2.5, 1.0, 2.5].into_iter().zip(expected.iter().chain(&expected)) {
            let (loss, a, expected) = (loss.shallow_clone(), a.shallow_clone(), expected.shallow_clone());
            scope.spawn(move || {
                for _ in 0..50 {
                    let grad = run_backward(&(&loss * upstream), &[&a], true, false).unwrap().pop().unwrap();
                    assert_same_bits(&grad, &expected);
                }
            });
        }
    });
}

#[test]
fn a_backward_pass_is_never_run_twice_at_a_time() {
    let x = leaf(&[1.0]);
    let busy = Arc::new(AtomicBool::new(false));
    let y = custom(&x, move |ctx| {
        assert!(!busy.swap(true, Ordering::SeqCst), "two at a time");
        thread::sleep(std::time::Duration::from_millis(1));
        busy.store(false, Ordering::SeqCst);
        Ok(vec![Some(ctx.upstream().shallow_clone())])
    });
    thread::scope(|scope| {
        for _ in 0..4 {
            let (x, y) = (x.shallow_clone(), y.shallow_clone());
            scope.spawn(move || {
                for _ in 0..20 {
                    run_backward(&y, &[&x], true, false).unwrap();
                }
            });
        }
    });
}

/// When two threads run a graph that neither retains, one may get an error; no result is wrong and nothing is freed
/// twice.
#[test]
fn threads_use_one_graph_up() {
    for _ in 0..50 {
        let [a, p, n] = leaves(&[64, 32], 15, Kind::Float, CPU);
        let loss = TripletMarginLoss::default().forward(&a, &p, &n);
        let expected = run_backward(&loss, &[&a], true, false).unwrap().pop().unwrap();
        let barrier = Arc::new(Barrier::new(2));
        let threads = [0, 1].map(|_| {
            let (loss, a, barrier) = (loss.shallow_clone(), a.shallow_clone(), barrier.clone());
            thread::spawn(move || {
                barrier.wait();
                run_backward(&loss, &[&a], false, false)
            })
        });
        let results = threads.map(|t| t.join().expect("no panic"));
        assert!(results.iter().any(Result::is_ok));
        for result in results {
            match result {
                Ok(grads) => assert_same_bits(&grads[0], &expected),
                Err(_) => assert_fails(result, TWICE),
            }
        }
    }
}

#[test]
fn a_graph_may_be_run_and_dropped_on_another_thread() {
    let drops = Drops::default();
    let state = drops.counted();
    let x = leaf(&[1.0]);
    let y = custom(&x, move |ctx| {
        let _ = &state;
        Ok(vec![Some(ctx.upstream() * 2.0)])
    });
    thread::spawn(move || run_backward(&y, &[&y], true, false).map(drop)).join().unwrap().unwrap();
    assert_eq!(drops.count(), 1);
}

// ---- dtypes and upstreams ----

/// The backward pass multiplies by upstream / B in f32 and rounds to 16 bits once.
#[test]
fn sixteen_bit_gradients_survive_the_mean() {
    for device in devices() {
        for kind in [Kind::Half, Kind::BFloat16] {
            let (rows, scale) = (4096, 65536.0);
            // Multiples of 1/64, at most 4 apart: over B, small differences give gradients below f16's smallest normal
            // number.
            let [a, p, n] = leaves(&[rows, 8], 16, kind, device);
            let loss_fn = TripletMarginLoss { margin: 100.0, ..Default::default() };
            let loss = loss_fn.forward(&a, &p, &n);
            assert_eq!(loss.kind(), Kind::Float);
            (loss * scale).backward();
            let [a2, p2, n2] = [&a, &p, &n].map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true));
            (composed(&loss_fn, &a2, &p2, &n2) * scale).backward();
            for (x, x2) in [(&a, &a2), (&p, &p2), (&n, &n2)] {
                assert_eq!(x.grad().kind(), kind);
                // Exact in f32, so rounding once is rounding the exact gradient.
                assert_same_bits(&x.grad(), &x2.grad().to_kind(kind));
            }
        }
    }
}

#[test]
fn a_vector_of_upstreams_may_have_any_strides() {
    for device in devices() {
        for kind in [Kind::Double, Kind::Float, Kind::Half] {
            let weights = numbers(&[7, 3], 17, Kind::Double, device);
            let uses: [&dyn Fn(&Tensor) -> Tensor; 6] = [
                &|losses| losses.sum(None), // expanded: stride 0
                &|losses| (losses * weights.i((.., 1)).to_kind(losses.kind())).sum(None),
                &|losses| (Tensor::stack(&[losses, losses], 1) * weights.i((.., ..2)).to_kind(losses.kind())).sum(None),
                &|losses| (losses.flip([0]) * weights.i((.., 0)).to_kind(losses.kind())).sum(None),
                &|losses| losses.i(3) * 2.0, // 0 for all other rows
                &|losses| (losses.unsqueeze(1).expand([7, 3], false) * weights.to_kind(losses.kind())).sum(None),
            ];
            for of in uses {
                let [a, p, n] = leaves(&[7, 5], 18, kind, device);
                let [a2, p2, n2] = [&a, &p, &n].map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true));
                of(&with(Reduction::None).forward(&a, &p, &n)).backward();
                of(&composed(&with(Reduction::None), &a2, &p2, &n2)).backward();
                for (x, x2) in [(&a, &a2), (&p, &p2), (&n, &n2)] {
                    assert_close(&x.grad(), &x2.grad().to_kind(kind), 20.0);
                }
            }
        }
    }
    // An upstream that is a strided view: one column of a matrix.
    let x = leaf(&[1.0, 2.0]);
    let strides = Arc::new(AtomicUsize::new(0));
    let seen = strides.clone();
    let y = custom(&x, move |ctx| {
        seen.store(ctx.upstream().stride()[0] as usize, Ordering::SeqCst);
        Ok(vec![Some(ctx.upstream().contiguous())])
    });
    (Tensor::stack(&[&y, &x], 1) * Tensor::from_slice2(&[[1.0, 2.0], [3.0, 4.0]])).sum(None).backward();
    assert_eq!(strides.load(Ordering::SeqCst), 2, "else the losses above did not meet one");
    assert_eq!(x.grad(), Tensor::from_slice(&[3.0, 7.0]));
}

// ---- views ----

#[test]
fn inputs_may_be_views() {
    type View = (&'static str, &'static [i64], fn(&Tensor) -> Tensor);
    let views: [View; 11] = [
        ("transposed", &[6, 4], |x| x.tr()),
        ("columns of a wider matrix", &[4, 20], |x| x.narrow(1, 3, 6)),
        ("every other column", &[4, 12], |x| x.slice(1, 0, 12, 2)),
        ("every third row", &[12, 6], |x| x.slice(0, 1, 12, 3)),
        ("one row again and again", &[1, 6], |x| x.expand([4, 6], false)),
        ("one number again and again", &[1, 1], |x| x.expand([4, 6], false)),
        ("one number a row", &[4, 1], |x| x.expand([4, 6], false)),
        ("the middle of a cube", &[4, 3, 6], |x| x.i((.., 1, ..))),
        ("the last of a cube", &[4, 6, 3], |x| x.i((.., .., 2))),
        ("windows that overlap", &[15], |x| x.unfold(0, 6, 3)),
        ("the end of a buffer", &[40], |x| x.narrow(0, 13, 24).view([4, 6])),
    ];
    for device in devices() {
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            for (name, shape, view) in views {
                for reduction in [Reduction::Mean, Reduction::None] {
                    let loss_fn = TripletMarginLoss { margin: 30.0, reduction, ..Default::default() };
                    let [a, p, n] = leaves(shape, 19, kind, device);
                    let [a2, p2, n2] = [&a, &p, &n].map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true));
                    let loss = loss_fn.forward(&view(&a), &view(&p), &view(&n));
                    let expected = composed(&loss_fn, &view(&a2), &view(&p2), &view(&n2));
                    assert_close(&loss.to_kind(Kind::Float), &expected.to_kind(Kind::Float), 20.0);
                    (loss * 2.0).sum(None).backward();
                    (expected * 2.0).sum(None).backward();
                    for (x, x2) in [(&a, &a2), (&p, &p2), (&n, &n2)] {
                        assert_eq!(x.grad().size(), shape, "{name}");
                        // Torch itself sums the gradients of rows that share memory in 16 bits.
                        let roundings = if kind == Kind::BFloat16 { 30.0 } else { 60.0 };
                        assert_close(&x.grad(), &x2.grad().to_kind(kind), roundings);
                    }
                }
            }
        }
    }
}

#[test]
fn a_single_row_or_column_may_have_any_stride() {
    for device in devices() {
        let of = |x: [Tensor; 3]| {
            let x = x.map(|x| x.set_requires_grad(true));
            let loss = TripletMarginLoss { margin: 30.0, ..Default::default() }.forward(&x[0], &x[1], &x[2]);
            loss.backward();
            (loss, x.map(|x| x.grad()))
        };
        for shape in [[1, 5], [5, 1], [1, 1]] {
            let plain = [0, 1, 2].map(|i| numbers(&shape, i, Kind::Float, device));
            // The same numbers as a corner of a larger tensor, with other strides.
            let odd = plain.each_ref().map(|x| {
                let mut larger = Tensor::full([7, 11], f64::NAN, (Kind::Float, device)).tr();
                let corner = larger.narrow(0, 2, shape[0]).narrow(1, 1, shape[1]);
                corner.shallow_clone().copy_(x);
                larger = corner;
                larger.detach()
            });
            let (loss, grads) = of(plain);
            let (odd_loss, odd_grads) = of(odd);
            assert_same_bits(&odd_loss, &loss);
            for (odd, grad) in odd_grads.iter().zip(&grads) {
                assert_same_bits(odd, grad);
            }
        }
    }
}

/// A tensor may have torch's negative bit: its memory is negated when read (the imaginary part of a conjugate has it).
#[test]
fn a_negated_view_is_read_negated() {
    for device in devices() {
        let [a, p, n] = leaves(&[4, 3], 20, Kind::Double, device);
        let loss_fn = TripletMarginLoss { margin: 30.0, ..Default::default() };
        let expected = loss_fn.forward(&-&a, &p, &n);
        let negated = a.internal_neg_view();
        assert!(negated.is_neg());
        let loss = loss_fn.forward(&negated, &p, &n);
        assert_same_bits(&loss, &expected);
        expected.backward();
        let grad = a.grad().copy();
        let _ = a.grad().zero_();
        loss.backward();
        assert_same_bits(&a.grad(), &grad);

        // A negated view as upstream gradient.
        for reduction in [Reduction::Mean, Reduction::None] {
            let losses = TripletMarginLoss { reduction, ..loss_fn }.forward(&a, &p, &n);
            let expected = run_backward(&-losses.sum(None), &[&a], true, false).unwrap();
            let negated = custom(&losses, |ctx| {
                let negated = ctx.upstream().contiguous().internal_neg_view();
                assert!(negated.is_neg());
                Ok(vec![Some(negated)])
            });
            let grads = run_backward(&negated.sum(None), &[&a], true, false).unwrap();
            assert_same_bits(&grads[0], &expected[0]);
        }
    }
}

// ---- memory ----

/// The memory of large gradients is reused, but never while a tensor still refers to it.
#[test]
fn large_gradients_stay_while_they_are_held() {
    // Each gradient is larger than 1 MiB, the least that comes from the pool; the steps cycle through three sizes.
    for (kind, dim) in [(Kind::Float, 1024), (Kind::Double, 512), (Kind::Half, 2048)] {
        let loss_fn = TripletMarginLoss { margin: 1e4, ..Default::default() };
        let mut held: Vec<(Tensor, Tensor)> = Vec::new();
        for step in 0..7 {
            let rows = 260 + 90 * (step % 3);
            let [a, p, n] = leaves(&[rows, dim], step as u64, kind, CPU);
            let scale = if step % 2 == 0 { 1.0 } else { 4096.0 };
            // Two losses alive at once, one of which never runs backward.
            let idle = loss_fn.forward(&n, &a, &p);
            let loss = loss_fn.forward(&a, &p, &n);
            if step == 4 {
                release_cpu_memory();
            }
            (loss * scale).backward();
            for (x, far, near) in [(&a, &n, &p), (&p, &p, &a), (&n, &a, &n)] {
                // 2 (n - p), 2 (p - a), 2 (a - n): differences of these numbers are exact.
                let expected = (far - near) * 2.0;
                let expected = (expected.to_kind(Kind::Double) * (scale / rows as f64)).detach();
                assert_close(&x.grad(), &expected.to_kind(kind), 2.0);
                held.push((x.grad(), x.grad().copy()));
            }
            drop(idle);
            // Drop some, so that their memory is reused.
            if step % 3 == 2 {
                held.drain(1..5);
            }
            for (grad, copy) in &held {
                assert_same_bits(grad, copy);
            }
        }
        release_cpu_memory();
        for (grad, copy) in &held {
            assert_same_bits(grad, copy);
        }
    }
}

#[test]
fn large_gradients_may_outlive_everything_and_be_dropped_anywhere() {
    let grads = thread::spawn(|| {
        let [a, p, n] = leaves(&[512, 512], 21, Kind::Float, CPU);
        let loss = TripletMarginLoss { margin: 1e4, ..Default::default() }.forward(&a, &p, &n);
        run_backward(&loss, &[&a, &p, &n], true, false).unwrap()
    })
    .join()
    .unwrap();
    let [a, p, n] = leaves(&[512, 512], 21, Kind::Float, CPU);
    for (grad, expected) in grads.iter().zip([(&n - &p) * 2.0, (&p - &a) * 2.0, (&a - &n) * 2.0]) {
        assert_close(grad, &(expected / 512.0).detach(), 2.0);
    }
    thread::spawn(move || drop(grads)).join().unwrap();
}

#[test]
fn several_threads_share_the_memory() {
    thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                for step in 0..5 {
                    let [a, p, n] = leaves(&[600 + 100 * step, 512], seed, Kind::Float, CPU);
                    let loss_fn = TripletMarginLoss { margin: 1e4, reduction: Reduction::Sum, ..Default::default() };
                    loss_fn.forward(&a, &p, &n).backward();
                    assert_same_bits(&a.grad(), &((&n - &p) * 2.0).detach());
                    assert_same_bits(&p.grad(), &((&p - &a) * 2.0).detach());
                    assert_same_bits(&n.grad(), &((&a - &n) * 2.0).detach());
                }
            });
        }
    });
}
