//! Collectives of tensors.

use tch::{Device, Tensor};

use super::agreement::{Notice, Op};
use super::{ProcessGroup, c10d};
use crate::Error;

/// A collective that is under way, so that other work can be done meanwhile.
///
/// Dropping it without waiting is allowed. The collective still takes place, and its tensor must not be written to before.
#[must_use = "the tensor has its values after `wait`"]
pub struct Pending {
    pub(super) group: ProcessGroup,
    /// `None` where there was nothing to do.
    pub(super) work: Option<c10d::Work>,
    pub(super) tensor: Tensor,
}

impl Pending {
    /// Waits for the result: a CPU tensor has its values then, a CUDA tensor in the order of the current stream, for which the host
    /// does not wait.
    ///
    /// # Errors
    /// If a process is lost or too late.
    pub fn wait(self) -> Result<Tensor, Error> {
        if let Some(work) = &self.work {
            work.wait().map_err(|reason| self.group.failed(reason))?;
        }
        Ok(self.tensor)
    }

    /// Whether the result is there, so that [`wait`](Self::wait) returns at once.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.work.as_ref().is_none_or(c10d::Work::is_done)
    }
}

/// Collectives of tensors, on the CPU or on this process's device. The values travel, not the graph:
/// [`Shards::gather_with_grad`](super::Shards::gather_with_grad) has gradients.
impl ProcessGroup {
    /// The tensors of all processes, `[n, ..]` each and of one shape, as `[W n, ..]` in the order of ranks. Different numbers of
    /// rows take [`Shards::gather`](super::Shards::gather).
    ///
    /// ```
    /// use tch::Tensor;
    /// use tercet::torch::distributed::ProcessGroup;
    ///
    /// let group = ProcessGroup::from_env()?;
    /// let all = group.all_gather(&Tensor::from_slice(&[1.5f32, 2.5]))?.wait()?;
    /// assert_eq!(all.size(), [2 * group.size() as i64]);
    /// # Ok::<(), tercet::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the processes' tensors differ in shape or dtype, they make different calls, or one is lost or too late.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Pending, Error> {
        self.agree(self.with_rows(tensor).map(|()| Notice::of(Op::AllGather, tensor)))?;
        self.begin_all_gather(tensor)
    }

    /// The sum over processes of `[W n, ..]`, of which each gets its rows, `[n, ..]`: the transpose of
    /// [`all_gather`](Self::all_gather).
    ///
    /// # Errors
    /// If the rows cannot be divided by the number of processes, or as for [`all_gather`](Self::all_gather).
    pub fn reduce_scatter(&self, tensor: &Tensor) -> Result<Pending, Error> {
        let divides = || match tensor.size()[0] % self.size() as i64 {
            0 => Ok(()),
            _ => Err(Error::argument(
                "tensor",
                format!("a multiple of {} rows", self.size()),
                format!("{:?}", tensor.size()),
            )),
        };
        let checked = self.with_rows(tensor).and_then(|()| divides());
        self.agree(checked.map(|()| Notice::of(Op::ReduceScatter, tensor)))?;
        self.begin_reduce_scatter(tensor)
    }

    /// The sum of the processes' tensors, in all of them. It takes the place of the tensor's own numbers.
    ///
    /// # Errors
    /// As for [`all_gather`](Self::all_gather).
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<Pending, Error> {
        self.agree(self.contiguous(tensor).map(|()| Notice::of(Op::AllReduce, tensor)))?;
        self.begin_all_reduce(tensor.f_detach()?, false)
    }

    /// The largest of the processes' numbers at each place, in all of them. It takes the place of the tensor's own numbers.
    ///
    /// # Errors
    /// As for [`all_gather`](Self::all_gather).
    pub fn all_reduce_max(&self, tensor: &mut Tensor) -> Result<Pending, Error> {
        self.agree(self.contiguous(tensor).map(|()| Notice::of(Op::AllReduce, tensor)))?;
        self.begin_all_reduce(tensor.f_detach()?, true)
    }

    /// The tensor of the process `root`, in all of them. It takes the place of the tensor's own numbers.
    ///
    /// # Errors
    /// If there is no process `root`, or as for [`all_gather`](Self::all_gather).
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<Pending, Error> {
        let exists = match root < self.size() {
            true => Ok(()),
            false => Err(Error::argument("root", format!("below {}", self.size()), root.to_string())),
        };
        let checked = exists.and_then(|()| self.contiguous(tensor));
        self.agree(checked.map(|()| Notice::of(Op::Broadcast, tensor)))?;
        self.begin_broadcast(tensor.f_detach()?, root)
    }

    fn with_rows(&self, tensor: &Tensor) -> Result<(), Error> {
        self.takes("tensor", tensor)?;
        match tensor.dim() {
            0 => Err(Error::argument("tensor", "at least one dimension", "a scalar")),
            _ => Ok(()),
        }
    }

    /// A tensor whose own memory takes the result.
    fn contiguous(&self, tensor: &Tensor) -> Result<(), Error> {
        self.takes("tensor", tensor)?;
        match tensor.is_contiguous() {
            true => Ok(()),
            false => Err(Error::argument("tensor", "a contiguous tensor", "another view")),
        }
    }

    /// Checks that a tensor is on the CPU or on this process's device.
    pub(super) fn takes(&self, argument: &'static str, tensor: &Tensor) -> Result<(), Error> {
        if !tensor.defined() {
            return Err(Error::argument(argument, "a tensor", "an undefined one"));
        }
        let device = tensor.device();
        if device == Device::Cpu || device == self.device() || self.is_alone() {
            return Ok(());
        }
        let expected = match self.device() {
            Device::Cpu => "a CPU tensor, for the process group was made without a device".into(),
            own => format!("a tensor on the CPU or on {own:?}, the device of the process group"),
        };
        Err(Error::argument(argument, expected, format!("{device:?}")))
    }

    /// [`all_gather`](Self::all_gather) of tensors that were compared.
    pub(super) fn begin_all_gather(&self, tensor: &Tensor) -> Result<Pending, Error> {
        let Some(group) = &self.0.c10d else { return Ok(self.pending(None, tensor.f_detach_copy()?)) };
        let tensor = tensor.f_detach()?.f_contiguous()?;
        let mut size = tensor.size();
        size[0] *= self.size() as i64;
        let all = Tensor::f_empty(&size, (tensor.kind(), tensor.device()))?;
        let work = group.all_gather(&all, &tensor).map_err(|reason| self.failed(reason))?;
        Ok(self.pending(Some(work), all))
    }

    /// [`reduce_scatter`](Self::reduce_scatter) of tensors that were compared.
    pub(super) fn begin_reduce_scatter(&self, tensor: &Tensor) -> Result<Pending, Error> {
        let Some(group) = &self.0.c10d else { return Ok(self.pending(None, tensor.f_detach_copy()?)) };
        let tensor = tensor.f_detach()?.f_contiguous()?;
        let mut size = tensor.size();
        size[0] /= self.size() as i64;
        let own = Tensor::f_empty(&size, (tensor.kind(), tensor.device()))?;
        let work = group.reduce_scatter(&own, &tensor).map_err(|reason| self.failed(reason))?;
        Ok(self.pending(Some(work), own))
    }

    /// [`all_reduce`](Self::all_reduce) of contiguous tensors that were compared.
    pub(super) fn begin_all_reduce(&self, tensor: Tensor, maximum: bool) -> Result<Pending, Error> {
        let work = self.0.c10d.as_ref().map(|group| group.all_reduce(&tensor, maximum)).transpose();
        Ok(self.pending(work.map_err(|reason| self.failed(reason))?, tensor))
    }

    /// [`broadcast`](Self::broadcast) of contiguous tensors that were compared.
    pub(super) fn begin_broadcast(&self, tensor: Tensor, root: usize) -> Result<Pending, Error> {
        let work = self.0.c10d.as_ref().map(|group| group.broadcast(&tensor, root)).transpose();
        Ok(self.pending(work.map_err(|reason| self.failed(reason))?, tensor))
    }
}
