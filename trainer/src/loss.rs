//! The losses that the trainer offers, on the batches that it draws.

use crate::batch::TripletBatch;
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tercet::{BatchAllTripletLoss, BatchHardTripletLoss, ContrastiveLoss, Reduction, TripletMarginLoss};

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
    /// Pairs, two of each triplet that is drawn: one that belongs together and one that does not
    Contrastive,
}

impl LossName {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Triplet => "triplet",
            Self::BatchAll => "batch-all",
            Self::BatchHard => "batch-hard",
            Self::Contrastive => "contrastive",
        }
    }

    /// Where none is asked for.
    pub fn margin(self) -> f64 {
        match self {
            Self::Triplet | Self::BatchAll | Self::BatchHard => 0.2,
            Self::Contrastive => 1.0,
        }
    }

    /// Of a plot.
    pub fn title(self) -> &'static str {
        match self {
            Self::Triplet => "Triplet loss",
            Self::BatchAll => "Batch-all triplet loss",
            Self::BatchHard => "Batch-hard triplet loss",
            Self::Contrastive => "Contrastive loss",
        }
    }
}

/// A loss with its options.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    Triplet(TripletMarginLoss),
    BatchAll(BatchAllTripletLoss),
    BatchHard(BatchHardTripletLoss),
    Contrastive(ContrastiveLoss),
}

impl Loss {
    pub fn new(name: LossName, margin: f64, normalize: bool) -> Self {
        match name {
            LossName::Triplet => Self::Triplet(TripletMarginLoss { margin, normalize, ..Default::default() }),
            LossName::BatchAll => Self::BatchAll(BatchAllTripletLoss { margin, normalize, ..Default::default() }),
            LossName::BatchHard => Self::BatchHard(BatchHardTripletLoss { margin, normalize, ..Default::default() }),
            LossName::Contrastive => Self::Contrastive(ContrastiveLoss { margin, normalize, ..Default::default() }),
        }
    }

    /// Whether it takes anchors, positives and negatives, which may be encoded apart.
    pub fn takes_roles(&self) -> bool {
        matches!(self, Self::Triplet(_) | Self::Contrastive(_))
    }

    /// What it is where all embeddings are the same: an encoder that has collapsed stays there.
    pub fn of_equal_embeddings(&self) -> f64 {
        match self {
            Self::Triplet(loss) => loss.margin,
            Self::BatchAll(loss) => loss.margin,
            Self::BatchHard(loss) => loss.margin,
            // m²/2 for the pairs that do not belong together, which are every second one.
            Self::Contrastive(loss) => loss.margin * loss.margin / 4.0,
        }
    }

    /// The loss of the batch with these embeddings, a row for each image.
    pub fn of(&self, embeddings: &Tensor, batch: &TripletBatch) -> Result<Lost> {
        let on_device = |rows: &[i64]| Tensor::from_slice(rows).to_device(embeddings.device());
        let (loss, stats) = match self {
            Self::Triplet(_) | Self::Contrastive(_) => {
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

    /// The loss of anchors, positives and negatives, which may have been encoded apart.
    pub fn of_roles(&self, a: &Tensor, p: &Tensor, n: &Tensor) -> Result<Lost> {
        // A second pass over the embeddings, which is nothing beside the encoder's.
        let (loss, each) = match self {
            Self::Triplet(loss) => {
                let each = TripletMarginLoss { reduction: Reduction::None, ..*loss };
                let [da, dp, dn] = [a, p, n].map(Tensor::detach);
                (loss.f_forward(a, p, n)?, each.f_forward(&da, &dp, &dn)?)
            }
            Self::Contrastive(loss) => {
                let each = ContrastiveLoss { reduction: Reduction::None, ..*loss };
                let [x1, x2] = [Tensor::f_cat(&[a, a], 0)?, Tensor::f_cat(&[p, n], 0)?];
                let rows = a.size()[0];
                let same = Tensor::f_arange(2 * rows, (Kind::Int64, a.device()))?.lt(rows);
                (loss.f_forward(&x1, &x2, &same)?, each.f_forward(&x1.detach(), &x2.detach(), &same)?)
            }
            Self::BatchAll(_) | Self::BatchHard(_) => bail!("it mines a batch and has no roles"),
        };
        Ok(Lost { loss, active: each.gt(0.0).mean(Kind::Double) })
    }
}

/// Scalars on the device: neither has been waited for.
pub struct Lost {
    /// To go backwards from.
    pub loss: Tensor,
    /// The share of the batch's triplets, or pairs, whose loss is above 0 (f64).
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
        // Of eight pairs the four that belong together; with a margin of 0.2 no other is too near.
        assert_eq!(active(LossName::Contrastive), 0.5);
    }

    #[test]
    fn contrastive_pairs_are_the_triplets_two_sides() {
        let xs = Tensor::from_slice(&[0.0f32, 1.0, 0.5, 9.0]).reshape([4, 1]);
        let batch = TripletBatch {
            images: vec![0, 1, 2, 3],
            labels: vec![0, 0, 1, 1],
            anchor: vec![0, 2],
            positive: vec![1, 3],
            negative: vec![2, 0],
        };
        let lost = Loss::new(LossName::Contrastive, 2.0, false).of(&xs, &batch).unwrap();
        // Together at 1 and 8.5, apart at 0.5 and 0.5: 0.5 d² and 0.5 (2 - d)².
        let expected = (0.5 + 0.5 * 8.5 * 8.5 + 2.0 * 0.5 * 1.5 * 1.5) / 4.0;
        assert!((f64::try_from(lost.loss).unwrap() - expected).abs() < 1e-5);
        assert_eq!(f64::try_from(lost.active).unwrap(), 1.0);
    }

    #[test]
    fn equal_embeddings_have_the_loss_that_is_said() {
        let xs = Tensor::full([6, 4], 0.5, (Kind::Float, Device::Cpu));
        let batch = TripletBatch {
            images: (0..6).collect(),
            labels: vec![0, 0, 1, 1, 2, 2],
            anchor: vec![0, 2, 4],
            positive: vec![1, 3, 5],
            negative: vec![2, 5, 1],
        };
        for name in LossName::value_variants() {
            let loss = Loss::new(*name, 0.7, true);
            let got = f64::try_from(loss.of(&xs, &batch).unwrap().loss).unwrap();
            assert!((got - loss.of_equal_embeddings()).abs() < 1e-6, "{name:?}: {got}");
        }
    }
}
