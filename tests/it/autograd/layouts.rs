//! Dtypes, strides and views of inputs and upstream gradients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{IndexOp, Kind, Tensor};
use tercet::{Reduction, TripletMarginLoss};

use super::functions::{composed, custom, leaf, leaves, with};
use crate::support::graph::{assert_close, assert_same_bits, devices, numbers, run_backward};

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
