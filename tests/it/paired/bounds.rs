//! How far a computation in f32 or f64 may be from the oracle: first-order error analysis of the kernel's formulas.
//!
//! u is the unit roundoff. A sum of D terms, at most D/32 per lane and then a tree of at most 5 steps over lanes, is
//! off by at most (D/32 + 24) u times the sum of the terms' sizes; the 24 also covers the few roundings of each term.
//! For a normalised row each element is off by `eta = (D/64 + 16) u` relative: half of the norm's sum, and the
//! division.

use tercet::{ContrastiveLoss, Element, PairedDistance, TripletMarginLoss};

pub struct Row<const K: usize> {
    pub loss: f64,
    pub grads: [Vec<f64>; K],
    /// Whether rounding decides what the gradients are.
    pub ambiguous: bool,
}

/// The unit roundoff.
pub fn unit<T: Element>() -> f64 {
    match T::NAME {
        "f64" => 0.5f64.powi(53),
        "f32" => 0.5f64.powi(24),
        "f16" => 0.5f64.powi(11),
        _ => 0.5f64.powi(8),
    }
}

/// The error of storing `x` in 16 bits: half a unit in the last place, or half of the least subnormal.
pub fn rounding<T: Element>(x: f64) -> f64 {
    let least = match T::NAME {
        "f16" => 0.5f64.powi(25),
        "f64" => f64::MIN_POSITIVE,
        _ => 0.5f64.powi(134),
    };
    if size_of::<T>() == 2 { (x.abs() * unit::<T>() * 1.001).max(least) } else { least }
}

fn norm(x: impl IntoIterator<Item = f64>, p: f64) -> f64 {
    let x: Vec<f64> = x.into_iter().map(f64::abs).collect();
    match p.is_infinite() {
        true => x.iter().fold(0.0, |m, &x| m.max(x)),
        false => x.iter().map(|x| x.powf(p)).sum::<f64>().powf(1.0 / p),
    }
}

/// A distance and its error, and for either side the size and the error of each element of its gradient.
struct Pair {
    d: f64,
    error: f64,
    slopes: [Vec<(f64, f64)>; 2],
}

impl Pair {
    fn symmetric(d: f64, error: f64, slope: Vec<(f64, f64)>) -> Self {
        Self { d, error, slopes: [slope.clone(), slope] }
    }
}

fn pair(distance: PairedDistance, x: &[f64], y: &[f64], eta: f64, u: f64, sum: f64) -> Pair {
    let (p, eps) = match distance {
        PairedDistance::Lp { p, eps } => (p, eps),
        _ => (2.0, 0.0),
    };
    let e: Vec<f64> = x.iter().zip(y).map(|(x, y)| x - y + eps).collect();
    // The error of each e: from its rows, from two roundings and from that of eps.
    let off: Vec<f64> =
        x.iter().zip(y).map(|(x, y)| eta * (x.abs() + y.abs()) + 3.0 * u * ((x - y).abs() + eps.abs())).collect();
    let d = norm(e.iter().copied(), p);
    let moved = norm(off.iter().copied(), p);
    if distance == PairedDistance::SquaredEuclidean {
        let slope = e.iter().zip(&off).map(|(e, off)| (2.0 * e.abs(), 2.0 * off)).collect();
        return Pair::symmetric(d * d, moved * (2.0 * d + moved) + sum * d * d, slope);
    }
    // Computed as exp(p log x), a power x^p has a relative error of p u |log x|, and its root a p-th of that.
    let log = e.iter().filter(|e| **e != 0.0).fold(d.ln().abs().min(800.0), |m, e| m.max(e.abs().ln().abs()));
    let powers = if p == 1.0 || p == 2.0 || p.is_infinite() { 0.0 } else { (8.0 + 4.0 * log) * u };
    let error = moved + (sum + powers) * d;
    let slope = e.iter().zip(&off).map(|(e, off)| {
        let e = e.abs();
        if d <= error {
            return (1.0, 2.0); // even the direction is rounding
        }
        if p.is_infinite() {
            // Rounding may decide whether this element, or another one, reaches the maximum.
            let near = |e: f64| e < d && d - e <= 2.0 * moved + 4.0 * u * d;
            let unsure = near(e) || e == d && x.iter().zip(y).any(|(x, y)| near((x - y + eps).abs()));
            let split = e == d && moved > 0.0; // a tie in the oracle may be none here
            return (1.0, if unsure || split { 1.0 } else { 4.0 * u });
        }
        if p == 1.0 {
            return (1.0, if e <= *off && *off > 0.0 { 2.0 } else { 0.0 });
        }
        let ratio = e / d;
        let ratio_error = off / d + ratio * (error / d + 2.0 * u);
        let size = ratio.powf(p - 1.0);
        let log = if ratio > 0.0 { ratio.ln().abs() } else { 0.0 };
        let change = (p - 1.0) * (ratio + ratio_error).powf(p - 2.0) * ratio_error;
        (size, change + size * (4.0 + 4.0 * log * p) * u)
    });
    let slope = slope.collect();
    Pair::symmetric(d, error, slope)
}

/// Row `k` of each matrix, normalised if the loss normalises, and the errors of the arithmetic.
struct Units<const K: usize> {
    rows: [Vec<f64>; K],
    norms: [f64; K],
    distance: PairedDistance,
    normalize: bool,
    /// The relative error of an element of a normalised row.
    eta: f64,
    u: f64,
    /// The error of a sum, relative to the sum of its terms' sizes.
    sum: f64,
}

impl<const K: usize> Units<K> {
    fn new<T: Element>(distance: PairedDistance, normalize: bool, x: [&[f64]; K]) -> Self {
        let u = unit::<T::Scalar>();
        let dim = x[0].len() as f64;
        let normalize = normalize || distance == PairedDistance::Cosine;
        let norms = x.map(|x| norm(x.iter().copied(), 2.0).max(1e-12));
        let rows = std::array::from_fn(|k| x[k].iter().map(|x| if normalize { x / norms[k] } else { *x }).collect());
        let eta = if normalize { (dim / 64.0 + 16.0) * u } else { 0.0 };
        Self { rows, norms, distance, normalize, eta, u, sum: (dim / 32.0 + 24.0) * u }
    }

    fn pair(&self, i: usize, j: usize) -> Pair {
        let Self { eta, u, sum, .. } = *self;
        let (x, y) = (&self.rows[i], &self.rows[j]);
        if self.distance != PairedDistance::Cosine {
            return pair(self.distance, x, y, eta, u, sum);
        }
        // The gradient of the cosine with respect to one unit row is the other unit row.
        let slope = |x: &[f64]| x.iter().map(|x| (x.abs(), (eta + 2.0 * u) * x.abs())).collect();
        let cosine = x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum::<f64>();
        Pair { d: 1.0 + cosine, error: (2.0 * eta + sum) * cosine + 2.0 * u, slopes: [slope(y), slope(x)] }
    }

    /// How far row `k`'s gradient may be off: it is `weight` times the sum of `slopes`, given as sizes and errors.
    fn gradient<T: Element>(&self, k: usize, slopes: &[Vec<(f64, f64)>], weight: f64) -> Vec<f64> {
        let Self { eta, u, sum, .. } = *self;
        let row = &self.rows[k];
        let (mut size, mut error) = (vec![0.0; row.len()], vec![0.0; row.len()]);
        for slope in slopes {
            for (d, (s, e)) in slope.iter().enumerate() {
                size[d] += s;
                error[d] += e + 6.0 * u * s;
            }
        }
        // The gradient goes through u = x / norm: (g - (g.u) u) / norm.
        let along: f64 = size.iter().zip(row).map(|(s, x)| s * x.abs()).sum();
        let along_error: f64 = error.iter().zip(row).map(|(e, x)| e * x.abs()).sum::<f64>() + (eta + sum) * along;
        let bounds = (0..row.len()).map(|d| {
            let v = row[d].abs();
            let bound = match self.normalize {
                true => {
                    let inside = error[d] + v * along_error + eta * v * along;
                    (inside + (eta + 6.0 * u) * (size[d] + v * along)) / self.norms[k]
                }
                false => error[d],
            };
            // Products of tiny factors may underflow.
            weight.abs() * bound + if T::NAME == "f64" { 1e-300 } else { 1e-37 }
        });
        bounds.collect()
    }
}

/// How far from the oracle one triplet may be; `weight` is upstream times the mean's factor, `argument` that of the
/// hinge, `gap` the difference of the two negative distances if there are two.
pub fn triplet_margin<T: Element>(
    loss: &TripletMarginLoss,
    x: [&[f64]; 3],
    weight: f64,
    argument: f64,
    gap: f64,
) -> Row<3> {
    let units = Units::new::<T>(loss.distance, loss.normalize, x);
    let (ap, an, pn) = (units.pair(0, 1), units.pair(0, 2), units.pair(1, 2));
    let distances = if loss.swap { an.error.max(pn.error) } else { an.error };
    let sizes = ap.d + if loss.swap { an.d.max(pn.d) } else { an.d } + loss.margin;
    let loss_bound = ap.error + distances + 3.0 * units.u * sizes;
    let gap_bound = an.error + pn.error + units.u * (an.d + pn.d);
    let close = |x: f64, bound: f64| x.is_finite() && x.abs() <= bound;
    let ambiguous = close(argument, loss_bound) || close(gap, gap_bound);

    // With `swap` either negative pair may have been taken: their bounds add up, which is wider than need be.
    let [[ap_a, ap_p], [an_a, an_n], [pn_p, pn_n]] = [ap.slopes, an.slopes, pn.slopes];
    let mut slopes = [vec![ap_a, an_a], vec![ap_p], vec![an_n]];
    if loss.swap {
        slopes[1].push(pn_p);
        slopes[2].push(pn_n);
    }
    let grads = std::array::from_fn(|k| units.gradient::<T>(k, &slopes[k], weight));
    Row { loss: loss_bound, grads, ambiguous }
}

/// How far from the oracle one pair at distance `d` may be; `weight` is upstream times the mean's factor.
pub fn contrastive<T: Element>(loss: &ContrastiveLoss, x: [&[f64]; 2], same: bool, weight: f64, d: f64) -> Row<2> {
    let units = Units::new::<T>(loss.distance, loss.normalize, x);
    let pair = units.pair(0, 1);
    // The loss is force^2 / 2, and the force times the distance's slope is the gradient.
    let (force, off) = match same {
        true => (d, pair.error),
        false => ((loss.margin - d).max(0.0), pair.error + 3.0 * units.u * (pair.d + loss.margin)),
    };
    let times_force = |(size, error): (f64, f64)| (force * size, force * error + off * (size + error));
    let slopes = pair.slopes.map(|slope| slope.into_iter().map(times_force).collect::<Vec<_>>());
    let grads = std::array::from_fn(|k| units.gradient::<T>(k, std::slice::from_ref(&slopes[k]), weight));
    let loss = off * (force + off / 2.0) + 4.0 * units.u * force * force + 1e-37;
    Row { loss, grads, ambiguous: false }
}
