//! Calls of mined losses on tch tensors: checks, both passes on the tensors' device, and statistics that stay there.

use tch::{Device, Kind, Tensor};

use super::autograd::{CustomFunction, needs_grad};
use super::pool;
use super::tensors::{
    OfKind, as_in_memory, check_embeddings, check_kind_and_device, check_per_row, check_scalar, matrix, slice,
    slice_mut, with_contiguous_rows, with_element,
};
#[cfg(feature = "cuda")]
use super::tensors::{largest, row_stride};
use super::threads::on_libtorchs;
use crate::call::{Call, Input, sealed};
use crate::mined::Slices;
use crate::problem::{Problem, Sizes};
use crate::{Error, MinedLoss, Reduction, Reference, Stats};

impl<'a> Input for &'a Tensor {
    type Labels = &'a Tensor;
    type Step = &'a Tensor;
}
impl sealed::Input for &Tensor {}

/// Calls on tch tensors, part of the autograd graph.
///
/// The embeddings are `[N, D]`, dtype f32, f16, bf16 or on the CPU f64, on the CPU or a CUDA device; the rows may be
/// views with any strides. The labels are `[N]`, i64 or i32, on the same device. On CUDA nothing waits for the device.
impl<L: MinedLoss> Call<'_, L, &Tensor> {
    /// The loss: a scalar, or `[N]` for `Reduction::None`; f64 for f64 embeddings and f32 for all others. It is part of
    /// the graph of the embeddings and, if they require a gradient, of the reference embeddings.
    ///
    /// # Panics
    /// If [`f_forward`](Self::f_forward) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::{BatchSemiHardTripletLoss, Own, Reference};
    ///
    /// let bank = Tensor::randn([8, 128], (Kind::Float, Device::Cpu));
    /// let bank_labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let embeddings = Tensor::randn([2, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 3]);
    /// let reference = Reference { embeddings: &bank, labels: &bank_labels, own: Own::None };
    /// let loss = BatchSemiHardTripletLoss::default().on(&embeddings, &labels).against(&reference).forward();
    /// loss.backward();
    /// assert_eq!(embeddings.grad().size(), [2, 128]);
    /// ```
    pub fn forward(self) -> Tensor {
        self.f_forward().unwrap_or_else(|error| panic!("{}: {error}", L::NAME))
    }

    /// The loss as [`forward`](Self::forward) gives it, or an error.
    ///
    /// # Errors
    /// If shapes, dtypes or devices of the tensors do not match or are not supported, the batch or the reference set is
    /// empty or too large, an option is out of range, a step is not one i64 on the embeddings' device, or memory runs
    /// out.
    pub fn f_forward(self) -> Result<Tensor, Error> {
        Ok(self.run(false)?.0)
    }

    /// The loss as [`forward`](Self::forward) gives it, and statistics of the batch; each loss documents what it
    /// counts.
    ///
    /// # Panics
    /// If [`f_forward_with_stats`](Self::f_forward_with_stats) returns an error, with its text.
    pub fn forward_with_stats(self) -> WithStats {
        self.f_forward_with_stats().unwrap_or_else(|error| panic!("{}: {error}", L::NAME))
    }

    /// The loss and statistics as [`forward_with_stats`](Self::forward_with_stats) gives them, or an error.
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward).
    pub fn f_forward_with_stats(self) -> Result<WithStats, Error> {
        let (loss, counted) = self.run(true)?;
        Ok(WithStats { loss, stats: counted.read()? })
    }

    /// Checks the arguments and runs the loss. `count`: whether the statistics will be read.
    fn run(self, count: bool) -> Result<(Tensor, Counted), Error> {
        #[cfg(feature = "distributed")]
        if let Some(shards) = self.shards {
            return super::distributed::loss::run(self, shards, count);
        }
        self.run_here(None, count)
    }

    /// Checks the arguments and runs the loss on their device, with `reduction` in place of the loss's own.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "the CPU counts always"))]
    pub(super) fn run_here(self, reduction: Option<Reduction>, count: bool) -> Result<(Tensor, Counted), Error> {
        let arguments = Arguments::new(&self)?;
        let problem = |sizes: &Sizes| -> Result<Problem<L::Extra>, Error> {
            let mut problem = self.loss_fn.problem(sizes)?;
            problem.options.reduction = reduction.unwrap_or(problem.options.reduction);
            Ok(problem)
        };
        match self.embeddings.device() {
            Device::Cpu => with_element!(self.embeddings.kind(), T => on_cpu::<L, T>(problem, &arguments)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let problem = problem(&arguments.sizes())?;
                match self.embeddings.kind() {
                    Kind::Half => on_cuda::<L, half::f16>(problem, ordinal, &arguments, count),
                    Kind::BFloat16 => on_cuda::<L, half::bf16>(problem, ordinal, &arguments, count),
                    _ => on_cuda::<L, f32>(problem, ordinal, &arguments, count),
                }
            }
            device => unreachable!("checked: {device:?}"),
        }
    }
}

/// A loss, and statistics of the batch.
#[derive(Debug)]
#[non_exhaustive]
pub struct WithStats {
    /// The loss, as `forward` returns it.
    pub loss: Tensor,
    /// The statistics, scalars on the loss's device: only reading one waits for the device.
    pub stats: TensorStats,
}

/// [`Stats`] as scalar tensors.
#[derive(Debug)]
#[non_exhaustive]
pub struct TensorStats {
    /// How many pairs, triplets or anchors the loss is taken over: i64.
    pub valid: Tensor,
    /// How many of the valid pairs, triplets or anchors have a loss above 0: i64.
    pub active: Tensor,
    /// The mean distance between anchors and positives: f64.
    pub mean_positive_distance: Tensor,
    /// The mean distance between anchors and negatives: f64.
    pub mean_negative_distance: Tensor,
    /// Whether there was no room for the batch's pairs, and the loss is NaN for that: bool.
    pub too_many_pairs: Tensor,
}

/// Statistics not yet made into tensors of their own.
pub(super) enum Counted {
    OnHost {
        stats: Stats,
        /// The sum of the losses, which the loss as a tensor has rounded.
        #[cfg_attr(not(feature = "distributed"), expect(dead_code, reason = "sums of processes are added up"))]
        sum: f64,
    },
    /// A tensor of numbers, as [`Output::stats`](crate::cuda::arguments::Output::stats) says.
    #[cfg(feature = "cuda")]
    OnDevice(Tensor),
    /// Those of the batch of all processes.
    #[cfg(feature = "distributed")]
    OfAll(TensorStats),
    #[cfg(any(feature = "cuda", feature = "distributed"))]
    Unasked,
}

impl Counted {
    pub(super) fn read(self) -> Result<TensorStats, Error> {
        match self {
            Self::OnHost { stats, .. } => Ok(TensorStats {
                valid: Tensor::from(stats.valid as i64),
                active: Tensor::from(stats.active as i64),
                mean_positive_distance: Tensor::from(stats.mean_positive_distance),
                mean_negative_distance: Tensor::from(stats.mean_negative_distance),
                too_many_pairs: Tensor::from(stats.too_many_pairs),
            }),
            #[cfg(feature = "cuda")]
            Self::OnDevice(stats) => {
                // Views of the tensor: no kernel runs.
                let count = |i: i64| stats.f_get(i)?.f_view_dtype(Kind::Int64);
                Ok(TensorStats {
                    valid: count(0)?,
                    active: count(1)?,
                    mean_positive_distance: stats.f_get(2)?,
                    mean_negative_distance: stats.f_get(3)?,
                    // The first byte of an integer that is 1 or 0.
                    too_many_pairs: stats.f_narrow(0, 5, 1)?.f_view_dtype(Kind::Bool)?.f_get(0)?,
                })
            }
            #[cfg(feature = "distributed")]
            Self::OfAll(stats) => Ok(stats),
            #[cfg(any(feature = "cuda", feature = "distributed"))]
            Self::Unasked => unreachable!("whoever reads statistics asks for them"),
        }
    }
}

/// The tensors of a call, checked and in readable form: contiguous rows; labels, indices and the step as contiguous
/// i64.
pub(super) struct Arguments<'a> {
    embeddings: &'a Tensor,
    rows: Tensor,
    labels: Tensor,
    reference_embeddings: Option<&'a Tensor>,
    reference: Option<Reference<Tensor, Tensor>>,
    step: Option<Tensor>,
}

impl<'a> Arguments<'a> {
    pub(super) fn new<L>(call: &Call<'_, L, &'a Tensor>) -> Result<Self, Error> {
        let embeddings = call.embeddings;
        check_embeddings("embeddings", embeddings)?;
        if embeddings.device() != Device::Cpu {
            if cfg!(not(feature = "cuda")) {
                let expected = "a CPU tensor (built without the cuda feature)";
                return Err(Error::argument("embeddings", expected, "a CUDA tensor"));
            }
            if embeddings.kind() == Kind::Double {
                return Err(Error::argument("embeddings", "dtype f32, f16 or bf16 on a CUDA device", "Double"));
            }
        }
        let labels = integers("labels", call.labels, "embeddings", embeddings)?;
        let reference = call.reference.map(|reference| {
            let of = reference.embeddings;
            check_embeddings("reference.embeddings", of)?;
            check_kind_and_device("reference.embeddings", of, "embeddings", embeddings)?;
            reference.try_map(
                |rows| with_contiguous_rows(rows),
                |argument, numbers| match argument {
                    "reference.own" => integers(argument, numbers, "embeddings", embeddings),
                    _ => integers(argument, numbers, "reference.embeddings", of),
                },
            )
        });
        let step = call.step.map(|step| integer("step", step, "embeddings", embeddings)).transpose()?;
        let rows = with_contiguous_rows(embeddings)?;
        let reference_embeddings = call.reference.map(|reference| reference.embeddings);
        Ok(Self { embeddings, rows, labels, reference_embeddings, reference: reference.transpose()?, step })
    }

    #[cfg(feature = "cuda")]
    fn sizes(&self) -> Sizes {
        let shape = |rows: &Tensor| [0, 1].map(|axis| rows.size()[axis] as usize);
        Sizes {
            embeddings: shape(&self.rows),
            labels: self.labels.numel(),
            reference: self.reference.as_ref().map(|reference| reference.map(shape, |numbers| numbers.numel())),
            largest: largest(self.rows.kind()),
        }
    }

    /// The tensors that gradients are with respect to.
    fn sources(&self) -> Vec<&'a Tensor> {
        std::iter::once(self.embeddings).chain(self.reference_embeddings).collect()
    }

    fn with_grad(&self) -> [bool; 2] {
        [needs_grad(self.embeddings), self.reference_embeddings.is_some_and(needs_grad)]
    }
}

/// Runs a call on the memory of CPU tensors. `problem` checks its sizes.
fn on_cpu<L: MinedLoss, T: OfKind>(
    problem: impl FnOnce(&Sizes) -> Result<Problem<L::Extra>, Error>,
    arguments: &Arguments<'_>,
) -> Result<(Tensor, Counted), Error>
where
    T::Scalar: OfKind,
{
    let reference = arguments.reference.as_ref();
    let reference = reference.map(|set| set.try_map(matrix::<T>, |_, numbers| Ok::<_, Error>(slice::<i64>(numbers))));
    let reference = reference.transpose()?;
    let step = arguments.step.as_ref().map(|step| step.f_int64_value(&[])).transpose()?;
    let (embeddings, labels) = (matrix::<T>(&arguments.rows)?, slice::<i64>(&arguments.labels));
    let slices = Slices { embeddings, labels, reference: reference.as_ref() };
    let problem = Problem { step: step.unwrap_or(0), ..problem(&slices.sizes())? };

    let with_grad = arguments.with_grad();
    let found = on_libtorchs(|| L::find(&problem, &slices, with_grad));
    let per_row = problem.options.reduction == Reduction::None;
    let mut output = empty_output(per_row, arguments.embeddings)?;
    match per_row {
        true => slice_mut::<T::Scalar>(&mut output).copy_from_slice(L::losses(&found)),
        false => slice_mut::<T::Scalar>(&mut output)[0] = L::loss(&problem, &found),
    }
    let counted = Counted::OnHost { stats: L::stats(&found), sum: L::sum(&found) };
    if with_grad == [false; 2] {
        return Ok((output, counted));
    }
    let sources = arguments.sources();
    let sizes: Vec<Vec<i64>> = sources.iter().map(|source| source.size()).collect();
    let loss = CustomFunction::new(L::NAME).inputs(&sources).attach(&output, move |ctx| {
        let upstream = as_in_memory(ctx.upstream())?.f_contiguous()?;
        let mut grads = Vec::with_capacity(sizes.len());
        for (which, size) in sizes.iter().enumerate() {
            grads.push(if with_grad[which] && ctx.needs(which) { Some(pool::empty(size, T::KIND)?) } else { None });
        }
        let mut slices = grads.iter_mut().map(|grad| grad.as_mut().map(slice_mut::<T>));
        let slices = [slices.next().flatten(), slices.next().flatten()];
        on_libtorchs(|| L::gradients(&problem, &found, Some(slice::<T::Scalar>(&upstream)), slices));
        Ok(grads)
    })?;
    Ok((loss, counted))
}

#[cfg(feature = "cuda")]
fn on_cuda<L: MinedLoss, T: OfKind>(
    problem: Problem<L::Extra>,
    ordinal: usize,
    arguments: &Arguments<'_>,
    count: bool,
) -> Result<(Tensor, Counted), Error> {
    use crate::cuda::arguments::{Inputs, Output, ReferenceInput};
    use crate::torch::launcher::{TorchLauncher, address};

    let with_grad = arguments.with_grad();
    let per_row = problem.options.reduction == Reduction::None;
    let output = empty_output(per_row, arguments.embeddings)?;
    let stats = (Kind::Double, output.device());
    let stats = count.then(|| Tensor::f_empty([crate::constants::STATS_WRITTEN as i64], stats)).transpose()?;
    let to = Output {
        losses: if per_row { address(&output) } else { 0 },
        loss: if per_row { 0 } else { address(&output) },
        stats: stats.as_ref().map_or(0, address),
        ..Output::default()
    };
    let inputs = Inputs {
        anchors: input(&arguments.rows, Some(&arguments.labels)),
        reference: arguments.reference.as_ref().map(|reference| ReferenceInput {
            rows: input(&reference.embeddings, Some(&reference.labels)),
            count: reference.labels.numel(),
            own: reference.own.map(address),
        }),
        step: arguments.step.as_ref().map_or(0, address),
    };
    let launcher = TorchLauncher::current(ordinal)?;
    // SAFETY: checked tensors on this device, of the problem's sizes; outputs are contiguous tensors of this function's
    // making. PyTorch's allocator keeps memory for this stream's work until the stream has done it.
    let kept = unsafe { L::forward::<T, _>(&launcher, &problem, &inputs, &to, with_grad)? };
    let counted = stats.as_ref().map_or(Counted::Unasked, |stats| Counted::OnDevice(stats.shallow_clone()));
    if with_grad == [false; 2] {
        return Ok((output, counted));
    }
    let sources = arguments.sources();
    let options = (arguments.rows.kind(), arguments.rows.device());
    let sizes: Vec<Vec<i64>> = sources.iter().map(|source| source.size()).collect();
    let saved = if L::READS_AGAIN_ON_DEVICE { &sources[..] } else { &[] };
    // The statistics hold the factor of the mean: where they are ours, they must live as long as what the forward pass kept.
    let kept = (kept, stats);
    let loss = CustomFunction::new(L::NAME).inputs(&sources).saved(saved).attach(&output, move |ctx| {
        let (kept, _stats) = &kept;
        let rows = ctx.all_saved().iter().map(with_contiguous_rows).collect::<Result<Vec<_>, _>>()?;
        let upstream = as_in_memory(ctx.upstream())?.f_contiguous()?;
        let mut grads = Vec::with_capacity(sizes.len());
        for (which, size) in sizes.iter().enumerate() {
            let wanted = with_grad[which] && ctx.needs(which);
            grads.push(if wanted { Some(Tensor::f_empty(size, options)?) } else { None });
        }
        let moved = |which: usize| rows.get(which).map_or(NOWHERE, |rows| input(rows, None));
        let reference = inputs.reference.map(|reference| ReferenceInput { rows: moved(1), ..reference });
        let inputs = Inputs { anchors: moved(0), reference, step: 0 };
        let to = [0, 1].map(|which| grads.get(which).and_then(Option::as_ref).map_or(0, address));
        let launcher = TorchLauncher::current(ordinal)?;
        // SAFETY: gradients and upstream are contiguous tensors on this device, of the problem's sizes; a loss that
        // reads the embeddings again finds them unchanged (`saved`), and `kept` was made of them. PyTorch's allocator
        // keeps memory for this stream's work until the stream has done it.
        unsafe { L::backward::<T, _>(&launcher, &problem, kept, &inputs, address(&upstream), to)? };
        Ok(grads)
    })?;
    Ok((loss, counted))
}

/// The addresses of rows, and of labels if there are any, as kernels take them. The tensors must outlive the launches.
#[cfg(feature = "cuda")]
pub(crate) fn input(rows: &Tensor, labels: Option<&Tensor>) -> crate::cuda::arguments::Input {
    use crate::torch::launcher::address;
    crate::cuda::arguments::Input { x: address(rows), stride: row_stride(rows), labels: labels.map_or(0, address) }
}

/// Stands for rows that the backward pass does not read.
#[cfg(feature = "cuda")]
const NOWHERE: crate::cuda::arguments::Input = crate::cuda::arguments::Input { x: 0, stride: 0, labels: 0 };

/// Checks that a tensor has one integer for each row of `model`, and returns it as contiguous i64.
pub(crate) fn integers(
    argument: &'static str,
    tensor: &Tensor,
    other: &'static str,
    model: &Tensor,
) -> Result<Tensor, Error> {
    let takes = ("i64 or i32", (|kind| matches!(kind, Kind::Int64 | Kind::Int)) as fn(Kind) -> bool);
    check_per_row(argument, tensor, takes, other, model)?;
    Ok(as_in_memory(tensor)?.f_to_kind(Kind::Int64)?.f_contiguous()?)
}

/// Checks that a tensor is one i64 on the device of `model`, and returns it contiguous.
fn integer(argument: &'static str, tensor: &Tensor, other: &'static str, model: &Tensor) -> Result<Tensor, Error> {
    check_scalar(argument, tensor, Kind::Int64, other, model)?;
    Ok(as_in_memory(tensor)?.f_contiguous()?)
}

/// An uninitialised tensor for the loss of embeddings like these: a scalar, or with `per_row` one number a row.
pub(crate) fn empty_output(per_row: bool, like: &Tensor) -> Result<Tensor, Error> {
    let kind = if like.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let shape: &[i64] = if per_row { &like.size()[..1] } else { &[] };
    Ok(Tensor::f_empty(shape, (kind, like.device()))?)
}
