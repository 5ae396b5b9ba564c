//! Verification of an encoder on identities it was not trained on.

use crate::dataset::Dataset;
use crate::encoder::{Encoder, Pass};
use crate::metrics::{Verification, verify};
use crate::random::{Purpose, stream};
use crate::view::{Affine, tensor};
use anyhow::{Result, ensure};
use rand::Rng;
use tch::{Device, Kind, Tensor};

/// Images per forward pass.
const BATCH: usize = 64;
/// Batches that batch norm's statistics are estimated on.
const STATISTICS: usize = 4;

/// The validation images and how they are compared.
pub struct Evaluation {
    views: Vec<(usize, Affine)>,
    identity: Vec<usize>,
    normalize: bool,
    seed: u64,
    device: Device,
}

impl Evaluation {
    /// At most `limit` images of `val`.
    pub fn new(val: &Dataset, limit: usize, normalize: bool, seed: u64, device: Device) -> Self {
        let (images, identity): (Vec<_>, Vec<_>) = val.sample(limit, seed).into_iter().unzip();
        let views = images.into_iter().map(|image| (image, Affine::IDENTITY)).collect();
        Self { views, identity, normalize, seed, device }
    }

    /// How many images.
    pub fn len(&self) -> usize {
        self.views.len()
    }

    /// First sets batch norm's running statistics from training images, then measures.
    ///
    /// With momentum 0.1 running statistics trail the weights by tens of steps. In 152 layers that
    /// compounds: after a short run the outputs in evaluation mode can be meaningless. So
    /// they are re-estimated, before the first evaluation and the last one alike; validation images
    /// have no part in it.
    pub fn run(&self, encoder: &Encoder, train: &Dataset, val: &Dataset) -> Result<Verification> {
        let _guard = tch::no_grad_guard();
        for before in 0..STATISTICS {
            let mut rng = stream(self.seed, Purpose::Statistics, 0, before as u64);
            let mut draw = || (rng.random_range(0..train.images.len()), Affine::IDENTITY);
            let views: Vec<_> = (0..BATCH).map(|_| draw()).collect();
            let xs = tensor(&train.images, &views, self.device);
            let _ = encoder.forward(&xs, Pass::Estimate { before });
        }
        let embed = |views: &[_]| encoder.forward(&tensor(&val.images, views, self.device), Pass::Evaluate);
        let parts: Vec<Tensor> = self.views.chunks(BATCH).map(embed).collect();
        self.measure(&Tensor::f_cat(&parts, 0)?)
    }

    /// By squared Euclidean distance, the loss's; of unit vectors if the loss makes them so.
    fn measure(&self, embeddings: &Tensor) -> Result<Verification> {
        let mut embeddings = embeddings.to_device(Device::Cpu).to_kind(Kind::Float);
        if self.normalize {
            let norm = embeddings.norm_scalaropt_dim(2.0, [1i64].as_slice(), true);
            embeddings /= norm.clamp_min(1e-12);
        }
        let dim = embeddings.size()[1] as usize;
        let rows: Vec<f32> = embeddings.contiguous().view([-1]).try_into()?;
        ensure!(rows.iter().all(|v| v.is_finite()), "the encoder's output is not finite");
        let row = |i: usize| &rows[i * dim..][..dim];
        Ok(verify(&self.identity, |i, j| row(i).iter().zip(row(j)).map(|(a, b)| (a - b) * (a - b)).sum()))
    }
}
