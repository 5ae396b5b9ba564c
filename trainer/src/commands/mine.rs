//! `tercet mine`: the hardest triplets or pairs of a folder's images, for training on what a model confuses, or for a look at
//! labels that may be wrong.

use crate::commands::cli::{MineArgs, Mined};
use crate::data::collections::Patterns;
use crate::data::folders::{self, below};
use crate::model::nearest::for_nearest_others;
use crate::model::saved::{Embedded, Model};
use crate::model::vectors::Vectors;
use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::named::plural;
use crate::process::say::{say, say_path};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Writes `--out`, which must not be there yet.
pub fn mine(args: &MineArgs) -> Result<()> {
    let device = args.model.device()?;
    atomic::check_new("--out", &args.out)?;
    let found = folders::find(&args.folder, &Patterns::new(&args.patterns)?)?;
    let model = Model::load(&args.model.model, device)?;
    let all = found.genuine.values().enumerate().flat_map(|(owner, files)| files.iter().map(move |file| (owner, file)));
    let (owners, files): (Vec<usize>, Vec<PathBuf>) = all.map(|(owner, file)| (owner, file.clone())).unzip();
    let Embedded { vectors, kept, .. } = model.embed(&files, args.on_bad_image)?;
    let owners: Vec<usize> = kept.iter().map(|&file| owners[file]).collect();
    if owners.iter().collect::<BTreeSet<_>>().len() < 2 {
        return Err(bad_input(format!("{}: readable images of fewer than two identities", args.folder.display())));
    }
    let name = |image: usize| below(&args.folder, &files[kept[image]]);
    let negatives = nearest_negatives(&vectors, &owners, args.top);
    let mut lines = csv::Writer::from_writer(Vec::new());
    let mut count = 0;
    match args.mined {
        Mined::Triplets => {
            lines.write_record(["anchor", "positive", "negative", "distance_positive", "distance_negative"])?;
            for (anchor, negatives) in negatives.iter().enumerate() {
                let Some((positive, far)) = farthest_positive(&vectors, &owners, anchor) else { continue };
                for &(negative, near) in negatives {
                    let images = [anchor, positive, negative].map(name);
                    lines.write_record(images.iter().chain(&[far.to_string(), near.to_string()]))?;
                    count += 1;
                }
            }
            if count == 0 {
                return Err(bad_input(format!("{}: no identity with two readable images", args.folder.display())));
            }
        }
        Mined::Pairs => {
            lines.write_record(["image1", "image2", "distance"])?;
            let each = negatives.iter().enumerate();
            let pairs = each.flat_map(|(i, near)| near.iter().map(move |&(j, d)| ((i.min(j), i.max(j)), d)));
            let mut pairs: Vec<((usize, usize), f32)> = pairs.collect::<BTreeMap<_, _>>().into_iter().collect();
            pairs.sort_by(|x, y| x.1.total_cmp(&y.1).then(x.0.cmp(&y.0)));
            for ((i, j), d) in &pairs {
                lines.write_record([name(*i), name(*j), d.to_string()])?;
            }
            count = pairs.len();
        }
    }
    let lines = lines.into_inner().map_err(|error| error.into_error())?;
    atomic::write_new("--out", &args.out, &lines)?;
    let what = match args.mined {
        Mined::Triplets => plural(count, "triplet", "triplets"),
        Mined::Pairs => plural(count, "pair", "pairs"),
    };
    say(&format!("{count} {what} of {} images", owners.len()))?;
    say_path(&args.out)
}

/// For each image the nearest `top` of other identities. Its own images may all be nearer.
fn nearest_negatives(vectors: &Vectors, owners: &[usize], top: usize) -> Vec<Vec<(usize, f32)>> {
    let mut sizes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut of_owner: BTreeMap<usize, usize> = BTreeMap::new();
    owners.iter().for_each(|&owner| *of_owner.entry(owner).or_default() += 1);
    owners.iter().enumerate().for_each(|(image, owner)| sizes.entry(of_owner[owner]).or_default().push(image));
    let mut negatives = vec![Vec::new(); owners.len()];
    for (size, images) in sizes {
        let of_others = |image: usize, near: &[(usize, f32)]| -> Vec<(usize, f32)> {
            near.iter().filter(|(j, _)| owners[*j] != owners[image]).take(top).copied().collect()
        };
        let found = for_nearest_others(vectors, &images, (top + size - 1).min(owners.len() - 1), of_others);
        images.into_iter().zip(found).for_each(|(image, near)| negatives[image] = near);
    }
    negatives
}

/// The farthest other image of the anchor's identity; of equally far ones the first.
fn farthest_positive(vectors: &Vectors, owners: &[usize], anchor: usize) -> Option<(usize, f32)> {
    let others = (0..owners.len()).filter(|&other| other != anchor && owners[other] == owners[anchor]);
    let distances = others.map(|other| (other, vectors.distance(anchor, other)));
    distances.min_by(|x, y| y.1.total_cmp(&x.1).then(x.0.cmp(&y.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::distance::Distance;

    #[test]
    fn negatives_are_the_nearest_of_others_however_many_positives_are_nearer() {
        let rows = vec![0.0, 1.0, 2.0, 3.0, 10.0, 11.0, -5.0];
        let vectors = Vectors::new(rows, 1, Distance::Euclidean);
        let owners = [0, 0, 0, 0, 1, 1, 2];
        let negatives = nearest_negatives(&vectors, &owners, 2);
        assert_eq!(negatives[0], [(6, 5.0), (4, 10.0)]);
        assert_eq!(negatives[3], [(4, 7.0), (5, 8.0)]);
        assert_eq!(negatives[6], [(0, 5.0), (1, 6.0)]);
        assert_eq!(nearest_negatives(&vectors, &owners, 99)[4].len(), 5);
        assert_eq!(farthest_positive(&vectors, &owners, 1), Some((3, 2.0)));
        assert_eq!(farthest_positive(&vectors, &owners, 6), None);
    }
}
