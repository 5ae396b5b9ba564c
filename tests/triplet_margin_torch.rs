//! The triplet margin loss against PyTorch: what tests/data/record_torch.py recorded, and, through tch, what libtorch
//! computes now.
//!
//! # Bounds
//!
//! With `u` the largest relative error of one rounding (half the spacing at 1, of f32 for 16-bit inputs), `k` roundings
//! of a sum of terms are an error of at most `k u` times the sum of the terms' magnitudes:
//!
//! - A difference `x - y + eps` of these inputs has a relative error of two roundings; its `p`th power `p` times that
//!   and the power's own; a sum of D of them D more; the root divides the relative error by p. `1/p` itself is rounded,
//!   which costs `|ln sum| / p` more, less than 16 here. So a distance is good to `(D + 24) max(p, 1/p)` roundings.
//! - A normalised row is good to D/2 + 4 roundings of each element, whatever its length, so cosines and squared
//!   distances of such rows (at most 1 and 4) are good to `2 (D + 24)` roundings of their largest value.
//! - One element of a gradient is a difference of two slopes, each `(|e| / d)^(p-1)` with |p - 1| <= 2: four times as
//!   many roundings of the sum of the slopes' magnitudes. Where the gradient goes through `x / norm`, of 16 / norm.
//!
//! PyTorch's f64 has the same errors: both sides are allowed for, in their own arithmetic. A gradient in f16 or bf16 is
//! rounded once more.

use std::path::PathBuf;

use half::{bf16, f16};
use serde_json::Value;
use tercet::triplet_margin::reference;
use tercet::{Distance, Element, Matrix, Reduction, TripletMarginLoss};

/// The inputs of one call, f64.
#[derive(Clone)]
struct Set {
    rows: usize,
    dim: usize,
    x: [Vec<f64>; 3],
}

impl Set {
    fn matrices<'a, T: Element>(&self, x: &'a [Vec<T>; 3]) -> [Matrix<'a, T>; 3] {
        x.each_ref().map(|x| Matrix::new(x, self.dim).expect("whole rows"))
    }

    fn row(&self, i: usize, b: usize) -> &[f64] {
        &self.x[i][b * self.dim..(b + 1) * self.dim]
    }
}

/// One call and what PyTorch made of it.
#[derive(Clone)]
struct Case {
    id: String,
    set: Set,
    loss_fn: TripletMarginLoss,
    upstream: Vec<f64>,
    loss: Vec<f64>,
    grads: [Vec<f64>; 3],
}

/// How exact results of one dtype are.
#[derive(Clone, Copy)]
struct Precision {
    name: &'static str,
    /// The largest relative error of one rounding of the arithmetic.
    arithmetic: f64,
    /// Of gradients, rounded to the dtype: the largest relative error, the largest absolute one below the normal
    /// numbers, and from where on they are infinite.
    rounding: f64,
    tiny: f64,
    overflow: f64,
}

const F64: Precision =
    Precision { name: "f64", arithmetic: f64::EPSILON / 2.0, rounding: 0.0, tiny: 0.0, overflow: f64::INFINITY };
const F32: Precision = Precision { name: "f32", arithmetic: f32::EPSILON as f64 / 2.0, ..F64 };
const F16: Precision = Precision {
    name: "f16",
    rounding: 1.0 / 2048.0,
    tiny: 1.0 / (1 << 25) as f64,
    overflow: 65520.0, // half-way from the largest f16 to where the next one would be
    ..F32
};
const BF16: Precision = Precision { name: "bf16", rounding: 1.0 / 256.0, tiny: f32::MIN_POSITIVE as f64, ..F32 };

/// How near the bound the results of one dtype through one door came.
struct Worst {
    what: String,
    cases: usize,
    ratio: f64,
    case: String,
}

impl Worst {
    fn new(door: &str, precision: Precision) -> Self {
        Self { what: format!("{door} {}", precision.name), cases: 0, ratio: 0.0, case: "-".into() }
    }

    fn print(&self) {
        println!("  {}: {} cases, worst error / bound {:.3} ({})", self.what, self.cases, self.ratio, self.case);
    }

    /// `name`: what is compared, for the message.
    fn check(&mut self, case: &Case, name: &str, expected: f64, actual: f64, bound: f64) {
        let err = (expected - actual).abs();
        let what = &self.what;
        assert!(
            err <= bound,
            "{} {name}: {what} gives {actual:e}, PyTorch {expected:e}: off by {err:e}, bound {bound:e}\n{:?}",
            case.id,
            case.loss_fn
        );
        if err > self.ratio * bound {
            (self.ratio, self.case) = (err / bound, format!("{} {name}", case.id));
        }
    }

    /// All of a result.
    fn check_all(&mut self, case: &Case, precision: Precision, loss: &[f64], grads: &[Vec<f64>; 3]) {
        let bounds = Bounds::new(case);
        let roundings = precision.arithmetic + F64.arithmetic; // ours and PyTorch's
        assert_eq!(loss.len(), case.loss.len(), "{}", case.id);
        for (b, (&expected, &actual)) in case.loss.iter().zip(loss).enumerate() {
            self.check(case, &format!("loss[{b}]"), expected, actual, bounds.loss[b] * roundings);
        }
        for (i, grads) in grads.iter().enumerate() {
            assert_eq!(grads.len(), case.grads[i].len(), "{}", case.id);
            for (k, (&expected, &actual)) in case.grads[i].iter().zip(grads).enumerate() {
                let name = format!("grads[{i}][{}, {}]", k / case.set.dim, k % case.set.dim);
                if expected.abs() >= precision.overflow {
                    assert_eq!(actual, expected.signum() * f64::INFINITY, "{} {name}", case.id);
                    continue;
                }
                let error = bounds.grads[i][k] * roundings;
                let rounding = if expected == 0.0 && error == 0.0 {
                    0.0
                } else {
                    precision.rounding * (expected.abs() + error) + precision.tiny
                };
                self.check(case, &name, expected, actual, error + rounding);
            }
        }
        self.cases += 1;
    }
}

/// The bounds of this file's head, in roundings.
struct Bounds {
    loss: Vec<f64>,
    grads: [Vec<f64>; 3],
    /// The smallest of (|argument of the hinge| / its bound) over rows, and of the swap's gap.
    decisiveness: f64,
}

impl Bounds {
    fn new(case: &Case) -> Self {
        let Case { set, loss_fn, .. } = case;
        let (condition, largest) = match loss_fn.distance {
            Distance::Lp { p, .. } if p.is_finite() => (p.max(1.0 / p), 0.0),
            Distance::SquaredEuclidean if loss_fn.normalize => (2.0, 8.0),
            Distance::Cosine => (2.0, 4.0),
            _ => (2.0, 0.0),
        };
        let roundings = (set.dim as f64 + 24.0) * condition;
        let mean = if loss_fn.reduction == Reduction::Mean { 1.0 / set.rows as f64 } else { 1.0 };
        let mut bounds = Self {
            loss: vec![],
            grads: std::array::from_fn(|_| vec![0.0; set.rows * set.dim]),
            decisiveness: f64::INFINITY,
        };
        for b in 0..set.rows {
            let norms: [f64; 3] = std::array::from_fn(|i| norm(set.row(i, b)));
            let u: [_; 3] = std::array::from_fn(|i| match loss_fn.normalize {
                true => set.row(i, b).iter().map(|x| x / norms[i]).collect::<Vec<_>>(),
                false => set.row(i, b).to_vec(),
            });
            let [ap, an, pn] = [(0, 1), (0, 2), (1, 2)].map(|(i, j)| slopes(loss_fn.distance, &u[i], &u[j]));
            let swapped = loss_fn.swap && pn.0 < an.0;
            let (nearer, negative) = if swapped { (1, &pn) } else { (0, &an) };
            let argument = ap.0 - negative.0 + loss_fn.margin;
            bounds.loss.push(roundings * (ap.0 + an.0 + loss_fn.margin + largest));
            bounds.decisiveness = bounds.decisiveness.min(argument.abs() / bounds.loss[b]);
            if loss_fn.swap {
                bounds.decisiveness = bounds.decisiveness.min((pn.0 - an.0).abs() / bounds.loss[b]);
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
                            (_, i) => {
                                (if i < 2 { ap.1[k] } else { 0.0 }) + if i == nearer { negative.1[k] } else { 0.0 }
                            }
                        };
                    if loss_fn.distance == Distance::Cosine {
                        let unit = |j: usize| (set.row(j, b)[k] / norms[j]).abs();
                        bounds.grads[i][b * set.dim + k] = weight * (unit(0) + unit(1) + unit(2) + unit(i)) / norms[i];
                    }
                }
            }
        }
        if loss_fn.reduction != Reduction::None {
            bounds.loss = vec![mean * bounds.loss.iter().sum::<f64>()];
        }
        bounds
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12)
}

/// The distance, and the magnitudes of its derivatives by each element; of cosine only the distance.
fn slopes(distance: Distance, x: &[f64], y: &[f64]) -> (f64, Vec<f64>) {
    let differences = |eps: f64| x.iter().zip(y).map(|(x, y)| (x - y + eps).abs()).collect::<Vec<_>>();
    match distance {
        Distance::SquaredEuclidean => {
            let e = differences(0.0);
            (e.iter().map(|e| e * e).sum(), e.iter().map(|e| 2.0 * e).collect())
        }
        Distance::Cosine => {
            let along: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
            (1.0 - along / (norm(x) * norm(y)), vec![0.0; x.len()])
        }
        Distance::Lp { p, eps } => {
            let e = differences(eps);
            let d = match p {
                f64::INFINITY => e.iter().copied().fold(0.0, f64::max),
                p => e.iter().map(|e| e.powf(p)).sum::<f64>().powf(1.0 / p),
            };
            let slope = |e: &f64| match (*e, p) {
                (0.0, _) => 0.0,
                (e, f64::INFINITY) => f64::from(e == d),
                (e, p) => (e / d).powf(p - 1.0),
            };
            (d, e.iter().map(slope).collect())
        }
        other => panic!("nothing here uses {other:?}"),
    }
}

// ---- the record ----

fn read_record() -> (String, Vec<Case>, Vec<(String, Case)>) {
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    let path = PathBuf::from(package).join("tests/data/torch_triplet_margin.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let record: Value = serde_json::from_str(&text).expect("record_torch.py writes JSON");
    let list = |name: &str| record[name].as_array().expect("a list").clone();
    let case = |value: &Value| read_case(value, &record["sets"]);
    let differences = list("differences").iter().map(|v| (v["kind"].as_str().unwrap().into(), case(v))).collect();
    (record["torch"].as_str().unwrap().into(), list("cases").iter().map(case).collect(), differences)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn read_case(value: &Value, sets: &Value) -> Case {
    let set = &sets[value["set"].as_str().unwrap()];
    let set = Set {
        rows: set["b"].as_u64().unwrap() as usize,
        dim: set["d"].as_u64().unwrap() as usize,
        x: ["anchor", "positive", "negative"].map(|role| numbers(&set[role])),
    };
    let distance = match value["op"].as_str().unwrap() {
        "squared" | "normalized" => Distance::SquaredEuclidean,
        "cosine" => Distance::Cosine,
        "triplet_margin" | "pairwise_distance" => Distance::Lp {
            p: value["p"].as_f64().unwrap_or_else(|| value["p"].as_str().unwrap().parse().unwrap()),
            eps: value["eps"].as_f64().unwrap(),
        },
        other => panic!("unknown op {other}"),
    };
    let loss_fn = TripletMarginLoss {
        margin: value["margin"].as_f64().unwrap(),
        distance,
        normalize: value["op"] == "normalized",
        swap: value["swap"].as_bool().unwrap(),
        reduction: match value["reduction"].as_str().unwrap() {
            "none" => Reduction::None,
            "mean" => Reduction::Mean,
            "sum" => Reduction::Sum,
            other => panic!("unknown reduction {other}"),
        },
    };
    let grads = value["grads"].as_array().unwrap();
    Case {
        id: format!("{} ({})", value["id"].as_str().unwrap(), value["set"].as_str().unwrap()),
        set,
        loss_fn,
        upstream: numbers(&value["upstream"]),
        loss: numbers(&value["loss"]),
        grads: [0, 1, 2].map(|i| numbers(&grads[i])),
    }
}

// ---- our side, door by door ----

/// The loss as the reduction has it, and the gradients times upstream.
type Outcome = (Vec<f64>, [Vec<f64>; 3]);

fn by_reference(case: &Case) -> Outcome {
    let result = reference::run(&case.loss_fn, case.set.matrices(&case.set.x), &case.upstream).unwrap();
    let none = case.loss_fn.reduction == Reduction::None;
    (if none { result.losses } else { vec![result.loss] }, result.grads)
}

fn wide<T: Element>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

fn narrow<T: Element>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

/// Through `losses` or `loss`, and `grad`.
fn by_slices<T: Element>(case: &Case) -> Outcome {
    let x = case.set.x.each_ref().map(|x| narrow::<T>(x));
    let rows = case.set.matrices(&x);
    let loss = if case.loss_fn.reduction == Reduction::None {
        let mut losses = vec![T::Scalar::from_f64(f64::NAN); case.set.rows];
        case.loss_fn.losses(rows, &mut losses).unwrap();
        wide(&losses)
    } else {
        vec![case.loss_fn.loss(rows).unwrap().to_f64()]
    };
    let mut grads = poisoned::<T>(&case.set);
    let upstream = narrow::<T::Scalar>(&case.upstream);
    case.loss_fn.grad(rows, &upstream, grads.each_mut().map(|g| Some(&mut g[..]))).unwrap();
    (loss, grads.map(|g| wide(&g)))
}

/// Through `loss_and_grad`, whose upstream is 1: the recorded upstream is multiplied in here.
fn by_slices_at_once<T: Element>(case: &Case) -> Outcome {
    let x = case.set.x.each_ref().map(|x| narrow::<T>(x));
    let mut grads = poisoned::<T>(&case.set);
    let loss =
        case.loss_fn.loss_and_grad(case.set.matrices(&x), grads.each_mut().map(|g| &mut g[..])).unwrap().to_f64();
    (vec![loss], grads.map(|g| wide(&g).iter().map(|g| g * case.upstream[0]).collect()))
}

fn poisoned<T: Element>(set: &Set) -> [Vec<T>; 3] {
    std::array::from_fn(|_| vec![T::from_f64(f64::NAN); set.rows * set.dim])
}

#[test]
fn the_record_holds_for_the_reference() {
    let (version, cases, _) = read_record();
    println!("{} cases of PyTorch {version}", cases.len());
    let mut worst = Worst::new("reference", F64);
    for case in &cases {
        let (loss, grads) = by_reference(case);
        worst.check_all(case, F64, &loss, &grads);
    }
    worst.print();
}

#[test]
fn the_record_holds_for_slices() {
    fn all<T: Element>(cases: &[Case], precision: Precision) {
        let mut worst = Worst::new("slices", precision);
        for case in cases {
            let (loss, grads) = by_slices::<T>(case);
            worst.check_all(case, precision, &loss, &grads);
        }
        worst.print();

        let mut worst = Worst::new("slices at once", precision);
        // Twice: what is multiplied by up to 2 here was rounded before.
        let precision = Precision { tiny: 2.0 * precision.tiny, ..precision };
        for case in cases.iter().filter(|c| c.loss_fn.reduction != Reduction::None) {
            // An overflow to infinity happens at another place than for the recorded gradient.
            if case.grads.iter().flatten().all(|g| g.abs() < precision.overflow.min(1e30)) {
                let (loss, grads) = by_slices_at_once::<T>(case);
                worst.check_all(case, precision, &loss, &grads);
            }
        }
        worst.print();
    }
    let (version, cases, _) = read_record();
    println!("{} cases of PyTorch {version}", cases.len());
    all::<f64>(&cases, F64);
    all::<f32>(&cases, F32);
    all::<f16>(&cases, F16);
    all::<bf16>(&cases, BF16);
}

/// Where the documentation says that torch does something else: what it says is what we do, and what torch did.
#[test]
fn the_documented_differences_are_those() {
    let (version, _, differences) = read_record();
    let mut worst = Worst::new("differences", F64);
    for (kind, case) in &differences {
        let ours = by_reference(case);
        // All that differs from torch is in one row: the backends agree with the reference on it.
        for (loss, grads) in [by_slices::<f64>(case), by_slices::<f32>(case)] {
            let like_reference = Case { loss: ours.0.clone(), grads: ours.1.clone(), ..case.clone() };
            Worst::new("slices", F32).check_all(&like_reference, F32, &loss, &grads);
        }
        let explained = match kind.as_str() {
            "kink" => {
                // Row 1 has loss 0, and no gradient of ours.
                let row = case.set.dim..2 * case.set.dim;
                assert!(ours.1.iter().all(|g| g[row.clone()].iter().all(|&g| g == 0.0)), "{}", case.id);
                assert!(case.grads.iter().any(|g| g[row.clone()].iter().any(|&g| g != 0.0)), "{}", case.id);
                // Torch's is the gradient of the active side; the other rows are far from the hinge.
                let active = TripletMarginLoss { margin: case.loss_fn.margin + 1e-9, ..case.loss_fn };
                (ours.0, by_reference(&Case { loss_fn: active, ..case.clone() }).1)
            }
            "swap_tie" => {
                // Row 0 and, for a = p, row 1 are ties, row 2 is not. Ours is the gradient without swap;
                // torch's is half of it and half of that with d(p, n), which is the loss of (p, a, n).
                let tied = 0..2 * case.set.dim;
                let no_swap = TripletMarginLoss { swap: false, ..case.loss_fn };
                let to_an = by_reference(&Case { loss_fn: no_swap, ..case.clone() }).1;
                let mut other = Case { loss_fn: no_swap, ..case.clone() };
                other.set.x.swap(0, 1);
                let mut to_pn = by_reference(&other).1;
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
        // On the kink or in the tie, a row has slopes that the hinge or the swap left out: the bounds of both pairs.
        let losses = Bounds::new(case).loss;
        let bounds = [false, true].map(|swap| {
            let margin = case.loss_fn.margin + 1.0;
            Bounds::new(&Case { loss_fn: TripletMarginLoss { margin, swap, ..case.loss_fn }, ..case.clone() })
        });
        for (b, bound) in losses.iter().enumerate() {
            let name = format!("loss[{b}]");
            worst.check(case, &name, case.loss[b], explained.0[b], 2.0 * bound * F64.arithmetic);
        }
        for i in 0..3 {
            for k in 0..case.grads[i].len() {
                let slopes: f64 = bounds.iter().flat_map(|b| &b.grads).map(|g| g[k]).sum();
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
    use tch::{Device, Kind, Tensor};

    fn kind(precision: Precision) -> Kind {
        match precision.name {
            "f64" => Kind::Double,
            "f32" => Kind::Float,
            "f16" => Kind::Half,
            "bf16" => Kind::BFloat16,
            other => unreachable!("{other}"),
        }
    }

    fn devices() -> Vec<Device> {
        let with_cuda = cfg!(feature = "cuda") && tch::Cuda::is_available();
        if with_cuda { vec![Device::Cpu, Device::Cuda(0)] } else { vec![Device::Cpu] }
    }

    fn listed(tensor: &Tensor) -> Vec<f64> {
        let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double).reshape([-1]);
        Vec::<f64>::try_from(flat).expect("f64 numbers in one dimension")
    }

    fn tensors(set: &Set, kind: Kind, device: Device) -> [Tensor; 3] {
        set.x.each_ref().map(|x| {
            let tensor = Tensor::from_slice(x).reshape([set.rows as i64, set.dim as i64]);
            tensor.to_kind(kind).to_device(device).detach().set_requires_grad(true)
        })
    }

    /// `loss` and the gradients of sum(upstream * loss).
    fn outcome(case: &Case, loss: &Tensor, x: &[Tensor; 3]) -> Outcome {
        let upstream = Tensor::from_slice(&case.upstream).to_kind(loss.kind()).to_device(loss.device());
        (loss * upstream.reshape(loss.size())).sum(loss.kind()).backward();
        (listed(loss), x.each_ref().map(|x| listed(&x.grad())))
    }

    fn by_tch(case: &Case, precision: Precision, device: Device) -> Outcome {
        let x = tensors(&case.set, kind(precision), device);
        let loss = case.loss_fn.forward(&x[0], &x[1], &x[2]);
        outcome(case, &loss, &x)
    }

    #[test]
    fn the_record_holds_for_tensors() {
        let (version, cases, _) = read_record();
        println!("{} cases of PyTorch {version}", cases.len());
        for device in devices() {
            for precision in [F64, F32, F16, BF16] {
                let mut worst = Worst::new(&format!("tch {device:?}"), precision);
                for case in &cases {
                    let (loss, grads) = by_tch(case, precision, device);
                    worst.check_all(case, precision, &loss, &grads);
                }
                worst.print();
            }
        }
    }

    /// Numbers that look normal, from a fixed seed: a sum of four uniform ones. Rounded to bf16's precision.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> f64 {
            let mut sum = 0.0;
            for _ in 0..4 {
                self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                sum += (self.0 >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
            }
            bf16::from_f64(1.7 * sum).to_f64()
        }

        fn set(&mut self, rows: usize, dim: usize) -> Set {
            Set { rows, dim, x: std::array::from_fn(|_| (0..rows * dim).map(|_| self.next()).collect()) }
        }

        /// As `draw` makes them, but with no row where rounding in f32 decides.
        fn case(&mut self, id: String, loss_fn: TripletMarginLoss, rows: usize, dim: usize) -> Case {
            loop {
                let upstream = (0..if loss_fn.reduction == Reduction::None { rows } else { 1 }).map(|_| self.next());
                let upstream = upstream.collect();
                let set = self.set(rows, dim);
                let case = Case { id: id.clone(), set, loss_fn, upstream, loss: vec![], grads: Default::default() };
                if Bounds::new(&Case {
                    loss_fn: TripletMarginLoss { reduction: Reduction::None, ..loss_fn },
                    ..case.clone()
                })
                .decisiveness
                    > 2.0 * F32.arithmetic
                {
                    return case;
                }
            }
        }
    }

    const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];
    const SHAPES: [(usize, usize); 8] = [(1, 1), (2, 1), (3, 2), (5, 15), (4, 16), (7, 17), (33, 65), (6, 130)];

    fn compare_with(cases: &[Case], torch: impl Fn(&Case, &[Tensor; 3]) -> Tensor) {
        println!("{} random cases", cases.len());
        let expected: Vec<Case> = cases
            .iter()
            .map(|case| {
                let x = tensors(&case.set, Kind::Double, Device::Cpu);
                let loss = torch(case, &x);
                let (loss, grads) = outcome(case, &loss, &x);
                Case { loss, grads, ..case.clone() }
            })
            .collect();
        let mut worst = Worst::new("reference", F64);
        for case in &expected {
            let (loss, grads) = by_reference(case);
            worst.check_all(case, F64, &loss, &grads);
        }
        worst.print();
        for device in devices() {
            for precision in [F64, F32, F16, BF16] {
                let mut worst = Worst::new(&format!("tch {device:?}"), precision);
                for case in &expected {
                    let (loss, grads) = by_tch(case, precision, device);
                    worst.check_all(case, precision, &loss, &grads);
                }
                worst.print();
            }
        }
    }

    /// torch.nn.TripletMarginLoss's own function.
    #[test]
    fn agrees_with_triplet_margin_loss_of_libtorch() {
        let mut numbers = Numbers(1);
        let mut cases = Vec::new();
        for (i, (rows, dim)) in SHAPES.into_iter().enumerate() {
            for (j, p) in [1.0, 2.0, 3.0, 1.5, f64::INFINITY, 0.5].into_iter().enumerate() {
                for swap in [false, true] {
                    let loss_fn = TripletMarginLoss {
                        margin: [0.2, 1.0, 0.0][(i + j) % 3],
                        distance: Distance::Lp { p, eps: 1e-6 },
                        swap,
                        reduction: REDUCTIONS[(i + j + usize::from(swap)) % 3],
                        ..TripletMarginLoss::torch()
                    };
                    cases.push(numbers.case(format!("{rows} x {dim}, p = {p}"), loss_fn, rows, dim));
                }
            }
        }
        compare_with(&cases, |case, [a, p, n]| {
            let Distance::Lp { p: exponent, eps } = case.loss_fn.distance else { unreachable!("made above") };
            let reduction = match case.loss_fn.reduction {
                Reduction::None => tch::Reduction::None,
                Reduction::Mean => tch::Reduction::Mean,
                Reduction::Sum => tch::Reduction::Sum,
            };
            let TripletMarginLoss { margin, swap, .. } = case.loss_fn;
            Tensor::triplet_margin_loss(a, p, n, margin, exponent, eps, swap, reduction)
        });
    }

    /// The losses that people write in tensor operations.
    #[test]
    fn agrees_with_losses_in_tensor_operations() {
        let mut numbers = Numbers(2);
        let mut cases = Vec::new();
        for (i, (rows, dim)) in SHAPES.into_iter().enumerate() {
            let distances = [
                (Distance::SquaredEuclidean, false),
                (Distance::SquaredEuclidean, true),
                (Distance::Cosine, false),
                (Distance::Lp { p: 2.0, eps: 1e-6 }, false),
                (Distance::Lp { p: 1.0, eps: 0.0 }, false),
            ];
            for (j, (distance, normalize)) in distances.into_iter().enumerate() {
                // Of one number, only the sign has a direction: the hinge would be met exactly.
                if dim == 1 && (normalize || distance == Distance::Cosine) {
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
            let unit = |x: &Tensor| {
                let norm = x.norm_scalaropt_dim(2.0, [1i64].as_slice(), true).clamp_min(1e-12);
                if normalize { x / norm } else { x.shallow_clone() }
            };
            let [a, p, n] = x.each_ref().map(unit);
            let d = |x: &Tensor, y: &Tensor| match distance {
                Distance::SquaredEuclidean => (x - y).square().sum_dim_intlist([1i64].as_slice(), false, None),
                Distance::Cosine => 1.0 - Tensor::cosine_similarity(x, y, 1, 1e-8),
                Distance::Lp { p, eps } => Tensor::pairwise_distance(x, y, p, eps, false),
                other => unreachable!("made above: {other:?}"),
            };
            let d_n = if swap { d(&a, &n).minimum(&d(&p, &n)) } else { d(&a, &n) };
            let losses = (d(&a, &p) - d_n + margin).relu();
            match reduction {
                Reduction::None => losses,
                Reduction::Mean => losses.mean(None),
                Reduction::Sum => losses.sum(None),
            }
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
