//! Free disk space, asked before anything is downloaded.

use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};

const GIB: u64 = 1 << 20; // in the KiB that `df -k` counts

/// The space that the environment takes, with a margin.
const ENVIRONMENT: u64 = 6 * GIB;
/// The space that pip's downloads take in the folder for temporary files before they are unpacked.
const DOWNLOADS: u64 = 3 * GIB;

/// Refuses a set-up that would run out of space half-way.
pub fn check(environment: &Path) -> Result<()> {
    let temporary = std::env::temp_dir();
    let Some((device, free)) = filesystem(environment) else {
        return Ok(()); // no `df`: pip will say it itself
    };
    match filesystem(&temporary) {
        Some((other, room)) if other != device => {
            enough(&temporary, room, DOWNLOADS, "pip's downloads (TMPDIR names another folder)")?;
            enough(environment, free, ENVIRONMENT, "the environment (TERCET_VENV names another folder)")
        }
        _ => enough(environment, free, ENVIRONMENT + DOWNLOADS, "the environment and pip's downloads"),
    }
}

fn enough(place: &Path, free: u64, needed: u64, purpose: &str) -> Result<()> {
    if free >= needed {
        return Ok(());
    }
    let gib = |kib: u64| kib as f64 / GIB as f64;
    Err(Error::Failed(format!(
        "not enough disk space: {} has {:.1} GiB free, and {purpose} needs {:.0} GiB.\n\
         Free some space and run the same command again.",
        place.display(),
        gib(free),
        gib(needed)
    )))
}

/// The filesystem that would hold `path`, and its free KiB.
fn filesystem(path: &Path) -> Option<(String, u64)> {
    let existing = path.ancestors().find(|dir| dir.exists())?;
    let output = Command::new("df").arg("-Pk").arg(existing).output().ok()?;
    read(&String::from_utf8_lossy(&output.stdout))
}

/// The mountpoint and the free KiB, from the POSIX format of `df`: a header, then
/// `device blocks used available capacity mountpoint`. A device name may hold blanks, so count from the column that
/// ends in `%`.
fn read(df: &str) -> Option<(String, u64)> {
    let words: Vec<&str> = df.lines().nth(1)?.split_whitespace().collect();
    let percent = words.iter().position(|word| word.ends_with('%')).filter(|at| *at >= 4)?;
    let mount = words[percent + 1..].join(" ");
    Some((mount, words[percent - 1].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_df() {
        let header = "Filesystem 1024-blocks Used Available Capacity Mounted on\n";
        let plain = read(&format!("{header}/dev/sda1 1000 400 600 40% /\n"));
        assert_eq!(plain, Some(("/".into(), 600)));
        let blanks = read(&format!("{header}//host/my share 1000 400 77 40% /mnt/my share\n"));
        assert_eq!(blanks, Some(("/mnt/my share".into(), 77)));
        assert_eq!(read(header), None);
        assert_eq!(read("df: no such file\n? ? ?"), None);
    }

    #[test]
    fn too_little_is_refused_with_both_figures() {
        assert!(enough(Path::new("/x"), 6 * GIB, 6 * GIB, "it").is_ok());
        let Err(Error::Failed(text)) = enough(Path::new("/x"), GIB / 2, 6 * GIB, "it") else { panic!() };
        assert!(text.contains("/x has 0.5 GiB free") && text.contains("needs 6 GiB"), "{text}");
    }
}
