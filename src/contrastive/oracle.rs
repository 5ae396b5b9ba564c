//! The oracle of this loss: f64, one obvious loop after another. Every backend is compared with it.

use super::ContrastiveLoss;
use crate::oracle::{distance, distance_gradient, normalized, normalized_gradient};
use crate::{Error, Matrix, PairedDistance, Reduction};

/// The losses of a batch, and what they are made of.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Each row's loss.
    pub losses: Vec<f64>,
    /// Each row's distance.
    pub distances: Vec<f64>,
    /// The reduced loss; for `Reduction::None` the sum of the losses.
    pub loss: f64,
    /// The gradients with respect to x1 and x2, `[B, D]`.
    pub grads: [Vec<f64>; 2],
}

/// The loss of `rows` and its gradients times `upstream` (one number, or one a row).
///
/// # Errors
/// If the shapes differ or are empty, `same` has not one entry a row, or an option is out of range.
pub fn run(
    loss: &ContrastiveLoss,
    rows: [Matrix<'_, f64>; 2],
    same: &[bool],
    upstream: &[f64],
) -> Result<Oracle, Error> {
    let problem = loss.pairs(&rows, same)?.paired;
    let (count, dim) = (problem.rows, problem.dim);
    let mut result = Oracle {
        losses: Vec::new(),
        distances: Vec::new(),
        loss: 0.0,
        grads: [Vec::with_capacity(count * dim), Vec::with_capacity(count * dim)],
    };
    let mean = if loss.reduction == Reduction::Mean { 1.0 / count as f64 } else { 1.0 };
    for b in 0..count {
        let x = rows.map(|m| m.row(b));
        // Cosine normalises by itself.
        let normalize = loss.normalize && loss.distance != PairedDistance::Cosine;
        let u = x.map(|x| if normalize { normalized(x) } else { x.to_vec() });

        let d = distance(loss.distance, &u[0], &u[1]);
        // The loss, and its derivative with respect to d.
        let (value, slope) = match (d.is_finite(), same[b]) {
            (false, _) => (f64::NAN, f64::NAN),
            (true, true) => (d * d / 2.0, d),
            (true, false) if d < loss.margin => ((loss.margin - d).powi(2) / 2.0, d - loss.margin),
            (true, false) => (0.0, 0.0),
        };
        result.distances.push(d);
        result.losses.push(value);

        let weight = mean * slope * if upstream.len() == 1 { upstream[0] } else { upstream[b] };
        let (to_x1, to_x2) = distance_gradient(loss.distance, &u[0], &u[1]);
        for ((all, x), to) in result.grads.iter_mut().zip(x).zip([to_x1, to_x2]) {
            let g: Vec<f64> = to.iter().map(|to| weight * to).collect();
            all.extend(if normalize { normalized_gradient(x, &g) } else { g });
        }
    }
    result.loss = mean * result.losses.iter().sum::<f64>();
    Ok(result)
}
