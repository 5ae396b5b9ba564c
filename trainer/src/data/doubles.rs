//! Pictures that are equal to the last pixel and belong to different people: one person under two names, or a file in a wrong
//! folder. Training pushes them apart, and scores count them as impostors.

use crate::data::dataset::Dataset;
use crate::data::folders::names;
use crate::process::fingerprint::Fingerprint;
use crate::process::named::{Named, plural};
use crate::process::say::note;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where a picture belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The set, `training` or `validation`; empty if there is only one.
    pub set: &'a str,
    pub identity: &'a str,
    pub forged: bool,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let forged = if self.forged { "forged " } else { "" };
        let set = if self.set.is_empty() { String::new() } else { format!(", {}", self.set) };
        write!(f, "{forged}{}{set}", self.identity)
    }
}

/// Finds equal pictures that belong to different places.
#[derive(Default)]
pub struct Doubles<'a> {
    /// For each hash of pixels, the first picture with it, and where that belongs.
    first: HashMap<Fingerprint, (Place<'a>, Option<PathBuf>)>,
    /// Pictures that are equal to one that belongs elsewhere.
    found: Named,
}

impl<'a> Doubles<'a> {
    /// Takes note of a picture with this hash.
    pub fn add(&mut self, hash: Fingerprint, place: Place<'a>, file: Option<&Path>) {
        let first = self.first.entry(hash).or_insert_with(|| (place, file.map(Path::to_owned)));
        if first.0 != place {
            let shown = |file: Option<&Path>| file.map_or("a generated one".into(), names::text);
            let (one, other) = (shown(first.1.as_deref()), shown(file));
            self.found.add(format!("{other} ({place}) = {one} ({})", first.0));
        }
    }

    /// Takes note of all pictures of a set, its forgeries included.
    pub fn add_set(&mut self, set: &'static str, data: &'a Dataset) {
        for (data, forged) in std::iter::once((data, false)).chain(data.forgeries.as_deref().map(|f| (f, true))) {
            for (identity, images) in data.names.iter().zip(&data.members) {
                let place = Place { set, identity, forged };
                images.iter().for_each(|&i| self.add(data.images.hash(i), place, data.images.file(i)));
            }
        }
    }

    /// Warns of the equal pictures that were found; they were compared at this size.
    pub fn say(&self, size: usize) {
        let count = self.found.count();
        if count > 0 {
            let pictures = plural(count, "image is", "images are");
            note(&format!(
                "warning: {count} {pictures} equal, at {size} x {size} pixels, to one of another identity or set: {}",
                self.found.examples()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pictures_of_different_people_are_named() {
        let mut doubles = Doubles::default();
        let place = |set, identity, forged| Place { set, identity, forged };
        let add = |doubles: &mut Doubles<'static>, picture: u8, place, file: &str| {
            doubles.add(Fingerprint::of(&[picture]), place, Some(Path::new(file)))
        };
        add(&mut doubles, 1, place("training", "ada", false), "a/1");
        add(&mut doubles, 2, place("training", "ada", false), "a/2");
        add(&mut doubles, 2, place("training", "ada", false), "a/3"); // twice, of one person: no contradiction
        assert_eq!(doubles.found.count(), 0);
        add(&mut doubles, 1, place("training", "bo", false), "b/1");
        add(&mut doubles, 2, place("training", "ada", true), "f/1");
        add(&mut doubles, 2, place("validation", "ada", false), "v/1");
        let expected = "b/1 (bo, training) = a/1 (ada, training), f/1 (forged ada, training) = a/2 (ada, training), \
                        v/1 (ada, validation) = a/2 (ada, training)";
        assert_eq!((doubles.found.count(), doubles.found.examples().as_str()), (3, expected));
    }
}
