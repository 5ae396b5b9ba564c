//! The oracle of the search: f64, all distances, and a sort. Every backend is compared with it.

use super::TopK;
use crate::oracle::{distance, normalized};
use crate::{Distance, Error, Matrix, Own};

/// The nearest rows of each query.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// `[Q, k]`, ascending; what is left is +inf.
    pub distances: Vec<f64>,
    /// `[Q, k]`; what is left is -1.
    pub indices: Vec<i64>,
    /// All distances, `[Q, M]`, NaN where a row is no neighbour.
    pub all: Vec<f64>,
}

/// Searches among `stored`.
///
/// # Errors
/// If `k` is 0, there is no query, or rows differ in length.
pub fn run(top_k: &TopK, queries: Matrix<'_, f64>, stored: Matrix<'_, f64>, own: Own<&[i64]>) -> Result<Oracle, Error> {
    let problem = top_k.checked([queries.rows(), queries.dim()], [stored.rows(), stored.dim()])?;
    // Cosine normalises by itself.
    let normalize = top_k.normalize && top_k.distance != Distance::Cosine;
    let prepared = |x: &[f64]| if normalize { normalized(x) } else { x.to_vec() };
    let finite = |x: &[f64]| match problem.normalize {
        true => normalized(x).iter().all(|x| x.is_finite()),
        false => x.iter().all(|x| x.is_finite()),
    };
    let mut out = Oracle { distances: Vec::new(), indices: Vec::new(), all: Vec::new() };
    for i in 0..problem.queries {
        let mut found = Vec::new();
        for j in 0..problem.rows {
            let neighbour = finite(queries.row(i)) && finite(stored.row(j)) && own.row(i, problem.rows) != Some(j);
            let d = || distance(top_k.distance.into(), &prepared(queries.row(i)), &prepared(stored.row(j)));
            let d = if neighbour { d() } else { f64::NAN };
            out.all.push(d);
            if neighbour {
                found.push((d, j as i64));
            }
        }
        found.sort_by(|x, y| x.0.total_cmp(&y.0).then(x.1.cmp(&y.1)));
        let rest = if finite(queries.row(i)) { f64::INFINITY } else { f64::NAN };
        found.resize(problem.k, (rest, -1));
        out.distances.extend(found.iter().map(|(d, _)| d));
        out.indices.extend(found.iter().map(|(_, j)| j));
    }
    Ok(out)
}
