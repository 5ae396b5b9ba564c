//! The command line.

use crate::data::collections::PatternArgs;
use crate::data::images::OnBadImage;
use crate::gallery::By;
use crate::model::device::{self, Job};
use crate::model::encoder::{Architecture, Precision};
use crate::training::batch::Forwards;
use crate::training::loss_options::LossOptions;
use crate::training::schedule::Schedule;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tch::Device;

/// Trains embedding networks with Tercet's triplet losses.
#[derive(Debug, Parser)]
#[command(name = "tercet", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an encoder on triplets of images and evaluate it on identities it has never seen.
    ///
    /// Without --data it trains on generated handwritten signatures. The run folder holds the
    /// weights and the calibrated threshold, metrics.csv, pictures, report.html and summary.json.
    Train(Box<TrainArgs>),
    /// Write generated handwritten signatures as PNG files, one folder per identity, and skilled forgeries
    /// of them.
    Generate(GenerateArgs),
    /// Say whether two images show the same identity, or measure that on a file of pairs.
    ///
    /// The distance of the two embeddings is compared with the threshold that was calibrated on the
    /// run's validation identities. The exit code is 0 for either decision, 2 for wrong input.
    Verify(VerifyArgs),
    /// Write the embeddings of a folder's images, their labels and names to a .safetensors file.
    Embed(EmbedArgs),
    /// Measure a model on a folder of identities: verification, retrieval and one-shot classification.
    Eval(EvalArgs),
    /// Write a file of pairs for a folder of your own images, for `tercet verify --pairs`.
    ///
    /// Each fold has identities that no other has, and as many genuine as impostor pairs, no pair twice. Images that
    /// cannot be read are left out.
    Pairs(PairsArgs),
    /// Put finished runs beside each other: a table of their error rates, best first, and one picture.
    Compare(CompareArgs),
    /// Enrol people in a gallery: images whose people `tercet identify` then recognises.
    ///
    /// The gallery is one file, which is made if there is none; beside it lies an index that may be removed. What was
    /// enrolled stays, whatever happens to the program; a picture that a person has already is left out.
    Enroll(EnrollArgs),
    /// Say whose pictures these are: the nearest people of a gallery, or nobody.
    Identify(IdentifyArgs),
    /// Write a folder's hardest triplets or pairs to a CSV file: what a model confuses most.
    Mine(MineArgs),
    /// List the people of a gallery.
    List(ListArgs),
    /// Give a person of a gallery another name.
    Rename(RenameArgs),
    /// Remove a person of a gallery, or one of their samples.
    Remove(RemoveArgs),
    /// Write the samples of a gallery to a .safetensors file, or to a .npy file and a .csv file beside it.
    Export(ExportArgs),
    /// Enrol embeddings that are there already, from such files or those of `tercet embed`.
    Import(ImportArgs),
}

/// The options of `train`. A run's checkpoint keeps them by the names of the fields, which are those of the options.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(allow_negative_numbers = true)] // so that a negative margin is refused as such
pub struct TrainArgs {
    /// Folders of images; each folder that directly holds images (PNG, JPEG, PGM, BMP, TIFF, WebP) is one
    /// identity, at any depth [default: generated signatures]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    #[serde(with = "crate::process::paths")]
    pub data: Option<PathBuf>,

    /// How many signers are generated, if there is no --data
    #[arg(long, value_name = "N", default_value_t = 240, conflicts_with = "data",
          value_parser = clap::value_parser!(u64).range(4..=100_000), help_heading = "Data")]
    pub signers: u64,

    /// Validation images, laid out in the same way; all of --data is then trained on
    #[arg(long, value_name = "DIR", requires = "data", help_heading = "Data",
          conflicts_with_all = ["hold_out", "val_split"])]
    #[serde(with = "crate::process::paths")]
    pub val_data: Option<PathBuf>,

    /// Top-level folders of --data to validate on, e.g. alphabets: Korean,Greek; with --identity, identities
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        requires = "data",
        conflicts_with = "val_split",
        help_heading = "Data"
    )]
    pub hold_out: Vec<String>,

    #[command(flatten)]
    #[serde(flatten)]
    pub patterns: PatternArgs,

    /// Train on the forgeries that --forged names too: as negatives of the one they imitate, never as positives
    #[arg(long, requires = "forged", conflicts_with = "memory", help_heading = "Data")]
    #[serde(default)]
    pub train_forgeries: bool,

    /// Fraction of the identities to validate on, drawn by the seed
    #[arg(long, value_name = "FRACTION", default_value_t = 0.25, value_parser = fraction,
          help_heading = "Data")]
    pub val_split: f64,

    /// At most this many validation images are evaluated, in turn from each identity
    #[arg(long, value_name = "N", default_value_t = 400,
          value_parser = clap::value_parser!(u64).range(4..=20_000), help_heading = "Data")]
    pub val_images: u64,

    /// What to do about an image that cannot be read
    #[arg(long, value_name = "WHAT", value_enum, default_value = "skip", help_heading = "Data")]
    pub on_bad_image: OnBadImage,

    /// Leave out training identities that have fewer images
    #[arg(long, value_name = "N", default_value_t = 1, requires = "data",
          value_parser = clap::value_parser!(u64).range(1..), help_heading = "Data")]
    pub min_images: u64,

    /// Threads that read, decode and augment images, ahead of the encoder [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024), help_heading = "Data")]
    pub workers: Option<u64>,

    /// Memory for decoded images; those beyond it are decoded again for each batch
    #[arg(long, value_name = "MIB", default_value_t = 2048, help_heading = "Data")]
    pub image_cache: u64,

    /// Side that images are resized to, in pixels [default: 32 on a CPU, 224 on a GPU]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u64).range(8..=1024),
          help_heading = "Data")]
    pub image_size: Option<u64>,

    /// The network
    #[arg(long, value_enum, default_value = "resnet152", help_heading = "Encoder")]
    pub encoder: Architecture,

    /// Length of an embedding
    #[arg(long, value_name = "D", default_value_t = 128,
          value_parser = clap::value_parser!(i64).range(1..=65_536), help_heading = "Encoder")]
    pub embedding_dim: i64,

    /// Initial weights: a .safetensors file with torchvision's names [default: random]
    #[arg(long, value_name = "FILE", help_heading = "Encoder")]
    #[serde(with = "crate::process::paths")]
    pub weights: Option<PathBuf>,

    /// Passes over the training images [default: 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..),
          help_heading = "Training")]
    pub epochs: Option<u64>,

    /// Stop after this many steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..),
          help_heading = "Training")]
    pub steps: Option<u64>,

    /// Seconds for the whole run, evaluations included; 0 is no limit [default: 240 on a CPU unless
    /// --epochs or --steps is given, else none]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "Training")]
    pub time_limit: Option<f64>,

    #[command(flatten)]
    #[serde(flatten)]
    pub loss: LossOptions,

    /// Embeddings of earlier batches in which the losses that mine a batch look for positives and negatives too, once
    /// there are that many; 0 is none
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(..=100_000_000), help_heading = "Training")]
    pub memory: u64,

    /// Identities per batch
    #[arg(long, value_name = "P", default_value_t = 12, alias = "batch-identities",
          value_parser = clap::value_parser!(u64).range(2..=1_000_000), help_heading = "Training")]
    pub classes_per_batch: u64,

    /// Images of each identity in a batch
    #[arg(long, value_name = "K", default_value_t = 4, alias = "batch-images",
          value_parser = clap::value_parser!(u64).range(2..=1_000_000), help_heading = "Training")]
    pub samples_per_class: u64,

    /// Encode a batch's images once, or the anchors, positives and negatives of the triplet and the contrastive
    /// loss in passes of their own, each normalised by its own statistics
    #[arg(long, value_enum, default_value = "one", help_heading = "Training")]
    pub forwards: Forwards,

    /// Adam's learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, value_parser = rate,
          help_heading = "Training")]
    pub learning_rate: f64,

    /// How the learning rate falls over the run's steps
    #[arg(long, value_enum, default_value = "constant", help_heading = "Training")]
    pub schedule: Schedule,

    /// Steps in which the learning rate rises from 0, in a straight line
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Training")]
    pub warmup_steps: u64,

    /// This times a weight is added to its gradient
    #[arg(long, value_name = "DECAY", default_value_t = 0.0, value_parser = decay,
          help_heading = "Training")]
    pub weight_decay: f64,

    /// What convolutions are computed in while training; weights, the loss and evaluations are f32, but
    /// with f64 also f64
    #[arg(long, value_enum, default_value = "f32", help_heading = "Training")]
    pub precision: Precision,

    /// With several processes, normalise a batch by the statistics of all its images instead of each process's share: the
    /// numbers are then those of one process, but for rounding
    #[arg(long, help_heading = "Training")]
    #[serde(default)]
    pub sync_batch_norm: bool,

    /// Measure the validation identities each N epochs; 0 is only before and after training [default: 0,
    /// with --patience 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub evaluate_every: Option<u64>,

    /// Stop when the equal error rate has not fallen in N evaluations, and keep the weights of the
    /// lowest one (the validation identities then choose the weights, so their EER flatters a little)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..),
          help_heading = "Training")]
    pub patience: Option<u64>,

    /// Strength of the random rotation, scale, slant and shift of training images; 0 is none, and at most 10
    #[arg(long, value_name = "STRENGTH", default_value_t = 1.0, value_parser = strength,
          help_heading = "Training")]
    pub augment: f64,

    /// Seed of every random draw
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    pub seed: u64,

    /// cpu, cuda, cuda:N, or auto: the first GPU that does the whole job, else the CPU. Of several processes each has the
    /// GPU of its place on the host
    #[arg(long, default_value = "auto", help_heading = "Run")]
    pub device: String,

    /// The run folder, absent or empty [default: the next free runs/0001, runs/0002, ...]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    #[serde(skip)]
    pub out: Option<PathBuf>,

    /// Save what --resume needs before the first step, each N epochs and at the end; 0 is only on Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Run")]
    pub checkpoint_every: u64,

    /// Go on with the run in this folder, to the same numbers (on a CPU) as if it had not been
    /// interrupted. Its options hold; those that do not change its numbers may be new: --epochs, --steps,
    /// --time-limit, --patience, --checkpoint-every, --workers, --image-cache
    #[arg(long, value_name = "RUN", conflicts_with = "out", help_heading = "Run")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,

    /// Go on with the run in --out if there is one, else begin one there: for schedulers that start a program again.
    /// When torchrun starts processes anew, they do so by themselves
    #[arg(long, requires = "out", conflicts_with = "resume", help_heading = "Run")]
    #[serde(skip)]
    pub resume_if_any: bool,
}

/// The names of the command's fields whose options are on the command line.
pub fn given(matches: &ArgMatches) -> Vec<String> {
    let Some((_, command)) = matches.subcommand() else { return Vec::new() };
    let typed = |id: &&str| command.value_source(id) == Some(ValueSource::CommandLine);
    command.ids().map(|id| id.as_str()).filter(typed).map(str::to_owned).collect()
}

#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// Where to write, absent or empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// How many signers
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub identities: u64,

    /// Genuine drawings of each
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub drawings: u64,

    /// Skilled forgeries of each. With any, there are two folders: genuine/generated-0000 and so on, and
    /// forged/generated-0000 and so on
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub forgeries: u64,

    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// The run folder of a `tercet train`
    #[arg(long, value_name = "RUN")]
    pub model: PathBuf,

    /// cpu, cuda, cuda:N, or auto: the first GPU that libtorch runs on, else the CPU
    #[arg(long, default_value = "auto")]
    pub device: String,
}

#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)] // so that a negative threshold is refused as such
pub struct VerifyArgs {
    /// The two images
    #[arg(value_name = "IMAGE", num_args = 2, required_unless_present = "pairs", conflicts_with = "pairs")]
    pub images: Vec<PathBuf>,

    /// A file of pairs as LFW's pairs.txt, or CSV (name,imagenum1,imagenum2): accuracy with its standard error over the
    /// folds, AUC, EER, and the true accepts at 1 and 0.1 per cent of false ones. Twice if matched and mismatched pairs
    /// are in two files
    #[arg(long, value_name = "FILE", requires = "data")]
    pub pairs: Vec<PathBuf>,

    /// Where the images of --pairs are: image 7 of NAME is DIR/NAME/NAME_0007.jpg, or else the one in DIR/NAME whose
    /// name's last number is 7; if they have no numbers, or count from 0, the 7th by name
    #[arg(long, value_name = "DIR", requires = "pairs")]
    pub data: Option<PathBuf>,

    #[command(flatten)]
    pub model: ModelArgs,

    /// Accept distances up to this one [default: the model's calibrated threshold]
    #[arg(long, value_name = "DISTANCE", value_parser = threshold)]
    pub threshold: Option<f32>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct PairsArgs {
    /// Folders of images; each folder that directly holds images is one identity
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    #[command(flatten)]
    pub patterns: PatternArgs,

    /// The file to write, which must not be there yet
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Parts that share no identity [default: 10, or as many as there are identities for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub folds: Option<u64>,

    /// Genuine pairs of each fold, and as many impostor pairs [default: 300, or as many as there are in each]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub pairs: Option<u64>,

    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Clone, Debug, Args)]
pub struct EmbedArgs {
    /// Folders of images; each folder that directly holds images is one identity
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    #[command(flatten)]
    pub patterns: PatternArgs,

    #[command(flatten)]
    pub model: ModelArgs,

    /// The file to write, which must not be there yet: tensors embeddings [N, D] and labels [N], with --forged
    /// forged [N], which is 1 for a forgery of the label's identity; and the metadata names and identities, both
    /// JSON lists
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// What to do about an image that cannot be read
    #[arg(long, value_name = "WHAT", value_enum, default_value = "skip")]
    pub on_bad_image: OnBadImage,
}

#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    /// Folders of images; each folder that directly holds images is one identity
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    #[command(flatten)]
    pub patterns: PatternArgs,

    #[command(flatten)]
    pub model: ModelArgs,

    /// Only these top-level folders of DIR, e.g. those held out in training
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Skilled forgeries, in folders named as the identities that they imitate: scored apart
    #[arg(long, value_name = "DIR", conflicts_with = "forged")]
    pub forgeries: Option<PathBuf>,

    /// Places among the nearest that recall is measured at
    #[arg(long, value_name = "K", value_delimiter = ',', default_value = "1,2,4,8", value_parser = count)]
    pub recall_at: Vec<usize>,

    /// Identities to tell apart in a one-shot trial
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "5,20", value_parser = count)]
    pub ways: Vec<usize>,

    /// One-shot trials
    #[arg(long, value_name = "N", default_value = "1000", value_parser = count)]
    pub trials: usize,

    /// Measure recognition too: half of the identities are enrolled, and images of both halves are searched for
    #[arg(long)]
    pub gallery: bool,

    /// Images of each person that are enrolled
    #[arg(long, value_name = "N", default_value = "1", requires = "gallery", value_parser = count)]
    pub enrolled: usize,

    /// What to do about an image that cannot be read
    #[arg(long, value_name = "WHAT", value_enum, default_value = "skip")]
    pub on_bad_image: OnBadImage,

    /// Seed of the one-shot trials and of who is enrolled
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Write eval.json, pictures and report.html to this folder, absent or empty
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Run folders, of runs that have come to their end
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,

    /// Draw the equal error rates and recall@1 to this .png file
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct EnrollArgs {
    /// The gallery, which is made if there is none
    #[arg(value_name = "GALLERY")]
    pub gallery: PathBuf,

    /// An image, or folders of images; each folder that directly holds images is one person
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// Whose images these are, all of them
    #[arg(long, value_name = "NAME", conflicts_with = "identity")]
    pub name: Option<String>,

    #[command(flatten)]
    pub patterns: PatternArgs,

    #[command(flatten)]
    pub model: ModelArgs,

    /// A note that each sample keeps
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,

    /// What to do about an image that cannot be read
    #[arg(long, value_name = "WHAT", value_enum, default_value = "skip")]
    pub on_bad_image: OnBadImage,
}

#[derive(Clone, Debug, Args)]
#[command(allow_negative_numbers = true)] // so that a negative threshold is refused as such
pub struct IdentifyArgs {
    /// The gallery
    #[arg(value_name = "GALLERY")]
    pub gallery: PathBuf,

    /// An image, or a folder of images, at any depth
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    #[command(flatten)]
    pub model: ModelArgs,

    /// How many people to name for each image, nearest first
    #[arg(long, value_name = "N", default_value = "5", value_parser = count)]
    pub top: usize,

    /// What a person with several samples counts by
    #[arg(long, value_enum, default_value = "nearest")]
    pub by: By,

    /// Nobody is farther than this [default: where 1 per cent of strangers find somebody among so many people as the gallery
    /// has, by the run's validation images]
    #[arg(long, value_name = "DISTANCE", value_parser = threshold)]
    pub threshold: Option<f32>,

    /// What to do about an image that cannot be read
    #[arg(long, value_name = "WHAT", value_enum, default_value = "skip")]
    pub on_bad_image: OnBadImage,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What `mine` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mined {
    /// Each image with its farthest positive, and one of its nearest negatives.
    Triplets,
    /// Pairs of images of two identities, the nearest first, no pair twice.
    Pairs,
}

#[derive(Clone, Debug, Args)]
pub struct MineArgs {
    /// Folders of images; each folder that directly holds images is one identity
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    #[command(flatten)]
    pub patterns: PatternArgs,

    #[command(flatten)]
    pub model: ModelArgs,

    /// What to write: lines of anchor,positive,negative and both distances, or of image1,image2 and their distance
    #[arg(long = "as", value_enum, default_value = "triplets")]
    pub mined: Mined,

    /// The hardest negatives of each image
    #[arg(long, value_name = "K", default_value = "1", value_parser = count)]
    pub top: usize,

    /// The CSV file to write, which must not be there yet
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// What to do about an image that cannot be read
    #[arg(long, value_name = "WHAT", value_enum, default_value = "skip")]
    pub on_bad_image: OnBadImage,
}

#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// The gallery
    #[arg(value_name = "GALLERY")]
    pub gallery: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RenameArgs {
    /// The gallery
    #[arg(value_name = "GALLERY")]
    pub gallery: PathBuf,

    /// The person
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Their new name, which nobody has
    #[arg(value_name = "NEW")]
    pub to: String,
}

#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    /// The gallery
    #[arg(value_name = "GALLERY")]
    pub gallery: PathBuf,

    /// The person
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Only the sample that came from this image, as `identify` names it
    #[arg(long, value_name = "IMAGE")]
    pub sample: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// The gallery
    #[arg(value_name = "GALLERY")]
    pub gallery: PathBuf,

    /// The file to write, which must not be there yet; .safetensors or .npy
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// The gallery, which is made if there is none
    #[arg(value_name = "GALLERY")]
    pub gallery: PathBuf,

    /// A .safetensors file with embeddings [N, D], labels [N], and the metadata names and identities; or a .npy file of
    /// embeddings [N, D]
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Whose the embeddings of a .npy file are: CSV with the columns person and source, a line for each [default: FILE.csv]
    #[arg(long, value_name = "CSV")]
    pub people: Option<PathBuf>,

    /// The model that made the embeddings
    #[command(flatten)]
    pub model: ModelArgs,
}

impl ModelArgs {
    /// The device that `--device` names.
    pub fn device(&self) -> anyhow::Result<Device> {
        device::device(&self.device, Job::Embed)
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if (1..=1_000_000).contains(&value) => Ok(value),
        _ => Err("expected a whole number from 1 to 1000000".into()),
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err("expected a number between 0 and 1".into()),
    }
}

fn threshold(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a distance, 0 or above".into()),
    }
}

/// Adam changes a weight by about the learning rate in a step.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e9 => Ok(value),
        _ => Err("expected a number above 0, and at most 1e9".into()),
    }
}

fn decay(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1e9).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1e9".into()),
    }
}

fn strength(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=10.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 10".into()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number, 0 or above".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_options_are_refused_by_name() {
        for (options, words) in [
            (&["--val-split", "1.5"][..], ["--val-split", "between 0 and 1"]),
            (&["--margin", "-1"], ["--margin", "from 0 to 1e9"]),
            (&["--margin", "nan"], ["--margin", "from 0 to 1e9"]),
            (&["--margin", "1e39"], ["--margin", "from 0 to 1e9"]),
            (&["--weight-decay", "1e300"], ["--weight-decay", "from 0 to 1e9"]),
            (&["--learning-rate", "1e300"], ["--learning-rate", "at most 1e9"]),
            (&["--augment", "1e39"], ["--augment", "from 0 to 10"]),
            (&["--time-limit", "1e400"], ["--time-limit", "0 or above"]),
            (&["--time-limit", "-0.5"], ["--time-limit", "0 or above"]),
            (&["--epochs", "18446744073709551616"], ["--epochs", "number too large"]),
            (&["--classes-per-batch", "1000001"], ["--classes-per-batch", "2..=1000000"]),
            (&["--samples-per-class", "1000001"], ["--samples-per-class", "2..=1000000"]),
            (&["--batch-triplets", "10000001"], ["--batch-triplets", "1..=10000000"]),
            (&["--distance", "manhattan"], ["--distance", "lp:P"]),
            (&["--soft-margin", "maybe"], ["--soft-margin", "true"]),
            (&["--mean-over", "none"], ["--mean-over", "valid"]),
            (&["--reduction", "none"], ["--reduction", "sum"]),
            (&["--pairs", "twice"], ["--pairs", "ordered"]),
            (&["--learning-rate", "0"], ["--learning-rate", "above 0"]),
            (&["--learning-rate", "inf"], ["--learning-rate", "above 0"]),
            (&["--embedding-dim", "0"], ["--embedding-dim", "1..=65536"]),
            (&["--image-size", "4"], ["--image-size", "8..=1024"]),
            (&["--epochs", "0"], ["--epochs", "1.."]),
            (&["--steps", "0"], ["--steps", "1.."]),
            (&["--classes-per-batch", "1"], ["--classes-per-batch", "2..=1000000"]),
            (&["--samples-per-class", "1"], ["--samples-per-class", "2..=1000000"]),
            (&["--batch-triplets", "0"], ["--batch-triplets", "1..=10000000"]),
            (&["--workers", "0"], ["--workers", "1..=1024"]),
            (&["--image-cache", "-1"], ["--image-cache", "-1"]),
            (&["--min-images", "2"], ["--data", "required"]),
            (&["--data", "x", "--min-images", "0"], ["--min-images", "1.."]),
            (&["--patience", "0"], ["--patience", "1.."]),
            (&["--seed", "one"], ["--seed", "one"]),
            (&["--normalize", "maybe"], ["--normalize", "maybe"]),
            (&["--hold-out", "group1"], ["--data", "required"]),
            (&["--data", "x", "--signers", "9"], ["--data", "--signers"]),
            (&["--data", "x", "--val-data", "y", "--hold-out", "z"], ["--val-data", "--hold-out"]),
            (&["--resume", "x", "--out", "y"], ["--resume", "--out"]),
            (&["--encoder", "vgg16"], ["--encoder", "resnet18"]),
            (&["--loss", "softmax"], ["--loss", "contrastive"]),
            (&["--negative", "easy"], ["--negative", "semi-hard"]),
            (&["--memory", "-1"], ["--memory", "-1"]),
            (&["--on-bad-image", "repair"], ["--on-bad-image", "stop"]),
            (&["--data", "x", "--identity", "a(b"], ["--identity", "unclosed group"]),
            (&["--data", "x", "--identity", "ab"], ["--identity", "a group in parentheses"]),
            (&["--data", "x", "--forged", "["], ["--forged", "unclosed"]),
            (&["--data", "x", "--train-forgeries"], ["--forged", "required"]),
            (
                &["--data", "x", "--forged", "f", "--train-forgeries", "--memory", "64"],
                ["--train-forgeries", "--memory"],
            ),
        ] {
            let error = Cli::try_parse_from([&["tercet", "train"], options].concat()).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2, "{text}");
            words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in: {text}"));
        }
    }
}
