//! Files that appear whole or not at all: the name leads to the old file or to the new one, also after a crash, a full
//! disk or a power cut.
//!
//! The bytes go to a file of a random name beside it, are brought to the disk, and then take the name; last, the
//! folder, whose content the name is, is brought to the disk too. If the bytes were not there first, the name could
//! lead to an empty file after a power cut.

use crate::process::bad_input::bad_input;
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use tempfile::{Builder, NamedTempFile};

/// What is before and after the random part of a temporary file's name. It begins with a point, so that listings leave
/// it out.
const PREFIX: &str = ".tercet-";
const SUFFIX: &str = ".partial";

/// Replaces the file, or makes it if there is none.
pub fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    write_by(file, |temporary| Ok(temporary.write_all(bytes)?))
}

/// Replaces the file, or makes it if there is none; `put` writes to the temporary file, or to its path.
pub fn write_by(file: &Path, put: impl FnOnce(&mut NamedTempFile) -> Result<()>) -> Result<()> {
    let write = || -> Result<()> {
        let temporary = beside(file, put)?;
        temporary.persist(file).map_err(|error| error.error)?;
        sync_folder(file);
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

/// Makes the file, which must not exist; `option` is how the user named it.
pub fn write_new(option: &str, file: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> Result<()> {
        let temporary = beside(file, |temporary| Ok(temporary.write_all(bytes)?))?;
        // The system itself checks this: somebody may have made the file meanwhile.
        temporary.persist_noclobber(file).map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => bad_input(format!("{option} {}: already there", file.display())),
            _ => error.error.into(),
        })?;
        sync_folder(file);
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

/// Makes a temporary file beside `file`, complete and on the disk. It is removed when dropped, as on any error.
fn beside(file: &Path, put: impl FnOnce(&mut NamedTempFile) -> Result<()>) -> Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    {
        // The permissions of any new file, less the umask; a temporary file would be readable by its owner alone.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut temporary = builder.tempfile_in(folder_of(file))?;
    put(&mut temporary)?;
    temporary.as_file().sync_all()?;
    Ok(temporary)
}

/// Brings the names in the file's folder to the disk. Not every system can do that for a folder.
pub fn sync_folder(file: &Path) {
    let _ = File::open(folder_of(file)).and_then(|folder| folder.sync_all());
}

/// The folder in which a file of this path is made.
fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether a file of this name is one that a killed process has left.
pub fn is_left_over(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// Removes what killed processes have left in a folder that nobody else works in.
pub fn remove_left_over(folder: &Path) -> Result<()> {
    let remove = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if is_left_over(&entry.file_name()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    remove().with_context(|| format!("cannot clear {}", folder.display()))
}

/// Refuses a file that could not be made, before any work is done for it. A file that is there may be replaced.
pub fn check_writable(option: &str, file: &Path) -> Result<()> {
    let wrong = |what: &dyn std::fmt::Display| bad_input(format!("{option} {}: {what}", file.display()));
    let folder = folder_of(file);
    if !folder.is_dir() {
        return Err(wrong(&format!("{} is not a folder", folder.display())));
    }
    if file.is_dir() {
        return Err(wrong(&"a folder"));
    }
    check_folder(folder).map_err(|error| wrong(&format!("cannot write to {}: {error}", folder.display())))
}

/// Refuses a file that is there, before any work is done: nothing is overwritten.
pub fn check_new(option: &str, file: &Path) -> Result<()> {
    if file.symlink_metadata().is_ok() {
        return Err(bad_input(format!("{option} {}: already there", file.display())));
    }
    check_writable(option, file)
}

/// Checks that files can be made in the folder, by a file without a name, which leaves no trace.
pub fn check_folder(folder: &Path) -> std::io::Result<()> {
    tempfile::tempfile_in(folder).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn names(folder: &Path) -> Vec<PathBuf> {
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_users_files_of_like_names_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let own = ["emb.partial", "emb.v1.partial", "emb.partial.safetensors"];
        own.iter().for_each(|name| std::fs::write(at(name), name).unwrap());
        write(&at("emb.v1"), b"one").unwrap();
        write(&at("emb.v2"), b"two").unwrap();
        write(&at("emb.v1"), b"three").unwrap();
        own.iter().for_each(|name| assert_eq!(std::fs::read(at(name)).unwrap(), name.as_bytes()));
        assert_eq!(std::fs::read(at("emb.v1")).unwrap(), b"three");
        assert_eq!(std::fs::read(at("emb.v2")).unwrap(), b"two");
        assert_eq!(names(dir.path()).len(), 5, "no temporary file is left");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        write(&file, b"old").unwrap();
        let error = write_by(&file, |temporary| {
            temporary.write_all(b"half of the new")?;
            anyhow::bail!("no space left")
        });
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.contains("a.json") && text.contains("no space left"), "{text}");
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        assert_eq!(names(dir.path()), [file]);
    }

    #[test]
    fn a_new_file_never_replaces_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new.bin");
        write_new("--out", &file, b"one").unwrap();
        let error = write_new("--out", &file, b"two").unwrap_err();
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        assert!(format!("{error:#}").contains("already there"), "{error:#}");
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        assert_eq!(names(dir.path()), [file]);
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_the_umask_lets_them() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let [ours, plain] = ["ours", "plain"].map(|name| dir.path().join(name));
        write(&ours, b"").unwrap();
        std::fs::write(&plain, b"").unwrap();
        let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn what_a_killed_process_left_is_known_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        let left = beside(&file, |temporary| Ok(temporary.write_all(b"half")?)).unwrap();
        let (_, left) = left.keep().unwrap();
        assert!(is_left_over(left.file_name().unwrap()));
        write(&dir.path().join("b.partial"), b"a user's").unwrap();
        remove_left_over(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [dir.path().join("b.partial")]);
    }

    #[test]
    fn what_cannot_be_written_is_refused_before() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |file: &Path, words: &str| {
            let error = check_writable("--out", file).unwrap_err();
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
            assert!(error.to_string().contains(words), "{error}");
        };
        refused(&dir.path().join("absent/a.png"), "not a folder");
        refused(dir.path(), "a folder");
        #[cfg(target_os = "linux")]
        refused(Path::new("/proc/a.png"), "cannot write to /proc");
        check_writable("--out", &dir.path().join("a.png")).unwrap();
        assert_eq!(names(dir.path()).len(), 0);
    }
}
