//! The oracle of the distances: f64, one obvious loop after another. Every backend is compared with it.

use super::PairwiseDistance;
use crate::oracle::{distance, distance_gradient, normalized, normalized_gradient};
use crate::{Distance, Error, Matrix};

/// The distances between the rows of two matrices, and the gradients.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// The distances, `[N, M]`.
    pub distances: Vec<f64>,
    /// The gradients with respect to both matrices, `[N, D]` and `[M, D]`.
    pub grads: [Vec<f64>; 2],
}

/// The distances, and the gradients for the upstream gradient `[N, M]`.
///
/// # Errors
/// If a matrix is empty or too large, or the rows of both differ in length.
pub fn run(
    op: &PairwiseDistance,
    x: Matrix<'_, f64>,
    others: Matrix<'_, f64>,
    upstream: &[f64],
) -> Result<Oracle, Error> {
    let problem = op.problem(&x, &others)?;
    let ([rows, columns], dim) = (problem.rows, problem.dim);
    // Cosine normalises by itself.
    let normalize = op.normalize && op.distance != Distance::Cosine;
    let prepared = |matrix: &Matrix<'_, f64>| -> Vec<Vec<f64>> {
        let rows = (0..matrix.rows()).map(|i| matrix.row(i));
        rows.map(|x| if normalize { normalized(x) } else { x.to_vec() }).collect()
    };
    let u = [prepared(&x), prepared(&others)];
    let finite = |x: &[f64], u: &[f64]| x.iter().chain(u).all(|x| x.is_finite());

    let mut distances = Vec::with_capacity(rows * columns);
    let mut g = [vec![vec![0.0; dim]; rows], vec![vec![0.0; dim]; columns]];
    for i in 0..rows {
        for j in 0..columns {
            let good = finite(x.row(i), &u[0][i]) && finite(others.row(j), &u[1][j]);
            let d = if good { distance(op.distance.into(), &u[0][i], &u[1][j]) } else { f64::NAN };
            distances.push(d);
            let (to_i, to_j) = distance_gradient(op.distance.into(), &u[0][i], &u[1][j]);
            for k in 0..dim {
                let nan = if good { 0.0 } else { f64::NAN };
                g[0][i][k] += upstream[i * columns + j] * to_i[k] + nan;
                g[1][j][k] += upstream[i * columns + j] * to_j[k] + nan;
            }
        }
    }
    let through = |matrix: &Matrix<'_, f64>, g: &[Vec<f64>]| -> Vec<f64> {
        let rows = g.iter().enumerate();
        rows.flat_map(|(i, g)| if normalize { normalized_gradient(matrix.row(i), g) } else { g.clone() }).collect()
    };
    let grads = [through(&x, &g[0]), through(&others, &g[1])];
    Ok(Oracle { distances, grads })
}
