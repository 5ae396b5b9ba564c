//! Set-up: what the build needs and the machine lacks. Each step looks first, so a second run does nothing, and
//! a run after an interrupted one picks up whatever it finds.

mod compiler;
mod disk;
mod environment;
mod lock;
mod pip;
mod python;
pub mod toolkit;
mod workspace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::checkout::{Checkout, Libtorch, user_libtorch, variable};
use crate::error::{Doing, Error, Result};
use crate::releases::Pair;
use environment::{Requirements, State};
use lock::Lock;
use pip::say;

/// Whether to say something when there is nothing to do.
#[derive(PartialEq)]
pub enum WhenReady {
    SaySo,
    Silent,
}

/// Where the parts of the build come from.
struct Sources {
    libtorch: Option<Libtorch>,
    toolkit: Option<PathBuf>,
    /// What the user should know: which variables are of no use.
    notes: Vec<String>,
}

impl Sources {
    /// The parts that the user's variables name: `libtorch`, if one of the user's may be taken, and `CUDA_HOME`.
    fn from_variables(libtorch: Option<Libtorch>, requirements: &Requirements) -> Result<Self> {
        let mut notes = Vec::new();
        if let Some(libtorch) = &libtorch {
            toolkit::check_libtorch(libtorch, &requirements.libtorch()).map_err(|why| {
                Error::Failed(format!(
                    "LIBTORCH is of no use: {why}.\nUnset it, and set-up gets the right libtorch by itself."
                ))
            })?;
        }
        let toolkit = match toolkit::from_cuda_home() {
            Some(Ok(dir)) => Some(dir),
            Some(Err(why)) => {
                // Not an error: many images set CUDA_HOME to a toolkit of another release.
                notes.push(format!("CUDA_HOME is not used: {why}. The pinned NVRTC takes its place."));
                None
            }
            None => None,
        };
        let toolkit = toolkit.or_else(|| toolkit::beside(libtorch.as_ref()?));
        Ok(Self { libtorch, toolkit, notes })
    }

    fn complete(&self) -> bool {
        self.libtorch.is_some() && self.toolkit.is_some()
    }
}

/// The environment's place and whose it is.
struct Place {
    dir: PathBuf,
    /// The checkout's own `.venv`, which is set-up's to make and to delete.
    own: bool,
}

impl Place {
    /// The place for the torch that is pinned.
    fn choose(checkout: &Checkout, requirements: &Requirements, nvrtc: bool) -> Self {
        if let Some(named) = variable("TERCET_VENV") {
            // `join` keeps an absolute path as it is; `components` drops a slash at the end, which would put what
            // belongs beside the environment into it.
            let dir = checkout.root.join(named).components().collect();
            return Self { dir, own: false };
        }
        let own = checkout.root.join(".venv");
        // Without TERCET_VENV the link says which environment the checkout was set up with, so that one command with
        // the variable and the next without do not make a second one.
        if let Some(linked) = environment::around(&checkout.libtorch_link())
            && linked != own
            && matches!(environment::inspect(&linked, requirements, nvrtc), State::Ready(_))
        {
            return Self { dir: linked, own: false };
        }
        Self { dir: own, own: true }
    }

    /// The place for another torch: beside that of the pinned one, with the release in its name.
    fn for_torch(checkout: &Checkout, pair: &Pair) -> Self {
        let named = variable("TERCET_VENV");
        let own = named.is_none();
        let pinned: PathBuf = checkout.root.join(named.unwrap_or_else(|| ".venv".into())).components().collect();
        Self { dir: beside(&pinned, &format!("-{}", pair.libtorch)), own }
    }
}

/// The Python of the environment that the checkout was set up with.
pub fn python(checkout: &Checkout) -> Result<PathBuf> {
    let linked = environment::around(&checkout.libtorch_link());
    let named = || Some(checkout.root.join(variable("TERCET_VENV").unwrap_or_else(|| ".venv".into())));
    let python = linked.or_else(named).map(|dir| dir.join("bin/python")).filter(|python| python.is_file());
    python.ok_or_else(|| {
        Error::failed(
            "expected an environment with PyTorch, got none: unset LIBTORCH, and `cargo xtask setup` makes it",
        )
    })
}

/// Whether [`ensure`] would find nothing to do.
pub fn is_ready(checkout: &Checkout) -> bool {
    let look = || -> Result<bool> {
        let requirements = Requirements::read(checkout.requirements())?;
        let sources = Sources::from_variables(user_libtorch(checkout), &requirements)?;
        if sources.complete() {
            return Ok(true);
        }
        let nvrtc = sources.toolkit.is_none();
        let place = Place::choose(checkout, &requirements, nvrtc);
        Ok(match environment::inspect(&place.dir, &requirements, nvrtc) {
            State::Ready(torch) => is_linked(&checkout.libtorch_link(), &torch),
            _ => false,
        })
    };
    look().unwrap_or(false)
}

/// Makes what the build needs and the machine lacks.
pub fn ensure(checkout: &Checkout, when_ready: WhenReady) -> Result<()> {
    let start = Instant::now();
    compiler::check()?;
    let requirements = Requirements::read(checkout.requirements())?;
    let sources = Sources::from_variables(user_libtorch(checkout), &requirements)?;
    for note in &sources.notes {
        println!("set-up: {note}");
    }
    if sources.complete() {
        if when_ready == WhenReady::SaySo {
            let show = |path: Option<&Path>| path.unwrap_or(Path::new("")).display().to_string();
            println!(
                "set-up: ready (libtorch from {}, NVRTC from {})",
                show(sources.libtorch.as_ref().map(|libtorch| &*libtorch.lib)),
                show(sources.toolkit.as_deref())
            );
        }
        return Ok(());
    }
    let nvrtc = sources.toolkit.is_none();
    let place = Place::choose(checkout, &requirements, nvrtc);
    let (torch, made) = found_or_made(checkout, &place, &requirements, nvrtc, start)?;
    let linked = link(checkout, &torch)?;
    if made || linked || when_ready == WhenReady::SaySo {
        let seconds = start.elapsed().as_secs_f64();
        println!("set-up: ready ({}, torch {}) after {seconds:.1} s", checkout.show(&place.dir), requirements.torch);
    }
    Ok(())
}

/// Makes what is missing for another torch than the pinned one: its environment, and the workspace that is returned.
pub fn ensure_torch(checkout: &Checkout, pair: &Pair, when_ready: WhenReady) -> Result<Checkout> {
    let start = Instant::now();
    compiler::check()?;
    let requirements = Requirements::read(checkout.requirements())?.with_torch(&format!("{}.0", pair.libtorch));
    let sources = Sources::from_variables(None, &requirements)?; // the user's own libtorch is for the pinned tch
    for note in &sources.notes {
        println!("set-up: {note}");
    }
    let nvrtc = sources.toolkit.is_none();
    let place = Place::for_torch(checkout, pair);
    let (torch, made) = found_or_made(checkout, &place, &requirements, nvrtc, start)?;
    let workspace = workspace::make(checkout, pair)?;
    let linked = link(&workspace, &torch)?;
    if made || linked || when_ready == WhenReady::SaySo {
        println!(
            "set-up: ready ({}, torch {}, tch {}: cargo commands in {}) after {:.1} s",
            checkout.show(&place.dir),
            requirements.torch,
            pair.tch,
            checkout.show(&workspace.root),
            start.elapsed().as_secs_f64()
        );
    }
    Ok(workspace)
}

/// The folder of torch in the environment, and whether it was made now.
fn found_or_made(
    checkout: &Checkout,
    place: &Place,
    requirements: &Requirements,
    nvrtc: bool,
    start: Instant,
) -> Result<(PathBuf, bool)> {
    Ok(match environment::inspect(&place.dir, requirements, nvrtc) {
        State::Ready(torch) => (torch, false),
        _ => (make(checkout, place, requirements, nvrtc, start)?, true),
    })
}

/// Makes the environment, anew if there is one that is not fit; returns the folder of torch in it.
fn make(
    checkout: &Checkout,
    place: &Place,
    requirements: &Requirements,
    nvrtc: bool,
    start: Instant,
) -> Result<PathBuf> {
    let shown = checkout.show(&place.dir);
    let python = python::find()?; // before anything is deleted
    let lock = Lock::take(&lock_path(&place.dir), &shown)?;
    remove_old(&old_path(&place.dir))?;
    // Another checkout may have made it while this one waited for the lock.
    match environment::inspect(&place.dir, requirements, nvrtc) {
        State::Ready(torch) => return Ok(torch),
        State::Missing => {}
        State::Broken(why) => {
            println!("set-up: {shown} is made anew: {why}");
            remove(&place.dir)?;
        }
        State::Outdated if place.own => {
            println!("set-up: {shown} is made anew: requirements.txt has changed since");
            remove(&place.dir)?;
        }
        State::Outdated => {
            // Not repaired: two checkouts with different pins would delete it from under each other.
            return Err(Error::Failed(format!(
                "TERCET_VENV names {shown}, which was made for another requirements.txt than this checkout's.\n\
                 Name another place, or remove it if no other checkout uses it, and run the same command again."
            )));
        }
        State::Foreign { why, venv: true } if place.own => {
            println!("set-up: {shown} is made anew: {why}");
            remove(&place.dir)?;
        }
        State::Foreign { why, .. } => {
            return Err(not_ours(place, &shown, &why, requirements)); // neither deleted nor installed into
        }
    }
    disk::check(&place.dir)?;
    println!(
        "set-up: making {shown} with Python {} and torch {}: libtorch, NVRTC and the CUDA headers, some gigabytes",
        python.version, requirements.torch
    );
    fill(place, requirements, &python, &lock, start).inspect_err(|_| {
        // Gigabytes of no use, on a disk that may be full because of them. What cannot be removed now is marked as
        // unfinished and goes the next time.
        if remove(&place.dir).is_ok() {
            eprintln!("set-up: removed the unfinished {shown}");
        }
    })?;
    match environment::inspect(&place.dir, requirements, nvrtc) {
        State::Ready(torch) => Ok(torch),
        State::Broken(why) | State::Foreign { why, .. } => {
            Err(Error::Failed(format!("pip has filled {shown}, but it is not fit: {why}")))
        }
        State::Missing | State::Outdated => Err(Error::Failed(format!("{shown} was changed while it was made"))),
    }
}

fn not_ours(place: &Place, shown: &str, why: &str, requirements: &Requirements) -> Error {
    let (named, dir) = (if place.own { "" } else { "TERCET_VENV names " }, place.dir.display());
    let mut text = format!(
        "{named}{shown}, which set-up did not make and which is not fit: {why}.\n\
         Remove it or name another place with TERCET_VENV, and run the same command again."
    );
    if !place.own {
        let what = requirements.by_hand();
        text += &format!("\nOr, if it is a Python environment: {dir}/bin/python -m pip install {what}");
    }
    Error::Failed(text)
}

/// Makes the environment in an empty place.
fn fill(
    place: &Place,
    requirements: &Requirements,
    python: &python::Python,
    lock: &Lock,
    start: Instant,
) -> Result<()> {
    environment::mark_as_making(&place.dir)?;
    let mut venv = Command::new(python.program);
    let output = python::clean(&mut venv)
        .args(["-m", "venv"])
        .arg(&place.dir)
        .stdin(lock.as_stdin()?)
        .output()
        .doing(format_args!("start {}", python.program))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_string());
        return Err(Error::Failed(format!(
            "`{} -m venv` failed ({}):\n{}\nOnce the cause is mended, run the same command again.",
            python.program,
            output.status,
            said.join("\n").trim()
        )));
    }
    say(start, "environment made, asking pip for the packages");
    pip::install(&place.dir, &requirements.for_pip(&place.dir)?, lock, start)?;
    say(start, "packages installed");
    environment::mark_as_ready(&place.dir, requirements)
}

/// The lock's file, beside the environment and not in it: making it anew deletes the folder while the lock is held.
fn lock_path(environment: &Path) -> PathBuf {
    beside(environment, ".lock")
}

/// Where an unfit environment goes to be deleted.
fn old_path(environment: &Path) -> PathBuf {
    beside(environment, ".old")
}

/// The path of the environment with `suffix` behind its name.
fn beside(environment: &Path, suffix: &str) -> PathBuf {
    let mut path = environment.as_os_str().to_os_string();
    path.push(suffix);
    path.into()
}

/// Deletes an environment, by another name: a deletion that is interrupted must not leave at its place something
/// without the mark, which would look like somebody else's. The rest is deleted the next time.
fn remove(dir: &Path) -> Result<()> {
    let old = old_path(dir);
    remove_old(&old)?;
    fs::rename(dir, &old).doing(format_args!("remove {}", dir.display()))?;
    remove_old(&old)
}

fn remove_old(old: &Path) -> Result<()> {
    match fs::remove_dir_all(old) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(format_args!("remove {}", old.display()))
        }
        _ => Ok(()),
    }
}

fn is_linked(link: &Path, torch: &Path) -> bool {
    match (link.canonicalize(), torch.canonicalize()) {
        (Ok(now), Ok(wanted)) => now == wanted,
        _ => false,
    }
}

/// Points `.libtorch` at `torch`; true if it did not point there before.
fn link(checkout: &Checkout, torch: &Path) -> Result<bool> {
    let link = checkout.libtorch_link();
    if is_linked(&link, torch) {
        return Ok(false);
    }
    if link.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()) {
        return Err(Error::failed(
            ".libtorch is a folder or a file, and set-up needs the name for its link.\n\
             Move it elsewhere; a libtorch of your own is named by LIBTORCH.",
        ));
    }
    // Relative inside the checkout, so that a checkout can be moved; by renaming, so that it is never missing.
    let target = torch.strip_prefix(&checkout.root).unwrap_or(torch);
    let new = checkout.root.join(".libtorch.new");
    fs::remove_file(&new).ok();
    std::os::unix::fs::symlink(target, &new).and_then(|()| fs::rename(&new, &link)).doing("make the link .libtorch")?;
    Ok(true)
}
