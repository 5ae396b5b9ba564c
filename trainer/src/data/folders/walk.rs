//! All files below a folder, in the same order on every file system.

use super::leftovers::is_leftover;
use super::names;
use crate::data::decode::{EXTENSIONS, FORMATS};
use crate::process::bad_input::bad_input;
use crate::process::named::{Named, plural};
use crate::process::say::note;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// What there is below a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files that are pictures by their suffix.
    pub pictures: Vec<PathBuf>,
    /// Files of other kinds: how many of each suffix, and some of them.
    others: (BTreeMap<String, usize>, Named),
    /// Pictures and folders whose names begin with a dot.
    hidden: Named,
    /// Links to folders that were looked through under another name.
    twice: Named,
}

/// Lists what is below `root`, to any depth. A folder is known by its real path and listed once, links last: so a loop
/// of links ends, and no name depends on the order of a directory.
pub fn list(root: &Path) -> Result<Listing> {
    let mut walk = Walk { root, seen: HashSet::new(), links: BTreeSet::new(), found: Listing::default() };
    walk.folder(root)?;
    while let Some(link) = walk.links.pop_first() {
        if !walk.folder(&link)? {
            walk.found.twice.add(walk.below(&link));
        }
    }
    walk.found.pictures.sort();
    Ok(walk.found)
}

struct Walk<'a> {
    root: &'a Path,
    seen: HashSet<PathBuf>,
    /// Links to folders, not followed yet.
    links: BTreeSet<PathBuf>,
    found: Listing,
}

impl Walk<'_> {
    /// Lists a folder, unless it has been listed before. Returns whether it was new.
    fn folder(&mut self, folder: &Path) -> Result<bool> {
        let unreadable = |error| bad_input(format!("cannot read the folder {}: {error}", names::text(folder)));
        if !self.seen.insert(folder.canonicalize().map_err(unreadable)?) {
            return Ok(false);
        }
        let entries = std::fs::read_dir(folder).map_err(unreadable)?;
        let mut entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(unreadable)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), names::part(&entry.file_name()));
            // A link counts as what it leads to; a broken one is read like a file, and then an error names it.
            let is_folder = path.is_dir();
            let is_link = entry.file_type().map_err(unreadable)?.is_symlink();
            if is_leftover(&entry.file_name().to_string_lossy()) {
            } else if name.starts_with('.') {
                if is_folder || is_image(&path) {
                    self.found.hidden.add(self.below(&path));
                }
            } else if is_folder && is_link {
                self.links.insert(path);
            } else if is_folder {
                self.folder(&path)?;
            } else if is_image(&path) {
                self.found.pictures.push(path);
            } else {
                let suffix = path.extension().map(|suffix| format!(".{}", names::part(suffix).to_lowercase()));
                *self.found.others.0.entry(suffix.unwrap_or_else(|| "no suffix".into())).or_default() += 1;
                self.found.others.1.add(self.below(&path));
            }
        }
        Ok(true)
    }

    fn below(&self, path: &Path) -> String {
        below(self.root, path)
    }
}

/// A file's path below `root` as text.
pub fn below(root: &Path, path: &Path) -> String {
    names::text(path.strip_prefix(root).unwrap_or(path))
}

/// The images that lie directly in a folder, sorted.
pub fn images_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<std::io::Result<Vec<PathBuf>>>()?;
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    files.retain(|path| !is_hidden(path) && is_image(path) && !path.is_dir());
    files.sort();
    Ok(files)
}

impl Listing {
    /// Says what was left out of `root`.
    pub fn say(&self, root: &Path) {
        let (suffixes, others) = &self.others;
        if others.count() > 0 {
            let kinds: Vec<_> = suffixes.iter().map(|(suffix, count)| format!("{count} {suffix}")).collect();
            let kinds = kinds.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
            let (count, examples) = (others.count(), others.examples());
            let files = plural(count, "file of another kind", "files of other kinds");
            note(&format!("{}: left out {count} {files} than {FORMATS} ({kinds}): {examples}", root.display()));
        }
        let root = format!("{}: ", root.display());
        self.hidden.say(&format!("{root}left out "), "hidden pictures and folders");
        self.twice.say(&root, "links lead to folders that are looked through anyway, and are not followed");
    }

    /// How many files of other kinds there are.
    pub fn others(&self) -> usize {
        self.others.1.count()
    }
}

/// Whether a file is a picture, by its suffix.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

#[cfg(test)]
mod tests {
    use super::super::touch::touch;
    use super::*;

    fn names_of(root: &Path) -> Vec<String> {
        list(root).unwrap().pictures.iter().map(|path| below(root, path)).collect()
    }

    #[test]
    fn what_systems_leave_is_no_picture_and_other_files_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "ada/1.jpg",
            "ada/2.JPE",
            "ada/3.jfif",
            "ada/4.dib",
            "ada/5.pam",
            "ada/._1.jpg",
            "ada/Thumbs.db",
            "ada/.DS_Store",
            "ada/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg",
            "ada/.@__thumb/1.jpg",
            "__MACOSX/ada/._1.jpg",
            "lost+found/x.png",
            "ada/.hidden.png",
            ".cache/x.png",
            "ada/notes.txt",
            "ada/x.GIF",
            "ada/y.gif",
            "README",
        ] {
            touch(dir.path(), file);
        }
        assert_eq!(names_of(dir.path()), ["ada/1.jpg", "ada/2.JPE", "ada/3.jfif", "ada/4.dib", "ada/5.pam"]);
        let found = list(dir.path()).unwrap();
        let kinds: Vec<_> = found.others.0.iter().map(|(suffix, count)| (suffix.as_str(), *count)).collect();
        assert_eq!(kinds, [(".gif", 2), (".txt", 1), ("no suffix", 1)]);
        assert_eq!((found.others(), found.hidden.examples().as_str()), (4, ".cache, ada/.hidden.png"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once_and_names_do_not_depend_on_them() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        touch(&root, "z/deep/x.png");
        touch(&outside, "y.png");
        // A loop; names that sort before the real one's; a link to a folder elsewhere, under two names.
        symlink(&root, root.join("z/back")).unwrap();
        symlink(root.join("z/deep"), root.join("a")).unwrap();
        symlink(&outside, root.join("m")).unwrap();
        symlink(&outside, root.join("n")).unwrap();
        symlink("gone.png", root.join("z/deep/broken.png")).unwrap();
        assert_eq!(names_of(&root), ["m/y.png", "z/deep/broken.png", "z/deep/x.png"]);
        assert_eq!(list(&root).unwrap().twice.examples(), "a, n, z/back");
    }
}
