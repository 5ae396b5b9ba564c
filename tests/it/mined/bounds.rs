//! How far from the oracle the distances of a batch and their gradients may be.

use proptest::prelude::*;
use tercet::{Distance, Element, Precision};

use super::batch::Data;
use crate::support::property::Worst;

/// The machine epsilon of the arithmetic for T: twice the unit roundoff.
pub fn epsilon<T: Element>() -> f64 {
    if T::Scalar::NAME == "f64" { f64::EPSILON } else { f64::from(f32::EPSILON) }
}

/// The embeddings as distances see them, and how far from the oracle a backend may be.
///
/// With unit roundoff u a sum of D non-negative terms is off by at most (D + 3) u of itself; in practice by about √D u, so
/// 8 (√D + 4) u for u = ε leaves room without hiding a mistake. Differences of given numbers are exact to u; after
/// normalisation each element carries the error of its row's norm, so distances are off absolutely, by as much as unit
/// vectors can be.
pub struct Bounds {
    pub distance: Distance,
    pub units: bool,
    pub x: Vec<Vec<f64>>,
    pub norms: Vec<f64>,
    /// The relative error of a sum.
    pub sum: f64,
    /// The relative error of a single operation.
    pub epsilon: f64,
    /// For each row, the largest squared norm that it may have in a Gram matrix: as it is, or after all rows are moved
    /// by one of them.
    squares: Vec<f64>,
    all: Vec<f64>,
    /// How far rounding moves a row for a product, relative to its norm, if that is more than the arithmetic's error; else 0.
    coarse: f64,
}

impl Bounds {
    /// The bounds for the anchors, followed by the reference set.
    pub fn of<T: Element>(data: &Data<T>, dim: usize, distance: Distance, normalize: bool) -> Self {
        Self::new::<T>(&data.all_exact(), data.labels.len(), dim, distance, normalize)
    }

    /// A backend may move all rows by the one nearest the mean of the first `anchors` rows, or of all rows.
    pub fn new<T: Element>(exact: &[f64], anchors: usize, dim: usize, distance: Distance, normalize: bool) -> Self {
        let units = normalize || distance == Distance::Cosine;
        let mut x: Vec<Vec<f64>> = exact.chunks(dim).map(<[f64]>::to_vec).collect();
        let norms: Vec<f64> = x
            .iter()
            .map(|x| if units { x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12) } else { 1.0 })
            .collect();
        for (x, norm) in x.iter_mut().zip(&norms) {
            x.iter_mut().for_each(|x| *x /= norm);
        }
        let epsilon = epsilon::<T>();
        let mut all = Vec::with_capacity(x.len() * x.len());
        for a in &x {
            for b in &x {
                let pairs = || a.iter().zip(b);
                let squared = || pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
                all.push(match distance {
                    Distance::Cosine => 1.0 - pairs().map(|(a, b)| a * b).sum::<f64>(),
                    Distance::Euclidean => squared().sqrt(),
                    _ => squared(),
                });
            }
        }
        let squared = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        let nearest = |x: &[Vec<f64>]| {
            let mean: Vec<f64> = (0..dim).map(|k| x.iter().map(|x| x[k]).sum::<f64>() / x.len() as f64).collect();
            x.iter().min_by(|a, b| squared(a, &mean).total_cmp(&squared(b, &mean))).expect("a row").clone()
        };
        // Few rows are moved by the one nearest the mean of 64 of them.
        let samples = anchors.min(64);
        let sampled: Vec<Vec<f64>> = (0..samples).map(|s| x[s * anchors / samples].clone()).collect();
        let origins = [vec![0.0; dim], nearest(&x), nearest(&x[..anchors]), nearest(&sampled)];
        let squares = x.iter().map(|x| origins.iter().map(|origin| squared(x, origin)).fold(0.0, f64::max)).collect();
        Self {
            distance,
            units,
            squares,
            norms,
            sum: 8.0 * ((dim as f64).sqrt() + 4.0) * epsilon,
            epsilon,
            all,
            x,
            coarse: 0.0,
        }
    }

    /// The bounds for products of lower precision: of f16, in a row whose largest element is 1 to 2. An element is off by
    /// 2^-11 of itself or, below 2^-14, by 2^-25, so the row by `2^-11 + √D 2^-25` of its norm.
    pub fn at<T: Element>(self, precision: Precision) -> Self {
        let dim = self.x.first().map_or(0, Vec::len) as f64;
        let coarse = match (precision, T::NAME) {
            (Precision::Medium, _) | (Precision::High, "f32") => 0.5f64.powi(11) + dim.sqrt() * 0.5f64.powi(25),
            _ => 0.0,
        };
        Self { coarse, ..self }
    }

    /// How far products of lower precision see two rows moved from each other.
    pub fn moved(&self, i: usize, j: usize) -> f64 {
        self.coarse * (self.squares[i].sqrt() + self.squares[j].sqrt())
    }

    /// What lower precision adds to the error of a distance: it is the exact one of two rows that have moved.
    fn of_precision(&self, i: usize, j: usize) -> f64 {
        let off = self.moved(i, j);
        match self.distance {
            // Half of a squared distance of unit vectors; where they are not moved, their norms are taken as 1.
            Distance::Cosine => {
                let moved = 0.5 * off * (2.0 * (2.0 * self.d(i, j).max(0.0)).sqrt() + off);
                moved.max(self.coarse * (2.0 + self.coarse))
            }
            Distance::Euclidean => off,
            _ => off * (2.0 * self.d(i, j).sqrt() + off),
        }
    }

    /// `(n_i + n_j) / d²`: how much larger the terms of a distance by products are. Pairs with more than 64 are
    /// computed by difference.
    fn cancellation(&self, i: usize, j: usize) -> f64 {
        let d = self.d(i, j).max(0.0);
        let squared = if self.distance == Distance::Euclidean { d * d } else { d };
        if squared > 0.0 { ((self.squares[i] + self.squares[j]) / squared).clamp(1.0, 64.0) } else { 64.0 }
    }

    /// The error of a distance computed from the product of the rows or, if that cancels, from their difference.
    pub fn of_product(&self, i: usize, j: usize) -> f64 {
        let full = match self.distance {
            Distance::Cosine => self.of_distance(i, j),
            _ => self.of_distance(i, j) + self.sum * self.cancellation(i, j) * self.d(i, j),
        };
        full + self.of_precision(i, j)
    }

    /// As [`slope`](Self::slope), for a distance with the error of [`of_product`](Self::of_product), and a sum over
    /// rows in which `x_i - x_j` is never computed.
    pub fn product_slope(&self, i: usize, j: usize) -> (f64, f64) {
        let (size, error) = self.slope(i, j);
        let ratio = self.cancellation(i, j);
        // The second product sees the rows as the first one does. Twice as `slope` has it, to leave room.
        let norm = if self.units { self.norms[i] } else { 1.0 };
        let moved = 2.0 * self.moved(i, j) / norm;
        match self.distance {
            Distance::Cosine => (size, error + moved),
            Distance::SquaredEuclidean => (size, error + self.sum * ratio.sqrt() * size + 2.0 * moved),
            _ => {
                let d = self.d(i, j).max(1e-300);
                let of_root = (self.of_precision(i, j) / d).min(2.0);
                (size, error + (self.sum * ratio + of_root) * size + (moved / d).min(2.0 * size))
            }
        }
    }

    pub fn d(&self, i: usize, j: usize) -> f64 {
        self.all[i * self.x.len() + j]
    }

    /// The error of a distance computed from the difference of the rows.
    pub fn of_distance(&self, i: usize, j: usize) -> f64 {
        self.sum * (self.d(i, j) + if self.units { 4.0 } else { 0.0 }) + 1e-35
    }

    /// An upper bound on an element of the distance's gradient with respect to row `i`, before cancellation; and how
    /// far from the oracle it may be.
    pub fn slope(&self, i: usize, j: usize) -> (f64, f64) {
        let d = self.d(i, j).max(0.0);
        let norm = if self.units { self.norms[i] } else { 1.0 };
        let (size, error) = match self.distance {
            Distance::Cosine => (2.0, 4.0 * self.sum),
            Distance::SquaredEuclidean => {
                let size = 2.0 * d.sqrt();
                (size, self.sum * (size + if self.units { 4.0 } else { 0.0 }))
            }
            // e / d is at most 1; errors of unit vectors grow by 1 / d.
            _ if self.units => (1.0, (self.sum * (1.0 + 4.0 / d)).min(2.0)),
            _ => (1.0, self.sum),
        };
        (2.0 * size / norm, 2.0 * error / norm)
    }
}

/// What rounding to T adds to a gradient of this size: nothing for f32 and f64, whose rounding is in the other bounds.
pub fn rounding<T: Element>(gradient: f64) -> f64 {
    let (epsilon, smallest) = match T::NAME {
        "f16" => (f64::from(f32::from(half::f16::EPSILON)), 6e-8),
        "bf16" => (f64::from(f32::from(half::bf16::EPSILON)), 1e-37),
        _ => (0.0, 1e-37),
    };
    epsilon * gradient.abs() + smallest
}

/// Whether T has no number for this gradient. That of a zero row, which is divided by 1e-12, may be as large.
pub fn overflows<T: Element>(gradient: f64) -> bool {
    T::NAME == "f16" && gradient.abs() >= f64::from(f32::from(half::f16::MAX))
}

/// Checks the gradients with respect to the anchors and to the reference set against the oracle's, which follow each
/// other. `bounds` has one number per row, to which rounding to T is added.
pub fn check_gradients<T: Element>(
    worst: &mut Worst,
    actual: &[Vec<T>; 2],
    expected: &[f64],
    dim: usize,
    bounds: &[f64],
) -> Result<(), TestCaseError> {
    prop_assert_eq!(actual[0].len() + actual[1].len(), expected.len());
    for (i, (actual, &expected)) in actual.iter().flatten().zip(expected).enumerate() {
        let bound = bounds[i / dim] + rounding::<T>(expected);
        if overflows::<T>(expected.abs() + bound) {
            continue;
        }
        worst.check(|| format!("grad[{}, {}]", i / dim, i % dim), actual.to_f64(), expected, bound)?;
    }
    Ok(())
}
