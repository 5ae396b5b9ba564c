//! Embeddings on the host, and the distance that all evaluation uses.

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

/// One embedding a row.
#[derive(Clone, Debug, Default)]
pub struct Vectors {
    rows: Vec<f32>,
    dim: usize,
}

impl Vectors {
    /// From `[N, D]`; of length 1 if `normalize`, as the loss makes them (`x / max(‖x‖, 1e-12)`).
    pub fn from_tensor(embeddings: &Tensor, normalize: bool) -> Result<Self> {
        let embeddings = embeddings.to_device(Device::Cpu).to_kind(Kind::Float);
        let embeddings = if normalize {
            let norm = embeddings.norm_scalaropt_dim(2.0, [1i64].as_slice(), true);
            embeddings / norm.clamp_min(1e-12)
        } else {
            embeddings
        };
        let dim = embeddings.size()[1] as usize;
        let rows: Vec<f32> = embeddings.contiguous().view([-1]).try_into()?;
        ensure!(rows.iter().all(|v| v.is_finite()), "the encoder's output is not finite");
        Ok(Self { rows, dim })
    }

    /// More rows of the same length.
    pub fn extend(&mut self, more: &Self) {
        assert!(self.rows.is_empty() || self.dim == more.dim, "{} and {} numbers a row", self.dim, more.dim);
        self.dim = more.dim;
        self.rows.extend_from_slice(&more.rows);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows.len() / self.dim.max(1)
    }

    /// Numbers in each.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All numbers, row after row.
    pub fn as_slice(&self) -> &[f32] {
        &self.rows
    }

    /// One embedding.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.dim..][..self.dim]
    }

    /// Between two of them.
    pub fn distance(&self, i: usize, j: usize) -> f32 {
        squared_distance(self.row(i), self.row(j))
    }
}

/// The loss's distance, squared Euclidean, by direct difference: exactly 0 for equal rows, and the same
/// number for `(a, b)` and `(b, a)`.
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, which the compiler keeps in vector registers: one sum in order could not be.
    let mut sums = [0f32; 8];
    let (xs, ys) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = xs.remainder().iter().zip(ys.remainder());
    let rest: f32 = rest.map(|(x, y)| (x - y) * (x - y)).sum();
    for (x, y) in xs.zip(ys) {
        for k in 0..8 {
            sums[k] += (x[k] - y[k]) * (x[k] - y[k]);
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_exact_on_integers_whatever_the_length() {
        for dim in [1, 3, 8, 17, 128] {
            let a: Vec<f32> = (0..dim).map(|k| (k % 5) as f32).collect();
            let b: Vec<f32> = (0..dim).map(|k| (k % 3) as f32).collect();
            let expected: f32 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
            assert_eq!(squared_distance(&a, &b), expected);
            assert_eq!(squared_distance(&a, &a), 0.0);
        }
    }

    #[test]
    fn rows_are_normalised_and_a_row_of_zeros_stays() {
        let rows = Tensor::from_slice(&[3f32, 4.0, 0.0, 0.0]).view([2, 2]);
        let vectors = Vectors::from_tensor(&rows, true).unwrap();
        assert_eq!((vectors.row(0), vectors.row(1)), (&[0.6f32, 0.8][..], &[0.0f32, 0.0][..]));
        assert_eq!(Vectors::from_tensor(&rows, false).unwrap().distance(0, 1), 25.0);
        let error = Vectors::from_tensor(&(rows / 0.0), false).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
    }
}
