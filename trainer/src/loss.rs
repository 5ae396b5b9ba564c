//! The losses that the trainer offers, on the batches that it draws.

use crate::batch::TripletBatch;
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tercet::{BatchAllTripletLoss, BatchHardTripletLoss, Reduction, TripletMarginLoss};

/// A loss, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
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
    pub fn of(&self, embeddings: &Tensor, batch: &TripletBatch) -> Result<Lost> {
        let on_device = |rows: &[i64]| Tensor::from_slice(rows).to_device(embeddings.device());
        let (loss, stats) = match self {
            Self::Triplet(_) => {
                let [a, p, n] = batch.roles().map(|rows| embeddings.index_select(0, &on_device(rows)));
                return self.of_roles(&a, &p, &n);
            }
            Self::BatchAll(loss) => {
                let found = loss.f_forward_with_stats(embeddings, &on_device(&batch.labels))?;
                (found.loss, found.stats)
            }
            Self::BatchHard(loss) => {
                let found = loss.f_forward_with_stats(embeddings, &on_device(&batch.labels))?;
                (found.loss, found.stats)
            }
        };
        Ok(Lost { loss, active: stats.active.to_kind(Kind::Double) / stats.valid.clamp_min(1) })
    }

    /// The triplet loss of anchors, positives and negatives that were encoded apart.
    pub fn of_roles(&self, a: &Tensor, p: &Tensor, n: &Tensor) -> Result<Lost> {
        let Self::Triplet(loss) = self else { bail!("only the triplet loss has three roles") };
        let each = TripletMarginLoss { reduction: Reduction::None, ..*loss };
        let [da, dp, dn] = [a, p, n].map(Tensor::detach);
        // A second pass over the embeddings, which is nothing beside the encoder's.
        let active = each.f_forward(&da, &dp, &dn)?.gt(0.0).mean(Kind::Double);
        Ok(Lost { loss: loss.f_forward(a, p, n)?, active })
    }
}

/// Scalars on the device: neither has been waited for.
pub struct Lost {
    /// To go backwards from.
    pub loss: Tensor,
    /// The share of the batch's triplets whose loss is above 0 (f64).
    pub active: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn the_active_fraction_counts_triplets_with_a_loss() {
        // On a line: 0 and 1 are one identity, 0.5 and 9 another.
        let xs = Tensor::from_slice(&[0.0f32, 1.0, 0.5, 9.0]).reshape([4, 1]).to_device(Device::Cpu);
        let batch = TripletBatch {
            images: vec![0, 1, 2, 3],
            labels: vec![0, 0, 1, 1],
            anchor: vec![0, 0, 1, 2],
            positive: vec![1, 1, 0, 3],
            negative: vec![2, 3, 2, 0],
        };
        let active = |name| f64::try_from(Loss::new(name, 0.2, false).of(&xs, &batch).unwrap().active).unwrap();
        // Of the four: 1 + 0.2 > 0.25; 1 + 0.2 < 81; 1 + 0.2 > 0.25; 72.25 + 0.2 > 0.25.
        assert_eq!(active(LossName::Triplet), 0.75);
        // Of all eight: for 0 and 1 the negative at 0.5; for 0.5 both; for 9 the one at 1 (64 < 72.45 < 81).
        assert_eq!(active(LossName::BatchAll), 5.0 / 8.0);
        // Of four anchors: 0 and 1 against 0.5, 0.5 against 0 or 1, and 9 against 1.
        assert_eq!(active(LossName::BatchHard), 1.0);
    }
}
