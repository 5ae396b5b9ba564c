//! The contrastive loss against PyTorch: what tests/data/record_contrastive.py recorded, and, through tch, what tensor
//! operations compute now. The bounds are those of paired/by_torch.rs.

use crate::paired::by_torch::{self, Bounds, F32, F64, Outcome, Recorded, Worst, read_record};
use serde_json::Value;
use tercet::contrastive::oracle;
use tercet::{ContrastiveLoss, Element, PairedDistance, Reduction};

type Case = by_torch::Case<ContrastiveLoss, 2>;

impl Recorded<2> for ContrastiveLoss {
    const FILE: &'static str = "torch_contrastive.json";
    const ROLES: [&'static str; 2] = ["x1", "x2"];

    fn read(case: &Value, distance: PairedDistance, normalize: bool, reduction: Reduction) -> Self {
        Self { margin: case["margin"].as_f64().unwrap(), distance, normalize, reduction }
    }

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    /// The loss is force² / 2 and its derivative by the distance is the force; `off` bounds the error of the distance.
    fn bounds(Case { set, loss_fn, upstream, .. }: &Case) -> Bounds<2> {
        let (roundings, largest) = by_torch::roundings(loss_fn.distance, loss_fn.normalize, set.dim);
        let mean = by_torch::mean(loss_fn.reduction, set.rows);
        let mut losses = Vec::new();
        let mut grads = [(); 2].map(|()| Vec::with_capacity(set.rows * set.dim));
        for b in 0..set.rows {
            let (u, norms) = by_torch::units(set, loss_fn.normalize, b);
            let (d, slopes) = by_torch::slopes(loss_fn.distance, &u[0], &u[1]);
            let (force, size) = match set.same[b] {
                true => (d, d),
                false => ((loss_fn.margin - d).max(0.0), d + loss_fn.margin),
            };
            let off = roundings * (size + largest);
            losses.push(off * (force + off * F32.arithmetic) + roundings * force * force);

            let weight = mean * upstream[if upstream.len() == 1 { 0 } else { b }].abs();
            let unit = |i: usize, k: usize| (set.row(i, b)[k] / norms[i]).abs();
            // The relative error of the direction between unit rows; coincident rows have none.
            let direction = if loss_fn.normalize && d > 0.0 { off / d } else { 0.0 };
            for (i, k) in [0, 1].into_iter().flat_map(|i| (0..set.dim).map(move |k| (i, k))) {
                let slope = match (loss_fn.distance, loss_fn.normalize) {
                    (PairedDistance::Cosine, _) => (unit(0, k) + unit(1, k) + unit(i, k)) / norms[i],
                    (_, true) => 16.0 / norms[i],
                    _ => slopes[k],
                };
                grads[i].push(weight * slope * (4.0 * roundings * force + off + force * direction));
            }
        }
        if loss_fn.reduction != Reduction::None {
            losses = vec![mean * losses.iter().sum::<f64>()];
        }
        Bounds { loss: losses, grads, decisiveness: f64::INFINITY }
    }

    fn by_reference(case: &Case) -> Outcome<2> {
        let rows = case.set.matrices(&case.set.x);
        let result = oracle::run(&case.loss_fn, rows, &case.set.same, &case.upstream).unwrap();
        let none = case.loss_fn.reduction == Reduction::None;
        (if none { result.losses } else { vec![result.loss] }, result.grads)
    }

    fn by_slices<T: Element>(case: &Case) -> Outcome<2> {
        let x = case.set.x.each_ref().map(|x| by_torch::narrow::<T>(x));
        let (rows, same) = (case.set.matrices(&x), &case.set.same);
        let mut loss = vec![T::Scalar::from_f64(f64::NAN); case.loss.len()];
        match case.loss_fn.reduction {
            Reduction::None => case.loss_fn.losses(rows, same, &mut loss).unwrap(),
            _ => loss[0] = case.loss_fn.loss(rows, same).unwrap(),
        }
        let mut grads = case.set.poisoned::<T>();
        let upstream = by_torch::narrow::<T::Scalar>(&case.upstream);
        case.loss_fn.grad(rows, same, &upstream, grads.each_mut().map(|g| Some(&mut g[..]))).unwrap();
        (by_torch::wide(&loss), grads.map(|g| by_torch::wide(&g)))
    }

    fn by_slices_at_once<T: Element>(case: &Case) -> Outcome<2> {
        let x = case.set.x.each_ref().map(|x| by_torch::narrow::<T>(x));
        let mut grads = case.set.poisoned::<T>();
        let to = grads.each_mut().map(|g| &mut g[..]);
        let loss = case.loss_fn.loss_and_grad(case.set.matrices(&x), &case.set.same, to).unwrap();
        (vec![loss.to_f64()], grads.map(|g| by_torch::wide(&g)))
    }

    #[cfg(feature = "torch")]
    fn forward(&self, [x1, x2]: &[tch::Tensor; 2], set: &by_torch::Set<2>) -> tch::Tensor {
        self.forward(x1, x2, &tch::Tensor::from_slice(&set.same).to_device(x1.device()))
    }
}

#[test]
fn the_record_holds_for_the_reference() {
    by_torch::holds_for_the_reference::<ContrastiveLoss, 2>();
}

#[test]
fn the_record_holds_for_slices() {
    by_torch::holds_for_slices::<ContrastiveLoss, 2>();
}

/// Other libraries' losses differ from ours exactly as the documentation says.
#[test]
fn the_documented_differences_are_those() {
    let (version, _, differences) = read_record::<ContrastiveLoss, 2>();
    let mut worst = Worst::new("differences", F64);
    let mut differ = 0;
    for (kind, case) in &differences {
        let ours = ContrastiveLoss::by_reference(case);
        let explained = match kind.as_str() {
            // Without the factor 1/2.
            "tensorflow_addons" => {
                let doubled = |x: &[f64]| x.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
                (doubled(&ours.0), ours.1.each_ref().map(|g| doubled(g)))
            }
            // d = √(e² + 1e-9) for pairs that do not belong together.
            "siamese_triplet" => siamese_triplet(case),
            other => panic!("unknown kind {other}"),
        };
        differ += usize::from(case.loss.iter().zip(&ours.0).any(|(theirs, ours)| (theirs - ours).abs() > 1e-12));
        let theirs = Case { loss: case.loss.clone(), ..case.clone() };
        let bounds = ContrastiveLoss::bounds(case);
        for (b, bound) in bounds.loss.iter().enumerate() {
            worst.check(&theirs, &format!("loss[{b}]"), case.loss[b], explained.0[b], 4.0 * bound * F64.arithmetic);
        }
        for (i, k) in [0, 1].into_iter().flat_map(|i| (0..case.grads[i].len()).map(move |k| (i, k))) {
            let bound = 4.0 * bounds.grads[i][k] * F64.arithmetic;
            worst.check(&theirs, &format!("grads[{i}][{k}]"), case.grads[i][k], explained.1[i][k], bound);
        }
        worst.cases += 1;
    }
    assert!(differ > differences.len() / 2, "{differ} of {} differ from ours", differences.len());
    println!("{} differences of PyTorch {version}", differences.len());
    worst.print();
}

/// The loss and gradients by siamese-triplet's formula.
fn siamese_triplet(case: &Case) -> Outcome<2> {
    let Case { set, loss_fn, upstream, .. } = case;
    let mean = by_torch::mean(loss_fn.reduction, set.rows);
    let (mut losses, mut grads) = (Vec::new(), [Vec::new(), Vec::new()]);
    for b in 0..set.rows {
        let e: Vec<f64> = set.row(0, b).iter().zip(set.row(1, b)).map(|(x, y)| x - y).collect();
        let squared: f64 = e.iter().map(|e| e * e).sum();
        let d = (squared + 1e-9).sqrt();
        let gap = (loss_fn.margin - d).max(0.0);
        losses.push(if set.same[b] { squared / 2.0 } else { gap * gap / 2.0 });
        let weight = mean * upstream[if upstream.len() == 1 { 0 } else { b }];
        for e in e {
            let grad = weight * if set.same[b] { e } else { -gap * e / d };
            grads[0].push(grad);
            grads[1].push(-grad);
        }
    }
    if loss_fn.reduction != Reduction::None {
        losses = vec![mean * losses.iter().sum::<f64>()];
    }
    (losses, grads)
}

#[cfg(feature = "torch")]
mod through_tch {
    use super::*;
    use by_torch::through_tch::{
        Numbers, REDUCTIONS, SHAPES, compare_with, devices, distance, holds_for_tensors, listed, reduced, unit,
    };
    use tch::{Kind, Tensor};

    #[test]
    fn the_record_holds_for_tensors() {
        holds_for_tensors::<ContrastiveLoss, 2>();
    }

    /// The loss as people write it in tensor operations.
    #[test]
    fn agrees_with_the_formula_in_tensor_operations() {
        let mut numbers = Numbers(3);
        let mut cases = Vec::new();
        let distances = [
            (PairedDistance::Euclidean, false),
            (PairedDistance::Euclidean, true),
            (PairedDistance::SquaredEuclidean, false),
            (PairedDistance::Cosine, false),
            (PairedDistance::Lp { p: 2.0, eps: 1e-6 }, false),
            (PairedDistance::Lp { p: 1.0, eps: 0.0 }, false),
            (PairedDistance::Lp { p: 3.0, eps: 1e-6 }, false),
            (PairedDistance::Lp { p: f64::INFINITY, eps: 1e-6 }, false),
        ];
        for (i, (rows, dim)) in SHAPES.into_iter().enumerate() {
            for (j, (distance, normalize)) in distances.into_iter().enumerate() {
                // Normalised, a row of one number keeps only its sign.
                if dim == 1 && (normalize || distance == PairedDistance::Cosine) {
                    continue;
                }
                for margin in [1.0, 20.0] {
                    let loss_fn = ContrastiveLoss { margin, distance, normalize, reduction: REDUCTIONS[(i + j) % 3] };
                    cases.push(numbers.case(format!("{rows} x {dim}, {distance:?}"), loss_fn, rows, dim));
                }
            }
        }
        compare_with(&cases, |case, x| {
            let ContrastiveLoss { margin, distance: of, normalize, reduction } = case.loss_fn;
            let [x1, x2] = x.each_ref().map(|x| unit(x, normalize));
            let d = distance(of, &x1, &x2);
            let same = Tensor::from_slice(&case.set.same).to_kind(Kind::Double);
            let apart: Tensor = margin - &d;
            reduced(0.5 * (&same * d.square() + (1.0 - &same) * apart.relu().square()), reduction)
        });
    }

    /// Documented: an infinite distance gives NaN, though tensor operations would find no loss.
    #[test]
    fn operations_hide_an_infinity_and_we_do_not() {
        for device in devices() {
            let row = |x: &[f32]| Tensor::from_slice(x).reshape([1, 2]).to_device(device).set_requires_grad(true);
            let (x1, x2) = (row(&[0.0, 0.0]), row(&[f32::INFINITY, 0.0]));
            let same = Tensor::from_slice(&[false]).to_device(device);
            let theirs: Tensor = 1.0 - distance(PairedDistance::Euclidean, &x1, &x2);
            assert_eq!(theirs.relu().square().double_value(&[0]), 0.0);
            let loss = ContrastiveLoss::default().forward(&x1, &x2, &same);
            assert!(loss.double_value(&[]).is_nan());
            loss.backward();
            for x in [x1, x2] {
                assert!(listed(&x.grad()).iter().all(|g| g.is_nan()));
            }
        }
    }
}
