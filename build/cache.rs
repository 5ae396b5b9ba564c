//! What build scripts have compiled, kept in the target directory: all profiles and features share it, and `cargo clippy`,
//! whose build scripts cargo runs apart from those of `cargo test`.

use std::path::{Path, PathBuf};
use std::{fs, io, process};

/// `target/<name>`, made if need be; beside OUT_DIR's files where that is no cargo target directory.
pub fn folder(out: &Path, name: &str) -> io::Result<PathBuf> {
    // OUT_DIR is <target>/<profile>/build/<package>-<hash>/out.
    let folder = match out.ancestors().nth(4) {
        Some(target) if out.ancestors().nth(2).is_some_and(|b| b.ends_with("build")) => target.join(name),
        _ => out.join(name),
    };
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Under a temporary name first: another build may be writing the same file.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension(format!("part{}", process::id()));
    fs::write(&part, bytes)?;
    fs::rename(&part, path)
}
