//! A cache in the target directory of what build scripts have compiled. All profiles and features share it, and so does
//! `cargo clippy`, whose build scripts cargo runs apart from those of `cargo test`.

use std::path::{Path, PathBuf};
use std::{fs, io, process};

/// The folder `target/<name>`, made if need be; in OUT_DIR if that does not lie in a cargo target directory.
pub fn folder(out: &Path, name: &str) -> io::Result<PathBuf> {
    // OUT_DIR is <target>/<profile>/build/<package>-<hash>/out.
    let folder = match out.ancestors().nth(4) {
        Some(target) if out.ancestors().nth(2).is_some_and(|b| b.ends_with("build")) => target.join(name),
        _ => out.join(name),
    };
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Writes a file under a temporary name first, and then renames it: another build may be writing the same file.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension(format!("part{}", process::id()));
    fs::write(&part, bytes)?;
    fs::rename(&part, path)
}
