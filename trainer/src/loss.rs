//! The losses that the trainer offers, on the batches that it draws.

use crate::batch::TripletBatch;
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tercet::torch::{CrossBatchMemory, MinedLoss, WithStats};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Negative, Negatives, Own, Reduction, Reference, TripletMarginLoss,
};

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
    /// For each pair of one identity in the batch the nearest negative that is farther
    BatchSemiHard,
    /// For each pair of one identity in the batch one negative, as --negative says
    BatchNegative,
    /// Pairs of the batch: all that belong together, and as many of the nearest that do not
    BatchContrastive,
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
            Self::BatchSemiHard => "batch-semi-hard",
            Self::BatchNegative => "batch-negative",
            Self::BatchContrastive => "batch-contrastive",
            Self::Contrastive => "contrastive",
        }
    }

    /// Where none is asked for.
    pub fn margin(self) -> f64 {
        match self {
            Self::BatchContrastive | Self::Contrastive => 1.0,
            _ => 0.2,
        }
    }

    /// Of a plot.
    pub fn title(self) -> &'static str {
        match self {
            Self::Triplet => "Triplet loss",
            Self::BatchAll => "Batch-all triplet loss",
            Self::BatchHard => "Batch-hard triplet loss",
            Self::BatchSemiHard => "Batch-semi-hard triplet loss",
            Self::BatchNegative => "Triplet loss of chosen negatives",
            Self::BatchContrastive => "Contrastive loss over the batch",
            Self::Contrastive => "Contrastive loss",
        }
    }
}

/// Which negative a pair gets, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum NegativeName {
    /// The nearest, where the triplet's loss is above 0
    Hardest,
    /// Any with which the triplet's loss is above 0
    Random,
    /// Any that is farther than the positive, by less than the margin
    SemiHard,
}

impl From<NegativeName> for Negative {
    fn from(name: NegativeName) -> Self {
        match name {
            NegativeName::Hardest => Self::Hardest,
            NegativeName::Random => Self::Random,
            NegativeName::SemiHard => Self::SemiHard,
        }
    }
}

/// What there is to say of a loss.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub margin: f64,
    pub normalize: bool,
    /// Of batch-negative, as its draws' seed.
    pub negative: NegativeName,
    pub seed: u64,
}

/// A loss with its options.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    Triplet(TripletMarginLoss),
    BatchAll(BatchAllTripletLoss),
    BatchHard(BatchHardTripletLoss),
    BatchSemiHard(BatchSemiHardTripletLoss),
    BatchNegative(BatchNegativeTripletLoss),
    BatchContrastive(BatchContrastiveLoss),
    Contrastive(ContrastiveLoss),
}

impl Loss {
    pub fn new(name: LossName, Options { margin, normalize, negative, seed }: Options) -> Self {
        match name {
            LossName::Triplet => Self::Triplet(TripletMarginLoss { margin, normalize, ..Default::default() }),
            LossName::BatchAll => Self::BatchAll(BatchAllTripletLoss { margin, normalize, ..Default::default() }),
            LossName::BatchHard => Self::BatchHard(BatchHardTripletLoss { margin, normalize, ..Default::default() }),
            LossName::BatchSemiHard => {
                Self::BatchSemiHard(BatchSemiHardTripletLoss { margin, normalize, ..Default::default() })
            }
            LossName::BatchNegative => {
                let negative = negative.into();
                Self::BatchNegative(BatchNegativeTripletLoss {
                    margin,
                    negative,
                    seed,
                    normalize,
                    ..Default::default()
                })
            }
            LossName::BatchContrastive => {
                // Of all pairs only one in P belongs together.
                let negatives = Negatives::Hardest;
                Self::BatchContrastive(BatchContrastiveLoss { margin, normalize, negatives, ..Default::default() })
            }
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
            Self::BatchSemiHard(loss) => loss.margin,
            // Of equals none is farther than another.
            Self::BatchNegative(loss) if loss.negative == Negative::SemiHard => 0.0,
            Self::BatchNegative(loss) => loss.margin,
            // m²/2 for the pairs that do not belong together, which are every second one.
            Self::BatchContrastive(loss) => loss.margin * loss.margin / 4.0,
            Self::Contrastive(loss) => loss.margin * loss.margin / 4.0,
        }
    }

    /// The loss of the batch with these embeddings, a row for each image. A memory gets them too, and is mined with them once
    /// it is warm; draws are those of the step.
    pub fn of(
        &self,
        embeddings: &Tensor,
        batch: &TripletBatch,
        step: u64,
        memory: Option<&mut CrossBatchMemory>,
    ) -> Result<Lost> {
        let on_device = |rows: &[i64]| Tensor::from_slice(rows).to_device(embeddings.device());
        let labels = on_device(&batch.labels);
        let WithStats { loss, stats } = match self {
            Self::Triplet(_) | Self::Contrastive(_) => {
                let [a, p, n] = batch.roles().map(|rows| embeddings.index_select(0, &on_device(rows)));
                return self.of_roles(&a, &p, &n);
            }
            Self::BatchAll(loss) => mined(loss, embeddings, &labels, memory)?,
            Self::BatchHard(loss) => mined(loss, embeddings, &labels, memory)?,
            Self::BatchSemiHard(loss) => mined(loss, embeddings, &labels, memory)?,
            Self::BatchContrastive(loss) => mined(loss, embeddings, &labels, memory)?,
            Self::BatchNegative(loss) => {
                let step = on_device(&[step as i64]);
                let mut warm = None;
                if let Some(memory) = memory {
                    memory.f_enqueue(embeddings, &labels)?;
                    warm = memory.is_warm().then_some(&*memory);
                }
                let own = warm.map(|memory| memory.f_newest(batch.labels.len())).transpose()?;
                let reference = warm.zip(own.as_ref());
                let reference = reference.map(|(memory, own)| Reference { own: Own::Rows(own), ..memory.reference() });
                loss.f_forward_step_with_stats(embeddings, &labels, reference.as_ref(), &step)?
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
            _ => bail!("it mines a batch and has no roles"),
        };
        Ok(Lost { loss, active: each.gt(0.0).mean(Kind::Double) })
    }
}

/// The loss of a batch, with the memory where there is one.
fn mined(
    loss: &impl MinedLoss,
    embeddings: &Tensor,
    labels: &Tensor,
    memory: Option<&mut CrossBatchMemory>,
) -> Result<WithStats> {
    Ok(match memory {
        Some(memory) => memory.f_forward_with_stats(loss, embeddings, labels)?,
        None => loss.f_forward_with_stats(embeddings, labels)?,
    })
}

/// Scalars on the device: neither has been waited for.
pub struct Lost {
    /// To go backwards from.
    pub loss: Tensor,
    /// The share of the batch's triplets, or pairs, whose loss is above 0 (f64); of batch-negative, which selects no others,
    /// 1 where it selects any.
    pub active: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn loss(name: LossName, margin: f64, normalize: bool) -> Loss {
        Loss::new(name, Options { margin, normalize, negative: NegativeName::SemiHard, seed: 5 })
    }

    #[test]
    fn the_active_fraction_counts_triplets_with_a_loss() {
        // On a line: 0 and 1 are one identity, 0.5 and 9 another.
        let xs = Tensor::from_slice(&[0.0f32, 1.0, 0.5, 9.0]).reshape([4, 1]).to_device(Device::Cpu);
        let batch = TripletBatch {
            images: vec![0, 1, 2, 3],
            forged: vec![],
            labels: vec![0, 0, 1, 1],
            anchor: vec![0, 0, 1, 2],
            positive: vec![1, 1, 0, 3],
            negative: vec![2, 3, 2, 0],
        };
        let of = |name| loss(name, 0.2, false).of(&xs, &batch, 0, None).unwrap();
        let active = |name| f64::try_from(of(name).active).unwrap();
        // Of the four: 1 + 0.2 > 0.25; 1 + 0.2 < 81; 1 + 0.2 > 0.25; 72.25 + 0.2 > 0.25.
        assert_eq!(active(LossName::Triplet), 0.75);
        // Of all eight: for 0 and 1 the negative at 0.5; for 0.5 both; for 9 the one at 1 (64 < 72.45 < 81).
        assert_eq!(active(LossName::BatchAll), 5.0 / 8.0);
        // Of four anchors: 0 and 1 against 0.5, 0.5 against 0 or 1, and 9 against 1.
        assert_eq!(active(LossName::BatchHard), 1.0);
        // Of four pairs: farther than 1 are 81 and 64, than 72.25 none of 0.25 and 0.25, which are therefore taken, and 81.
        assert_eq!(active(LossName::BatchSemiHard), 0.25);
        // No negative is farther by less than 0.2.
        assert_eq!(active(LossName::BatchNegative), 0.0);
        // Of eight pairs the four that belong together; with a margin of 0.2 no other is too near.
        assert_eq!(active(LossName::Contrastive), 0.5);
        assert_eq!(active(LossName::BatchContrastive), 0.5);
    }

    #[test]
    fn contrastive_pairs_are_the_triplets_two_sides() {
        let xs = Tensor::from_slice(&[0.0f32, 1.0, 0.5, 9.0]).reshape([4, 1]);
        let batch = TripletBatch {
            images: vec![0, 1, 2, 3],
            forged: vec![],
            labels: vec![0, 0, 1, 1],
            anchor: vec![0, 2],
            positive: vec![1, 3],
            negative: vec![2, 0],
        };
        let lost = loss(LossName::Contrastive, 2.0, false).of(&xs, &batch, 0, None).unwrap();
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
            forged: vec![],
            labels: vec![0, 0, 1, 1, 2, 2],
            anchor: vec![0, 2, 4],
            positive: vec![1, 3, 5],
            negative: vec![2, 5, 1],
        };
        for name in LossName::value_variants() {
            for negative in NegativeName::value_variants() {
                let loss = Loss::new(*name, Options { margin: 0.7, normalize: true, negative: *negative, seed: 5 });
                let got = f64::try_from(loss.of(&xs, &batch, 3, None).unwrap().loss).unwrap();
                assert!((got - loss.of_equal_embeddings()).abs() < 1e-6, "{name:?}, {negative:?}: {got}");
            }
        }
    }

    #[test]
    fn a_memory_is_mined_once_it_is_full() {
        let batch = |labels: &[i64]| TripletBatch {
            images: (0..labels.len()).collect(),
            forged: vec![],
            labels: labels.to_vec(),
            anchor: vec![],
            positive: vec![],
            negative: vec![],
        };
        let rows = |xs: &[f32]| Tensor::from_slice(xs).reshape([-1, 1]);
        // A batch without a positive and one without a negative: only the other one has them.
        let (first, second) = (rows(&[0.0, 2.0]), rows(&[0.5, 1.0]));
        for name in [LossName::BatchAll, LossName::BatchHard, LossName::BatchSemiHard, LossName::BatchNegative] {
            let negative = NegativeName::Hardest;
            let loss = Loss::new(name, Options { margin: 9.0, normalize: false, negative, seed: 5 });
            let mut memory = CrossBatchMemory::new(4, 1, Kind::Float, Device::Cpu).warm_up(4);
            let mut of = |xs: &Tensor, labels: &[i64]| {
                let lost = loss.of(xs, &batch(labels), 0, Some(&mut memory)).unwrap();
                f64::try_from(lost.loss).unwrap()
            };
            assert_eq!(of(&first, &[7, 8]), 0.0, "{name:?}: the batch alone");
            // Anchors at 0.5 and 1, of which each is the other's positive as 0 is; 2 is the negative.
            let triplets = [[0.25, 2.25], [0.25, 2.25], [0.25, 1.0], [1.0, 1.0]];
            let losses = triplets.map(|[ap, an]| ap - an + 9.0);
            let hard = [losses[0], losses[3]];
            let expected = match name {
                LossName::BatchHard => hard.iter().sum::<f64>() / 2.0,
                _ => losses.iter().sum::<f64>() / 4.0,
            };
            let got = of(&second, &[7, 7]);
            assert!((got - expected).abs() < 1e-5, "{name:?}: {got}, not {expected}");
        }
    }
}
