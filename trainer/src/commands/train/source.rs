//! Where a run's images come from: training and validation sets that share no identity.

use crate::commands::cli::TrainArgs;
use crate::data::collections::{PatternArgs, Patterns};
use crate::data::dataset::{Dataset, split_folders, split_fraction};
use crate::data::doubles::Doubles;
use crate::data::folders::{self, Found, Identities, names};
use crate::data::images::{Budget, Images, Reader};
use crate::data::signatures::Signer;
use crate::process::bad_input::bad_input;
use crate::process::named::Named;
use crate::process::say::note;
use anyhow::Result;
use image::GrayImage;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;

/// Drawings of each generated signer, and forgeries of each validation signer.
const DRAWINGS: usize = 12;
const FORGERIES: usize = 4;

/// The two sets of a run.
pub struct Source {
    /// The set that is trained on.
    pub train: Dataset,
    /// The set that is evaluated on.
    pub val: Dataset,
    /// Skilled forgeries of the validation identities, if there are any: never trained on. Forgeries that are trained
    /// on, as negatives, are in `train`.
    pub forged: Option<Dataset>,
    /// Files that could not be read.
    pub skipped: usize,
    /// What the images are, for people: `generated signatures`, or the folder.
    pub description: String,
}

/// Reads or generates the images, of which `cache` MiB are held in memory.
pub fn open(args: &TrainArgs, size: usize, cache: u64) -> Result<Source> {
    let Some(data) = &args.data else {
        if args.patterns != PatternArgs::default() {
            return Err(bad_input("--identity and --forged are for --data, which is not given"));
        }
        return Ok(generated(args, size));
    };
    let patterns = Patterns::new(&args.patterns)?;
    let Found { genuine: all, forged } = folders::find(data, &patterns)?;
    let mut forged = [forged, Identities::new()]; // of --data, and of --val-data
    let (mut train, val) = if let Some(val_data) = &args.val_data {
        refuse_overlap(data, val_data)?;
        let found = folders::find(val_data, &patterns)?;
        forged[1] = found.forged;
        let same: Named = found.genuine.keys().filter(|name| all.contains_key(*name)).collect();
        same.say("", "identities of --val-data are called as some of --data are, and count as others");
        refuse_same_files((data, &[&all, &forged[0]]), (val_data, &[&found.genuine, &forged[1]]))?;
        (all, found.genuine)
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
    train.retain(|_, files| files.len() as u64 >= args.min_images);
    let mut reader = Reader::new(size, args.on_bad_image, Budget::mib(cache));
    let mut train = Dataset::read(&train, &mut reader)?;
    let mut val = Dataset::read(&val, &mut reader)?;
    train.leave_out_small(args.min_images as usize);
    let [of_data, of_val_data] = &forged;
    val.read_forgeries(if args.val_data.is_some() { of_val_data } else { of_data }, &mut reader)?;
    if args.train_forgeries {
        train.read_forgeries(of_data, &mut reader)?;
        train.has_forgeries(data)?;
        let forged = train.forgeries.as_ref().map_or(0, |forgeries| forgeries.images.len());
        note(&format!("{forged} forgeries of training identities are negatives of those they imitate"));
    } else {
        let unused: usize = train.names.iter().filter_map(|name| of_data.get(name)).map(Vec::len).sum();
        if unused > 0 {
            note(&format!(
                "{unused} forgeries of training identities are left out; --train-forgeries takes them as negatives"
            ));
        }
    }
    let skipped = reader.end();
    match args.min_images {
        1 => train.check("training")?,
        least => train.check(&format!("training, --min-images {least}"))?,
    }
    val.check("validation")?;
    let mut doubles = Doubles::default();
    doubles.add_set("training", &train);
    doubles.add_set("validation", &val);
    doubles.say(size);
    let forged = val.forgeries.take().map(|forged| *forged);
    Ok(Source { train, val, forged, skipped, description: data.display().to_string() })
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

/// Refuses files that links lead to from both folders.
fn refuse_same_files(train: (&Path, &[&Identities]), val: (&Path, &[&Identities])) -> Result<()> {
    let files = |sets: &[&Identities]| sets.iter().flat_map(|set| set.values()).flatten().cloned().collect::<Vec<_>>();
    let there: HashMap<_, _> = files(train.1).into_iter().filter_map(|file| Some((own_file(&file)?, file))).collect();
    let both = files(val.1).into_iter().filter_map(|file| Some((there.get(&own_file(&file)?)?, file)));
    let both: Named = both.map(|(one, other)| format!("{} is {}", names::text(&other), names::text(one))).collect();
    if both.count() == 0 {
        return Ok(());
    }
    Err(bad_input(format!(
        "--val-data {} and --data {} share {} images, through links: {}",
        val.0.display(),
        train.0.display(),
        both.count(),
        both.examples()
    )))
}

/// The identity of a file: links to it, hard ones too, have the same. `None` if there is no such file.
#[cfg(unix)]
fn own_file(file: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(file).ok().map(|about| (about.dev(), about.ino()))
}

#[cfg(not(unix))]
fn own_file(file: &Path) -> Option<std::path::PathBuf> {
    file.canonicalize().ok()
}

/// Images of generated signers. They are independent draws, so the first ones are as random a split as any.
fn generated(args: &TrainArgs, size: usize) -> Source {
    let all = args.signers as usize;
    let held = (args.val_split * all as f64).round() as usize;
    let train = all - held.clamp(2, all - 2);
    let signers = |range, count, draw| signers(args.seed, range, size, count, draw);
    Source {
        train: signers(0..train, DRAWINGS, Signer::draw),
        val: signers(train..all, DRAWINGS, Signer::draw),
        forged: Some(signers(train..all, FORGERIES, Signer::forge)),
        skipped: 0,
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
        forgeries: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::cli::{Cli, Command};
    use clap::Parser;
    use image::{DynamicImage, GrayImage, ImageFormat, Luma};

    fn opened(data: &Path, options: &[&str]) -> Result<Source> {
        let arguments = [&["tercet", "train", "--data", data.to_str().unwrap()], options].concat();
        match Cli::parse_from(arguments).command {
            Command::Train(args) => open(&args, 16, args.image_cache),
            other => panic!("{other:?}"),
        }
    }

    /// A little picture, a different one for each name.
    fn put(root: &Path, file: &str, format: ImageFormat) {
        let hash = xxhash_rust::xxh3::xxh3_64(file.as_bytes());
        let picture = GrayImage::from_fn(20, 24, |x, y| Luma([(hash >> ((x + 7 * y) % 57)) as u8]));
        let file = root.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        DynamicImage::from(picture).save_with_format(file, format).unwrap();
    }

    #[test]
    fn lfw_as_it_unpacks() {
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in [("Ada_Example", 3), ("Bo_Example", 1), ("Cy_Example", 1), ("Di_Example", 4)] {
            for image in 1..=count {
                put(dir.path(), &format!("lfw/{name}/{name}_{image:04}.jpg"), ImageFormat::Jpeg);
            }
        }
        for (name, count) in [("Ed_Example", 2), ("Flo_Example", 1)] {
            for image in 1..=count {
                put(dir.path(), &format!("test/{name}/{name}_{image:04}.jpg"), ImageFormat::Jpeg);
            }
        }
        let val = dir.path().join("test");
        let val = ["--val-data", val.to_str().unwrap()];
        let source = opened(&dir.path().join("lfw"), &val).unwrap();
        assert_eq!((source.train.names.len(), source.train.with_pairs(), source.train.images.len()), (4, 2, 9));
        assert_eq!(source.val.names, ["Ed_Example", "Flo_Example"]);
        let source = opened(&dir.path().join("lfw"), &[&val[..], &["--min-images", "2"]].concat()).unwrap();
        assert_eq!(
            (source.train.names, source.train.images.len()),
            (vec!["Ada_Example".into(), "Di_Example".into()], 7)
        );
    }

    #[test]
    fn omniglot_as_it_unpacks() {
        let dir = tempfile::tempdir().unwrap();
        for alphabet in ["Greek", "Korean", "Latin"] {
            for character in 1..=2 {
                for drawer in 1..=3 {
                    let file = format!("{alphabet}/character{character:02}/{:04}_{drawer:02}.png", 600 + character);
                    put(&dir.path().join("images_background"), &file, ImageFormat::Png);
                }
            }
        }
        let source = opened(&dir.path().join("images_background"), &["--hold-out", "Korean"]).unwrap();
        assert_eq!(source.val.names, ["Korean/character01", "Korean/character02"]);
        assert_eq!((source.train.names.len(), source.train.images.len()), (4, 12));
        // With the folder above it, names are one level deeper.
        assert_eq!(opened(dir.path(), &[]).unwrap().train.names.len() + 2, 6);
    }

    #[test]
    fn the_faces_of_att_as_they_unpack() {
        let dir = tempfile::tempdir().unwrap();
        for subject in 1..=5 {
            for image in 1..=10 {
                put(dir.path(), &format!("s{subject}/{image}.pgm"), ImageFormat::Pnm);
            }
        }
        std::fs::write(dir.path().join("README"), b"The faces").unwrap();
        let source = opened(dir.path(), &["--val-split", "0.4"]).unwrap();
        assert_eq!((source.train.names.len(), source.val.names.len(), source.train.images.len()), (3, 2, 30));
        assert_eq!((source.skipped, source.train.images.get(0).unwrap().1), (0, 1));
    }

    #[test]
    fn the_cache_is_shared_by_both_sets_and_bad_files_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        for identity in 0..4 {
            for image in 0..2 {
                put(dir.path(), &format!("{identity}/{image}.png"), ImageFormat::Png);
            }
            std::fs::write(dir.path().join(format!("{identity}/torn.webp")), b"RIFF").unwrap();
        }
        let source = opened(dir.path(), &["--image-cache", "0"]).unwrap();
        assert_eq!((source.train.images.held(), source.val.images.held(), source.skipped), (0, 0, 4));
        let all = opened(dir.path(), &[]).unwrap();
        assert_eq!(all.train.images.held() + all.val.images.held(), 8);
        for image in 0..4 {
            assert_eq!(source.val.images.get(image).unwrap(), all.val.images.get(image).unwrap());
        }
    }

    #[test]
    fn folders_that_cannot_be_trained_on_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (identity, image) in (0..4).flat_map(|identity| [(identity, 0), (identity, 1)]) {
            put(&at("good"), &format!("group{}/{identity}/{image}.png", identity % 2), ImageFormat::Png);
            put(&at("single"), &format!("{identity}{image}/0.png"), ImageFormat::Png);
            put(&at("one"), &format!("0/{identity}{image}.png"), ImageFormat::Png);
            put(&at("flat"), &format!("{identity}{image}.png"), ImageFormat::Png);
        }
        std::fs::create_dir(at("empty")).unwrap();
        std::fs::create_dir_all(at("texts/0")).unwrap();
        std::fs::write(at("texts/0/notes.txt"), b"none").unwrap();
        let [good, empty, texts] = ["good", "empty", "texts"].map(|name| at(name).to_str().unwrap().to_owned());
        for (data, options, words) in [
            ("absent", &[][..], &["absent", "not a folder"][..]),
            ("good/group0/0/0.png", &[], &["0.png", "not a folder"]),
            ("empty", &[], &["no images in", "empty", "one folder per identity"]),
            ("texts", &[], &["no images in", "texts", "TIFF"]),
            ("flat", &[], &["no images in", "flat", "one folder per identity"]),
            ("one", &[], &["1 identities", "at least 4", "--val-data"]),
            ("one", &["--val-data", &good], &["training: only 1 identity", "at least 2"]),
            ("single", &[], &["training: all 6 identities have one image only"]),
            ("good", &["--hold-out", "group9"], &["--hold-out group9", "group0, group1"]),
            ("good", &["--hold-out", "group0,group1"], &["training: no identity"]),
            ("good", &["--min-images", "3"], &["training, --min-images 3: no identity"]),
            ("good", &["--val-data", &empty], &["no images in", "empty"]),
            ("good", &["--val-data", &texts], &["no images in", "texts"]),
            ("good/group0", &["--val-data", &good], &["share images", "--hold-out"]),
        ] {
            let error = opened(&at(data), options).err().unwrap_or_else(|| panic!("{data} {options:?}"));
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
            words.iter().for_each(|word| assert!(error.to_string().contains(word), "{word:?} is not in: {error}"));
        }
    }
}
