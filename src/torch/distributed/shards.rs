//! How the rows of a batch lie over the processes.

use tch::{Kind, Tensor};

use super::agreement::{Notice, Op, Term};
use super::{Pending, ProcessGroup};
use crate::Error;
use crate::torch::{CustomFunction, needs_grad};

/// How the work of a loss is divided among the processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// Each process compares its own rows with those of all.
    ///
    /// Forward each process sends its rows to all, backward each gets the sum of what all have to say about its rows. Value and
    /// gradient are those of one process within rounding.
    #[default]
    Shared,
    /// Each process computes the loss of the whole batch, and takes the gradient of its own rows.
    ///
    /// Nothing is sent backward, and value and gradient have the bits of one process; the gradient's factor of the number of
    /// processes rounds if that is no power of two. On the CPU this may be the faster way for two or three processes: the
    /// distances of a batch by itself serve both of their rows there, those to a reference set do not.
    Repeated,
}

/// How the rows of a batch lie over the processes of a group: those of rank 0 first, then those of rank 1, and so on. Each may have
/// another number of rows, or none.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tercet::BatchHardTripletLoss;
/// use tercet::torch::distributed::ProcessGroup;
///
/// let group = ProcessGroup::from_env()?;
/// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
///
/// let shards = group.shards(8)?;
/// let loss = BatchHardTripletLoss::default().on(&embeddings, &labels).over(&shards).f_forward()?;
/// loss.f_backward()?;
///
/// let all = shards.gather(&embeddings)?;
/// assert_eq!(all.size(), [shards.total(), 128]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Shards {
    group: ProcessGroup,
    counts: Vec<i64>,
    work: Work,
}

impl Shards {
    pub(super) fn new(group: ProcessGroup, counts: Vec<i64>) -> Self {
        Self { group, counts, work: Work::default() }
    }

    /// The same shards, of which each process computes the loss of the whole batch: [`Work::Repeated`].
    #[must_use]
    pub fn repeated(&self) -> Self {
        Self { work: Work::Repeated, ..self.clone() }
    }

    /// How the work of a loss is divided.
    #[must_use]
    pub fn work(&self) -> Work {
        self.work
    }

    /// The group of processes.
    #[must_use]
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// The rows of each process, by rank.
    #[must_use]
    pub fn counts(&self) -> &[i64] {
        &self.counts
    }

    /// The index in the batch of this process's first row.
    #[must_use]
    pub fn first(&self) -> i64 {
        self.counts[..self.group.rank()].iter().sum()
    }

    /// The rows of this process.
    #[must_use]
    pub fn own(&self) -> i64 {
        self.counts[self.group.rank()]
    }

    /// The rows of all processes.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.counts.iter().sum()
    }

    /// The batch, `[N, ..]`, of the processes' rows, `[n, ..]`: the values, without a graph.
    ///
    /// # Errors
    /// If there are not as many rows as the shards say, the processes' rows differ in shape or dtype, they make different calls, or
    /// one is lost or too late.
    pub fn gather(&self, rows: &Tensor) -> Result<Tensor, Error> {
        self.agree(Op::Gather, "rows", rows, self.own(), false)?;
        self.begin_gather(rows)?.wait()
    }

    /// The batch, `[N, ..]`, of the processes' rows, `[n, ..]`, as part of the graph: the gradient of a row is the sum of the
    /// gradients that all processes have for it.
    ///
    /// ```
    /// use tch::Tensor;
    /// use tercet::torch::distributed::ProcessGroup;
    ///
    /// let group = ProcessGroup::from_env()?;
    /// let rows = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    /// let all = group.shards(2)?.gather_with_grad(&rows)?;
    /// all.square().sum(tch::Kind::Double).f_backward()?;
    /// // Each process has made the same sum of squares.
    /// let processes = group.size() as f64;
    /// assert_eq!(rows.grad(), Tensor::from_slice(&[2.0, 4.0]) * processes);
    /// # Ok::<(), tercet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`gather`](Self::gather), or if a gradient is needed in some of the processes only. An error of the backward pass
    /// is one of `f_backward`.
    pub fn gather_with_grad(&self, rows: &Tensor) -> Result<Tensor, Error> {
        self.agree(Op::Gather, "rows", rows, self.own(), needs_grad(rows))?;
        self.attach_sum(rows, &self.begin_gather(rows)?.wait()?)
    }

    /// Of the sum over processes of `[N, ..]` this process's rows, `[n, ..]`: the transpose of [`gather`](Self::gather).
    ///
    /// # Errors
    /// If there are not as many rows as the batch has, or as for [`gather`](Self::gather).
    pub fn scatter_sum(&self, batch: &Tensor) -> Result<Tensor, Error> {
        self.agree(Op::ScatterSum, "batch", batch, self.total(), false)?;
        self.sum_of_own(batch)
    }

    /// What the processes compare before a tensor with so many rows travels.
    fn agree(&self, op: Op, argument: &'static str, tensor: &Tensor, rows: i64, grad: bool) -> Result<(), Error> {
        let notice = || {
            self.group.takes(argument, tensor)?;
            let size = tensor.size();
            if size.first() != Some(&rows) {
                return Err(Error::argument(argument, format!("{rows} rows"), format!("{size:?}")));
            }
            let of_row = size[1..].iter().product();
            Ok(Notice::new(
                op,
                [
                    Term::dtype(tensor.kind()),
                    Term::Same("the number of dimensions", size.len() as i64),
                    Term::Same("the numbers in a row", of_row),
                    Term::Same("whether it is on a CUDA device", tensor.device().is_cuda().into()),
                    Term::Same("whether a gradient is needed", grad.into()),
                    self.term(),
                ],
            ))
        };
        self.group.agree(notice()).map(drop)
    }

    /// What the processes compare of the shards themselves.
    pub(super) fn term(&self) -> Term {
        let step = |hash: i64, count: &i64| hash.wrapping_mul(0x0100_0000_01b3).wrapping_add(*count);
        Term::Hash("the shards of the batch", self.counts.iter().fold(0, step))
    }

    /// A tensor with the values of `all`, whose gradient, summed over the processes, is that of `rows`.
    pub(super) fn attach_sum(&self, rows: &Tensor, all: &Tensor) -> Result<Tensor, Error> {
        let shards = self.clone();
        CustomFunction::new("GatherOverProcesses").inputs(&[rows]).attach(all, move |ctx| {
            let upstream = ctx.upstream();
            // Sums over processes are sums in f32 at least; the row is rounded where it goes back to its tensor.
            let upstream = if is_narrow(upstream.kind()) { &upstream.f_to_kind(Kind::Float)? } else { upstream };
            shards.agree(Op::Backward, "the gradient", upstream, shards.total(), false)?;
            Ok(vec![Some(shards.sum_of_own(upstream)?)])
        })
    }

    /// [`gather`](Self::gather) of rows that were compared.
    pub(super) fn begin_gather(&self, rows: &Tensor) -> Result<Gathering, Error> {
        let _guard = tch::no_grad_guard();
        Ok(Gathering { shards: self.clone(), pending: self.group.begin_all_gather(&self.padded(rows)?)? })
    }

    /// [`scatter_sum`](Self::scatter_sum) of a batch that was compared.
    fn sum_of_own(&self, batch: &Tensor) -> Result<Tensor, Error> {
        let _guard = tch::no_grad_guard();
        if self.is_even() {
            return self.group.begin_reduce_scatter(batch)?.wait();
        }
        let mut first = 0;
        let mut parts = Vec::with_capacity(self.counts.len());
        for &count in &self.counts {
            parts.push(self.padded(&batch.f_narrow(0, first, count)?)?);
            first += count;
        }
        let own = self.group.begin_reduce_scatter(&Tensor::f_cat(&parts, 0)?)?.wait()?;
        Ok(own.f_narrow(0, 0, self.own())?)
    }

    fn is_even(&self) -> bool {
        self.counts.iter().all(|count| *count == self.counts[0])
    }

    fn most(&self) -> i64 {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    /// The rows, and zeros up to the number of rows that the process with the most has: all send as many.
    fn padded(&self, rows: &Tensor) -> Result<Tensor, Error> {
        let mut size = rows.size();
        size[0] = self.most() - size[0];
        match size[0] {
            0 => Ok(rows.shallow_clone()),
            _ => Ok(Tensor::f_cat(&[rows, &Tensor::f_zeros(&size, (rows.kind(), rows.device()))?], 0)?),
        }
    }
}

/// A batch on its way.
pub(super) struct Gathering {
    shards: Shards,
    pending: Pending,
}

impl Gathering {
    pub fn wait(self) -> Result<Tensor, Error> {
        let _guard = tch::no_grad_guard();
        let all = self.pending.wait()?;
        if self.shards.is_even() {
            return Ok(all);
        }
        let most = self.shards.most();
        let part = |(rank, count): (usize, &i64)| all.f_narrow(0, rank as i64 * most, *count);
        let parts = self.shards.counts.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::f_cat(&parts, 0)?)
    }
}

/// Whether sums of numbers of this kind are made in f32.
pub(super) fn is_narrow(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}
