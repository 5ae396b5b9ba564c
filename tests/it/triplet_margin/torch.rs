//! The triplet margin loss against PyTorch: what tests/data/record_torch.py recorded, and, through tch, what libtorch
//! computes now. The bounds are those of paired/by_torch.rs.

use crate::paired::by_torch::{self, Bounds, F32, F64, Outcome, Recorded, Worst, read_record};
use serde_json::Value;
use tercet::triplet_margin::oracle;
use tercet::{Element, PairedDistance, Reduction, TripletMarginLoss};

type Case = by_torch::Case<TripletMarginLoss, 3>;

impl Recorded<3> for TripletMarginLoss {
    const FILE: &'static str = "torch_triplet_margin.json";
    const ROLES: [&'static str; 3] = ["anchor", "positive", "negative"];

    fn read(case: &Value, distance: PairedDistance, normalize: bool, reduction: Reduction) -> Self {
        let (margin, swap) = (case["margin"].as_f64().unwrap(), case["swap"].as_bool().unwrap());
        Self { margin, distance, normalize, swap, reduction }
    }

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn bounds(case: &Case) -> Bounds<3> {
        bounds(case)
    }

    fn by_reference(case: &Case) -> Outcome<3> {
        let result = oracle::run(&case.loss_fn, case.set.matrices(&case.set.x), &case.upstream).unwrap();
        let none = case.loss_fn.reduction == Reduction::None;
        (if none { result.losses } else { vec![result.loss] }, result.grads)
    }

    fn by_slices<T: Element>(case: &Case) -> Outcome<3> {
        let x = case.set.x.each_ref().map(|x| by_torch::narrow::<T>(x));
        let rows = case.set.matrices(&x);
        let loss = if case.loss_fn.reduction == Reduction::None {
            let mut losses = vec![T::Scalar::from_f64(f64::NAN); case.set.rows];
            case.loss_fn.losses(rows, &mut losses).unwrap();
            by_torch::wide(&losses)
        } else {
            vec![case.loss_fn.loss(rows).unwrap().to_f64()]
        };
        let mut grads = case.set.poisoned::<T>();
        let upstream = by_torch::narrow::<T::Scalar>(&case.upstream);
        case.loss_fn.grad(rows, &upstream, grads.each_mut().map(|g| Some(&mut g[..]))).unwrap();
        (loss, grads.map(|g| by_torch::wide(&g)))
    }

    fn by_slices_at_once<T: Element>(case: &Case) -> Outcome<3> {
        let x = case.set.x.each_ref().map(|x| by_torch::narrow::<T>(x));
        let mut grads = case.set.poisoned::<T>();
        let to = grads.each_mut().map(|g| &mut g[..]);
        let loss = case.loss_fn.loss_and_grad(case.set.matrices(&x), to).unwrap().to_f64();
        (vec![loss], grads.map(|g| by_torch::wide(&g)))
    }

    #[cfg(feature = "torch")]
    fn forward(&self, [a, p, n]: &[tch::Tensor; 3], _: &by_torch::Set<3>) -> tch::Tensor {
        self.forward(a, p, n)
    }
}

fn bounds(case: &Case) -> Bounds<3> {
    let Case { set, loss_fn, .. } = case;
    let (roundings, largest) = by_torch::roundings(loss_fn.distance, loss_fn.normalize, set.dim);
    let mean = by_torch::mean(loss_fn.reduction, set.rows);
    let mut bounds = Bounds {
        loss: vec![],
        grads: std::array::from_fn(|_| vec![0.0; set.rows * set.dim]),
        decisiveness: f64::INFINITY,
    };
    let mut row_bounds = Vec::new();
    for b in 0..set.rows {
        let (u, norms) = by_torch::units(set, loss_fn.normalize, b);
        let [ap, an, pn] = [(0, 1), (0, 2), (1, 2)].map(|(i, j)| by_torch::slopes(loss_fn.distance, &u[i], &u[j]));
        let swapped = loss_fn.swap && pn.0 < an.0;
        let (nearer, negative) = if swapped { (1, &pn) } else { (0, &an) };
        let argument = ap.0 - negative.0 + loss_fn.margin;
        row_bounds.push(roundings * (ap.0 + an.0 + loss_fn.margin + largest));
        bounds.decisiveness = bounds.decisiveness.min(argument.abs() / row_bounds[b]);
        if loss_fn.swap {
            bounds.decisiveness = bounds.decisiveness.min((pn.0 - an.0).abs() / row_bounds[b]);
        }
        if argument <= 0.0 {
            continue;
        }
        let upstream = if case.upstream.len() == 1 { case.upstream[0] } else { case.upstream[b] };
        let weight = 4.0 * roundings * mean * upstream.abs();
        for k in 0..set.dim {
            for i in 0..3 {
                bounds.grads[i][b * set.dim + k] = weight
                    * match (loss_fn.normalize, i) {
                        (true, _) => 16.0 / norms[i],
                        (_, 2) => negative.1[k],
                        (_, i) => (if i < 2 { ap.1[k] } else { 0.0 }) + if i == nearer { negative.1[k] } else { 0.0 },
                    };
                if loss_fn.distance == PairedDistance::Cosine {
                    let unit = |j: usize| (set.row(j, b)[k] / norms[j]).abs();
                    bounds.grads[i][b * set.dim + k] = weight * (unit(0) + unit(1) + unit(2) + unit(i)) / norms[i];
                }
            }
        }
    }
    bounds.loss = match loss_fn.reduction {
        Reduction::None => row_bounds,
        _ => vec![mean * row_bounds.iter().sum::<f64>()],
    };
    bounds
}

#[test]
fn the_record_holds_for_the_reference() {
    by_torch::holds_for_the_reference::<TripletMarginLoss, 3>();
}

#[test]
fn the_record_holds_for_slices() {
    by_torch::holds_for_slices::<TripletMarginLoss, 3>();
}

/// Torch differs from ours where the documentation says so, and both give what it says they give.
#[test]
fn the_documented_differences_are_those() {
    let (version, _, differences) = read_record::<TripletMarginLoss, 3>();
    let mut worst = Worst::new("differences", F64);
    for (kind, case) in &differences {
        let ours = TripletMarginLoss::by_reference(case);
        // The backends agree with the oracle on these cases too.
        for outcome in [TripletMarginLoss::by_slices::<f64>(case), TripletMarginLoss::by_slices::<f32>(case)] {
            let like_reference = Case { loss: ours.0.clone(), grads: ours.1.clone(), ..case.clone() };
            Worst::new("slices", F32).check_all(&like_reference, F32, &outcome);
        }
        let explained = match kind.as_str() {
            "kink" => {
                // Row 1 has a loss of 0, and ours has no gradient there.
                let row = case.set.dim..2 * case.set.dim;
                assert!(ours.1.iter().all(|g| g[row.clone()].iter().all(|&g| g == 0.0)), "{}", case.id);
                assert!(case.grads.iter().any(|g| g[row.clone()].iter().any(|&g| g != 0.0)), "{}", case.id);
                // Torch's is the gradient of the active side; the other rows are far from the hinge.
                let active = TripletMarginLoss { margin: case.loss_fn.margin + 1e-9, ..case.loss_fn };
                (ours.0, TripletMarginLoss::by_reference(&Case { loss_fn: active, ..case.clone() }).1)
            }
            "swap_tie" => {
                // Row 0 and, for a = p, row 1 are ties, row 2 is not. Ours is the gradient without swap; torch's is the
                // mean of that and the gradient with d(p, n), which is the loss of (p, a, n).
                let tied = 0..2 * case.set.dim;
                let no_swap = TripletMarginLoss { swap: false, ..case.loss_fn };
                let to_an = TripletMarginLoss::by_reference(&Case { loss_fn: no_swap, ..case.clone() }).1;
                let mut other = Case { loss_fn: no_swap, ..case.clone() };
                other.set.x.swap(0, 1);
                let mut to_pn = TripletMarginLoss::by_reference(&other).1;
                to_pn.swap(0, 1);
                let mut halves = ours.1.clone();
                for i in 0..3 {
                    assert_eq!(ours.1[i][tied.clone()], to_an[i][tied.clone()], "{}", case.id);
                    for k in tied.clone() {
                        halves[i][k] = 0.5 * (to_an[i][k] + to_pn[i][k]);
                    }
                }
                assert!(halves[0] != ours.1[0], "{}", case.id);
                (ours.0, halves)
            }
            other => panic!("unknown kind {other}"),
        };
        // Torch's gradient on a kink or a tie has slopes that ours leaves out: the bounds with and without swap add up.
        let losses = bounds(case).loss;
        let of_both = [false, true].map(|swap| {
            let margin = case.loss_fn.margin + 1.0;
            bounds(&Case { loss_fn: TripletMarginLoss { margin, swap, ..case.loss_fn }, ..case.clone() })
        });
        for (b, bound) in losses.iter().enumerate() {
            let name = format!("loss[{b}]");
            worst.check(case, &name, case.loss[b], explained.0[b], 2.0 * bound * F64.arithmetic);
        }
        for i in 0..3 {
            for k in 0..case.grads[i].len() {
                let slopes: f64 = of_both.iter().flat_map(|b| &b.grads).map(|g| g[k]).sum();
                let name = format!("grads[{i}][{k}]");
                worst.check(case, &name, case.grads[i][k], explained.1[i][k], 2.0 * slopes * F64.arithmetic);
            }
        }
        worst.cases += 1;
    }
    println!("{} differences of PyTorch {version}", differences.len());
    worst.print();
}

#[cfg(feature = "torch")]
mod through_tch {
    use super::*;
    use by_torch::through_tch::{
        Numbers, REDUCTIONS, SHAPES, compare_with, devices, distance as d, holds_for_tensors, listed, reduced, unit,
    };
    use tch::Tensor;

    #[test]
    fn the_record_holds_for_tensors() {
        holds_for_tensors::<TripletMarginLoss, 3>();
    }

    /// Against libtorch's `triplet_margin_loss`, the function behind torch.nn.TripletMarginLoss.
    #[test]
    fn agrees_with_triplet_margin_loss_of_libtorch() {
        let mut numbers = Numbers(1);
        let mut cases = Vec::new();
        for (i, (rows, dim)) in SHAPES.into_iter().enumerate() {
            for (j, p) in [1.0, 2.0, 3.0, 1.5, f64::INFINITY, 0.5].into_iter().enumerate() {
                for swap in [false, true] {
                    let loss_fn = TripletMarginLoss {
                        margin: [0.2, 1.0, 0.0][(i + j) % 3],
                        distance: PairedDistance::Lp { p, eps: 1e-6 },
                        swap,
                        reduction: REDUCTIONS[(i + j + usize::from(swap)) % 3],
                        ..TripletMarginLoss::torch()
                    };
                    cases.push(numbers.case(format!("{rows} x {dim}, p = {p}"), loss_fn, rows, dim));
                }
            }
        }
        compare_with(&cases, |case, [a, p, n]| {
            let PairedDistance::Lp { p: exponent, eps } = case.loss_fn.distance else { unreachable!("made above") };
            let reduction = match case.loss_fn.reduction {
                Reduction::None => tch::Reduction::None,
                Reduction::Mean => tch::Reduction::Mean,
                Reduction::Sum => tch::Reduction::Sum,
                _ => unreachable!("a reduction that torch does not have"),
            };
            let TripletMarginLoss { margin, swap, .. } = case.loss_fn;
            Tensor::triplet_margin_loss(a, p, n, margin, exponent, eps, swap, reduction)
        });
    }

    /// Against the losses as people write them in tensor operations.
    #[test]
    fn agrees_with_losses_in_tensor_operations() {
        let mut numbers = Numbers(2);
        let mut cases = Vec::new();
        for (i, (rows, dim)) in SHAPES.into_iter().enumerate() {
            let distances = [
                (PairedDistance::SquaredEuclidean, false),
                (PairedDistance::SquaredEuclidean, true),
                (PairedDistance::Cosine, false),
                (PairedDistance::Lp { p: 2.0, eps: 1e-6 }, false),
                (PairedDistance::Lp { p: 1.0, eps: 0.0 }, false),
            ];
            for (j, (distance, normalize)) in distances.into_iter().enumerate() {
                // Normalised, a row of one number keeps only its sign: the hinge would be met exactly.
                if dim == 1 && (normalize || distance == PairedDistance::Cosine) {
                    continue;
                }
                for swap in [false, true] {
                    let reduction = REDUCTIONS[(i + j + usize::from(swap)) % 3];
                    let loss_fn = TripletMarginLoss { margin: 0.3, distance, normalize, swap, reduction };
                    cases.push(numbers.case(format!("{rows} x {dim}, {distance:?}"), loss_fn, rows, dim));
                }
            }
        }
        compare_with(&cases, |case, x| {
            let TripletMarginLoss { margin, distance, normalize, swap, reduction } = case.loss_fn;
            let [a, p, n] = x.each_ref().map(|x| unit(x, normalize));
            let d_an = d(distance, &a, &n);
            let d_n = if swap { d_an.minimum(&d(distance, &p, &n)) } else { d_an };
            reduced((d(distance, &a, &p) - d_n + margin).relu(), reduction)
        });
    }

    /// Documented: an infinity in a row makes its loss NaN; torch loses it in the hinge.
    #[test]
    fn torch_hides_an_infinity_and_we_do_not() {
        for device in devices() {
            let row = |x: &[f32]| Tensor::from_slice(x).reshape([1, 2]).to_device(device).set_requires_grad(true);
            let (a, p, n) = (row(&[0.0, 0.0]), row(&[1.0, 0.0]), row(&[f32::INFINITY, 0.0]));
            let torch = Tensor::triplet_margin_loss(&a, &p, &n, 1.0, 2.0, 1e-6, false, tch::Reduction::Mean);
            assert_eq!(torch.double_value(&[]), 0.0);
            let loss = TripletMarginLoss::torch().forward(&a, &p, &n);
            assert!(loss.double_value(&[]).is_nan());
            loss.backward();
            for x in [a, p, n] {
                assert!(listed(&x.grad()).iter().all(|g| g.is_nan()));
            }
        }
    }
}
