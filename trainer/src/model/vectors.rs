//! Embeddings on the host, ready to be compared.

use crate::model::distance::Distance;
use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

/// Embeddings, one per row.
#[derive(Clone, Debug, Default)]
pub struct Vectors {
    rows: Vec<f32>,
    dim: usize,
    distance: Distance,
}

impl Vectors {
    /// Takes embeddings `[N, D]` that `distance` compares; they get length 1 if `normalize` or for a cosine, as the
    /// loss makes them (`x / max(‖x‖, 1e-12)`).
    pub fn from_tensor(embeddings: &Tensor, normalize: bool, distance: Distance) -> Result<Self> {
        let embeddings = embeddings.to_device(Device::Cpu).to_kind(Kind::Float);
        let embeddings = if normalize || distance.of_directions() {
            let norm = embeddings.norm_scalaropt_dim(2.0, [1i64].as_slice(), true);
            embeddings / norm.clamp_min(1e-12)
        } else {
            embeddings
        };
        let dim = embeddings.size()[1] as usize;
        let rows: Vec<f32> = embeddings.contiguous().view([-1]).try_into()?;
        ensure!(rows.iter().all(|v| v.is_finite()), "the encoder's output is not finite");
        Ok(Self { rows, dim, distance })
    }

    /// Takes rows of `dim` numbers, one after another, as they are.
    pub fn new(rows: Vec<f32>, dim: usize, distance: Distance) -> Self {
        Self { rows, dim, distance }
    }

    /// Takes the rows of [`to_tensor`](Self::to_tensor) as they are.
    pub fn restored(rows: &Tensor, distance: Distance) -> Result<Self> {
        let dim = rows.size2()?.1 as usize;
        Ok(Self { rows: rows.contiguous().view([-1]).try_into()?, dim, distance })
    }

    /// The embeddings as a tensor `[N, D]`.
    pub fn to_tensor(&self) -> Tensor {
        Tensor::from_slice(&self.rows).view([self.len() as i64, self.dim as i64])
    }

    /// Adds more rows of the same length.
    pub fn extend(&mut self, more: &Self) {
        assert!(self.rows.is_empty() || self.dim == more.dim, "{} and {} numbers a row", self.dim, more.dim);
        (self.dim, self.distance) = (more.dim, more.distance);
        self.rows.extend_from_slice(&more.rows);
    }

    /// How many embeddings there are.
    pub fn len(&self) -> usize {
        self.rows.len() / self.dim.max(1)
    }

    /// How many numbers each embedding has.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All numbers, row after row.
    pub fn as_slice(&self) -> &[f32] {
        &self.rows
    }

    /// Embedding `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.dim..][..self.dim]
    }

    /// The distance between two of the embeddings.
    pub fn distance(&self, i: usize, j: usize) -> f32 {
        self.distance_to(i, self, j)
    }

    /// The distance between embedding `i` and embedding `j` of the `others`.
    pub fn distance_to(&self, i: usize, others: &Self, j: usize) -> f32 {
        self.distance.between(self.row(i), others.row(j))
    }

    /// The distance that the embeddings are compared by.
    pub fn measure(&self) -> Distance {
        self.distance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised_and_a_row_of_zeros_stays() {
        let rows = Tensor::from_slice(&[3f32, 4.0, 0.0, 0.0]).view([2, 2]);
        let vectors = Vectors::from_tensor(&rows, true, Distance::default()).unwrap();
        assert_eq!((vectors.row(0), vectors.row(1)), (&[0.6f32, 0.8][..], &[0.0f32, 0.0][..]));
        let distance = |distance: Distance| Vectors::from_tensor(&rows, false, distance).unwrap().distance(0, 1);
        assert_eq!(distance(Distance::SquaredEuclidean), 25.0);
        assert_eq!(distance(Distance::Euclidean), 5.0);
        assert_eq!(distance(Distance::Cosine), 1.0);
        let error = Vectors::from_tensor(&(&rows / 0.0), false, Distance::default()).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
    }
}
