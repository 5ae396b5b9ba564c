//! The Python environment on disk: what is in it, who made it, and whether it was finished.

use std::fs;
use std::path::{Path, PathBuf};

use super::toolkit::{self, PINNED_NVRTC};
use crate::error::{Doing, Error, Result};
use crate::sha256;

/// The file that marks an environment as made by set-up. It says `making` from before the first other file until
/// everything is there, and only then `ready`; so whatever ends a set-up, kill -9 included, leaves `making`.
const MARK: &str = "tercet-setup";

/// What set-up takes from `requirements.txt`.
pub struct Requirements {
    pub file: PathBuf,
    /// The version in `torch==VERSION`.
    pub torch: String,
    /// The lines that are neither empty nor comments.
    lines: Vec<String>,
    /// Whether `torch` is another version than the file's.
    replaced: bool,
}

impl Requirements {
    pub fn read(file: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&file).doing(format_args!("read {}", file.display()))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let lines: Vec<String> = lines.map(String::from).collect();
        let torch = lines.iter().find_map(|line| line.strip_prefix("torch=="));
        let torch = torch.ok_or_else(|| Error::Failed(format!("{} does not pin torch==VERSION", file.display())))?;
        Ok(Self { torch: torch.into(), lines, replaced: false, file })
    }

    /// The same requirements with another version of torch.
    pub fn with_torch(mut self, version: &str) -> Self {
        for line in self.lines.iter_mut().filter(|line| line.starts_with("torch==")) {
            *line = format!("torch=={version}");
        }
        self.torch = version.into();
        self.replaced = true;
        self
    }

    /// The release of libtorch: 2.11 of 2.11.0.
    pub fn libtorch(&self) -> String {
        self.torch.split('.').take(2).collect::<Vec<_>>().join(".")
    }

    fn hash(&self) -> String {
        sha256::hex(self.lines.join("\n").as_bytes())
    }

    /// A file for `pip install -r`: `requirements.txt` itself, or with another torch one in the environment it is for.
    pub fn for_pip(&self, environment: &Path) -> Result<PathBuf> {
        if !self.replaced {
            return Ok(self.file.clone());
        }
        let file = environment.join("requirements.txt");
        fs::write(&file, self.lines.join("\n") + "\n").doing(format_args!("write {}", file.display()))?;
        Ok(file)
    }

    /// What to type after `pip install` if an environment is somebody else's.
    pub fn by_hand(&self) -> String {
        if self.replaced { self.lines.join(" ") } else { format!("-r {}", self.file.display()) }
    }
}

/// What stands at the environment's place.
pub enum State {
    /// Nothing, or an empty folder.
    Missing,
    /// An environment that has all: the folder of torch in it.
    Ready(PathBuf),
    /// Made by set-up and not fit, with the reason. Set-up may delete it.
    Broken(String),
    /// Made by set-up and whole, for another `requirements.txt` than the checkout's.
    Outdated,
    /// Not made by set-up and not fit, with the reason. `venv`: whether it is a Python environment.
    Foreign { why: String, venv: bool },
}

/// Looks at the environment without starting a program, so that it costs no time. `nvrtc`: whether it has to
/// bring NVRTC too.
pub fn inspect(dir: &Path, requirements: &Requirements, nvrtc: bool) -> State {
    let empty = match dir.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => dir.symlink_metadata().is_err(),
    };
    if empty {
        return State::Missing;
    }
    let venv = dir.join("pyvenv.cfg").is_file();
    let mark = fs::read_to_string(dir.join(MARK)).ok();
    if let Some(mark) = &mark
        && let Some(state) = unfit_by_mark(mark, dir, requirements)
    {
        return state;
    }
    match check_content(dir, requirements, nvrtc) {
        Ok(torch) => State::Ready(torch),
        Err(why) if mark.is_some() => State::Broken(why),
        Err(why) => State::Foreign { why, venv },
    }
}

/// The state that the mark of an environment tells, if it is not ready for these requirements.
fn unfit_by_mark(mark: &str, dir: &Path, requirements: &Requirements) -> Option<State> {
    let mut lines = mark.lines();
    if lines.next() != Some("ready") {
        return Some(State::Broken("the set-up of it did not finish".into()));
    }
    if lines.next() != Some(requirements.hash().as_str()) {
        return Some(State::Outdated);
    }
    if lines.next() != python_version(dir).as_deref() {
        return Some(State::Broken("its Python has changed since".into()));
    }
    None
}

/// The version of an environment's Python, from the environment's own description.
fn python_version(dir: &Path) -> Option<String> {
    let description = fs::read_to_string(dir.join("pyvenv.cfg")).ok()?;
    description.lines().find_map(|line| Some(line.strip_prefix("version")?.split_once('=')?.1.trim().to_string()))
}

/// The folder of torch in an environment that has all; else what is missing.
fn check_content(dir: &Path, requirements: &Requirements, nvrtc: bool) -> Result<PathBuf, String> {
    let site = site_packages(dir).ok_or("it has no torch")?;
    let torch = site.join("torch");
    let version = fs::read_to_string(torch.join("version.py")).unwrap_or_default();
    // `__version__ = '2.11.0+cu130'`
    let version = version.lines().find_map(|line| line.strip_prefix("__version__ = "));
    let version = version.map_or("", |text| text.trim_matches(['\'', '"']));
    if version.split('+').next() != Some(&requirements.torch) {
        return Err(format!("it has torch {version}, and {} is needed", requirements.torch));
    }
    let record = format!("torch-{}.dist-info/RECORD", requirements.torch);
    let exact = site.join(&record).is_file() || site.join(format!("torch-{version}.dist-info/RECORD")).is_file();
    let files = [
        "torch/lib/libtorch.so",
        "torch/lib/libtorch_cpu.so",
        "torch/lib/libc10.so",
        "torch/include/torch/csrc/api/include/torch/torch.h",
    ];
    let missing = files.into_iter().find(|file| !site.join(file).metadata().is_ok_and(|meta| meta.len() > 0));
    if let Some(missing) = missing.or((!exact).then_some(record.as_str())) {
        return Err(format!("{missing} is missing"));
    }
    if nvrtc && let Err(why) = toolkit::check_nvrtc(&site.join(PINNED_NVRTC)) {
        return Err(why);
    }
    Ok(torch)
}

/// The `lib/python3.X/site-packages` that has a torch.
fn site_packages(dir: &Path) -> Option<PathBuf> {
    let versions = dir.join("lib").read_dir().ok()?;
    let sites = versions.filter_map(|entry| Some(entry.ok()?.path().join("site-packages")));
    sites.into_iter().find(|site| site.join("torch").is_dir())
}

/// The environment that a link to its torch belongs to: `ENVIRONMENT/lib/python3.X/site-packages/torch`.
pub fn around(torch: &Path) -> Option<PathBuf> {
    let dir = torch.canonicalize().ok()?.ancestors().nth(4)?.to_path_buf();
    dir.join("pyvenv.cfg").is_file().then_some(dir)
}

/// Marks an environment as unfinished, before any other file is written.
pub fn mark_as_making(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).doing(format_args!("make the folder {}", dir.display()))?;
    fs::write(dir.join(MARK), "making\n").doing(format_args!("write into {}", dir.display()))
}

/// Marks an environment as finished, after the last other file and in one step.
pub fn mark_as_ready(dir: &Path, requirements: &Requirements) -> Result<()> {
    let text = format!("ready\n{}\n{}\n", requirements.hash(), python_version(dir).unwrap_or_default());
    let new = dir.join(format!("{MARK}.new"));
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, dir.join(MARK)))
        .doing(format_args!("mark {} as ready", dir.display()))
}
