//! The group of processes, and what they tell each other in plain numbers.

use std::fmt::{self, Debug, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Tensor};

use super::agreement::{Notice, Op, Term};
use super::options::Options;
use super::shards::Shards;
use super::{Pending, c10d};
use crate::Error;

/// This process among those that work together; a handle, whose clones are of the same group.
///
/// All processes make the same calls of a group in the same order, from one thread at a time. Each call waits for the others, for
/// [`Options::timeout`] at most, and a process that ends in the middle is an error for the others, in milliseconds.
///
/// ```
/// use tercet::torch::distributed::ProcessGroup;
///
/// // As `torchrun --no-python --nproc-per-node 4 program` says it; of one process, without a socket, if nobody says anything.
/// let group = ProcessGroup::from_env()?;
/// println!("process {} of {}", group.rank(), group.size());
/// let rows = group.exchange(&[10 + group.rank() as i64])?;
/// assert_eq!(rows[0], [10]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone)]
pub struct ProcessGroup(pub(super) Arc<Inner>);

pub(super) struct Inner {
    /// `None` for a process alone.
    pub c10d: Option<c10d::Group>,
    pub rank: usize,
    pub size: usize,
    pub device: Device,
    pub checks: bool,
    /// Whether a collective has failed: then the others may be gone, and nothing is waited for at the end.
    pub failed: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let failed = *self.failed.get_mut();
        if let Some(group) = &mut self.c10d {
            group.close(failed);
        }
    }
}

impl Debug for ProcessGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of {}", self.rank(), self.size())
    }
}

impl ProcessGroup {
    /// Meets the other processes that a launcher has started: [`Options::from_env`], then [`new`](Self::new).
    ///
    /// # Errors
    /// Those of the two.
    pub fn from_env() -> Result<Self, Error> {
        Self::new(&Options::from_env()?)
    }

    /// Meets the other processes. A group of one opens no socket.
    ///
    /// # Errors
    /// If an option is wrong, the processes do not agree on how many they are or on who they are, one does not come within the
    /// timeout, or this build has no process groups: [`check_available`](super::check_available) has the reason.
    pub fn new(options: &Options) -> Result<Self, Error> {
        Self::made(options, options.size > 1)
    }

    /// `connected`: whether calls go through c10d.
    pub(super) fn made(options: &Options, connected: bool) -> Result<Self, Error> {
        options.check()?;
        if !matches!(options.device, Device::Cpu | Device::Cuda(_)) {
            return Err(Error::argument("device", "the CPU or a CUDA device", format!("{:?}", options.device)));
        }
        let Options { rank, size, device, checks, .. } = *options;
        let meet = || {
            open(options).map_err(|reason| {
                let reason = format!("meeting at {}:{}: {reason}", options.host, options.port);
                Error::Process { rank, size, reason }
            })
        };
        let c10d = connected.then(meet).transpose()?;
        Ok(Self(Arc::new(Inner { c10d, rank, size, device, checks, failed: AtomicBool::new(false) })))
    }

    /// The group of this process alone. Every call of it returns at once.
    #[must_use]
    pub fn alone() -> Self {
        let inner =
            Inner { c10d: None, rank: 0, size: 1, device: Device::Cpu, checks: true, failed: AtomicBool::new(false) };
        Self(Arc::new(inner))
    }

    /// Whether there is nobody to talk to: calls return what they were given.
    pub(super) fn is_alone(&self) -> bool {
        self.0.c10d.is_none()
    }

    /// The number of this process, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// How many processes there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// The device that this process was given in the [`Options`].
    #[must_use]
    pub fn device(&self) -> Device {
        self.0.device
    }

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// If the processes make different calls, or one is lost or too late.
    pub fn barrier(&self) -> Result<(), Error> {
        self.tell(Ok(Notice::new(Op::Barrier, []))).map(drop)
    }

    /// The numbers of each process, by rank: as many in each. They travel by gloo, and no device is waited for.
    ///
    /// # Errors
    /// If the processes give different counts of numbers or make different calls, or one is lost or too late.
    pub fn exchange(&self, numbers: &[i64]) -> Result<Vec<Vec<i64>>, Error> {
        /// Fewer travel with the notice.
        const FEW: usize = 7;
        let mut terms = vec![Term::Same("how many numbers there are", numbers.len() as i64)];
        if numbers.len() <= FEW {
            terms.extend(numbers.iter().map(|number| Term::Own(*number)));
            let all = self.tell(Ok(Notice::new(Op::Exchange, terms)))?;
            return Ok(all.into_iter().map(|theirs| theirs[1..].to_vec()).collect());
        }
        self.tell(Ok(Notice::new(Op::Exchange, terms)))?;
        let all = self.gathered(&Tensor::from_slice(numbers).f_unsqueeze(0)?)?;
        Ok(Vec::<Vec<i64>>::try_from(all)?)
    }

    /// For each question whether any process answers it with yes, so that all of them do the same: stop, save, go on.
    ///
    /// ```
    /// use tercet::torch::distributed::ProcessGroup;
    ///
    /// let group = ProcessGroup::from_env()?;
    /// let (interrupted, late) = (false, true);
    /// assert_eq!(group.any(&[interrupted, late])?, [false, true]);
    /// # Ok::<(), tercet::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there are more than 64 answers, the processes give different counts of them or make different calls, or one is lost or
    /// too late.
    pub fn any(&self, answers: &[bool]) -> Result<Vec<bool>, Error> {
        let notice = if answers.len() <= 64 {
            let bits = answers.iter().enumerate().map(|(i, answer)| i64::from(*answer) << i);
            let bits = bits.fold(0, |all, bit| all | bit);
            Ok(Notice::new(Op::Any, [Term::Same("how many answers there are", answers.len() as i64), Term::Own(bits)]))
        } else {
            Err(Error::argument("answers", "at most 64", answers.len().to_string()))
        };
        let bits = self.tell(notice)?.iter().fold(0, |all, theirs| all | theirs[1]);
        Ok((0..answers.len()).map(|i| bits >> i & 1 == 1).collect())
    }

    /// What `f` returns in the process of rank 0, in all processes: what that process alone reads, finds or decides. Its error is
    /// the error of all, so that nobody waits for a process that has ended. The others wait for `f` no longer than the timeout.
    ///
    /// ```
    /// use tercet::torch::distributed::ProcessGroup;
    ///
    /// let group = ProcessGroup::from_env()?;
    /// let settings = group.first(|| std::fs::read("Cargo.toml"))?;
    /// assert!(!settings.is_empty());
    /// let error = group.first(|| std::fs::read("no such file")).unwrap_err();
    /// assert!(error.to_string().starts_with("process 0 of 1: No such file"));
    /// # Ok::<(), tercet::Error>(())
    /// ```
    ///
    /// # Errors
    /// If `f` returns an error, the processes make different calls, or one is lost or too late.
    pub fn first<E: Display>(&self, f: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Vec<u8>, Error> {
        let found = if self.rank() == 0 { f().map_err(|error| error.to_string()) } else { Ok(Vec::new()) };
        let (failed, bytes) = match &found {
            Ok(bytes) => (false, bytes.as_slice()),
            Err(error) => (true, error.as_bytes()),
        };
        let terms = [Term::Own(failed.into()), Term::Own(bytes.len() as i64)];
        let all = self.tell(Ok(Notice::new(Op::First, terms)))?;
        let (failed, length) = (all[0][0] != 0, all[0][1]);
        let bytes = match (&self.0.c10d, length) {
            (Some(_), 1..) => {
                let bytes = match self.rank() {
                    0 => Tensor::from_slice(bytes),
                    _ => Tensor::f_zeros([length], (tch::Kind::Uint8, Device::Cpu))?,
                };
                Vec::<u8>::try_from(self.begin_broadcast(bytes, 0)?.wait()?)?
            }
            _ => bytes.to_vec(),
        };
        if failed {
            let reason = String::from_utf8_lossy(&bytes).into_owned();
            return Err(Error::Process { rank: 0, size: self.size(), reason });
        }
        Ok(bytes)
    }

    /// How a batch lies over the processes, of which this one has so many rows. For batches that are alike it is asked once.
    ///
    /// # Errors
    /// If the processes make different calls, or one is lost or too late.
    pub fn shards(&self, rows: usize) -> Result<Shards, Error> {
        let all = self.tell(Ok(Notice::new(Op::Shards, [Term::Own(rows as i64)])))?;
        Ok(Shards::new(self.clone(), all.into_iter().map(|theirs| theirs[0]).collect()))
    }

    /// `tensor`s of all processes, one after the other, without an agreement on their sizes: the caller knows them.
    pub(super) fn gathered(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        self.begin_all_gather(tensor)?.wait()
    }

    /// The bytes of one of libtorch's groups over gloo, as this crate was compiled and as libtorch has them; `None` for a
    /// process alone.
    pub(crate) fn gloo_sizes(&self) -> Result<Option<[usize; 2]>, Error> {
        let sizes = self.0.c10d.as_ref().map(|group| group.gloo_sizes());
        sizes.transpose().map_err(|reason| self.error(reason))
    }

    pub(super) fn error(&self, reason: String) -> Error {
        Error::Process { rank: self.rank(), size: self.size(), reason }
    }

    /// The error of a collective: the group is not waited for any more.
    pub(super) fn failed(&self, reason: String) -> Error {
        self.0.failed.store(true, Ordering::Relaxed);
        self.error(reason)
    }

    pub(super) fn pending(&self, work: Option<c10d::Work>, tensor: Tensor) -> Pending {
        Pending { group: self.clone(), work, tensor }
    }
}

fn open(options: &Options) -> Result<c10d::Group, String> {
    if matches!(options.device, Device::Cuda(_)) && options.nccl {
        c10d::nccl().map_err(|why| {
            format!("this build has no NCCL: {why}. TERCET_GLOO=1 lets CUDA tensors travel by gloo, through the host's memory")
        })?;
    }
    let address = options.address()?.map(|address| address.to_string());
    allow_many_files();
    if options.rank > 0 || options.launcher_listens {
        options.wait_for_the_host()?;
    }
    let prefix = format!("{}/{}", options.name, options.restart);
    c10d::Group::open(options, &prefix, address.as_deref())
}

/// gloo has a connection from each process to each, and the usual limit of open files is too low for a thousand.
fn allow_many_files() {
    // SAFETY: both calls take a struct of this function, which the first one fills.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
