//! Finding images: every folder that directly holds images is one identity, unless patterns say whose they are.

mod leftovers;
pub mod names;
#[cfg(test)]
pub mod touch;
mod walk;

use crate::data::collections::{Owner, Patterns, hint};
use crate::data::decode::FORMATS;
use crate::process::bad_input::bad_input;
use crate::process::named::{Named, plural};
use crate::process::say::note;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use walk::{below, images_in, is_image};

/// For each identity its files, all sorted, as the order in which a directory lists its entries must not change a run.
/// The name is the folder's path below the root, with `/` between the parts, or what a pattern makes of a file's path.
pub type Identities = BTreeMap<String, Vec<PathBuf>>;

/// The pictures of a folder.
#[derive(Debug, Default)]
pub struct Found {
    /// Genuine pictures by identity.
    pub genuine: Identities,
    /// Skilled forgeries by the identity that they imitate. Each of these has genuine pictures too.
    pub forged: Identities,
}

/// All pictures below `root`, at any depth, whosever they are; says what was left out.
pub fn all(root: &Path) -> Result<Vec<PathBuf>> {
    let listing = walk::list(root)?;
    listing.say(root);
    Ok(listing.pictures)
}

/// Finds the pictures below `root`, at any depth, and says what was left out.
pub fn find(root: &Path, patterns: &Patterns) -> Result<Found> {
    if !root.is_dir() {
        return Err(bad_input(format!("{} is not a folder", root.display())));
    }
    let listing = walk::list(root)?;
    listing.say(root);
    let mut found = Found::default();
    let (mut loose, mut nobody) = (Named::default(), Named::default());
    let paths: Vec<String> = listing.pictures.iter().map(|file| below(root, file)).collect();
    for (file, path) in listing.pictures.iter().zip(&paths) {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        match patterns.owner(path, folder) {
            Owner::Genuine(name) | Owner::Forged(name) if name.is_empty() => loose.add(path),
            Owner::Genuine(name) => found.genuine.entry(name).or_default().push(file.clone()),
            Owner::Forged(name) => found.forged.entry(name).or_default().push(file.clone()),
            Owner::Nobody => nobody.add(path),
        }
    }
    let shown = root.display();
    let given = if patterns.has_forged() { "--identity or --forged" } else { "--identity" };
    if found.genuine.is_empty() && nobody.count() > 0 {
        let (count, examples) = (nobody.count(), nobody.examples());
        return Err(bad_input(format!("--identity matches none of {count} images in {shown}: {examples}")));
    }
    if found.genuine.is_empty() {
        let wanted = format!("expected folders of {FORMATS} images, one folder per identity");
        let others = match (loose.count(), listing.others()) {
            (0, 0) => String::new(),
            (0, others) => format!(" ({others} {} of other kinds)", plural(others, "file", "files")),
            (loose, _) => format!(" but {loose} that lie directly there, in no identity's folder"),
        };
        return Err(bad_input(format!("no images in {shown}{others}: {wanted}")));
    }
    loose.say(&format!("{shown}: left out "), "images that lie directly there, in no identity's folder");
    nobody.say(&format!("{shown}: left out "), &format!("images that {given} does not match"));
    if patterns.has_forged() && found.forged.is_empty() {
        note(&format!("{shown}: --forged matches no image"));
    }
    keep_forgeries_of_known(&mut found, &format!("{shown}: "));
    warn(&found.genuine, &paths, root, patterns);
    Ok(found)
}

/// Drops forgeries of identities without a genuine picture, and says so. Names that look the same are the same.
pub fn keep_forgeries_of_known(found: &mut Found, before: &str) {
    let known: BTreeMap<String, &String> = found.genuine.keys().map(|name| (names::composed(name), name)).collect();
    let mut unknown = Named::default();
    for (name, files) in std::mem::take(&mut found.forged) {
        let of =
            if found.genuine.contains_key(&name) { Some(&name) } else { known.get(&names::composed(&name)).copied() };
        match of {
            Some(of) => found.forged.entry(of.clone()).or_default().extend(files),
            None => files.iter().for_each(|file| unknown.add(names::text(file))),
        }
    }
    unknown.say(&format!("{before}left out "), "forgeries of identities that have no genuine images");
}

/// Warns of what may be otherwise than it looks.
fn warn(identities: &Identities, paths: &[String], root: &Path, patterns: &Patterns) {
    let shown = root.display();
    let mut alike: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    identities.keys().for_each(|name| alike.entry(names::composed(name)).or_default().push(name));
    let alike: Named = alike.into_iter().filter(|(_, names)| names.len() > 1).map(|(name, _)| name).collect();
    alike.say(
        &format!("{shown}: "),
        "names look the same and are different identities (accents are stored in two ways)",
    );
    if patterns.has_identity() {
        return;
    }
    let inside = identities.keys().filter(|name| {
        let outer = name.match_indices('/').any(|(slash, _)| identities.contains_key(&name[..slash]));
        outer && !name.is_empty()
    });
    let inside: Named = inside.collect();
    inside.say(&format!("{shown}: "), "identities lie in the folder of another one, and count as others");
    if patterns.has_forged() {
        return;
    }
    if let Some((name, options)) = hint(paths) {
        note(&format!(
            "{shown}: this looks like {name}, where forgeries are told by their names. Now each folder is one identity, \
             forgeries with it; for writers, and their forgeries apart: {options}"
        ));
    } else if let Some(repeated) = repeated(identities) {
        note(&format!(
            "{shown}: the same names are in several top-level folders ({}), and count as different identities; where they are \
             the same: --identity '([^/]+)/[^/]+$'",
            repeated.examples()
        ));
    }
}

/// The names of identities that are in two of the top-level folders that data sets are commonly divided into.
fn repeated(identities: &Identities) -> Option<Named> {
    const PARTS: [&str; 14] = [
        "train",
        "training",
        "test",
        "testing",
        "val",
        "valid",
        "validation",
        "dev",
        "eval",
        "original",
        "augmented",
        "gallery",
        "probe",
        "query",
    ];
    let mut tops: BTreeMap<&str, Named> = BTreeMap::new();
    for (top, below) in identities.keys().filter_map(|name| name.split_once('/')) {
        if PARTS.contains(&top.to_lowercase().as_str()) {
            tops.entry(below).or_default().add(format!("{top}/{below}"));
        }
    }
    let twice =
        tops.into_values().filter(|named| named.count() > 1).map(|named| named.examples().replace(", ", " and "));
    let twice: Named = twice.collect();
    (twice.count() > 0).then_some(twice)
}

#[cfg(test)]
mod tests {
    use super::touch::touch;
    use super::*;

    #[test]
    fn the_leaf_folder_is_the_identity_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "Greek/alpha/2.png",
            "Greek/alpha/1.PNG",
            "Latin/a/alpha/x.jpeg",
            "solo/x.bmp",
            "solo/notes.txt",
            "solo/.hidden.png",
            ".git/y.png",
            "loose.pgm",
        ] {
            touch(dir.path(), file);
        }
        let found = find(dir.path(), &Patterns::default()).unwrap().genuine;
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["Greek/alpha", "Latin/a/alpha", "solo"]);
        let greek: Vec<_> = found["Greek/alpha"].iter().map(|p| p.file_name().unwrap()).collect();
        assert_eq!(greek, ["1.PNG", "2.png"]);
        assert_eq!(found["solo"].len(), 1);
    }

    #[test]
    fn nothing_there_is_the_users_error_and_names_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [dir.path().to_owned(), dir.path().join("absent")] {
            let error = find(&folder, &Patterns::default()).unwrap_err();
            assert!(error.to_string().contains(folder.to_str().unwrap()), "{error}");
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_loop_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), "a/x.png");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/back")).unwrap();
        assert_eq!(find(dir.path(), &Patterns::default()).unwrap().genuine.len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_utf8_lose_nothing() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        for name in [&b"caf\xe9"[..], b"caf\xe8", b"plain", "e\u{301}".as_bytes(), "\u{e9}".as_bytes()] {
            let folder = dir.path().join(std::ffi::OsStr::from_bytes(name));
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("1.png"), b"").unwrap();
            std::fs::write(folder.join(std::ffi::OsStr::from_bytes(b"\xff.png")), b"").unwrap();
        }
        let found = find(dir.path(), &Patterns::default()).unwrap().genuine;
        assert_eq!(found.keys().collect::<Vec<_>>(), ["caf\\xE8", "caf\\xE9", "e\u{301}", "plain", "\u{e9}"]);
        assert!(found.values().all(|files| files.len() == 2 && files.iter().all(|file| file.exists())));
    }

    fn patterns(identity: Option<&str>, forged: Option<&str>) -> Patterns {
        let args = crate::data::collections::PatternArgs {
            identity: identity.map(Into::into),
            forged: forged.map(Into::into),
        };
        Patterns::new(&args).unwrap()
    }

    #[test]
    fn patterns_say_who_is_who() {
        let dir = tempfile::tempdir().unwrap();
        for (writer, image) in [(1, 1), (1, 2), (2, 1), (10, 1)] {
            touch(dir.path(), &format!("full_org/original_{writer}_{image}.png"));
            touch(dir.path(), &format!("full_forg/forgeries_{writer}_{image}.png"));
        }
        touch(dir.path(), "full_forg/forgeries_77_1.png"); // of nobody
        touch(dir.path(), "full_org/scan.png");
        touch(dir.path(), "original_2_9.png"); // in no folder: with patterns that does not matter
        let found = find(dir.path(), &patterns(Some(r"original_(\d+)_"), Some(r"forgeries_(\d+)_"))).unwrap();
        let counts = |of: &Identities| of.iter().map(|(name, files)| (name.clone(), files.len())).collect::<Vec<_>>();
        let expected = |counts: [(&str, usize); 3]| counts.map(|(name, count)| (name.to_owned(), count)).to_vec();
        assert_eq!(counts(&found.genuine), expected([("1", 2), ("10", 1), ("2", 2)]));
        assert_eq!(counts(&found.forged), expected([("1", 2), ("10", 1), ("2", 1)]));
        let error = find(dir.path(), &patterns(Some("writer(.)"), None)).unwrap_err();
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        assert!(error.to_string().contains("--identity matches none of 11 images"), "{error}");
    }

    #[test]
    fn forgeries_find_those_they_imitate_however_accents_are_stored() {
        let file = |name: &str| (name.to_owned(), vec![PathBuf::from(name)]);
        let genuine = Identities::from([file("\u{e9}"), file("ada")]);
        let forged = Identities::from([file("e\u{301}"), file("ada"), file("nobody")]);
        let mut found = Found { genuine, forged };
        keep_forgeries_of_known(&mut found, "");
        assert_eq!(found.forged.keys().collect::<Vec<_>>(), ["ada", "\u{e9}"]);
    }

    #[test]
    fn names_that_repeat_below_train_and_test_are_named() {
        let identities =
            |names: &[&str]| names.iter().map(|name| (name.to_string(), Vec::new())).collect::<Identities>();
        let found = repeated(&identities(&["test/ada", "train/ada", "train/bo", "test/cy"])).unwrap();
        assert_eq!(found.examples(), "test/ada and train/ada");
        // Omniglot's characters rightly repeat.
        assert_eq!(repeated(&identities(&["Greek/character01", "Latin/character01"])), None);
    }
}
