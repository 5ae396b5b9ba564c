//! The losses that the trainer offers, on the batches that it draws.

use crate::batch::TripletBatch;
use anyhow::Result;
use clap::ValueEnum;
use tch::Tensor;
use tercet::{BatchAllTripletLoss, BatchHardTripletLoss, TripletMarginLoss};

/// A loss, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossName {
    /// Triplets drawn at random among the images of a batch (FaceNet's loss)
    Triplet,
    /// Every triplet of the batch, the mean over those whose loss is above 0
    BatchAll,
    /// For each image its farthest positive and its nearest negative in the batch
    BatchHard,
}

impl LossName {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Triplet => "triplet",
            Self::BatchAll => "batch-all",
            Self::BatchHard => "batch-hard",
        }
    }

    /// Of a plot.
    pub fn title(self) -> &'static str {
        match self {
            Self::Triplet => "Triplet loss",
            Self::BatchAll => "Batch-all triplet loss",
            Self::BatchHard => "Batch-hard triplet loss",
        }
    }
}

/// A loss with its options.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    Triplet(TripletMarginLoss),
    BatchAll(BatchAllTripletLoss),
    BatchHard(BatchHardTripletLoss),
}

impl Loss {
    pub fn new(name: LossName, margin: f64, normalize: bool) -> Self {
        match name {
            LossName::Triplet => Self::Triplet(TripletMarginLoss { margin, normalize, ..Default::default() }),
            LossName::BatchAll => Self::BatchAll(BatchAllTripletLoss { margin, normalize, ..Default::default() }),
            LossName::BatchHard => Self::BatchHard(BatchHardTripletLoss { margin, normalize, ..Default::default() }),
        }
    }

    /// The loss of the batch with these embeddings, a row for each image.
    pub fn of(&self, embeddings: &Tensor, batch: &TripletBatch) -> Result<Tensor> {
        let on_device = |rows: &[i64]| Tensor::from_slice(rows).to_device(embeddings.device());
        Ok(match self {
            Self::Triplet(loss) => {
                let pick = |rows: &[i64]| embeddings.index_select(0, &on_device(rows));
                let [a, p, n] = [&batch.anchor, &batch.positive, &batch.negative].map(|rows| pick(rows));
                loss.f_forward(&a, &p, &n)?
            }
            Self::BatchAll(loss) => loss.f_forward(embeddings, &on_device(&batch.labels))?,
            Self::BatchHard(loss) => loss.f_forward(embeddings, &on_device(&batch.labels))?,
        })
    }
}
