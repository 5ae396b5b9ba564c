//! Images with identities, and the split into training and validation identities.

use crate::data::folders::{Identities, names};
use crate::data::images::{Images, Reader};
use crate::process::bad_input::bad_input;
use crate::process::random::{Purpose, stream};
use crate::process::say::note;
use anyhow::Result;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Images, and the identities that they belong to.
pub struct Dataset {
    /// The pictures.
    pub images: Images,
    /// For each identity, its images.
    pub members: Vec<Vec<usize>>,
    /// For each identity, its name.
    pub names: Vec<String>,
    /// Skilled forgeries: `forgeries.members[i]` imitate identity `i`, and may be empty.
    pub forgeries: Option<Box<Dataset>>,
}

impl Dataset {
    /// Reads the files of all identities. An identity without a readable image is left out.
    pub fn read(identities: &Identities, reader: &mut Reader) -> Result<Self> {
        let (images, mut members) = Self::read_members(identities.values(), reader)?;
        let mut names: Vec<String> = identities.keys().cloned().collect();
        let mut there = members.iter().map(|images| !images.is_empty());
        names.retain(|_| there.next() == Some(true));
        members.retain(|images| !images.is_empty());
        Ok(Self { images, members, names, forgeries: None })
    }

    /// Reads forgeries of the set's identities, if there are any.
    pub fn read_forgeries(&mut self, forged: &Identities, reader: &mut Reader) -> Result<()> {
        let none = Vec::new();
        let files = self.names.iter().map(|name| forged.get(name).unwrap_or(&none));
        let (images, members) = Self::read_members(files, reader)?;
        if images.len() > 0 {
            self.forgeries = Some(Box::new(Self { images, members, names: self.names.clone(), forgeries: None }));
        }
        Ok(())
    }

    /// An error if there are no forgeries, which `--train-forgeries` needs.
    pub fn has_forgeries(&self, data: &Path) -> Result<()> {
        match &self.forgeries {
            Some(_) => Ok(()),
            None => Err(bad_input(format!(
                "--train-forgeries: {} has no forgeries of training identities (--forged says how they are named)",
                data.display()
            ))),
        }
    }

    /// Reads lists of files: the images, and which of them come from each list.
    fn read_members<'a>(
        lists: impl Iterator<Item = &'a Vec<PathBuf>>,
        reader: &mut Reader,
    ) -> Result<(Images, Vec<Vec<usize>>)> {
        let (mut files, mut owners, mut members) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, list) in lists.enumerate() {
            files.extend_from_slice(list);
            owners.resize(files.len(), owner);
            members.push(Vec::new());
        }
        let (images, kept) = reader.read(&files).map_err(|error| {
            // Images are refused only if that option says so.
            bad_input(format!("{error:#} (--on-bad-image skip leaves such images out)"))
        })?;
        for (image, file) in kept.into_iter().enumerate() {
            members[owners[file]].push(image);
        }
        Ok((images, members))
    }

    /// Leaves out identities of fewer than `least` images, before forgeries are read.
    pub fn leave_out_small(&mut self, least: usize) {
        let mut large = self.members.iter().map(|images| images.len() >= least);
        self.names.retain(|_| large.next() == Some(true));
        self.members.retain(|images| images.len() >= least);
        let mut wanted = vec![false; self.images.len()];
        self.members.iter().flatten().for_each(|&image| wanted[image] = true);
        self.images.retain(&wanted);
        // The images that stay have moved up by as many as have gone before them.
        let mut place = 0;
        let mut next = |&stays: &bool| {
            let own = place;
            place += usize::from(stays);
            own
        };
        let places: Vec<usize> = wanted.iter().map(&mut next).collect();
        self.members.iter_mut().flatten().for_each(|image| *image = places[*image]);
    }

    /// How many identities have at least two images, so that they can give a pair.
    pub fn with_pairs(&self) -> usize {
        self.members.iter().filter(|images| images.len() > 1).count()
    }

    /// Refuses a set without two identities and one pair: it has neither a triplet nor a ROC curve. `role` names the
    /// set in the message.
    pub fn check(&self, role: &str) -> Result<()> {
        let (identities, pairs) = (self.members.len(), self.with_pairs());
        if identities < 2 {
            let only = if identities == 0 { "no" } else { "only 1" };
            return Err(bad_input(format!("{role}: {only} identity with readable images; at least 2 are needed")));
        }
        if pairs == 0 {
            return Err(bad_input(format!(
                "{role}: all {identities} identities have one image only; \
                 at least one identity needs 2"
            )));
        }
        if pairs < identities {
            let single = identities - pairs;
            note(&format!("{role}: {single} of {identities} identities have one image: negatives only"));
        }
        Ok(())
    }

    /// At most `limit` images with their identities, `(image, identity)`: first two images of each identity that has
    /// two, then one after the other in turn, so that all stay represented and a small sample still has genuine pairs.
    pub fn sample(&self, limit: usize, seed: u64) -> Vec<(usize, usize)> {
        let mut rng = stream(seed, Purpose::Split, 1, 0);
        let mut shuffled: Vec<(usize, Vec<usize>)> = self.members.iter().cloned().enumerate().collect();
        shuffled.shuffle(&mut rng);
        shuffled.iter_mut().for_each(|(_, images)| images.shuffle(&mut rng));
        shuffled.sort_by_key(|(_, images)| images.len() < 2);
        let longest = shuffled.iter().map(|(_, images)| images.len()).max().unwrap_or(0);
        let rounds = std::iter::once(0..2).chain((2..longest).map(|i| i..i + 1));
        let in_turn = rounds.flat_map(|round| {
            let of = move |(owner, images): &(usize, Vec<usize>)| {
                let chosen = images.iter().skip(round.start).take(round.len());
                chosen.map(|&image| (image, *owner)).collect::<Vec<_>>()
            };
            shuffled.iter().flat_map(of)
        });
        let mut chosen: Vec<_> = in_turn.take(limit).collect();
        chosen.sort_unstable();
        chosen
    }
}

/// Holds out a fraction of the identities, drawn by the seed: `(training, validation)`.
pub fn split_fraction(all: Identities, fraction: f64, seed: u64) -> (Identities, Identities) {
    let mut names: Vec<String> = all.keys().cloned().collect();
    names.shuffle(&mut stream(seed, Purpose::Split, 0, 0));
    // At least two on each side, if there are that many: one identity has no impostors.
    let wanted = (fraction * names.len() as f64).round() as usize;
    let held = wanted.clamp(2.min(names.len()), names.len().saturating_sub(2).max(1));
    let held: BTreeSet<String> = names.into_iter().take(held).collect();
    all.into_iter().partition(|(name, _)| !held.contains(name))
}

/// Holds out whole top-level folders by name: `(training, validation)`. `option` is named in errors.
pub fn split_folders(all: Identities, held: &[String], option: &str) -> Result<(Identities, Identities)> {
    // Compare names as one sees and types them, however their accents are stored.
    let top = |name: &str| names::composed(name.split('/').next().unwrap_or(name));
    let folders: BTreeSet<String> = all.keys().map(|name| top(name)).collect();
    let held: Vec<String> = held.iter().map(|name| names::composed(name)).collect();
    if let Some(unknown) = held.iter().find(|name| !folders.contains(*name)) {
        let there: Vec<_> = folders.into_iter().collect();
        return Err(bad_input(format!("{option} {unknown}: no such top-level folder; there are {}", there.join(", "))));
    }
    Ok(all.into_iter().partition(|(name, _)| !held.contains(&top(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identities(names: &[&str]) -> Identities {
        names.iter().map(|n| (n.to_string(), vec![PathBuf::from(n)])).collect()
    }

    fn dataset(counts: &[usize]) -> Dataset {
        let total: usize = counts.iter().sum();
        let images = Images::from_grey(vec![image::GrayImage::new(2, 2); total], 2);
        let mut next = 0..total;
        let members = counts.iter().map(|&n| next.by_ref().take(n).collect()).collect();
        let names = (0..counts.len()).map(|i| format!("identity {i}")).collect();
        Dataset { images, members, names, forgeries: None }
    }

    #[test]
    fn no_identity_is_on_both_sides_and_none_is_lost() {
        let names: Vec<String> = (0..23).map(|i| format!("writer{i:02}")).collect();
        let all = identities(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for seed in 0..20 {
            let (train, val) = split_fraction(all.clone(), 0.25, seed);
            assert_eq!((train.len(), val.len()), (17, 6));
            assert!(train.keys().all(|name| !val.contains_key(name)));
        }
        let first = split_fraction(all.clone(), 0.25, 1).1;
        assert_eq!(first, split_fraction(all.clone(), 0.25, 1).1);
        assert_ne!(first, split_fraction(all, 0.25, 2).1);
    }

    #[test]
    fn tiny_fractions_still_hold_out_two() {
        let all = identities(&["a", "b", "c", "d"]);
        assert_eq!(split_fraction(all.clone(), 0.01, 0).1.len(), 2);
        assert_eq!(split_fraction(all, 0.99, 0).1.len(), 2);
    }

    #[test]
    fn whole_folders_are_held_out_by_name() {
        let all = identities(&["Greek/a", "Greek/b", "Greeklike/a", "Latin/a"]);
        let (train, val) = split_folders(all.clone(), &["Greek".into()], "--hold-out").unwrap();
        assert_eq!(train.into_keys().collect::<Vec<_>>(), ["Greeklike/a", "Latin/a"]);
        assert_eq!(val.len(), 2);
        let error = split_folders(all, &["Korean".into()], "--hold-out").unwrap_err().to_string();
        assert!(error.contains("Korean") && error.contains("Greek, Greeklike, Latin"), "{error}");
    }

    #[test]
    fn sets_without_triplets_are_refused() {
        assert!(dataset(&[5]).check("training").unwrap_err().to_string().contains("only 1 identity"));
        assert!(dataset(&[]).check("training").unwrap_err().to_string().contains("no identity"));
        assert!(dataset(&[1, 1, 1]).check("training").unwrap_err().to_string().contains("one image"));
        assert!(dataset(&[1, 2]).check("training").is_ok());
    }

    #[test]
    fn small_identities_and_their_images_are_left_out() {
        let mut set = dataset(&[3, 1, 2, 1, 4]);
        set.leave_out_small(1);
        assert_eq!((set.members.len(), set.images.len()), (5, 11));
        set.leave_out_small(2);
        assert_eq!(set.names, ["identity 0", "identity 2", "identity 4"]);
        assert_eq!(set.members, [vec![0, 1, 2], vec![3, 4], vec![5, 6, 7, 8]]);
        assert_eq!(set.images.len(), 9);
    }

    #[test]
    fn a_sample_takes_pairs_first_and_then_from_every_identity_in_turn() {
        let set = dataset(&[10, 3, 1]);
        let count = |limit, owner| set.sample(limit, 0).iter().filter(|(_, o)| *o == owner).count();
        assert_eq!([0, 1, 2].map(|owner| count(4, owner)), [2, 2, 0]);
        assert_eq!([0, 1, 2].map(|owner| count(7, owner)), [3, 3, 1]);
        assert_eq!(set.sample(100, 0).len(), 14);
        let sample = set.sample(6, 0);
        assert!(sample.iter().all(|&(image, owner)| set.members[owner].contains(&image)));
        assert_eq!(sample, set.sample(6, 0));
        // One pair only: the impostors are single images.
        let owners: Vec<_> = dataset(&[1, 1, 2, 1]).sample(3, 0).into_iter().map(|(_, o)| o).collect();
        assert_eq!(owners.iter().filter(|&&o| o == 2).count(), 2);
    }
}
