//! Finding images: every folder that directly holds images is one identity.

use crate::bad_input::bad_input;
use crate::decode::{EXTENSIONS, FORMATS};
use anyhow::Result;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Identity (its folder's path below the root, with `/` between the parts) to its files, all sorted:
/// the order that a directory lists its entries in must not change a run.
pub type Identities = BTreeMap<String, Vec<PathBuf>>;

/// Looks through `root`, to any depth.
pub fn find(root: &Path) -> Result<Identities> {
    if !root.is_dir() {
        return Err(bad_input(format!("{} is not a folder", root.display())));
    }
    let mut identities = Identities::new();
    walk(root, root, &mut HashSet::new(), &mut identities)?;
    if let Some(loose) = identities.remove("") {
        eprintln!("{} images lie directly in {}, in no identity's folder: left out", loose.len(), root.display());
    }
    if identities.is_empty() {
        let wanted = format!("expected folders of {FORMATS} images, one folder per identity");
        return Err(bad_input(format!("no images in {}: {wanted}", root.display())));
    }
    Ok(identities)
}

/// The images that lie directly in a folder, sorted.
pub fn images_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.retain(|path| !is_hidden(path) && is_image(path) && !path.is_dir());
    files.sort();
    Ok(files)
}

/// `seen` holds canonical paths: links to folders are followed, loops of links are not.
fn walk(root: &Path, folder: &Path, seen: &mut HashSet<PathBuf>, found: &mut Identities) -> Result<()> {
    let unreadable = |error| bad_input(format!("cannot read the folder {}: {error}", folder.display()));
    if !seen.insert(folder.canonicalize().map_err(unreadable)?) {
        return Ok(());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if is_hidden(&path) {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, seen, found)?;
        } else if is_image(&path) {
            files.push(path);
        }
    }
    if !files.is_empty() {
        files.sort();
        found.insert(name(root, folder), files);
    }
    Ok(())
}

fn name(root: &Path, folder: &Path) -> String {
    let below = folder.strip_prefix(root).unwrap_or(folder);
    let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, file: &str) {
        let file = root.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, b"").unwrap();
    }

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
        let found = find(dir.path()).unwrap();
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
            let error = find(&folder).unwrap_err();
            assert!(error.to_string().contains(folder.to_str().unwrap()), "{error}");
            assert_eq!(crate::bad_input::exit_code(&error), 2);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_loop_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), "a/x.png");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/back")).unwrap();
        assert_eq!(find(dir.path()).unwrap().len(), 1);
    }
}
