//! Graphs that several threads build, run and drop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use tch::{Kind, Tensor};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Distance, PairwiseDistance, TripletMarginLoss,
};

use super::drops::Drops;
use super::functions::{custom, leaf, leaves};
use crate::support::graph::{CPU, TWICE, assert_fails, assert_same_bits, run_backward};

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

/// Losses run on libtorch's threads, as many as this thread asks for.
#[test]
fn any_number_of_libtorchs_threads_gives_the_same_bits() {
    let labels = Tensor::arange(300, (Kind::Int64, CPU)).remainder(40);
    let [x, y, z] = leaves(&[300, 24], 15, Kind::Float, CPU);
    let same = labels.remainder(2).to_kind(Kind::Bool);
    let distances = PairwiseDistance { distance: Distance::Euclidean, ..Default::default() };
    let losses: [(&str, &dyn Fn() -> Tensor); 8] = [
        ("batch_all", &|| BatchAllTripletLoss::default().forward(&x, &labels)),
        ("batch_contrastive", &|| BatchContrastiveLoss { margin: 6.0, ..Default::default() }.forward(&x, &labels)),
        ("batch_hard", &|| BatchHardTripletLoss::default().forward(&x, &labels)),
        ("batch_negative", &|| BatchNegativeTripletLoss { margin: 9.0, ..Default::default() }.forward(&x, &labels)),
        ("batch_semi_hard", &|| BatchSemiHardTripletLoss::default().forward(&x, &labels)),
        ("contrastive", &|| ContrastiveLoss::default().forward(&x, &y, &same)),
        ("pairwise_distance", &|| distances.forward(&x, &y).max()),
        ("triplet_margin", &|| TripletMarginLoss::default().forward(&x, &y, &z)),
    ];
    let before = tch::get_num_threads();
    for (stem, loss) in losses {
        let run = |threads: i32| {
            tch::set_num_threads(threads);
            let loss = loss();
            let grad = run_backward(&loss, &[&x], false, false).unwrap().pop().unwrap();
            (loss, grad)
        };
        let (loss, grad) = run(1);
        assert!(loss.double_value(&[]) > 0.0, "{stem}");
        for threads in [2, 5] {
            let again = run(threads);
            assert!(again.0.equal(&loss) && again.1.equal(&grad), "{stem} on {threads} threads");
        }
    }
    tch::set_num_threads(before);
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
