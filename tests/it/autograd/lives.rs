//! How long the state of a function and the memory of a gradient live.

use std::sync::{Arc, Mutex};
use std::thread;

use tch::{Kind, Tensor};
use tercet::torch::{needs_grad, release_cpu_memory};
use tercet::{Reduction, TripletMarginLoss};

use super::drops::Drops;
use super::failures::failing_ways;
use super::functions::{custom, leaf, leaves, square};
use crate::support::graph::{CPU, assert_close, assert_same_bits, run_backward};

// ---- lives ----

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

// ---- memory ----

/// The memory of large gradients is reused, but never while a tensor still refers to it.
#[test]
fn large_gradients_stay_while_they_are_held() {
    // Each gradient is larger than 1 MiB, the least that comes from the pool; the steps cycle through three sizes.
    for (kind, dim) in [(Kind::Float, 1024), (Kind::Double, 512), (Kind::Half, 2048), (Kind::BFloat16, 2048)] {
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
