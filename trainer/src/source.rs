//! Where a run's images come from: training and validation sets that share no identity.

use crate::bad_input::bad_input;
use crate::cli::TrainArgs;
use crate::dataset::{Dataset, split_folders, split_fraction};
use crate::folders;
use crate::images::Images;
use crate::signatures::Signer;
use anyhow::Result;
use image::GrayImage;
use rayon::prelude::*;
use std::path::Path;

/// How often a generated signer signs, and how often a validation signer is forged.
const DRAWINGS: usize = 12;
const FORGERIES: usize = 4;

/// The two sets of a run.
pub struct Source {
    /// Trained on.
    pub train: Dataset,
    /// Evaluated on.
    pub val: Dataset,
    /// Skilled forgeries of the validation identities, where there are any: never trained on.
    pub forged: Option<Dataset>,
    /// What it is, for people: `generated signatures`, or the folder.
    pub description: String,
}

/// Reads or generates the images.
pub fn open(args: &TrainArgs, size: usize) -> Result<Source> {
    let Some(data) = &args.data else {
        return Ok(generated(args, size));
    };
    let all = folders::find(data)?;
    let (train, val) = if let Some(val_data) = &args.val_data {
        refuse_overlap(data, val_data)?;
        (all, folders::find(val_data)?)
    } else if args.hold_out.is_empty() {
        if all.len() < 4 {
            return Err(bad_input(format!(
                "{}: {} identities; a split into training and validation needs at least 4 \
                 (or give --val-data)",
                data.display(),
                all.len()
            )));
        }
        split_fraction(all, args.val_split, args.seed)
    } else {
        split_folders(all, &args.hold_out, "--hold-out")?
    };
    let source = Source {
        train: Dataset::read(&train, size, args.on_bad_image)?,
        val: Dataset::read(&val, size, args.on_bad_image)?,
        forged: None,
        description: data.display().to_string(),
    };
    source.train.check("training")?;
    source.val.check("validation")?;
    Ok(source)
}

/// Validation identities must be new to the encoder: neither folder may lie in the other.
fn refuse_overlap(data: &Path, val_data: &Path) -> Result<()> {
    let (Ok(train), Ok(val)) = (data.canonicalize(), val_data.canonicalize()) else {
        return Ok(()); // a missing folder is reported by the search for images
    };
    if train.starts_with(&val) || val.starts_with(&train) {
        let (train, val) = (data.display(), val_data.display());
        return Err(bad_input(format!(
            "--val-data {val} and --data {train} share images; --hold-out splits one folder"
        )));
    }
    Ok(())
}

/// Signers are independent draws, so the first so many are as random a split as any.
fn generated(args: &TrainArgs, size: usize) -> Source {
    let all = args.signers as usize;
    let held = (args.val_split * all as f64).round() as usize;
    let train = all - held.clamp(2, all - 2);
    let signers = |range, count, draw| signers(args.seed, range, size, count, draw);
    Source {
        train: signers(0..train, DRAWINGS, Signer::draw),
        val: signers(train..all, DRAWINGS, Signer::draw),
        forged: Some(signers(train..all, FORGERIES, Signer::forge)),
        description: "generated signatures".into(),
    }
}

/// `count` drawings of each signer.
fn signers(
    seed: u64,
    range: std::ops::Range<usize>,
    size: usize,
    count: usize,
    draw: fn(&Signer, u64) -> GrayImage,
) -> Dataset {
    let names: Vec<String> = range.clone().map(|identity| format!("generated-{identity:04}")).collect();
    let drawings = range.into_par_iter().flat_map_iter(|identity| {
        let signer = Signer::new(seed, identity as u64);
        (0..count).map(move |i| draw(&signer, i as u64))
    });
    Dataset {
        images: Images::from_grey(drawings.collect(), size),
        members: (0..names.len()).map(|i| (i * count..(i + 1) * count).collect()).collect(),
        names,
    }
}
