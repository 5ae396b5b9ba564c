//! The processes of a run: this one alone, or as many as a launcher has started (torchrun, slurm, mpirun). They read the same
//! images, each takes its share of every batch, and they end at the same step. The first one alone writes and speaks.

use crate::process::bad_input::{self, bad_input};
use crate::process::fingerprint::Fingerprint;
use crate::process::interrupt::{Interrupt, Interrupted};
use crate::process::say;
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use tch::{Device, Tensor};
use tercet::Error;
use tercet::torch::distributed::{Options, ProcessGroup, Shards, average};

/// The processes, as this one sees them.
pub struct Ranks {
    group: ProcessGroup,
    options: Options,
    /// How batches of so many rows lie over the processes.
    shards: Mutex<HashMap<usize, Shards>>,
}

/// This process's part of what all processes do together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    rank: usize,
    size: usize,
}

impl Share {
    /// All of it.
    #[cfg(test)]
    pub const ALL: Self = Self { rank: 0, size: 1 };

    /// That of process `rank`, of `size`.
    #[cfg(test)]
    pub fn new(rank: usize, size: usize) -> Self {
        Self { rank, size }
    }

    /// Its own among `n` things in a row: those of all processes, by rank, are all of them.
    pub fn of(self, n: usize) -> Range<usize> {
        let until = |rank: usize| rank * n / self.size;
        until(self.rank)..until(self.rank + 1)
    }

    /// The most things among `n` that a process has.
    pub fn most(self, n: usize) -> usize {
        n.div_ceil(self.size)
    }
}

/// An error of the first process, in another one: the first has said it.
#[derive(Debug)]
pub struct OfFirst {
    /// The exit code of the first process.
    pub code: u8,
    text: String,
}

impl std::fmt::Display for OfFirst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the first process: {}", self.text)
    }
}

impl std::error::Error for OfFirst {}

/// What the first process tells the others.
#[derive(Serialize, Deserialize)]
enum Told<T> {
    Found(T),
    Failed { code: u8, text: String },
}

impl Ranks {
    /// This process alone.
    #[cfg(test)]
    pub fn alone() -> Self {
        Self { group: ProcessGroup::alone(), options: Options::default(), shards: Mutex::default() }
    }

    /// Meets the processes that a launcher has started, if one has. From then on only the first one speaks. The processes of a
    /// host divide its cores.
    pub fn from_env() -> Result<Self> {
        let wrong = |error: Error| match error {
            Error::Process { .. } => error.into(),
            other => bad_input(other.to_string()),
        };
        let options = Options::from_env().map_err(wrong)?;
        let group = ProcessGroup::new(&options).map_err(wrong)?;
        let new = Self { group, options, shards: Mutex::default() };
        if new.is_alone() {
            return Ok(new);
        }
        say::as_rank(new.group.rank(), new.group.size());
        let threads = new.threads();
        // torchrun sets 1 where nothing is said, which would leave cores idle.
        if std::env::var_os("OMP_NUM_THREADS").is_none_or(|number| number == "1") {
            tch::set_num_threads(threads as i32);
        }
        if std::env::var_os("RAYON_NUM_THREADS").is_none() {
            // Fails if the pool is there already: it is only as large as before.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        Ok(new)
    }

    /// The process group.
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.group.size()
    }

    /// Whether there is no other.
    pub fn is_alone(&self) -> bool {
        self.group.size() == 1
    }

    /// Whether a launcher has started the processes anew, because one of them had failed.
    pub fn is_restart(&self) -> bool {
        self.options.restart > 0
    }

    /// The GPU that this process has for itself by its place among the processes of its host, or the CPU.
    pub fn own_device(&self) -> Device {
        self.options.device
    }

    /// How many processes this host has.
    pub fn on_this_host(&self) -> usize {
        self.options.local_size
    }

    /// The cores that this process may use.
    pub fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / self.on_this_host()).max(1)
    }

    /// This process's part of things.
    pub fn share(&self) -> Share {
        Share { rank: self.group.rank(), size: self.group.size() }
    }

    /// How the rows of a batch lie over the processes, as [`share`](Self::share) divides them; `None` for a process alone.
    pub fn shards(&self, rows: usize) -> Result<Option<Shards>> {
        if self.is_alone() {
            return Ok(None);
        }
        let mut known = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shards) = known.get(&rows) {
            return Ok(Some(shards.clone()));
        }
        let shards = self.group.shards(self.share().of(rows).len())?;
        known.insert(rows, shards.clone());
        Ok(Some(shards))
    }

    /// The rows of all processes, `[N, D]`, of those that each has.
    pub fn gather(&self, rows: &Tensor) -> Result<Tensor> {
        match self.is_alone() {
            true => Ok(rows.shallow_clone()),
            false => Ok(self.group.shards(rows.size()[0] as usize)?.gather(rows)?),
        }
    }

    /// Replaces tensors by their means over the processes.
    pub fn average(&self, tensors: &mut [Tensor]) -> Result<()> {
        if self.is_alone() { Ok(()) } else { Ok(average(tensors, &self.group)?) }
    }

    /// What `f` returns in the first process, in all of them. Its error ends the others silently, with the same exit code.
    pub fn first<T: Serialize + DeserializeOwned>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_alone() {
            return f();
        }
        let mut found = None;
        let told = self.group.first(|| {
            let result = f();
            let told = match &result {
                Ok(value) => Told::Found(value),
                Err(error) => Told::Failed { code: code(error), text: format!("{error:#}") },
            };
            let bytes = serde_json::to_vec(&told);
            found = Some(result);
            bytes
        });
        match found {
            Some(Err(error)) => Err(error),
            Some(found) => told.map_err(Into::into).and(found),
            None => match serde_json::from_slice(&told?).context("what the first process has told")? {
                Told::Found(value) => Ok(value),
                Told::Failed { code, text } => Err(match Interrupted::of(code) {
                    Some(interrupted) => interrupted.into(),
                    None => OfFirst { code, text }.into(),
                }),
            },
        }
    }

    /// The path that `f` returns in the first process, which may be no UTF-8, as [`first`](Self::first).
    pub fn first_path(&self, f: impl FnOnce() -> Result<Option<PathBuf>>) -> Result<Option<PathBuf>> {
        #[derive(Serialize, Deserialize)]
        struct Found(#[serde(with = "crate::process::paths")] Option<PathBuf>);
        Ok(self.first(|| f().map(Found))?.0)
    }

    /// The bytes that `f` returns in the first process, as [`first`](Self::first).
    pub fn first_bytes(&self, f: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.first(|| {
            bytes = f()?;
            Ok(())
        })?;
        match self.is_alone() {
            true => Ok(bytes),
            false => Ok(self.group.first(|| Ok::<_, Error>(bytes))?),
        }
    }

    /// Whether anybody has asked any of the processes to stop, and whether the first one says that its time is over.
    pub fn asked(&self, interrupt: &Interrupt, over: bool) -> Result<[bool; 2]> {
        if self.is_alone() {
            return Ok([interrupt.asked(), over]);
        }
        let all = self.group.exchange(&[i64::from(interrupt.signal()), over.into()])?;
        let signal = all.iter().map(|theirs| theirs[0]).max().unwrap_or(0);
        if signal > 0 {
            interrupt.ask(signal as i32);
        }
        Ok([signal > 0, all[0][1] != 0])
    }

    /// An error if anybody has asked any of the processes to stop.
    pub fn check(&self, interrupt: &Interrupt) -> Result<()> {
        match self.asked(interrupt, false)? {
            [true, _] => Err(interrupt.error().into()),
            _ => Ok(()),
        }
    }

    /// An error that names a host on which `what` is another thing than for the first process.
    pub fn check_same(&self, what: &str, of: Fingerprint) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let mut numbers = of.halves().to_vec();
        let host = gethostname::gethostname().to_string_lossy().into_owned();
        let mut bytes = host.into_bytes();
        bytes.resize(HOST_BYTES, 0);
        numbers.extend(bytes.chunks_exact(8).map(|eight| i64::from_le_bytes(eight.try_into().expect("eight bytes"))));
        let all = self.group.exchange(&numbers)?;
        let Some(other) = all.iter().position(|theirs| theirs[..2] != all[0][..2]) else { return Ok(()) };
        let host = |rank: usize| {
            let bytes: Vec<u8> = all[rank][2..].iter().flat_map(|eight| eight.to_le_bytes()).collect();
            String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
        };
        Err(bad_input(format!(
            "{what} of process {other}, on {}, are others than those of process 0, on {}",
            host(other),
            host(0)
        )))
    }
}

/// Bytes of a host's name that are told, a multiple of 8; Linux has at most 64.
const HOST_BYTES: usize = 64;

/// The exit code of an error.
fn code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Interrupted>() {
        Some(interrupted) => interrupted.exit_code(),
        None => bad_input::exit_code(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_and_as_even_as_can_be() {
        for (n, size) in [(0, 1), (1, 3), (7, 3), (48, 5), (4, 8)] {
            let shares: Vec<Range<usize>> = (0..size).map(|rank| Share { rank, size }.of(n)).collect();
            assert_eq!((shares[0].start, shares[size - 1].end), (0, n));
            assert!(shares.windows(2).all(|two| two[0].end == two[1].start));
            let lengths = || shares.iter().map(|share| share.len());
            assert!(lengths().max().unwrap() - lengths().min().unwrap() <= 1);
            assert_eq!(lengths().max(), Some(Share { rank: 0, size }.most(n)));
        }
    }

    #[test]
    fn a_process_alone_asks_nobody() {
        let ranks = Ranks::alone();
        assert!(ranks.shards(9).unwrap().is_none());
        assert_eq!(ranks.first(|| Ok(7)).unwrap(), 7);
        let error = ranks.first(|| Err::<(), _>(bad_input("--out: x"))).unwrap_err();
        assert_eq!((bad_input::exit_code(&error), error.to_string().as_str()), (2, "--out: x"));
        assert_eq!(ranks.asked(&Interrupt::default(), true).unwrap(), [false, true]);
    }
}
