//! The weights of all processes: equal at the start, and moved by the mean of the processes' gradients.

use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::agreement::{Notice, Op, Term, hash};
use super::shards::is_narrow;
use super::{ProcessGroup, c10d};
use crate::Error;

/// The most bytes that travel at once: enough for a link's full speed, few enough that the first arrive while the last are packed.
const BUCKET_BYTES: usize = 25 << 20;
/// Of the first bucket of [`Averaging`], which is not to wait for many layers.
const FIRST_BUCKET_BYTES: usize = 1 << 20;

/// Replaces gradients by their means over the processes, after a backward pass: the gradients that all are to step by.
///
/// The gradients are packed into buckets of at most 25 MiB, all of which are under way at once. 16-bit gradients are added up in f32.
/// With a gradient scaler, average first and look for infinity then: all processes see the same. [`Averaging`] does it during
/// the backward pass.
///
/// ```
/// use tch::Tensor;
/// use tercet::torch::distributed::{ProcessGroup, average};
///
/// let group = ProcessGroup::from_env()?;
/// let weights = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
/// let loss = (&weights * group.rank() as f64).sum(tch::Kind::Float);
/// let mut gradients = Tensor::f_run_backward(&[&loss], &[&weights], false, false)?;
/// average(&mut gradients, &group)?;
/// assert_eq!(gradients[0].double_value(&[0]), (group.size() as f64 - 1.0) / 2.0);
/// # Ok::<(), tercet::Error>(())
/// ```
///
/// # Errors
/// If a gradient is undefined or on another device than the group's, the processes' gradients differ in shapes or dtypes,
/// they make different calls, or one is lost or too late.
pub fn average(gradients: &mut [Tensor], group: &ProcessGroup) -> Result<(), Error> {
    let _guard = tch::no_grad_guard();
    group.agree(group.takes_all(Op::Average, "gradients", gradients, ""))?;
    if group.is_alone() {
        return Ok(());
    }
    let mut pending = Vec::new();
    for bucket in buckets(gradients) {
        let flat = packed(&gradients[bucket.clone()])?;
        let flat = if is_narrow(flat.kind()) { flat.f_to_kind(Kind::Float)? } else { flat };
        pending.push((bucket, group.begin_all_reduce(flat, false)?));
    }
    for (bucket, pending) in pending {
        let mut flat = pending.wait()?;
        let _ = flat.f_div_scalar_(group.size() as f64)?;
        unpack(&flat, &mut gradients[bucket])?;
    }
    Ok(())
}

impl ProcessGroup {
    /// Gives all processes the variables of rank 0, buffers such as batch norm's statistics among them: the start of a training, or of
    /// a resumed one.
    ///
    /// ```
    /// use tch::{Device, nn};
    /// use tercet::torch::distributed::ProcessGroup;
    ///
    /// let group = ProcessGroup::from_env()?;
    /// let vs = nn::VarStore::new(Device::Cpu);
    /// let _encoder = nn::linear(vs.root(), 16, 8, Default::default());
    /// group.broadcast_all(&vs)?;
    /// # Ok::<(), tercet::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the processes' variables differ in names, shapes or dtypes, one is on another device than the group's, they make
    /// different calls, or one is lost or too late.
    pub fn broadcast_all(&self, vs: &VarStore) -> Result<(), Error> {
        // A VarStore hands them out in an order of its own in each process.
        let mut named: Vec<_> = vs.variables().into_iter().collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let (names, tensors): (Vec<_>, Vec<_>) = named.into_iter().unzip();
        self.broadcast_named(&tensors, &names.join("\n"))
    }

    /// Gives all processes the tensors of rank 0, in place: an optimiser's moments, for example.
    ///
    /// # Errors
    /// As for [`broadcast_all`](Self::broadcast_all).
    pub fn broadcast_each(&self, tensors: &[Tensor]) -> Result<(), Error> {
        self.broadcast_named(tensors, "")
    }

    fn broadcast_named(&self, tensors: &[Tensor], names: &str) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        self.agree(self.takes_all(Op::Broadcast, "tensors", tensors, names))?;
        if self.is_alone() {
            return Ok(());
        }
        let mut tensors: Vec<Tensor> = tensors.iter().map(Tensor::shallow_clone).collect();
        let mut pending = Vec::new();
        for bucket in buckets(&tensors) {
            pending.push((bucket.clone(), self.begin_broadcast(packed(&tensors[bucket])?, 0)?));
        }
        for (bucket, pending) in pending {
            unpack(&pending.wait()?, &mut tensors[bucket])?;
        }
        Ok(())
    }

    /// Averages the gradients of these variables while `backward()` is running, bucket by bucket, so that the network works
    /// at the same time as the processor: what PyTorch's `DistributedDataParallel` is made of (c10d's `Reducer`).
    ///
    /// It is for gradients that `backward()` leaves in `grad`; `run_backward` is followed by [`average`].
    ///
    /// # Errors
    /// If there are no variables or one needs no gradient, the processes' variables differ in shapes or dtypes, one is on
    /// another device than the group's, they make different calls, or one is lost or too late.
    pub fn averaging(&self, variables: &[&Tensor]) -> Result<Averaging, Error> {
        let shallow: Vec<Tensor> = variables.iter().map(|variable| variable.shallow_clone()).collect();
        let notice = self.takes_all(Op::Averaging, "variables", &shallow, "").and_then(|notice| {
            match shallow.iter().position(|variable| !variable.requires_grad()) {
                _ if shallow.is_empty() => Err(Error::argument("variables", "at least one", "none")),
                Some(i) => Err(Error::argument(
                    "variables",
                    "tensors that require a gradient",
                    format!("one that does not, {i}"),
                )),
                None => Ok(notice),
            }
        });
        self.agree(notice)?;
        let reducer =
            self.0.c10d.as_ref().map(|group| c10d::Reducer::new(group, variables, FIRST_BUCKET_BYTES, BUCKET_BYTES));
        let reducer = reducer.transpose().map_err(|reason| self.error(reason))?;
        Ok(Averaging { reducer, group: self.clone() })
    }

    /// What the processes compare of tensors that travel in buckets.
    fn takes_all(&self, op: Op, argument: &'static str, tensors: &[Tensor], names: &str) -> Result<Notice, Error> {
        for (i, tensor) in tensors.iter().enumerate() {
            if !tensor.defined() {
                return Err(Error::argument(argument, "tensors", format!("an undefined one, {i}")));
            }
            self.takes(argument, tensor)?;
        }
        let described =
            |tensor: &Tensor| format!("{:?} {:?} {}\n", tensor.kind(), tensor.size(), tensor.device().is_cuda());
        let shapes: String = tensors.iter().map(described).collect();
        let numbers: usize = tensors.iter().map(Tensor::numel).sum();
        Ok(Notice::new(
            op,
            [
                Term::Same("how many tensors there are", tensors.len() as i64),
                Term::Same("how many numbers there are", numbers as i64),
                Term::Hash("the names of variables", hash(names)),
                Term::Hash("shapes or dtypes", hash(&shapes)),
            ],
        ))
    }
}

/// Averages gradients during `backward()`; made by [`ProcessGroup::averaging`].
///
/// Each variable must be part of each loss: the gradients of a bucket with one that is not are not averaged, and the next
/// [`prepare`](Self::prepare) is an error that says so. Gradients may be dropped between steps or set to zero. During the backward
/// pass no other thread may call anything of the group.
///
/// ```
/// use tch::Tensor;
/// use tercet::torch::distributed::ProcessGroup;
///
/// let group = ProcessGroup::from_env()?;
/// let mut weights = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
/// let averaging = group.averaging(&[&weights])?;
/// for _step in 0..2 {
///     weights.zero_grad();
///     averaging.prepare()?;
///     (&weights * group.rank() as f64).sum(tch::Kind::Float).f_backward()?;
///     let mean = (group.size() as f64 - 1.0) / 2.0; // or, in a group of one, the gradient itself
///     assert_eq!(weights.grad().double_value(&[0]), mean);
/// }
/// # Ok::<(), tercet::Error>(())
/// ```
#[must_use = "gradients are averaged while it lives"]
pub struct Averaging {
    reducer: Option<c10d::Reducer>,
    group: ProcessGroup,
}

impl Averaging {
    /// Makes ready for one more backward pass; to be called before the forward pass that it belongs to.
    ///
    /// # Errors
    /// If a variable had no gradient in the backward pass before, or a process is lost.
    pub fn prepare(&self) -> Result<(), Error> {
        self.reducer.as_ref().map_or(Ok(()), c10d::Reducer::prepare).map_err(|reason| self.group.failed(reason))
    }
}

/// Neighbours of one dtype and device, of at most [`BUCKET_BYTES`] together, or a larger one alone.
fn buckets(tensors: &[Tensor]) -> Vec<std::ops::Range<usize>> {
    let alike = |a: &Tensor, b: &Tensor| (a.kind(), a.device()) == (b.kind(), b.device());
    let mut all: Vec<std::ops::Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        let own = tensor.numel() * tensor.kind().elt_size_in_bytes();
        match all.last_mut() {
            Some(last) if alike(&tensors[last.start], tensor) && bytes + own <= BUCKET_BYTES => {
                last.end = i + 1;
                bytes += own;
            }
            _ => {
                all.push(i..i + 1);
                bytes = own;
            }
        }
    }
    all
}

/// The tensors' numbers, one after the other.
fn packed(tensors: &[Tensor]) -> Result<Tensor, Error> {
    let flat = tensors.iter().map(|tensor| tensor.f_reshape([-1])).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_cat(&flat, 0)?)
}

/// Writes back what [`packed`] has made one tensor.
fn unpack(flat: &Tensor, tensors: &mut [Tensor]) -> Result<(), Error> {
    let mut first = 0;
    for tensor in tensors {
        let count = tensor.numel() as i64;
        tensor.f_copy_(&flat.f_narrow(0, first, count)?.f_view_as(tensor)?)?;
        first += count;
    }
    Ok(())
}
