//! The losses that the trainer offers, on the batches that it draws.

use crate::process::ranks::Ranks;
use crate::training::batch::TripletBatch;
use crate::training::loss_options::{LossName, LossOptions, MeanOverName, NegativeName, PairsName, ReductionName};
use anyhow::{Result, bail};
use std::f64::consts::LN_2;
use tch::{Kind, Tensor};
use tercet::internal::capacity;
use tercet::torch::distributed::Shards;
use tercet::torch::{CrossBatchMemory, WithStats};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Call, ContrastiveLoss, MeanOver, MinedLoss, Negative, Negatives, Own, Pairs, Precision,
    Reduction, Reference, TripletMarginLoss,
};

impl From<NegativeName> for Negative {
    fn from(name: NegativeName) -> Self {
        match name {
            NegativeName::Hardest | NegativeName::All => Self::Hardest,
            NegativeName::Random => Self::Random,
            NegativeName::SemiHard => Self::SemiHard,
        }
    }
}

/// With a soft margin an anchor counts as active unless its negative is farther than its positive by this or more.
const STILL_ACTIVE: f64 = 0.01;

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
    /// A loss of [resolved](LossOptions::resolved) options; `seed` is that of random negatives.
    pub fn new(options: &LossOptions, seed: u64) -> Self {
        let paired = options.distance();
        // Powers are refused for these losses when the options are resolved.
        let distance = || paired.of_batches().expect("resolved options");
        let normalize = options.normalize();
        let margin = options.margin.unwrap_or(options.loss.margin());
        let reduction = match options.reduction {
            Some(ReductionName::Sum) => Reduction::Sum,
            _ => Reduction::Mean,
        };
        let pairs_at_once = options.pairs_at_once.map(|pairs| pairs as usize);
        match options.loss {
            LossName::Triplet => {
                let swap = options.swap == Some(true);
                Self::Triplet(TripletMarginLoss { margin, distance: paired.into(), normalize, swap, reduction })
            }
            LossName::BatchAll => {
                let mean_over = match options.mean_over {
                    Some(MeanOverName::Valid) => MeanOver::Valid,
                    _ => MeanOver::Active,
                };
                let precision = Precision::default();
                Self::BatchAll(BatchAllTripletLoss {
                    margin,
                    distance: distance(),
                    normalize,
                    reduction,
                    mean_over,
                    precision,
                    pairs_at_once,
                })
            }
            LossName::BatchHard => {
                let (soft_margin, precision) = (options.soft_margin == Some(true), Precision::default());
                Self::BatchHard(BatchHardTripletLoss {
                    margin,
                    distance: distance(),
                    normalize,
                    soft_margin,
                    reduction,
                    precision,
                })
            }
            LossName::BatchSemiHard => {
                let precision = Precision::default();
                Self::BatchSemiHard(BatchSemiHardTripletLoss {
                    margin,
                    distance: distance(),
                    normalize,
                    reduction,
                    precision,
                    pairs_at_once,
                })
            }
            LossName::BatchNegative => Self::BatchNegative(BatchNegativeTripletLoss {
                margin,
                negative: options.negative.unwrap_or(NegativeName::SemiHard).into(),
                pairs: match options.pairs {
                    Some(PairsName::Once) => Pairs::Once,
                    _ => Pairs::Ordered,
                },
                seed,
                distance: distance(),
                normalize,
                reduction,
                precision: Precision::default(),
                pairs_at_once,
            }),
            LossName::BatchContrastive => {
                // With P identities only one pair in P is positive: the default takes no more negative pairs than
                // positive ones.
                let negatives = match options.negative {
                    Some(NegativeName::All) => Negatives::All,
                    _ => Negatives::Hardest,
                };
                let precision = Precision::default();
                Self::BatchContrastive(BatchContrastiveLoss {
                    margin,
                    distance: distance(),
                    normalize,
                    negatives,
                    reduction,
                    precision,
                    ..Default::default()
                })
            }
            LossName::Contrastive => {
                Self::Contrastive(ContrastiveLoss { margin, distance: paired.into(), normalize, reduction })
            }
        }
    }

    fn reduction(&self) -> Reduction {
        match self {
            Self::Triplet(loss) => loss.reduction,
            Self::BatchAll(loss) => loss.reduction,
            Self::BatchHard(loss) => loss.reduction,
            Self::BatchSemiHard(loss) => loss.reduction,
            Self::BatchNegative(loss) => loss.reduction,
            Self::BatchContrastive(loss) => loss.reduction,
            Self::Contrastive(loss) => loss.reduction,
        }
    }

    /// Of a loss whose positive pairs a CUDA device lists, for which its room is limited: how many there is room for if these
    /// are the options and the batch has so many rows and looks at so many others.
    pub fn room(&self, rows: usize, others: usize) -> Option<usize> {
        let pairs_at_once = match self {
            Self::BatchAll(loss) => loss.pairs_at_once,
            Self::BatchSemiHard(loss) => loss.pairs_at_once,
            Self::BatchNegative(loss) => loss.pairs_at_once,
            _ => return None,
        };
        Some(capacity(rows, others, pairs_at_once))
    }

    /// Whether the loss takes anchors, positives and negatives, which may be encoded apart.
    pub fn takes_roles(&self) -> bool {
        matches!(self, Self::Triplet(_) | Self::Contrastive(_))
    }

    /// The loss if all embeddings are the same, and so all distances 0: an encoder that has collapsed stays there. 0
    /// for a sum, which is another number in each batch.
    pub fn of_equal_embeddings(&self) -> f64 {
        if self.reduction() == Reduction::Sum {
            return 0.0;
        }
        match self {
            Self::Triplet(loss) => loss.margin,
            Self::BatchAll(loss) => loss.margin,
            Self::BatchHard(loss) if loss.soft_margin => LN_2,
            Self::BatchHard(loss) => loss.margin,
            Self::BatchSemiHard(loss) => loss.margin,
            // Of equal distances none is farther than another.
            Self::BatchNegative(loss) if loss.negative == Negative::SemiHard => 0.0,
            Self::BatchNegative(loss) => loss.margin,
            // Most pairs are negative; how many, differs from batch to batch.
            Self::BatchContrastive(loss) if loss.negatives == Negatives::All => 0.0,
            // m²/2 for each negative pair, which is every second pair.
            Self::BatchContrastive(loss) => loss.margin * loss.margin / 4.0,
            Self::Contrastive(loss) => loss.margin * loss.margin / 4.0,
        }
    }

    /// The loss of the batch with these embeddings, one row per image; of several processes each gives its share of the rows, and
    /// gets the loss of the whole batch, whose gradients they average. The rows are also put into the memory, which is mined
    /// with them once it is warm; random draws are those of `step`.
    pub fn of(
        &self,
        embeddings: &Tensor,
        batch: &TripletBatch,
        step: u64,
        memory: Option<&mut CrossBatchMemory>,
        ranks: &Ranks,
    ) -> Result<Lost> {
        let on_device = |rows: &[i64]| Tensor::from_slice(rows).to_device(embeddings.device());
        let shards = ranks.shards(batch.labels.len())?;
        let shards = shards.as_ref();
        let labels = on_device(&batch.labels[ranks.share().of(batch.labels.len())]);
        let WithStats { loss, stats, .. } = match self {
            Self::Triplet(_) | Self::Contrastive(_) => {
                let all = shards.map(|shards| shards.gather_with_grad(embeddings)).transpose()?;
                let all = all.as_ref().unwrap_or(embeddings);
                let [a, p, n] = batch.roles().map(|rows| all.index_select(0, &on_device(rows)));
                return self.of_roles(&a, &p, &n);
            }
            Self::BatchAll(loss) => mined(loss.on(embeddings, &labels), memory, shards)?,
            Self::BatchHard(loss) if loss.soft_margin => {
                let mut memory = memory;
                let loss_of = mined(loss.on(embeddings, &labels), memory.as_deref_mut(), shards)?.loss;
                // Every term of a soft margin is above 0: what is counted instead is a hinge's, of the whole batch.
                let hinge = BatchHardTripletLoss { soft_margin: false, margin: STILL_ACTIVE, ..*loss };
                let (rows, labels) = (batch.labels.len(), on_device(&batch.labels));
                let embeddings = match shards {
                    Some(shards) => shards.gather(embeddings)?,
                    None => embeddings.detach(),
                };
                let mut counted = match memory.filter(|memory| memory.is_warm()) {
                    Some(memory) => {
                        let own = memory.f_newest(rows)?;
                        let reference = Reference { own: Own::Rows(&own), ..memory.reference() };
                        hinge.on(&embeddings, &labels).against(&reference).f_forward_with_stats()?
                    }
                    None => hinge.on(&embeddings, &labels).f_forward_with_stats()?,
                };
                counted.loss = loss_of;
                counted
            }
            Self::BatchHard(loss) => mined(loss.on(embeddings, &labels), memory, shards)?,
            Self::BatchSemiHard(loss) => mined(loss.on(embeddings, &labels), memory, shards)?,
            Self::BatchContrastive(loss) => mined(loss.on(embeddings, &labels), memory, shards)?,
            Self::BatchNegative(loss) => {
                let step = on_device(&[step as i64]);
                mined(loss.on(embeddings, &labels).step(&step), memory, shards)?
            }
        };
        let active = stats.active.to_kind(Kind::Double) / stats.valid.clamp_min(1);
        Ok(Lost { loss, active, too_many_pairs: stats.too_many_pairs })
    }

    /// The loss of anchors, positives and negatives, which may have been encoded apart.
    pub fn of_roles(&self, a: &Tensor, p: &Tensor, n: &Tensor) -> Result<Lost> {
        // Losses of each row: a second pass over the embeddings, which costs nothing beside the encoder.
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
        Ok(Lost {
            loss,
            active: each.gt(0.0).mean(Kind::Double),
            too_many_pairs: Tensor::f_zeros([], (Kind::Bool, a.device()))?,
        })
    }
}

impl Lost {
    /// Of one of so many processes, whose share of the triplets it is: what has the whole batch's numbers as its mean over the
    /// processes.
    pub fn weighed(self, processes: f64, share: f64, loss: &Loss) -> Self {
        let of_loss = if loss.reduction() == Reduction::Sum { processes } else { processes * share };
        Self { loss: self.loss * of_loss, active: self.active * (processes * share), ..self }
    }
}

/// The loss of a batch, over the processes if there are several, and against the memory if there is one.
fn mined<'a, L: MinedLoss>(
    call: Call<'a, L, &'a Tensor>,
    memory: Option<&mut CrossBatchMemory>,
    shards: Option<&'a Shards>,
) -> Result<WithStats> {
    let call = match shards {
        Some(shards) => call.over(shards),
        None => call,
    };
    Ok(match memory {
        Some(memory) => memory.f_forward_with_stats(call)?,
        None => call.f_forward_with_stats()?,
    })
}

/// Scalars on the device; nothing has waited for them.
pub struct Lost {
    /// The loss, to run backward from.
    pub loss: Tensor,
    /// The share of the batch's triplets or pairs whose loss is above 0 (f64). For batch-negative, which selects only
    /// such triplets, 1 if it selects any; with a soft margin, whose terms are all above 0, the share of the anchors
    /// whose negative is not farther than the positive. A part of them while an encoder learns, all after a collapse.
    pub active: Tensor,
    /// Whether a CUDA device had no room for the batch's positive pairs (bool): the loss is then NaN.
    pub too_many_pairs: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Parser, ValueEnum};
    use tch::Device;

    /// The options of a loss, as words of the command line without `--loss`.
    fn options(loss: LossName, words: &str) -> Result<LossOptions> {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            loss: LossOptions,
        }
        let words = format!("train --loss {} {words}", loss.name());
        Line::try_parse_from(words.split_whitespace())?.loss.resolved()
    }

    fn loss(name: LossName, words: &str) -> Loss {
        Loss::new(&options(name, words).unwrap(), 5)
    }

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
            ..Default::default()
        };
        let words = "--distance squared-euclidean --margin 0.2 --normalize false";
        let of = |name| loss(name, words).of(&xs, &batch, 0, None, &Ranks::alone()).unwrap();
        let active = |name| f64::try_from(of(name).active).unwrap();
        // The four triplets: 1 + 0.2 > 0.25; 1 + 0.2 < 81; 1 + 0.2 > 0.25; 72.25 + 0.2 > 0.25.
        assert_eq!(active(LossName::Triplet), 0.75);
        // All eight triplets: for 0 and 1 the negative at 0.5; for 0.5 both; for 9 the one at 1 (64 < 72.45 < 81).
        assert_eq!(active(LossName::BatchAll), 5.0 / 8.0);
        // All four anchors: 0 and 1 against 0.5, 0.5 against 0 or 1, and 9 against 1.
        assert_eq!(active(LossName::BatchHard), 1.0);
        // Four pairs: farther than 1 are 81 and 64; of 0.25 and 0.25 none is farther than 72.25, so one of them is
        // taken; 81 is.
        assert_eq!(active(LossName::BatchSemiHard), 0.25);
        // No negative is farther than its positive by less than 0.2.
        assert_eq!(active(LossName::BatchNegative), 0.0);
        // The four positive pairs of eight; with a margin of 0.2 no negative is too near.
        assert_eq!(active(LossName::Contrastive), 0.5);
        assert_eq!(active(LossName::BatchContrastive), 0.5);
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
            ..Default::default()
        };
        let lost = loss(LossName::Contrastive, "--margin 2 --normalize false")
            .of(&xs, &batch, 0, None, &Ranks::alone())
            .unwrap();
        // Positive pairs at 1 and 8.5, negative ones at 0.5 and 0.5: 0.5 d² and 0.5 (2 - d)².
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
            ..Default::default()
        };
        for name in LossName::value_variants() {
            let mut tried = 0;
            for words in [
                "",
                "--margin 0.7",
                "--margin 0.7 --distance euclidean",
                "--distance squared-euclidean",
                "--distance cosine",
                "--distance lp:3",
                "--soft-margin",
                "--soft-margin false",
                "--swap",
                "--mean-over valid",
                "--negative hardest",
                "--negative random",
                "--negative semi-hard",
                "--pairs once --negative hardest",
            ] {
                let Ok(options) = options(*name, words) else { continue };
                tried += 1;
                let loss = Loss::new(&options, 5);
                let Lost { loss: got, active, .. } = loss.of(&xs, &batch, 3, None, &Ranks::alone()).unwrap();
                let got = f64::try_from(got).unwrap();
                assert!((got - loss.of_equal_embeddings()).abs() < 1e-6, "{name:?} {words}: {got}");
                if *name == LossName::BatchHard {
                    assert_eq!(f64::try_from(active).unwrap(), 1.0, "{words}");
                }
            }
            assert!(tried >= 5, "{name:?}");
            let unknown = loss(*name, "--reduction sum");
            assert_eq!(unknown.of_equal_embeddings(), 0.0, "{name:?}: a sum's level is not known");
        }
    }

    #[test]
    fn a_soft_margin_that_passes_the_level_of_a_collapse_is_none() {
        let xs = Tensor::from_slice(&[0.0f32, 1.0, 3.0, 6.0]).reshape([4, 1]);
        let batch = TripletBatch { images: vec![0, 1, 2, 3], labels: vec![0, 0, 1, 1], ..Default::default() };
        let loss = loss(LossName::BatchHard, "--normalize false");
        let of = |memory: Option<&mut CrossBatchMemory>| loss.of(&xs, &batch, 0, memory, &Ranks::alone()).unwrap();
        // d_ap and d_an of the anchors: 1 and 3, 1 and 2, 3 and 2, 3 and 5.
        assert_eq!(f64::try_from(of(None).active).unwrap(), 0.25);
        let mut memory = CrossBatchMemory::new(4, 1, Kind::Float, Device::Cpu).warm_up(4);
        let lost = of(Some(&mut memory));
        assert_eq!((f64::try_from(lost.active).unwrap(), memory.position()), (0.25, 0), "counted once, put in once");
    }

    #[test]
    fn every_option_reaches_its_loss() {
        for name in [LossName::BatchAll, LossName::BatchSemiHard, LossName::BatchNegative] {
            assert_eq!(loss(name, "--pairs-at-once 9").room(99, 99), Some(9), "{name:?}");
        }
        assert_eq!(loss(LossName::BatchHard, "").room(99, 99), None);
        // On a line, so that distances are told by hand: 0, 3 | 1, 5. The anchors 0 and 1 have positives at distances 3
        // and 4.
        let xs = Tensor::from_slice(&[0.0f32, 3.0, 1.0, 5.0]).reshape([4, 1]);
        let batch = TripletBatch {
            images: vec![0, 1, 2, 3],
            labels: vec![0, 0, 1, 1],
            anchor: vec![0, 2],
            positive: vec![1, 3],
            negative: vec![2, 1],
            ..Default::default()
        };
        let softplus = |x: f64| x.exp().ln_1p();
        // (d_ap, d_an) of each anchor's farthest positive and nearest negative: 0, 3, 1, 5.
        let hard = [(3.0f64, 1.0), (3.0, 2.0), (4.0, 1.0), (4.0, 2.0)];
        let mean = |of: &dyn Fn(f64, f64) -> f64| hard.iter().map(|&(p, n)| of(p, n)).sum::<f64>() / 4.0;
        for (name, words, expected) in [
            (LossName::BatchHard, "", mean(&|p, n| softplus(p - n))),
            (LossName::BatchHard, "--margin 1", mean(&|p, n| p - n + 1.0)),
            (LossName::BatchHard, "--margin 1 --distance squared-euclidean", mean(&|p, n| p * p - n * n + 1.0)),
            (LossName::BatchHard, "--reduction sum", 4.0 * mean(&|p, n| softplus(p - n))),
            (LossName::Triplet, "--margin 1 --distance lp:1", (3.0 - 1.0 + 1.0 + 4.0 - 2.0 + 1.0) / 2.0),
            (LossName::Triplet, "--margin 1 --distance euclidean --reduction sum", 6.0),
            // The negatives 1 and 3 are both at a distance of 2 from the positives 3 and 5.
            (LossName::Triplet, "--margin 1 --distance euclidean --swap", (3.0 - 1.0 + 1.0 + 4.0 - 2.0 + 1.0) / 2.0),
            (LossName::BatchContrastive, "--margin 1 --negative all", (4.5 + 8.0) / 6.0),
            (LossName::BatchContrastive, "--margin 2 --negative hardest", (4.5 + 8.0 + 0.5) / 4.0),
            (LossName::Contrastive, "--margin 2", (4.5 + 8.0 + 0.5) / 4.0),
        ] {
            let options = options(name, &format!("{words} --normalize false")).unwrap();
            let got =
                f64::try_from(Loss::new(&options, 5).of(&xs, &batch, 0, None, &Ranks::alone()).unwrap().loss).unwrap();
            assert!((got - expected).abs() < 1e-5, "{name:?} {words}: {got}, not {expected}");
        }
        // All 8 triplets are active at a margin of 9, and those with d_ap > d_an at a margin of 0.
        let all = |words: &str| {
            let options = options(LossName::BatchAll, &format!("{words} --normalize false --distance euclidean"));
            f64::try_from(Loss::new(&options.unwrap(), 5).of(&xs, &batch, 0, None, &Ranks::alone()).unwrap().loss)
                .unwrap()
        };
        let (active, valid) = (all("--margin 0 --mean-over active"), all("--margin 0 --mean-over valid"));
        let each = [[3.0, 1.0], [3.0, 5.0], [3.0, 2.0], [3.0, 2.0], [4.0, 1.0], [4.0, 2.0], [4.0, 5.0], [4.0, 2.0]];
        let losses: Vec<f64> = each.iter().map(|[p, n]| f64::max(p - n, 0.0)).collect();
        let (sum, count) = (losses.iter().sum::<f64>(), losses.iter().filter(|&&l| l > 0.0).count() as f64);
        assert!((active - sum / count).abs() < 1e-5 && (valid - sum / 8.0).abs() < 1e-5, "{active} {valid}");
        assert!((all("--margin 0 --reduction sum") - sum).abs() < 1e-5);
        // With each pair once, about half of the triplets are selected.
        let pairs = |words: &str| {
            let loss = loss(LossName::BatchNegative, &format!("--negative hardest --margin 9 --reduction sum {words}"));
            f64::try_from(loss.of(&xs, &batch, 0, None, &Ranks::alone()).unwrap().loss).unwrap()
        };
        assert!(pairs("--pairs once") > 0.0 && pairs("--pairs once") < 0.75 * pairs("--pairs ordered"));
    }

    #[test]
    fn what_a_loss_cannot_take_is_refused_by_name() {
        for (name, words, expected) in [
            (LossName::Triplet, "--soft-margin", ["--soft-margin", "--loss batch-hard"]),
            (LossName::BatchAll, "--soft-margin false", ["--soft-margin", "--loss batch-hard"]),
            (LossName::BatchHard, "--swap", ["--swap", "--loss triplet"]),
            (LossName::Contrastive, "--swap", ["--swap", "--loss triplet"]),
            (LossName::BatchHard, "--mean-over valid", ["--mean-over", "--loss batch-all"]),
            (LossName::BatchHard, "--negative random", ["--negative", "--loss batch-negative"]),
            (LossName::BatchNegative, "--negative all", ["--negative all", "batch-all"]),
            (LossName::BatchContrastive, "--negative random", ["--negative random", "hardest or all"]),
            (LossName::BatchAll, "--pairs once", ["--pairs", "--loss batch-negative"]),
            (LossName::BatchHard, "--pairs-at-once 9", ["--pairs-at-once", "--loss batch-semi-hard"]),
            (LossName::BatchAll, "--batch-triplets 9", ["--batch-triplets", "--loss contrastive"]),
            (LossName::BatchHard, "--distance lp:3", ["--distance lp:3", "--loss contrastive"]),
            (LossName::BatchHard, "--soft-margin --margin 0.5", ["--margin 0.5", "--soft-margin"]),
        ] {
            let error = options(name, words).unwrap_err();
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
            expected.iter().for_each(|word| assert!(error.to_string().contains(word), "{word}: {error}"));
        }
    }

    #[test]
    fn what_is_resolved_stays_and_is_said() {
        for (name, words, text) in [
            (LossName::Triplet, "--swap", "triplet, squared Euclidean distance, margin 0.2, swap"),
            (LossName::BatchHard, "", "batch-hard, Euclidean distance, soft margin"),
            (LossName::BatchHard, "--margin 0.5", "batch-hard, Euclidean distance, margin 0.5"),
            (LossName::BatchHard, "--soft-margin false", "batch-hard, Euclidean distance, margin 0.2"),
            (
                LossName::BatchAll,
                "--distance cosine --mean-over valid --normalize false",
                "batch-all, cosine distance, margin 0.2, mean over all triplets, not normalised",
            ),
            (
                LossName::BatchContrastive,
                "--reduction sum",
                "batch-contrastive, Euclidean distance, margin 1, negative hardest, sum",
            ),
        ] {
            let options = options(name, words).unwrap();
            assert_eq!(options.text(), text);
            let [once, twice] = [&options, &options.resolved().unwrap()].map(|o| serde_json::to_value(o).unwrap());
            assert_eq!(once, twice);
        }
    }

    #[test]
    fn a_memory_is_mined_once_it_is_full() {
        let batch = |labels: &[i64]| TripletBatch {
            images: (0..labels.len()).collect(),
            labels: labels.to_vec(),
            ..Default::default()
        };
        let rows = |xs: &[f32]| Tensor::from_slice(xs).reshape([-1, 1]);
        // The first batch has no positive and the second no negative: only the memory of both has triplets.
        let (first, second) = (rows(&[0.0, 2.0]), rows(&[0.5, 1.0]));
        for name in [LossName::BatchAll, LossName::BatchHard, LossName::BatchSemiHard, LossName::BatchNegative] {
            let negative = if name == LossName::BatchNegative { "--negative hardest" } else { "" };
            let loss = loss(name, &format!("--margin 9 --distance squared-euclidean --normalize false {negative}"));
            let mut memory = CrossBatchMemory::new(4, 1, Kind::Float, Device::Cpu).warm_up(4);
            let mut of = |xs: &Tensor, labels: &[i64]| {
                let lost = loss.of(xs, &batch(labels), 0, Some(&mut memory), &Ranks::alone()).unwrap();
                f64::try_from(lost.loss).unwrap()
            };
            assert_eq!(of(&first, &[7, 8]), 0.0, "{name:?}: the batch alone");
            // The anchors 0.5 and 1 have each other and 0 as positives; 2 is the negative.
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
