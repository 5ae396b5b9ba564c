//! `tercet pairs`: writes a file of pairs for a folder of images.

use crate::commands::cli::PairsArgs;
use crate::data::collections::Patterns;
use crate::data::doubles::{Doubles, Place};
use crate::data::folders::{self, below, names};
use crate::data::images::{Budget, OnBadImage, Reader};
use crate::data::pairs::Numbers;
use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::named::plural;
use crate::process::random::{Purpose, stream};
use crate::process::say::say;
use anyhow::Result;
use rand::seq::{SliceRandom, index};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The folds, and pairs of each kind in a fold, if the options say nothing: as many as LFW has.
const FOLDS: usize = 10;
const PAIRS: usize = 300;
/// The side in pixels: images are only looked at to know that they can be read, and which are equal.
const SIDE: usize = 32;

/// An identity: its name, and its images as the file names them.
struct Identity {
    name: String,
    images: Vec<String>,
}

/// Writes `--out`, which must not be there yet.
pub fn make(args: &PairsArgs) -> Result<()> {
    atomic::check_new("--out", &args.out)?;
    let patterns = Patterns::new(&args.patterns)?;
    let identities = identities(&args.folder, &patterns)?;
    let folds = deal(identities, args)?;
    let (text, each) = text(&folds, args)?;
    atomic::write_new("--out", &args.out, text.as_bytes())?;
    let identities: usize = folds.iter().map(Vec::len).sum();
    let of_folds = plural(folds.len(), "fold", "folds");
    say(&format!(
        "{} {of_folds} of {each} genuine and {each} impostor pairs, {identities} identities\n{}",
        folds.len(),
        args.out.display()
    ))
}

/// The identities of a folder, with the images that can be read.
fn identities(folder: &Path, patterns: &Patterns) -> Result<Vec<Identity>> {
    let found = folders::find(folder, patterns)?.genuine;
    let files: Vec<PathBuf> = found.values().flatten().cloned().collect();
    let owners: Vec<&String> = found.iter().flat_map(|(name, files)| files.iter().map(move |_| name)).collect();
    let mut reader = Reader::new(SIDE, OnBadImage::Skip, Budget::mib(0));
    let (images, kept) = reader.read(&files)?;
    reader.end();
    let mut doubles = Doubles::default();
    let mut readable: BTreeMap<&String, Vec<&PathBuf>> = BTreeMap::new();
    for (image, &file) in kept.iter().enumerate() {
        let place = Place { set: "", identity: owners[file], forged: false };
        doubles.add(images.hash(image), place, images.file(image));
        readable.entry(owners[file]).or_default().push(&files[file]);
    }
    doubles.say(SIDE);
    let identity = |(name, readable): (&String, Vec<&PathBuf>)| {
        let named: Vec<String> = if patterns.has_identity() {
            readable.iter().map(|file| format!("./{}", below(folder, file))).collect()
        } else {
            written(&found[name], &readable)
        };
        Identity { name: name.clone(), images: named }
    };
    Ok(readable.into_iter().map(identity).collect())
}

/// How the file names `readable` images: by the number in the image's name if it means this image alone, else by name.
/// `all` are the images of the folder.
fn written(all: &[PathBuf], readable: &[&PathBuf]) -> Vec<String> {
    let own = all[0].parent().and_then(Path::file_name).map(names::part).unwrap_or_default();
    let mut numbers = BTreeMap::new();
    if let Numbers::Known(known) = Numbers::of(all, &own) {
        let alone = known.into_iter().filter(|(_, places)| places.len() == 1);
        numbers.extend(alone.map(|(number, places)| (&all[places[0]], number)));
    }
    let name = |file: &PathBuf| file.file_name().map(names::part).unwrap_or_default();
    readable.iter().map(|file| numbers.get(file).map_or_else(|| name(file), usize::to_string)).collect()
}

/// Deals identities out to folds, those with the most images first, so that all folds have about as many.
fn deal(mut identities: Vec<Identity>, args: &PairsArgs) -> Result<Vec<Vec<Identity>>> {
    let paired = identities.iter().filter(|identity| identity.images.len() > 1).count();
    let possible = paired.min(identities.len() / 2);
    let wanted = args.folds.map_or(FOLDS.min(possible).max(1), |folds| folds as usize);
    if wanted > possible {
        return Err(bad_input(format!(
            "{}: {} identities, {paired} of them with more than one image; {wanted} folds need {} and {wanted}",
            args.folder.display(),
            identities.len(),
            2 * wanted,
        )));
    }
    identities.shuffle(&mut stream(args.seed, Purpose::Pairs, 0, 0));
    identities.sort_by_key(|identity| std::cmp::Reverse(identity.images.len()));
    let mut folds: Vec<Vec<Identity>> = (0..wanted).map(|_| Vec::new()).collect();
    identities.into_iter().enumerate().for_each(|(i, identity)| folds[i % wanted].push(identity));
    Ok(folds)
}

/// The text of the file, and how many pairs of each kind a fold has.
fn text(folds: &[Vec<Identity>], args: &PairsArgs) -> Result<(String, usize)> {
    let possible = folds.iter().map(|fold| genuine(fold).min(impostor(fold))).min().unwrap_or(0);
    let each = args.pairs.map_or(PAIRS.min(possible), |pairs| pairs as usize);
    if each > possible {
        return Err(bad_input(format!(
            "--pairs {each}: in {} there are at most {possible} genuine and as many impostor pairs for each of {} folds",
            args.folder.display(),
            folds.len()
        )));
    }
    let mut out = if folds.len() == 1 { format!("{each}\n") } else { format!("{}\t{each}\n", folds.len()) };
    for (number, fold) in folds.iter().enumerate() {
        let mut rng = stream(args.seed, Purpose::Pairs, 1, number as u64);
        for n in index::sample(&mut rng, genuine(fold), each) {
            let (identity, i, j) = genuine_pair(fold, n);
            let Identity { name, images } = &fold[identity];
            writeln!(out, "{name}\t{}\t{}", images[i], images[j])?;
        }
        for n in index::sample(&mut rng, impostor(fold), each) {
            let [(one, i), (other, j)] = impostor_pair(fold, n);
            let (one, other) = (&fold[one], &fold[other]);
            writeln!(out, "{}\t{}\t{}\t{}", one.name, one.images[i], other.name, other.images[j])?;
        }
    }
    Ok((out, each))
}

/// How many pairs of one identity a fold has.
fn genuine(fold: &[Identity]) -> usize {
    fold.iter().map(|identity| pairs_of(identity.images.len())).sum()
}

fn pairs_of(images: usize) -> usize {
    images * images.saturating_sub(1) / 2
}

/// How many pairs of two identities a fold has.
fn impostor(fold: &[Identity]) -> usize {
    pairs_of(fold.iter().map(|identity| identity.images.len()).sum()) - genuine(fold)
}

/// The `n`-th genuine pair: the identity, and two of its images, the first before the second.
fn genuine_pair(fold: &[Identity], mut n: usize) -> (usize, usize, usize) {
    for (place, identity) in fold.iter().enumerate() {
        let own = pairs_of(identity.images.len());
        if n < own {
            let second = (1..).find(|&second| pairs_of(second + 1) > n).expect("n is one of them");
            return (place, n - pairs_of(second), second);
        }
        n -= own;
    }
    unreachable!("there are fewer pairs")
}

/// The `n`-th impostor pair: two identities, the first before the second, and an image of each.
fn impostor_pair(fold: &[Identity], mut n: usize) -> [(usize, usize); 2] {
    let mut behind: usize = fold.iter().map(|identity| identity.images.len()).sum();
    for (one, identity) in fold.iter().enumerate() {
        let own = identity.images.len();
        behind -= own;
        if n < own * behind {
            let (image, mut partner) = (n / behind, n % behind);
            for (other, identity) in fold.iter().enumerate().skip(one + 1) {
                if partner < identity.images.len() {
                    return [(one, image), (other, partner)];
                }
                partner -= identity.images.len();
            }
        }
        n -= own * behind;
    }
    unreachable!("there are fewer pairs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::collections::PatternArgs;
    use crate::data::pairs::read;
    use image::{GrayImage, Luma};
    use std::collections::BTreeSet;

    /// A little picture, a different one for each name.
    fn put(root: &Path, file: &str) {
        let hash = xxhash_rust::xxh3::xxh3_64(file.as_bytes());
        let file = root.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        GrayImage::from_fn(20, 24, |x, y| Luma([(hash >> ((x + 7 * y) % 57)) as u8])).save(file).unwrap();
    }

    fn args(folder: &Path, out: &str, folds: Option<u64>, pairs: Option<u64>, seed: u64) -> PairsArgs {
        let patterns = PatternArgs::default();
        PairsArgs { folder: folder.to_owned(), patterns, out: folder.with_file_name(out), folds, pairs, seed }
    }

    /// Makes ten identities of 1 to 4 images, in folders with all kinds of names; one image is torn.
    fn data(root: &Path) {
        for i in 0..10 {
            for image in 0..=i % 4 {
                let file = match i {
                    0..3 => format!("lfw{i}/lfw{i}_{:04}.png", image + 1),
                    3..6 => format!("deep/from zero {i}/{image:04}.png"),
                    6..8 => format!("plain{i}/{}.png", ["a", "b", "c", "d"][image]),
                    _ => format!("same{i}/c-{image}-1.png"),
                };
                put(root, &file);
            }
        }
        std::fs::write(root.join("lfw2/lfw2_0009.png"), b"torn").unwrap();
    }

    #[test]
    fn a_file_of_pairs_is_one_that_verify_reads() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        data(&root);
        let written = |out: &str, folds, pairs, seed| {
            let args = args(&root, out, folds, pairs, seed);
            make(&args).unwrap();
            std::fs::read_to_string(&args.out).unwrap()
        };
        let text = written("pairs.txt", Some(3), None, 0);
        assert_eq!(text, written("again.txt", Some(3), None, 0));
        assert_ne!(text, written("other.txt", Some(3), None, 1));
        assert!(text.starts_with("3\t"), "{text}");

        let pairs = read(&[dir.path().join("pairs.txt")], &root).unwrap();
        let folder = |image: usize| pairs.files[image].parent().unwrap().to_owned();
        let (mut all, mut before) = (BTreeSet::new(), BTreeSet::new());
        for fold in &pairs.folds {
            assert_eq!(fold.iter().filter(|pair| pair.genuine).count() * 2, fold.len());
            let mut own = BTreeSet::new();
            for pair in fold {
                assert!(all.insert([pair.first.min(pair.second), pair.first.max(pair.second)]), "{pair:?} twice");
                assert_eq!(folder(pair.first) == folder(pair.second), pair.genuine);
                own.extend([folder(pair.first), folder(pair.second)]);
            }
            assert!(own.is_disjoint(&before), "an identity in two folds");
            before.extend(own);
        }
        assert!(pairs.files.iter().all(|file| image::open(file).is_ok()));
        assert_eq!(written("two.txt", Some(2), Some(2), 0).lines().count(), 1 + 2 * 4);
    }

    #[test]
    fn every_pair_can_be_drawn_and_is_drawn_once() {
        let identity = |images: usize| Identity { name: String::new(), images: vec![String::new(); images] };
        let fold = [3, 1, 4, 2].map(identity);
        let drawn: BTreeSet<_> = (0..genuine(&fold)).map(|n| genuine_pair(&fold, n)).collect();
        assert_eq!((drawn.len(), genuine(&fold)), (10, 10));
        assert!(drawn.iter().all(|&(identity, i, j)| i < j && j < fold[identity].images.len()));
        let drawn: BTreeSet<_> = (0..impostor(&fold)).map(|n| impostor_pair(&fold, n)).collect();
        assert_eq!((drawn.len(), impostor(&fold)), (35, 35));
        assert!(drawn.iter().all(|&[(a, i), (b, j)]| a < b && i < fold[a].images.len() && j < fold[b].images.len()));
    }

    #[test]
    fn patterns_say_who_is_who_and_forgeries_are_in_no_pair() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cedar");
        for (writer, image) in (1..=4).flat_map(|writer| (1..=3).map(move |image| (writer, image))) {
            put(&root, &format!("full_org/original_{writer}_{image}.png"));
            put(&root, &format!("full_forg/forgeries_{writer}_{image}.png"));
        }
        let mut args = args(&root, "pairs.txt", None, None, 0);
        args.patterns.identity = Some(r"original_(\d+)_".into());
        args.patterns.forged = Some(r"forgeries_(\d+)_".into());
        make(&args).unwrap();
        let pairs = read(&[args.out], &root).unwrap();
        assert_eq!((pairs.folds.len(), pairs.files.len()), (2, 12));
        let writer = |image: usize| pairs.files[image].file_stem().unwrap().to_str().unwrap()[..10].to_owned();
        for pair in pairs.folds.iter().flatten() {
            assert!(writer(pair.first).starts_with("original_"));
            assert_eq!(writer(pair.first) == writer(pair.second), pair.genuine);
        }
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        data(&root);
        let refused = |folds, pairs, words: &str| {
            let args = args(&root, "never.txt", folds, pairs, 0);
            let error = make(&args).unwrap_err();
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
            assert!(error.to_string().contains(words), "{error}");
            assert!(!args.out.exists());
        };
        refused(Some(6), None, "10 identities, 7 of them with more than one image; 6 folds need 12 and 6");
        refused(None, Some(999), "--pairs 999");
        std::fs::write(dir.path().join("never.txt"), b"mine").unwrap();
        assert!(make(&args(&root, "never.txt", None, None, 0)).unwrap_err().to_string().contains("already there"));
        assert_eq!(std::fs::read(dir.path().join("never.txt")).unwrap(), b"mine");
    }
}
