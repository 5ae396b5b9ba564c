//! What systems, servers and programs leave beside pictures: nobody put it there, so nobody needs to hear of it.

/// Names of files and folders, in lower case.
const NAMES: [&str; 36] = [
    // Windows
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "$recycle.bin",
    "recycler",
    "system volume information",
    // macOS, and archives made there
    ".ds_store",
    ".localized",
    ".appledouble",
    ".spotlight-v100",
    ".fseventsd",
    ".trashes",
    ".trash",
    ".temporaryitems",
    "__macosx",
    "icon\r",
    "network trash folder",
    "temporary items",
    // storage on a network: thumbnails with an image's suffix, bins, snapshots
    "@eadir",
    "@tmp",
    "@recycle",
    "@recently-snapshot",
    ".@__thumb",
    "#recycle",
    "#snapshot",
    ".snapshot",
    "~snapshot",
    // other programs
    "lost+found",
    ".git",
    ".svn",
    ".ipynb_checkpoints",
    ".thumbnails",
    ".directory",
    "picasa.ini",
    ".picasa.ini",
];

/// Ends of names, in lower case: what other file systems keep beside a file's content, under names of its own.
const ENDS: [&str; 3] = [":zone.identifier", "@synoeastream", "@synoresource"];

/// Whether a file of this name is a leftover. `._x.jpg` is what a Mac keeps beside `x.jpg` if the file system has no
/// place for it.
pub fn is_leftover(name: &str) -> bool {
    let lower = name.to_lowercase();
    name.starts_with("._") || NAMES.contains(&lower.as_str()) || ENDS.iter().any(|end| lower.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_known_in_any_case() {
        for name in [
            "Thumbs.db",
            "THUMBS.DB",
            ".DS_Store",
            "._photo.jpg",
            "__MACOSX",
            "@eaDir",
            ".@__thumb",
            "Desktop.ini",
            "x.jpg:Zone.Identifier",
        ] {
            assert!(is_leftover(name), "{name}");
        }
        for name in ["photo.jpg", "_photo.jpg", "thumbs", "eaDir", ".hidden.png", "recycle"] {
            assert!(!is_leftover(name), "{name}");
        }
        assert!(NAMES.iter().all(|name| *name == name.to_lowercase()));
    }
}
