//! Errors and panics of a backward pass, and functions that cannot be attached.

use tch::{Kind, Tensor};
use tercet::torch::{Backward, CustomFunction};

use super::drops::{Counted, Drops};
use super::functions::{Gradients, custom, leaf};
use crate::support::graph::{CPU, assert_fails};

pub type BackwardFn = fn(&Backward<'_>) -> Gradients;

pub fn failing_ways() -> Vec<(&'static str, BackwardFn)> {
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
