//! What the triplet margin loss refuses: every message names the argument, what was expected and what came.

use crate::paired::refused::{bad_options, options_beyond_f32, refused};
use tercet::triplet_margin::oracle;
use tercet::{Element, Error, Matrix, PairedDistance, Reduction, TripletMarginLoss};

/// Every way to call the loss on slices and the oracle: three with `Reduction::None`, otherwise five.
fn doors(loss_fn: &TripletMarginLoss, rows: [Matrix<'_, f64>; 3]) -> Vec<Result<(), Error>> {
    let (count, dim) = (rows[0].rows(), rows[0].dim());
    let mut grads: [Vec<f64>; 3] = std::array::from_fn(|_| vec![0.0; count * dim]);
    let upstream = vec![1.0; if loss_fn.reduction == Reduction::None { count } else { 1 }];
    let mut all = vec![
        loss_fn.losses(rows, &mut vec![0.0; count]),
        loss_fn.grad(rows, &upstream, grads.each_mut().map(|g| Some(&mut g[..]))),
        oracle::run(loss_fn, rows, &upstream).map(drop),
    ];
    if loss_fn.reduction != Reduction::None {
        all.push(loss_fn.loss(rows).map(drop));
        all.push(loss_fn.loss_and_grad(rows, grads.each_mut().map(|g| &mut g[..])).map(drop));
    }
    all
}

#[test]
fn slices_refuse_options_out_of_range() {
    let x = [1.0, 2.0];
    let rows = [Matrix::new(&x, 1).unwrap(); 3];
    for (margin, distance, argument, expected, actual) in bad_options() {
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let results = doors(&TripletMarginLoss { margin, distance, reduction, ..Default::default() }, rows);
            assert_eq!(results.len(), if reduction == Reduction::None { 3 } else { 5 });
            for result in results {
                refused(result, argument, expected, actual);
            }
        }
    }
    // Extreme margins that are valid.
    for margin in [0.0, -0.0, f64::MAX, f64::MIN_POSITIVE] {
        doors(&TripletMarginLoss { margin, ..Default::default() }, rows).into_iter().for_each(|r| r.unwrap());
    }
    for (p, eps) in [(f64::INFINITY, 0.0), (f64::MIN_POSITIVE, 1.0), (1e300, 0.0), (2.0, -1e-6)] {
        let distance = PairedDistance::Lp { p, eps };
        doors(&TripletMarginLoss { distance, ..Default::default() }, rows).into_iter().for_each(|r| r.unwrap());
    }
}

#[test]
fn slices_of_f32_and_16_bits_refuse_options_that_f32_has_no_number_for() {
    fn refuse<T: Element>() {
        let x = [T::default(); 2];
        let rows = [Matrix::new(&x, 1).unwrap(); 3];
        for (margin, distance, argument, expected, actual) in options_beyond_f32() {
            let loss_fn = TripletMarginLoss { margin, distance, ..Default::default() };
            refused(loss_fn.loss(rows), argument, expected, actual);
            let upstream = [T::Scalar::default()];
            refused(loss_fn.grad(rows, &upstream, [None, None, None]), argument, expected, actual);
        }
    }
    refuse::<f32>();
    refuse::<half::f16>();
    refuse::<half::bf16>();
}

#[test]
fn slices_refuse_shapes_that_differ_or_are_empty() {
    let x = [0.0; 24];
    let of = |rows, dim| Matrix::new(&x[..rows * dim], dim).unwrap();
    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        let loss_fn = TripletMarginLoss { reduction, ..Default::default() };
        for (wrong, shape) in [(of(3, 4), "[3, 4]"), (of(2, 3), "[2, 3]"), (of(4, 2), "[4, 2]"), (of(1, 4), "[1, 4]")] {
            for result in doors(&loss_fn, [of(2, 4), wrong, of(2, 4)]) {
                refused(result, "positive", "[2, 4]", shape);
            }
            for result in doors(&loss_fn, [of(2, 4), of(2, 4), wrong]) {
                refused(result, "negative", "[2, 4]", shape);
            }
        }
        for result in doors(&loss_fn, [of(0, 4); 3]) {
            refused(result, "anchor", "at least one row", "[0, 4]");
        }
    }
}

#[test]
fn slices_refuse_results_of_the_wrong_length() {
    let x = [0f64; 6];
    let rows = [Matrix::new(&x, 3).unwrap(); 3];
    let loss_fn = TripletMarginLoss::default();
    for len in [0, 1, 3] {
        refused(loss_fn.losses(rows, &mut vec![0.0; len]), "losses", "2 numbers", &len.to_string());
    }
    let (mut right, mut other, mut wrong) = ([0.0; 6], [0.0; 6], [0.0; 9]);
    for len in [0, 3, 5, 9] {
        let actual = len.to_string();
        for (i, argument) in ["grads[0]", "grads[1]", "grads[2]"].into_iter().enumerate() {
            let mut grads = [&mut right[..], &mut other[..], &mut wrong[..len]];
            grads.swap(i, 2);
            refused(loss_fn.grad(rows, &[1.0], grads.map(Some)), argument, "6 numbers", &actual);
            let mut grads = [&mut right[..], &mut other[..], &mut wrong[..len]];
            grads.swap(i, 2);
            refused(loss_fn.loss_and_grad(rows, grads), argument, "6 numbers", &actual);
            let mut grads = [None, None, None];
            grads[i] = Some(&mut wrong[..len]);
            refused(loss_fn.grad(rows, &[1.0], grads), argument, "6 numbers", &actual);
        }
    }
}

#[test]
fn slices_refuse_an_upstream_of_the_wrong_length() {
    let x = [0f64; 6];
    let rows = [Matrix::new(&x, 3).unwrap(); 3];
    for (reduction, right) in [(Reduction::None, 2), (Reduction::Mean, 1), (Reduction::Sum, 1)] {
        let loss_fn = TripletMarginLoss { reduction, ..Default::default() };
        for len in (0..4).filter(|&len| len != right) {
            let result = loss_fn.grad(rows, &vec![1.0; len], [None, None, None]);
            refused(result, "upstream", &format!("{right} numbers"), &len.to_string());
        }
        loss_fn.grad(rows, &vec![1.0; right], [None, None, None]).unwrap();
    }
}

#[test]
fn slices_refuse_to_reduce_by_none() {
    let x = [0f64; 6];
    let rows = [Matrix::new(&x, 3).unwrap(); 3];
    let loss_fn = TripletMarginLoss { reduction: Reduction::None, ..Default::default() };
    refused(loss_fn.loss(rows), "reduction", "Mean or Sum", "None");
    let mut grads = [[0.0; 6]; 3];
    refused(loss_fn.loss_and_grad(rows, grads.each_mut().map(|g| &mut g[..])), "reduction", "Mean or Sum", "None");
    loss_fn.losses(rows, &mut [0.0; 2]).unwrap();
}

#[test]
fn matrices_refuse_what_does_not_fit() {
    let x = [0f32; 10];
    refused(Matrix::new(&x, 0), "dim", "at least 1", "0");
    refused(Matrix::strided(&x, 2, 0, 5), "dim", "at least 1", "0");
    refused(Matrix::new(&x, 3), "data", "multiple of dim = 3", "10");
    refused(Matrix::strided(&x, 3, 4, 4), "data", "3 rows of 4 numbers, 4 apart", "10");
    refused(Matrix::strided(&x, 2, 4, 7), "data", "2 rows of 4 numbers, 7 apart", "10");
    assert_eq!(Matrix::strided(&x, 2, 4, 6).unwrap().rows(), 2);
    assert_eq!(Matrix::strided(&x, 100, 10, 0).unwrap().row(99), x);
    assert_eq!(Matrix::strided(&x, 0, 4, usize::MAX).unwrap().rows(), 0);
    // More than an index can hold: the elements reached, or the number of rows if all of them are one row.
    refused(Matrix::strided(&x, usize::MAX, 4, usize::MAX), "data", "4 numbers", "10");
    refused(Matrix::strided(&x, 2, usize::MAX, 1), "data", "2 rows", "10");
    refused(Matrix::strided(&x, 1 << 62, 4, 0), "data", "4611686018427387904 rows", "10");
    refused(Matrix::strided(&x, usize::MAX, 10, 0), "data", "10 numbers", "10");
}

#[cfg(feature = "torch")]
mod tensors {
    use super::*;
    use crate::paired::refused::tensors::{dense, panics, wrong_matrices};
    use tch::{Device, Kind, Tensor};

    /// `f_forward` returns the expected error, and `forward` panics with its text.
    #[track_caller]
    fn both_refuse(loss_fn: &TripletMarginLoss, x: [&Tensor; 3], argument: &str, expected: &str, actual: &str) {
        let text = refused(loss_fn.f_forward(x[0], x[1], x[2]), argument, expected, actual);
        panics("TripletMarginLoss", &text, || loss_fn.forward(x[0], x[1], x[2]));
    }

    /// Each of the three inputs is refused if it is `wrong`.
    #[track_caller]
    fn refused_anywhere(wrong: &Tensor, expected: &str, actual: &str) {
        let right = dense(&[2, 3]);
        for (i, argument) in ["anchor", "positive", "negative"].into_iter().enumerate() {
            for reduction in [Reduction::None, Reduction::Mean] {
                let mut x = [&right; 3];
                x[i] = wrong;
                let loss_fn = TripletMarginLoss { reduction, ..Default::default() };
                both_refuse(&loss_fn, x, argument, expected, actual);
            }
        }
        // A refused call leaves nothing behind: the next one is right.
        assert_eq!(TripletMarginLoss::default().forward(&right, &right, &right).double_value(&[]) as f32, 0.2);
    }

    #[test]
    fn refuse_options_out_of_range() {
        let x = dense(&[2, 3]).set_requires_grad(true);
        for (margin, distance, argument, expected, actual) in bad_options() {
            let loss_fn = TripletMarginLoss { margin, distance, ..Default::default() };
            both_refuse(&loss_fn, [&x, &x, &x], argument, expected, actual);
            tch::no_grad(|| both_refuse(&loss_fn, [&x, &x, &x], argument, expected, actual));
        }
    }

    /// An expanded leaf of more than 2^62 numbers: the bytes of its gradient do not fit in 64 bits.
    #[test]
    fn refuse_more_bytes_than_there_are_addresses() {
        let x = dense(&[1, 1]).expand([1 << 31, (1 << 31) + 1], false).detach().set_requires_grad(true);
        let loss_fn = TripletMarginLoss::default();
        assert!(loss_fn.f_forward(&x, &x, &x).is_err());
    }

    #[test]
    fn refuse_options_that_f32_has_no_number_for() {
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            let x = dense(&[2, 3]).to_kind(kind).set_requires_grad(true);
            for (margin, distance, argument, expected, actual) in options_beyond_f32() {
                let loss_fn = TripletMarginLoss { margin, distance, ..Default::default() };
                both_refuse(&loss_fn, [&x, &x, &x], argument, expected, actual);
            }
        }
    }

    #[test]
    fn refuse_what_is_no_dense_matrix_of_floats() {
        for (wrong, expected, actual) in wrong_matrices() {
            refused_anywhere(&wrong, expected, &actual);
        }
    }

    #[test]
    fn refuse_shapes_that_differ() {
        let right = dense(&[2, 3]);
        let loss_fn = TripletMarginLoss::default();
        // A single row or column is not broadcast.
        for shape in [[3, 3], [2, 4], [1, 3], [2, 1], [3, 2], [0, 3]] {
            let wrong = dense(&shape);
            both_refuse(&loss_fn, [&right, &wrong, &right], "positive", "anchor, [2, 3]", &format!("{shape:?}"));
            both_refuse(&loss_fn, [&right, &right, &wrong], "negative", "anchor, [2, 3]", &format!("{shape:?}"));
            both_refuse(&loss_fn, [&wrong, &right, &right], "positive", &format!("anchor, {shape:?}"), "[2, 3]");
        }
    }

    #[test]
    fn refuse_empty_ones() {
        for shape in [[0, 3], [2, 0], [0, 0]] {
            let empty = dense(&shape).set_requires_grad(true);
            for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
                let loss_fn = TripletMarginLoss { reduction, ..Default::default() };
                let actual = format!("{shape:?}");
                both_refuse(&loss_fn, [&empty; 3], "anchor", "at least one row and one column", &actual);
            }
        }
    }

    #[test]
    fn refuse_dtypes_that_differ() {
        let kinds = [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16];
        for right_kind in kinds {
            for wrong_kind in kinds.into_iter().filter(|&kind| kind != right_kind) {
                let (right, wrong) = (dense(&[2, 3]).to_kind(right_kind), dense(&[2, 3]).to_kind(wrong_kind));
                let (expected, actual) = (format!("anchor, {right_kind:?}"), format!("{wrong_kind:?}"));
                let loss_fn = TripletMarginLoss::default();
                both_refuse(&loss_fn, [&right, &wrong, &right], "positive", &expected, &actual);
                both_refuse(&loss_fn, [&right, &right, &wrong], "negative", &expected, &actual);
            }
        }
    }

    #[test]
    fn refuse_devices_that_differ() {
        if !tch::Cuda::is_available() {
            println!("refuse_devices_that_differ: skipped: no CUDA device");
            return;
        }
        let (host, device) = (dense(&[2, 3]), dense(&[2, 3]).to_device(Device::Cuda(0)));
        let loss_fn = TripletMarginLoss::default();
        both_refuse(&loss_fn, [&host, &device, &host], "positive", "anchor, Cpu", "Cuda(0)");
        both_refuse(&loss_fn, [&host, &host, &device], "negative", "anchor, Cpu", "Cuda(0)");
        both_refuse(&loss_fn, [&device, &host, &device], "positive", "anchor, Cuda(0)", "Cpu");
        if cfg!(feature = "cuda") {
            assert_eq!(loss_fn.forward(&device, &device, &device).device(), Device::Cuda(0));
        } else {
            both_refuse(&loss_fn, [&device; 3], "anchor", "CPU tensor", "CUDA tensor");
        }
    }
}
