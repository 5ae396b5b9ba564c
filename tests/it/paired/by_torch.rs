//! Paired losses against PyTorch: what a script recorded and, through tch, what libtorch computes now.
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

use std::fmt::Debug;

use half::{bf16, f16};
use serde_json::Value;
use tercet::{Element, Matrix, PairedDistance, Reduction};

use crate::support;

/// The f64 inputs of one call and, for contrastive losses, which pairs are positive.
#[derive(Clone)]
pub struct Set<const K: usize> {
    pub rows: usize,
    pub dim: usize,
    pub x: [Vec<f64>; K],
    pub same: Vec<bool>,
}

impl<const K: usize> Set<K> {
    pub fn matrices<'a, T: Element>(&self, x: &'a [Vec<T>; K]) -> [Matrix<'a, T>; K] {
        x.each_ref().map(|x| Matrix::new(x, self.dim).expect("whole rows"))
    }

    pub fn row(&self, i: usize, b: usize) -> &[f64] {
        &self.x[i][b * self.dim..(b + 1) * self.dim]
    }

    pub fn poisoned<T: Element>(&self) -> [Vec<T>; K] {
        std::array::from_fn(|_| vec![T::from_f64(f64::NAN); self.rows * self.dim])
    }
}

/// One call and what PyTorch made of it.
#[derive(Clone)]
pub struct Case<L, const K: usize> {
    pub id: String,
    pub set: Set<K>,
    pub loss_fn: L,
    pub upstream: Vec<f64>,
    pub loss: Vec<f64>,
    pub grads: [Vec<f64>; K],
}

/// The losses or the reduced loss, and the gradients for the case's upstream.
pub type Outcome<const K: usize> = (Vec<f64>, [Vec<f64>; K]);

/// A loss as these tests see it.
pub trait Recorded<const K: usize>: Copy + Debug {
    const FILE: &'static str;
    /// The names of the matrices.
    const ROLES: [&'static str; K];
    /// The loss with the options of a recorded case.
    fn read(case: &Value, distance: PairedDistance, normalize: bool, reduction: Reduction) -> Self;
    fn reduction(&self) -> Reduction;
    fn bounds(case: &Case<Self, K>) -> Bounds<K>;

    fn by_reference(case: &Case<Self, K>) -> Outcome<K>;
    /// What `losses` or `loss`, and `grad` return.
    fn by_slices<T: Element>(case: &Case<Self, K>) -> Outcome<K>;
    /// What `loss_and_grad` returns, whose upstream is 1.
    fn by_slices_at_once<T: Element>(case: &Case<Self, K>) -> Outcome<K>;
    #[cfg(feature = "torch")]
    fn forward(&self, x: &[tch::Tensor; K], set: &Set<K>) -> tch::Tensor;
}

/// How exact results of one dtype are.
#[derive(Clone, Copy)]
pub struct Precision {
    pub name: &'static str,
    /// The largest relative error of one rounding of the arithmetic.
    pub arithmetic: f64,
    /// Gradients are rounded to the dtype. This is the largest relative error; `tiny` is the largest absolute error
    /// below the normal numbers, and from `overflow` on they are infinite.
    pub rounding: f64,
    pub tiny: f64,
    pub overflow: f64,
}

pub const F64: Precision =
    Precision { name: "f64", arithmetic: f64::EPSILON / 2.0, rounding: 0.0, tiny: 0.0, overflow: f64::INFINITY };
pub const F32: Precision = Precision { name: "f32", arithmetic: f32::EPSILON as f64 / 2.0, ..F64 };
pub const F16: Precision = Precision {
    name: "f16",
    rounding: 1.0 / 2048.0,
    tiny: 1.0 / (1 << 25) as f64,
    overflow: 65520.0, // half-way from the largest f16 to where the next one would be
    ..F32
};
pub const BF16: Precision = Precision { name: "bf16", rounding: 1.0 / 256.0, tiny: f32::MIN_POSITIVE as f64, ..F32 };

/// How near their bounds the results of one dtype through one entry point came.
pub struct Worst {
    what: String,
    pub cases: usize,
    ratio: f64,
    case: String,
}

impl Worst {
    pub fn new(door: &str, precision: Precision) -> Self {
        Self { what: format!("{door} {}", precision.name), cases: 0, ratio: 0.0, case: "-".into() }
    }

    pub fn print(&self) {
        println!("  {}: {} cases, worst error / bound {:.3} ({})", self.what, self.cases, self.ratio, self.case);
    }

    /// Fails if `actual` is further than `bound` from `expected`; `name` says in the message what is compared.
    pub fn check<L: Debug, const K: usize>(
        &mut self,
        case: &Case<L, K>,
        name: &str,
        expected: f64,
        actual: f64,
        bound: f64,
    ) {
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

    /// Checks the loss and all gradients of a result.
    pub fn check_all<L: Recorded<K>, const K: usize>(
        &mut self,
        case: &Case<L, K>,
        precision: Precision,
        (loss, grads): &Outcome<K>,
    ) {
        let bounds = L::bounds(case);
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

/// The bounds that the head of this file derives, in roundings.
pub struct Bounds<const K: usize> {
    pub loss: Vec<f64>,
    pub grads: [Vec<f64>; K],
    /// How far the least decided hinge or swap is from its border, in units of its bound.
    pub decisiveness: f64,
}

/// How many roundings a distance between rows of `dim` numbers is good to; they count for its size plus the second
/// number.
pub fn roundings(distance: PairedDistance, normalize: bool, dim: usize) -> (f64, f64) {
    let (condition, largest) = match distance {
        PairedDistance::Lp { p, .. } if p.is_finite() => (p.max(1.0 / p), 0.0),
        PairedDistance::SquaredEuclidean if normalize => (2.0, 8.0),
        PairedDistance::Euclidean if normalize => (2.0, 4.0),
        PairedDistance::Cosine => (2.0, 4.0),
        _ => (2.0, 0.0),
    };
    ((dim as f64 + 24.0) * condition, largest)
}

pub fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12)
}

/// Row `b` of each matrix, normalised if the loss normalises, and the norms.
pub fn units<const K: usize>(set: &Set<K>, normalize: bool, b: usize) -> ([Vec<f64>; K], [f64; K]) {
    let norms = std::array::from_fn(|i| norm(set.row(i, b)));
    let divisor = |i: usize| if normalize { norms[i] } else { 1.0 };
    (std::array::from_fn(|i| set.row(i, b).iter().map(|x| x / divisor(i)).collect()), norms)
}

/// The distance, and the magnitudes of its derivatives by each element; for cosine only the distance.
pub fn slopes(distance: PairedDistance, x: &[f64], y: &[f64]) -> (f64, Vec<f64>) {
    let differences = |eps: f64| x.iter().zip(y).map(|(x, y)| (x - y + eps).abs()).collect::<Vec<_>>();
    let (p, eps) = match distance {
        PairedDistance::SquaredEuclidean => {
            let e = differences(0.0);
            return (e.iter().map(|e| e * e).sum(), e.iter().map(|e| 2.0 * e).collect());
        }
        PairedDistance::Cosine => {
            let along: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
            return (1.0 - along / (norm(x) * norm(y)), vec![0.0; x.len()]);
        }
        PairedDistance::Euclidean => (2.0, 0.0),
        PairedDistance::Lp { p, eps } => (p, eps),
        _ => unreachable!("a distance without a formula here"),
    };
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

pub fn mean(reduction: Reduction, rows: usize) -> f64 {
    if reduction == Reduction::Mean { 1.0 / rows as f64 } else { 1.0 }
}

// ---- the record ----

/// A record: PyTorch's version, the cases, and the documented differences with their kinds.
pub type Record<L, const K: usize> = (String, Vec<Case<L, K>>, Vec<(String, Case<L, K>)>);

pub fn read_record<L: Recorded<K>, const K: usize>() -> Record<L, K> {
    let path = support::data(L::FILE);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let record: Value = serde_json::from_str(&text).expect("the script writes JSON");
    let list = |name: &str| record[name].as_array().expect("a list").clone();
    let case = |value: &Value| read_case(value, &record["sets"]);
    let differences = list("differences").iter().map(|v| (v["kind"].as_str().unwrap().into(), case(v))).collect();
    (record["torch"].as_str().unwrap().into(), list("cases").iter().map(case).collect(), differences)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn read_case<L: Recorded<K>, const K: usize>(value: &Value, sets: &Value) -> Case<L, K> {
    let set = &sets[value["set"].as_str().unwrap()];
    let set = Set {
        rows: set["b"].as_u64().unwrap() as usize,
        dim: set["d"].as_u64().unwrap() as usize,
        x: L::ROLES.map(|role| numbers(&set[role])),
        same: set["same"].as_array().into_iter().flatten().map(|x| x.as_bool().unwrap()).collect(),
    };
    let op = value["op"].as_str().unwrap();
    let distance = match op {
        "squared" | "normalized" => PairedDistance::SquaredEuclidean,
        "norm" | "normalized_norm" => PairedDistance::Euclidean,
        "cosine" => PairedDistance::Cosine,
        "triplet_margin" | "pairwise_distance" => PairedDistance::Lp {
            p: value["p"].as_f64().unwrap_or_else(|| value["p"].as_str().unwrap().parse().unwrap()),
            eps: value["eps"].as_f64().unwrap(),
        },
        other => panic!("unknown op {other}"),
    };
    let reduction = match value["reduction"].as_str().unwrap() {
        "none" => Reduction::None,
        "mean" => Reduction::Mean,
        "sum" => Reduction::Sum,
        other => panic!("unknown reduction {other}"),
    };
    let grads = value["grads"].as_array().unwrap();
    Case {
        id: format!("{} ({})", value["id"].as_str().unwrap(), value["set"].as_str().unwrap()),
        set,
        loss_fn: L::read(value, distance, op.starts_with("normalized"), reduction),
        upstream: numbers(&value["upstream"]),
        loss: numbers(&value["loss"]),
        grads: std::array::from_fn(|i| numbers(&grads[i])),
    }
}

pub fn wide<T: Element>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

pub fn narrow<T: Element>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

// ---- the tests ----

pub fn holds_for_the_reference<L: Recorded<K>, const K: usize>() {
    let (version, cases, _) = read_record::<L, K>();
    println!("{} cases of PyTorch {version}", cases.len());
    let mut worst = Worst::new("reference", F64);
    for case in &cases {
        worst.check_all(case, F64, &L::by_reference(case));
    }
    worst.print();
}

pub fn holds_for_slices<L: Recorded<K>, const K: usize>() {
    fn all<T: Element, L: Recorded<K>, const K: usize>(cases: &[Case<L, K>], precision: Precision) {
        let mut worst = Worst::new("slices", precision);
        for case in cases {
            worst.check_all(case, precision, &L::by_slices::<T>(case));
        }
        worst.print();

        let mut worst = Worst::new("slices at once", precision);
        // Twice: a gradient that is multiplied by up to 2 here has been rounded before.
        let precision = Precision { tiny: 2.0 * precision.tiny, ..precision };
        for case in cases.iter().filter(|c| c.loss_fn.reduction() != Reduction::None) {
            // Multiplied afterwards, a gradient overflows at another size than the recorded one.
            let fits = |g: &f64| g.abs().max((g / case.upstream[0]).abs()) < precision.overflow.min(1e30);
            if case.grads.iter().flatten().all(fits) {
                let (loss, mut grads) = L::by_slices_at_once::<T>(case);
                grads.iter_mut().flatten().for_each(|g| *g *= case.upstream[0]);
                worst.check_all(case, precision, &(loss, grads));
            }
        }
        worst.print();
    }
    let (version, cases, _) = read_record::<L, K>();
    println!("{} cases of PyTorch {version}", cases.len());
    all::<f64, L, K>(&cases, F64);
    all::<f32, L, K>(&cases, F32);
    all::<f16, L, K>(&cases, F16);
    all::<bf16, L, K>(&cases, BF16);
}

#[cfg(feature = "torch")]
pub mod through_tch {
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

    pub fn devices() -> Vec<Device> {
        let with_cuda = cfg!(feature = "cuda") && tch::Cuda::is_available();
        if with_cuda { vec![Device::Cpu, Device::Cuda(0)] } else { vec![Device::Cpu] }
    }

    pub fn listed(tensor: &Tensor) -> Vec<f64> {
        let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double).reshape([-1]);
        Vec::<f64>::try_from(flat).expect("f64 numbers in one dimension")
    }

    fn tensors<const K: usize>(set: &Set<K>, kind: Kind, device: Device) -> [Tensor; K] {
        set.x.each_ref().map(|x| {
            let tensor = Tensor::from_slice(x).reshape([set.rows as i64, set.dim as i64]);
            tensor.to_kind(kind).to_device(device).detach().set_requires_grad(true)
        })
    }

    /// `loss` and the gradients of sum(upstream * loss).
    fn outcome<L, const K: usize>(case: &Case<L, K>, loss: &Tensor, x: &[Tensor; K]) -> Outcome<K> {
        let upstream = Tensor::from_slice(&case.upstream).to_kind(loss.kind()).to_device(loss.device());
        (loss * upstream.reshape(loss.size())).sum(loss.kind()).backward();
        (listed(loss), x.each_ref().map(|x| listed(&x.grad())))
    }

    fn all_dtypes<L: Recorded<K>, const K: usize>(cases: &[Case<L, K>]) {
        for device in devices() {
            for precision in [F64, F32, F16, BF16] {
                let mut worst = Worst::new(&format!("tch {device:?}"), precision);
                for case in cases {
                    let x = tensors(&case.set, kind(precision), device);
                    let loss = case.loss_fn.forward(&x, &case.set);
                    worst.check_all(case, precision, &outcome(case, &loss, &x));
                }
                worst.print();
            }
        }
    }

    pub fn holds_for_tensors<L: Recorded<K>, const K: usize>() {
        let (version, cases, _) = read_record::<L, K>();
        println!("{} cases of PyTorch {version}", cases.len());
        all_dtypes(&cases);
    }

    /// Numbers that look normal, from a fixed seed: sums of four uniform ones, rounded to bf16's precision.
    pub struct Numbers(pub u64);

    impl Numbers {
        fn next(&mut self) -> f64 {
            let mut sum = 0.0;
            for _ in 0..4 {
                self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                sum += (self.0 >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
            }
            bf16::from_f64(1.7 * sum).to_f64()
        }

        /// A case in which rounding in f32 decides no row.
        pub fn case<L: Recorded<K>, const K: usize>(
            &mut self,
            id: String,
            loss_fn: L,
            rows: usize,
            dim: usize,
        ) -> Case<L, K> {
            loop {
                let count = if loss_fn.reduction() == Reduction::None { rows } else { 1 };
                let upstream = (0..count).map(|_| self.next()).collect();
                let x = std::array::from_fn(|_| (0..rows * dim).map(|_| self.next()).collect());
                let same = (0..rows).map(|b| b * 5 % 7 % 2 == 0).collect();
                let set = Set { rows, dim, x, same };
                let grads = [(); K].map(|()| Vec::new());
                let case = Case { id: id.clone(), set, loss_fn, upstream, loss: vec![], grads };
                if L::bounds(&case).decisiveness > 2.0 * F32.arithmetic {
                    return case;
                }
            }
        }
    }

    pub const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];
    pub const SHAPES: [(usize, usize); 8] = [(1, 1), (2, 1), (3, 2), (5, 15), (4, 16), (7, 17), (33, 65), (6, 130)];

    /// Rows divided by their norms if `normalize`.
    pub fn unit(x: &Tensor, normalize: bool) -> Tensor {
        let norm = x.norm_scalaropt_dim(2.0, [1i64].as_slice(), true).clamp_min(1e-12);
        if normalize { x / norm } else { x.shallow_clone() }
    }

    /// The distance in tensor operations.
    pub fn distance(distance: PairedDistance, x: &Tensor, y: &Tensor) -> Tensor {
        match distance {
            PairedDistance::SquaredEuclidean => (x - y).square().sum_dim_intlist([1i64].as_slice(), false, None),
            PairedDistance::Euclidean => (x - y).norm_scalaropt_dim(2.0, [1i64].as_slice(), false),
            PairedDistance::Cosine => 1.0 - Tensor::cosine_similarity(x, y, 1, 1e-8),
            PairedDistance::Lp { p, eps } => Tensor::pairwise_distance(x, y, p, eps, false),
            _ => unreachable!("a distance without a formula here"),
        }
    }

    pub fn reduced(losses: Tensor, reduction: Reduction) -> Tensor {
        match reduction {
            Reduction::None => losses,
            Reduction::Mean => losses.mean(None),
            Reduction::Sum => losses.sum(None),
            _ => unreachable!("a reduction without a formula here"),
        }
    }

    pub fn compare_with<L: Recorded<K>, const K: usize>(
        cases: &[Case<L, K>],
        torch: impl Fn(&Case<L, K>, &[Tensor; K]) -> Tensor,
    ) {
        println!("{} random cases", cases.len());
        let expected = |case: &Case<L, K>| {
            let x = tensors(&case.set, Kind::Double, Device::Cpu);
            let loss = torch(case, &x);
            let (loss, grads) = outcome(case, &loss, &x);
            Case { loss, grads, ..case.clone() }
        };
        let expected: Vec<_> = cases.iter().map(expected).collect();
        let mut worst = Worst::new("reference", F64);
        for case in &expected {
            worst.check_all(case, F64, &L::by_reference(case));
        }
        worst.print();
        all_dtypes(&expected);
    }
}
