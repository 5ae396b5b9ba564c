//! The options of the losses on the command line: which loss takes which, and the defaults of each.

use crate::model::distance::Distance;
use crate::process::bad_input::bad_input;
use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

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
    /// Pairs of the batch: all that belong together, and others as --negative says
    BatchContrastive,
    /// Pairs, two of each triplet that is drawn: one that belongs together and one that does not
    Contrastive,
}

impl LossName {
    /// The name on the command line.
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

    /// The margin if none is given.
    pub fn margin(self) -> f64 {
        match self {
            Self::BatchContrastive | Self::Contrastive => 1.0,
            _ => 0.2,
        }
    }

    /// The distance if none is given: the choice of each loss's authors.
    pub fn distance(self) -> Distance {
        match self {
            Self::BatchHard | Self::BatchContrastive | Self::Contrastive => Distance::Euclidean,
            _ => Distance::SquaredEuclidean,
        }
    }

    /// The title of a plot of the loss.
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

/// The options of a loss. A run's checkpoint keeps them by the names of the fields, which are those of the options.
/// `None` is the loss's own default, and after [`LossOptions::resolved`] that the loss has no such option.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Loss")]
pub struct LossOptions {
    /// What the encoder learns from
    #[arg(long, value_enum, default_value = "triplet")]
    pub loss: LossName,

    /// How far apart two embeddings are, in the loss and in everything that is measured of the run and of its model:
    /// squared-euclidean, euclidean, cosine, and for --loss triplet and contrastive lp:P too, such as lp:1 [default:
    /// squared-euclidean, for batch-hard and the contrastive losses euclidean]
    #[arg(long, value_name = "DISTANCE")]
    pub distance: Option<Distance>,

    /// How much farther than the positive the negative should be or, for the contrastive losses, how far apart
    /// different identities should be [default: 0.2, for the contrastive losses 1; for batch-hard a soft margin]
    #[arg(long, value_parser = margin)]
    pub margin: Option<f64>,

    /// ln(1 + exp(d_ap - d_an)) in the place of a margin, for --loss batch-hard [default: true, with --margin false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub soft_margin: Option<bool>,

    /// Hold the negative away from the nearer of anchor and positive, for --loss triplet [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub swap: Option<bool>,

    /// Which negative each pair of images gets, for --loss batch-negative [default: semi-hard]; which pairs of different
    /// identities count, for --loss batch-contrastive: all, or as many of the hardest as there are pairs of one [default:
    /// hardest]
    #[arg(long, value_enum)]
    pub negative: Option<NegativeName>,

    /// Which pairs of one identity get a negative, for --loss batch-negative [default: ordered]
    #[arg(long, value_enum)]
    pub pairs: Option<PairsName>,

    /// What the mean is over, for --loss batch-all: the triplets whose loss is above 0, or all of them [default: active]
    #[arg(long, value_enum)]
    pub mean_over: Option<MeanOverName>,

    /// How many pairs of one identity, each image with itself among them, a CUDA device has room for, for --loss batch-all,
    /// batch-semi-hard and batch-negative: 16 to 20 bytes each [default: 4194304, or 128 an image if that is more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pairs_at_once: Option<u32>,

    /// How the losses of a batch become one: their mean, or their sum, which weighs a batch by what is left to learn in it
    /// (a collapse of the embeddings is then not noticed) [default: mean]
    #[arg(long, value_enum)]
    pub reduction: Option<ReductionName>,

    /// Triplets drawn among a batch's images, for --loss triplet; contrastive makes two pairs of each [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub batch_triplets: Option<u64>,

    /// Bring embeddings to length 1, in the loss and in everything that is measured [default: true]
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub normalize: Option<bool>,
}

/// Which negatives, as the command line names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum NegativeName {
    /// The nearest, if the triplet's loss is above 0
    Hardest,
    /// Any with which the triplet's loss is above 0
    Random,
    /// Any that is farther than the positive, by less than the margin
    SemiHard,
    /// Every one
    All,
}

/// Which pairs, as the command line names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum PairsName {
    /// Each pair twice: either image is the anchor
    Ordered,
    /// Each pair once
    Once,
}

/// What a mean is over, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum MeanOverName {
    /// Triplets whose loss is above 0
    Active,
    /// All triplets
    Valid,
}

/// A reduction, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum ReductionName {
    /// Divided by how many there are
    Mean,
    /// Added up
    Sum,
}

impl LossOptions {
    /// Fills in the loss's own defaults, and refuses by name an option that the loss does not take. Resolving again
    /// changes nothing.
    pub fn resolved(&self) -> Result<Self> {
        use LossName::*;
        let Self { loss, .. } = *self;
        let only = |option: &str, losses: &[LossName]| {
            let losses: Vec<_> = losses.iter().map(|loss| format!("--loss {}", loss.name())).collect();
            bad_input(format!(
                "{option}: --loss {} has no such option; it is for {}",
                loss.name(),
                losses.join(" and ")
            ))
        };
        let roles = [Triplet, Contrastive];
        if let Some(distance @ Distance::Lp(_)) = self.distance.filter(|_| !roles.contains(&loss)) {
            return Err(only(&format!("--distance {}", distance.name()), &roles));
        }
        let soft_margin = of(loss, &[BatchHard], self.soft_margin, "--soft-margin", only, || self.margin.is_none())?;
        let margin = match (soft_margin, self.margin) {
            (Some(true), Some(margin)) => {
                return Err(bad_input(format!("--margin {margin}: --soft-margin takes the place of a margin")));
            }
            (Some(true), None) => None,
            (_, margin) => Some(margin.unwrap_or(loss.margin())),
        };
        let negative = of(loss, &[BatchNegative, BatchContrastive], self.negative, "--negative", only, || {
            if loss == BatchNegative { NegativeName::SemiHard } else { NegativeName::Hardest }
        })?;
        match (loss, negative) {
            (BatchNegative, Some(NegativeName::All)) => {
                return Err(bad_input(
                    "--negative all: --loss batch-negative takes hardest, random or semi-hard; batch-all \
                                      has every negative",
                ));
            }
            (BatchContrastive, Some(NegativeName::Random | NegativeName::SemiHard)) => {
                return Err(bad_input(format!(
                    "--negative {}: --loss batch-contrastive takes hardest or all",
                    name(negative.expect("matched"))
                )));
            }
            _ => {}
        }
        let lists = [BatchAll, BatchSemiHard, BatchNegative];
        if self.pairs_at_once.is_some() && !lists.contains(&loss) {
            return Err(only("--pairs-at-once", &lists));
        }
        Ok(Self {
            loss,
            pairs_at_once: self.pairs_at_once,
            distance: Some(self.distance.unwrap_or(loss.distance())),
            margin,
            soft_margin,
            swap: of(loss, &[Triplet], self.swap, "--swap", only, || false)?,
            negative,
            pairs: of(loss, &[BatchNegative], self.pairs, "--pairs", only, || PairsName::Ordered)?,
            mean_over: of(loss, &[BatchAll], self.mean_over, "--mean-over", only, || MeanOverName::Active)?,
            reduction: Some(self.reduction.unwrap_or(ReductionName::Mean)),
            batch_triplets: of(loss, &roles, self.batch_triplets, "--batch-triplets", only, || 512)?,
            normalize: Some(self.normalize.unwrap_or(true)),
        })
    }

    /// The distance, in the loss and wherever embeddings are compared.
    pub fn distance(&self) -> Distance {
        self.distance.unwrap_or(self.loss.distance())
    }

    /// Whether embeddings are brought to length 1.
    pub fn normalize(&self) -> bool {
        self.normalize.unwrap_or(true)
    }

    /// The resolved options for people, such as "batch-hard, Euclidean distance, soft margin".
    pub fn text(&self) -> String {
        let mut parts = vec![self.loss.name().to_owned(), format!("{} distance", self.distance().title())];
        parts.extend(self.margin.map(|margin| format!("margin {margin}")));
        let said = |wanted: bool, what: &str| wanted.then(|| what.to_owned());
        parts.extend(said(self.soft_margin == Some(true), "soft margin"));
        parts.extend(said(self.swap == Some(true), "swap"));
        parts.extend(self.negative.map(|negative| format!("negative {}", name(negative))));
        parts.extend(said(self.pairs == Some(PairsName::Once), "each pair once"));
        parts.extend(said(self.mean_over == Some(MeanOverName::Valid), "mean over all triplets"));
        parts.extend(said(self.reduction == Some(ReductionName::Sum), "sum"));
        parts.extend(said(!self.normalize(), "not normalised"));
        parts.join(", ")
    }
}

/// An option that only `losses` have: what was given, or its default. For another loss `None`, and an error if it was
/// given.
fn of<T: Copy>(
    loss: LossName,
    losses: &[LossName],
    given: Option<T>,
    option: &str,
    only: impl Fn(&str, &[LossName]) -> anyhow::Error,
    default: impl FnOnce() -> T,
) -> Result<Option<T>> {
    match (losses.contains(&loss), given) {
        (true, given) => Ok(Some(given.unwrap_or_else(default))),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(only(option, losses)),
    }
}

/// The value's name on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_owned()
}

/// The limit keeps the square of a margin, summed over a batch, finite in f32.
fn margin(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1e9).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1e9".into()),
    }
}
