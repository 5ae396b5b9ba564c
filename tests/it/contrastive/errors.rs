//! What the contrastive loss refuses: every message names the argument, what was expected and what came.

use crate::paired::refused::{bad_options, options_beyond_f32, refused};
use tercet::contrastive::oracle;
use tercet::{ContrastiveLoss, Error, Matrix, Reduction};

const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

/// Every way to call the loss on slices and the oracle: three with `Reduction::None`, otherwise five.
fn doors(loss_fn: &ContrastiveLoss, rows: [Matrix<'_, f64>; 2], same: &[bool]) -> Vec<Result<(), Error>> {
    let (count, dim) = (rows[0].rows(), rows[0].dim());
    let mut grads = [vec![0.0; count * dim], vec![0.0; count * dim]];
    let upstream = vec![1.0; if loss_fn.reduction == Reduction::None { count } else { 1 }];
    let mut all = vec![
        loss_fn.losses(rows, same, &mut vec![0.0; count]),
        loss_fn.grad(rows, same, &upstream, grads.each_mut().map(|g| Some(&mut g[..]))),
        oracle::run(loss_fn, rows, same, &upstream).map(drop),
    ];
    if loss_fn.reduction != Reduction::None {
        all.push(loss_fn.loss(rows, same).map(drop));
        all.push(loss_fn.loss_and_grad(rows, same, grads.each_mut().map(|g| &mut g[..])).map(drop));
    }
    all
}

/// Every call on slices refuses these arguments, under every reduction.
#[track_caller]
fn all_refuse(
    loss_fn: ContrastiveLoss,
    rows: [Matrix<'_, f64>; 2],
    same: &[bool],
    argument: &str,
    expected: &str,
    actual: &str,
) {
    for reduction in REDUCTIONS {
        let results = doors(&ContrastiveLoss { reduction, ..loss_fn }, rows, same);
        assert_eq!(results.len(), if reduction == Reduction::None { 3 } else { 5 });
        for result in results {
            refused(result, argument, expected, actual);
        }
    }
}

#[test]
fn slices_refuse_options_out_of_range() {
    let rows = [Matrix::new(&[1.0, 2.0], 1).unwrap(); 2];
    for (margin, distance, argument, expected, actual) in bad_options() {
        let loss_fn = ContrastiveLoss { margin, distance, ..Default::default() };
        all_refuse(loss_fn, rows, &[true, false], argument, expected, actual);
    }
    // Extreme margins that are valid.
    for margin in [0.0, -0.0, f64::MAX, f64::MIN_POSITIVE] {
        let loss_fn = ContrastiveLoss { margin, ..Default::default() };
        doors(&loss_fn, rows, &[true, false]).into_iter().for_each(|result| result.unwrap());
    }
}

#[test]
fn slices_of_f32_refuse_options_that_it_has_no_number_for() {
    let rows = [Matrix::new(&[1f32, 2.0], 1).unwrap(); 2];
    for (margin, distance, argument, expected, actual) in options_beyond_f32() {
        let loss_fn = ContrastiveLoss { margin, distance, ..Default::default() };
        refused(loss_fn.loss(rows, &[true, false]), argument, expected, actual);
        refused(loss_fn.grad(rows, &[true, false], &[1.0], [None, None]), argument, expected, actual);
    }
}

#[test]
fn slices_refuse_shapes_that_differ_or_are_empty() {
    let x = [0.0; 24];
    let of = |rows, dim| Matrix::new(&x[..rows * dim], dim).unwrap();
    let loss_fn = ContrastiveLoss::default();
    for (wrong, shape) in [(of(3, 4), "[3, 4]"), (of(2, 3), "[2, 3]"), (of(4, 2), "[4, 2]"), (of(1, 4), "[1, 4]")] {
        all_refuse(loss_fn, [of(2, 4), wrong], &[true; 2], "x2", "the shape of x1, [2, 4]", shape);
    }
    all_refuse(loss_fn, [of(0, 4); 2], &[], "x1", "at least one row", "[0, 4]");
}

#[test]
fn slices_refuse_what_is_not_one_flag_a_pair() {
    let rows = [Matrix::new(&[0.0; 6], 3).unwrap(); 2];
    for len in [0, 1, 3] {
        let same = vec![true; len];
        all_refuse(ContrastiveLoss::default(), rows, &same, "same", "2, one for each pair", &len.to_string());
    }
}

#[test]
fn slices_refuse_results_and_upstreams_of_the_wrong_length() {
    let rows = [Matrix::new(&[0f64; 6], 3).unwrap(); 2];
    let (loss_fn, same) = (ContrastiveLoss::default(), [true, false]);
    for len in [0, 1, 3] {
        refused(loss_fn.losses(rows, &same, &mut vec![0.0; len]), "losses", "2 numbers", &len.to_string());
    }
    for len in [0, 3, 5, 9] {
        let actual = len.to_string();
        for (i, argument) in ["grads[0]", "grads[1]"].into_iter().enumerate() {
            let (mut right, mut wrong) = ([0.0; 6], [0.0; 9]);
            let mut grads = [&mut right[..], &mut wrong[..len]];
            grads.swap(i, 1);
            refused(loss_fn.loss_and_grad(rows, &same, grads), argument, "6 numbers", &actual);
            let mut grads = [Some(&mut right[..]), Some(&mut wrong[..len])];
            grads.swap(i, 1);
            refused(loss_fn.grad(rows, &same, &[1.0], grads), argument, "6 numbers", &actual);
            let mut grads = [None, None];
            grads[i] = Some(&mut wrong[..len]);
            refused(loss_fn.grad(rows, &same, &[1.0], grads), argument, "6 numbers", &actual);
        }
    }
    for (reduction, right) in REDUCTIONS.into_iter().zip([2, 1, 1]) {
        let loss_fn = ContrastiveLoss { reduction, ..loss_fn };
        for len in (0..4).filter(|&len| len != right) {
            let result = loss_fn.grad(rows, &same, &vec![1.0; len], [None, None]);
            refused(result, "upstream", &format!("{right} numbers"), &len.to_string());
        }
        loss_fn.grad(rows, &same, &vec![1.0; right], [None, None]).unwrap();
    }
}

#[test]
fn slices_refuse_to_reduce_by_none() {
    let rows = [Matrix::new(&[0f64; 6], 3).unwrap(); 2];
    let loss_fn = ContrastiveLoss { reduction: Reduction::None, ..Default::default() };
    refused(loss_fn.loss(rows, &[true, false]), "reduction", "Mean or Sum", "None");
    let mut grads = [[0.0; 6]; 2];
    let result = loss_fn.loss_and_grad(rows, &[true, false], grads.each_mut().map(|g| &mut g[..]));
    refused(result, "reduction", "Mean or Sum", "None");
}

#[cfg(feature = "torch")]
mod tensors {
    use super::*;
    use crate::paired::refused::tensors::{dense, panics, wrong_matrices};
    use crate::support::skipped::skipped;
    use tch::{Device, Kind, Tensor};

    /// `f_forward` returns the expected error, and `forward` panics with its text.
    #[track_caller]
    fn both_refuse(loss_fn: &ContrastiveLoss, x: [&Tensor; 3], argument: &str, expected: &str, actual: &str) {
        let text = refused(loss_fn.f_forward(x[0], x[1], x[2]), argument, expected, actual);
        panics("ContrastiveLoss", &text, || loss_fn.forward(x[0], x[1], x[2]));
    }

    fn same() -> Tensor {
        Tensor::from_slice(&[true, false])
    }

    #[test]
    fn refuse_options_out_of_range() {
        let x = dense(&[2, 3]).set_requires_grad(true);
        for (margin, distance, argument, expected, actual) in bad_options() {
            let loss_fn = ContrastiveLoss { margin, distance, ..Default::default() };
            both_refuse(&loss_fn, [&x, &x, &same()], argument, expected, actual);
            tch::no_grad(|| both_refuse(&loss_fn, [&x, &x, &same()], argument, expected, actual));
        }
    }

    #[test]
    fn refuse_what_is_no_dense_matrix_of_floats() {
        let right = dense(&[2, 3]);
        for reduction in [Reduction::None, Reduction::Mean] {
            let loss_fn = ContrastiveLoss { reduction, ..Default::default() };
            for (wrong, expected, actual) in wrong_matrices() {
                both_refuse(&loss_fn, [&wrong, &right, &same()], "x1", expected, &actual);
                both_refuse(&loss_fn, [&right, &wrong, &same()], "x2", expected, &actual);
            }
            // A refused call leaves nothing behind: the next one is right.
            assert_eq!(
                loss_fn.forward(&right, &right, &same()).sum(None).double_value(&[]),
                match reduction {
                    Reduction::Mean => 0.25,
                    _ => 0.5,
                }
            );
        }
    }

    #[test]
    fn refuse_matrices_that_differ_or_are_empty() {
        let (right, loss_fn) = (dense(&[2, 3]), ContrastiveLoss::default());
        // A single row or column is not broadcast.
        for shape in [[3, 3], [2, 4], [1, 3], [2, 1], [3, 2], [0, 3]] {
            let wrong = dense(&shape);
            both_refuse(&loss_fn, [&right, &wrong, &same()], "x2", "the shape of x1, [2, 3]", &format!("{shape:?}"));
        }
        for shape in [[0, 3], [2, 0], [0, 0]] {
            let empty = dense(&shape).set_requires_grad(true);
            let same = Tensor::zeros([shape[0]], (Kind::Bool, Device::Cpu));
            both_refuse(&loss_fn, [&empty, &empty, &same], "x1", "at least one row", &format!("{shape:?}"));
        }
        let kinds = [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16];
        for (x1, x2) in kinds.into_iter().flat_map(|x1| kinds.map(|x2| (x1, x2))).filter(|(x1, x2)| x1 != x2) {
            let (expected, actual) = (format!("the dtype of x1, {x1:?}"), format!("{x2:?}"));
            both_refuse(&loss_fn, [&right.to_kind(x1), &right.to_kind(x2), &same()], "x2", &expected, &actual);
        }
    }

    #[test]
    fn refuse_what_says_of_no_pair_whether_it_belongs_together() {
        let (x, loss_fn) = (dense(&[2, 3]), ContrastiveLoss::default());
        let refuse = |same: &Tensor, expected: &str, actual: &str| {
            both_refuse(&loss_fn, [&x, &x, same], "same", expected, actual);
            tch::no_grad(|| both_refuse(&loss_fn, [&x, &x, same], "same", expected, actual));
        };
        refuse(&Tensor::new(), "a tensor", "undefined");
        for (shape, shown) in [(&[][..], "[]"), (&[3], "[3]"), (&[1], "[1]"), (&[2, 1], "[2, 1]"), (&[1, 2], "[1, 2]")]
        {
            refuse(&Tensor::zeros(shape, (Kind::Bool, Device::Cpu)), "shape [2]", shown);
        }
        for kind in [Kind::ComplexFloat, Kind::Float8e5m2] {
            refuse(&dense(&[2]).to_kind(kind), "bool, an integer or a float", &format!("{kind:?}"));
        }
        refuse(&dense(&[2]).quantize_per_tensor(0.1, 0, Kind::QUInt8), "bool, an integer or a float", "QUInt8");
        refuse(&dense(&[2]).to_sparse(None, None::<&[i64]>, None), "dense", "sparse");
        let kinds = [Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64, Kind::Half, Kind::BFloat16, Kind::Float];
        for kind in kinds.into_iter().chain([Kind::Double]) {
            for (wrong, shown) in [(2.0, "2 for pair 1"), (-1.0, "-1 for pair 1")] {
                refuse(&Tensor::from_slice(&[1.0, wrong]).to_kind(kind), "0 or 1", shown);
            }
        }
        refuse(&Tensor::from_slice(&[0u8, 255]), "0 or 1", "255 for pair 1");
        refuse(&Tensor::from_slice(&[i64::MIN, 1]), "0 or 1", "-922337203685477");
        refuse(&Tensor::from_slice(&[0.5f32, 1.0]), "0 or 1", "0.5 for pair 0");
        refuse(&Tensor::from_slice(&[f64::NAN, 1.0]), "0 or 1", "NaN for pair 0");
    }

    #[test]
    fn refuse_to_differentiate_by_which_pairs_belong_together() {
        let (x, loss_fn) = (dense(&[2, 3]), ContrastiveLoss::default());
        let same = Tensor::from_slice(&[1f32, 0.0]).set_requires_grad(true);
        both_refuse(&loss_fn, [&x, &x, &same], "same", "requires no gradient", "one that does");
        let _ = tch::no_grad(|| loss_fn.f_forward(&x, &x, &same)).unwrap();
        let _ = loss_fn.f_forward(&x, &x, &same.detach()).unwrap();
    }

    #[test]
    fn refuse_devices_that_differ() {
        if !tch::Cuda::is_available() {
            skipped("no CUDA device: contrastive: refuse_devices_that_differ");
            return;
        }
        let (host, device) = (dense(&[2, 3]), dense(&[2, 3]).to_device(Device::Cuda(0)));
        let (host_same, device_same) = (same(), same().to_device(Device::Cuda(0)));
        let loss_fn = ContrastiveLoss::default();
        both_refuse(&loss_fn, [&host, &device, &host_same], "x2", "x1, Cpu", "Cuda(0)");
        if cfg!(feature = "cuda") {
            both_refuse(&loss_fn, [&device, &device, &host_same], "same", "x1, Cuda(0)", "Cpu");
            assert_eq!(loss_fn.forward(&device, &device, &device_same).device(), Device::Cuda(0));
        } else {
            both_refuse(&loss_fn, [&device, &device, &device_same], "x1", "CPU tensor", "CUDA tensor");
        }
    }
}
