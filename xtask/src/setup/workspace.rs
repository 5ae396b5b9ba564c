//! A workspace for another torch than the pinned one, in `target/torch-X`: this checkout's files by links, with a
//! `Cargo.lock` that has the tch for it, its own `.libtorch` and its own target folder. Nothing of the checkout changes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::checkout::{Checkout, variable};
use crate::error::{Doing, Error, Result};
use crate::releases::Pair;
use crate::sha256;

/// Whether a name in the checkout's root is not linked: what cargo or set-up make, and `Cargo.lock`, which differs.
fn belongs_to_the_checkout(name: &str) -> bool {
    let hidden = name.starts_with('.') && !matches!(name, ".cargo" | ".ci");
    hidden || matches!(name, "target" | "runs" | "Cargo.lock")
}

/// Makes the workspace, or brings it up to date.
pub fn make(checkout: &Checkout, pair: &Pair) -> Result<Checkout> {
    let root = checkout.root.join("target").join(format!("torch-{}", pair.libtorch));
    fs::create_dir_all(&root).doing(format_args!("make the folder {}", root.display()))?;
    link_files(&checkout.root, &root).doing(format_args!("link this checkout's files into {}", root.display()))?;
    lock(checkout, &root, pair)?;
    Ok(Checkout { root })
}

/// Links each file of the checkout into the workspace, and removes links to files that are gone.
fn link_files(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut wanted = BTreeSet::<OsString>::new();
    for entry in from.read_dir()? {
        let name = entry?.file_name();
        if !belongs_to_the_checkout(&name.to_string_lossy()) {
            wanted.insert(name);
        }
    }
    for entry in to.read_dir()? {
        let entry = entry?;
        let ours = fs::read_link(entry.path()).is_ok_and(|target| target.parent() == Some(from));
        if ours && !wanted.contains(&entry.file_name()) {
            fs::remove_file(entry.path())?; // a file that the checkout has no more
        }
    }
    for name in wanted {
        let (target, link) = (from.join(&name), to.join(&name));
        if fs::read_link(&link).ok().as_deref() != Some(&target) {
            fs::remove_file(&link).ok();
            symlink(target, link)?;
        }
    }
    Ok(())
}

/// Makes the checkout's `Cargo.lock` with the pair's tch, again if the checkout's has changed.
fn lock(checkout: &Checkout, root: &Path, pair: &Pair) -> Result<()> {
    let (own, made_from) = (root.join("Cargo.lock"), root.join("Cargo.lock.from"));
    let pinned = fs::read(checkout.root.join("Cargo.lock")).doing("read Cargo.lock")?;
    let hash = sha256::hex(&pinned);
    if own.is_file() && fs::read_to_string(&made_from).is_ok_and(|from| from == hash) {
        return Ok(());
    }
    fs::remove_file(&made_from).ok();
    fs::write(&own, &pinned).doing(format_args!("write {}", own.display()))?;
    let version = format!("{}.0", pair.tch);
    let mut cargo = Command::new(variable("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["update", "--quiet", "--package", "tch", "--precise", &version]).current_dir(root);
    let output = cargo.output().doing("start cargo")?;
    if !output.status.success() {
        return Err(Error::Failed(format!(
            "cargo could not take tch {version} into {}:\n{}",
            own.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    fs::write(&made_from, hash).doing(format_args!("write {}", made_from.display()))
}
