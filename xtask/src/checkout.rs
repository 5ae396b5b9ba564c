//! Where the checkout is, and what lies where in it.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A checkout of the repository, by its absolute root folder.
pub struct Checkout {
    pub root: PathBuf,
}

impl Checkout {
    /// The checkout around `CARGO_MANIFEST_DIR` or the current folder.
    ///
    /// Both are asked when the program runs: the path that `env!` keeps is wrong on another machine, where a
    /// bundle carries this program too.
    pub fn find() -> Result<Self> {
        let starts = [env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from), env::current_dir().ok()];
        starts
            .into_iter()
            .flatten()
            .find_map(|start| Self::around(&start))
            .ok_or_else(|| Error::failed("not inside a checkout of Tercet: no folder above holds xtask/Cargo.toml"))
    }

    fn around(start: &Path) -> Option<Self> {
        let root = start.ancestors().find(|dir| dir.join("xtask/Cargo.toml").is_file())?;
        Some(Self { root: root.canonicalize().ok()? })
    }

    /// The link through which `.cargo/config.toml` finds libtorch.
    pub fn libtorch_link(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    pub fn requirements(&self) -> PathBuf {
        self.root.join("requirements.txt")
    }

    /// A path as messages show it: relative to the root if it lies inside.
    pub fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}

/// A variable that is set to something. An empty one counts as not set, as most shells' users mean it.
pub fn variable(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// A libtorch of the user's own, as torch-sys takes it: the folder that holds `lib`, and the one that holds `include`.
#[derive(Debug)]
pub struct Libtorch {
    pub lib: PathBuf,
    pub include: PathBuf,
}

/// The libtorch that the user named in whole: by `LIBTORCH`, or its parts by `LIBTORCH_LIB` and `LIBTORCH_INCLUDE`.
pub fn user_libtorch(checkout: &Checkout) -> Option<Libtorch> {
    let part = |name| variable(name).map(PathBuf::from).or_else(|| named_libtorch(checkout));
    Some(Libtorch { lib: part("LIBTORCH_LIB")?, include: part("LIBTORCH_INCLUDE")? })
}

/// The `LIBTORCH` that the user set, if any.
///
/// Trap: `cargo run` puts the `[env]` of `.cargo/config.toml` into our environment, so `LIBTORCH` is always set
/// here; when it names the checkout's own link, the user said nothing.
pub fn named_libtorch(checkout: &Checkout) -> Option<PathBuf> {
    let libtorch = PathBuf::from(variable("LIBTORCH")?);
    let own = libtorch.file_name() == Some(".libtorch".as_ref())
        && libtorch.parent().and_then(|parent| parent.canonicalize().ok()).as_deref() == Some(&checkout.root);
    (!own).then_some(libtorch)
}
