//! Mined losses on tch tensors: checks, both passes where the tensors are, statistics that stay on the device.

use tch::{Device, Kind, Tensor};

#[cfg(feature = "cuda")]
use super::tensors::row_stride;
use super::tensors::{
    OfKind, as_in_memory, check_embeddings, check_kind_and_device, check_per_row, check_scalar, largest, matrix, slice,
    slice_mut, with_contiguous_rows, with_element,
};
use super::{CustomFunction, needs_grad, pool};
use crate::mined::{ReferenceShape, Shape};
use crate::{Error, Own, Reduction, Reference, Stats};

/// A loss, and what it found in the batch.
#[derive(Debug)]
pub struct WithStats {
    /// As of `forward`.
    pub loss: Tensor,
    /// Scalars on the loss's device: reading one waits for the device, having them does not.
    pub stats: TensorStats,
}

/// [`Stats`] as scalar tensors.
#[derive(Debug)]
pub struct TensorStats {
    /// i64.
    pub valid: Tensor,
    /// i64.
    pub active: Tensor,
    /// f64.
    pub mean_positive_distance: Tensor,
    /// f64.
    pub mean_negative_distance: Tensor,
}

impl TensorStats {
    /// On the CPU.
    pub(crate) fn of(stats: &Stats) -> Self {
        Self {
            valid: Tensor::from(stats.valid as i64),
            active: Tensor::from(stats.active as i64),
            mean_positive_distance: Tensor::from(stats.mean_positive_distance),
            mean_negative_distance: Tensor::from(stats.mean_negative_distance),
        }
    }

    /// From a device's f64: valid, active, and the sums of both distances.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_sums(sums: &Tensor) -> Result<Self, Error> {
        let count = |i: i64| sums.f_get(i)?.f_to_kind(Kind::Int64);
        let divisor = sums.f_get(0)?.f_clamp_min(1.0)?;
        let mean = |i: i64| sums.f_get(i)?.f_div(&divisor);
        Ok(Self {
            valid: count(0)?,
            active: count(1)?,
            mean_positive_distance: mean(2)?,
            mean_negative_distance: mean(3)?,
        })
    }
}

/// The passes on a device that a mined loss needs where there are devices.
#[cfg(feature = "cuda")]
pub(crate) use crate::cuda::mined::OnDevice as Passes;
#[cfg(not(feature = "cuda"))]
pub(crate) use crate::mined::Loss as Passes;

/// A mined loss, for what is written once for all of them, as [`CrossBatchMemory`](super::CrossBatchMemory) is.
///
/// It is implemented for those of this crate and cannot be elsewhere. The losses have the same calls as methods of their own.
pub trait MinedLoss: sealed::Sealed {
    /// The loss of a batch, and what it is like.
    ///
    /// # Errors
    /// As the loss's own method of this name.
    fn f_forward_with_stats(&self, embeddings: &Tensor, labels: &Tensor) -> Result<WithStats, Error>;

    /// The loss against a reference set, and what both are like.
    ///
    /// # Errors
    /// As the loss's own method of this name.
    fn f_forward_against_with_stats(
        &self,
        embeddings: &Tensor,
        labels: &Tensor,
        reference: &Reference<&Tensor, &Tensor>,
    ) -> Result<WithStats, Error>;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// A reference set of tensors.
pub(crate) type TensorReference<'a> = Reference<&'a Tensor, &'a Tensor>;

/// The arguments of a call, checked: rows contiguous, labels and the like contiguous i64.
struct Arguments<'a> {
    embeddings: &'a Tensor,
    rows: Tensor,
    labels: Tensor,
    reference: Option<ReferenceArguments<'a>>,
    step: Option<Tensor>,
}

struct ReferenceArguments<'a> {
    embeddings: &'a Tensor,
    rows: Tensor,
    labels: Tensor,
    own: Own<Tensor>,
}

impl<'a> Arguments<'a> {
    fn new(
        embeddings: &'a Tensor,
        labels: &Tensor,
        reference: Option<&TensorReference<'a>>,
        step: Option<&Tensor>,
    ) -> Result<Self, Error> {
        check_embeddings("embeddings", embeddings)?;
        if embeddings.device() != Device::Cpu {
            if cfg!(not(feature = "cuda")) {
                return Err(Error::argument(
                    "embeddings",
                    "a CPU tensor (built without the cuda feature)",
                    "a CUDA tensor",
                ));
            }
            if embeddings.kind() == Kind::Double {
                return Err(Error::argument("embeddings", "dtype f32, f16 or bf16 on a CUDA device", "Double"));
            }
        }
        let labels = integers("labels", labels, "embeddings", embeddings)?;
        let reference = reference.map(|reference| {
            let of = reference.embeddings;
            check_embeddings("reference.embeddings", of)?;
            check_kind_and_device("reference.embeddings", of, "embeddings", embeddings)?;
            let own = match reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(offset),
                Own::Rows(rows) => Own::Rows(integers("reference.own", rows, "embeddings", embeddings)?),
            };
            let labels = integers("reference.labels", reference.labels, "reference.embeddings", of)?;
            Ok::<_, Error>(ReferenceArguments { embeddings: of, rows: with_contiguous_rows(of)?, labels, own })
        });
        let step = step.map(|step| integer("step", step, "embeddings", embeddings)).transpose()?;
        let rows = with_contiguous_rows(embeddings)?;
        Ok(Self { embeddings, rows, labels, reference: reference.transpose()?, step })
    }

    fn shape(&self) -> Shape {
        let size = |tensor: &Tensor, axis: usize| tensor.size()[axis] as usize;
        let reference = self.reference.as_ref().map(|reference| ReferenceShape {
            rows: size(&reference.rows, 0),
            dim: size(&reference.rows, 1),
            labels: reference.labels.numel(),
            own: match &reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(*offset),
                Own::Rows(rows) => Own::Rows(rows.numel()),
            },
        });
        let largest = largest(self.rows.kind());
        Shape { rows: size(&self.rows, 0), dim: size(&self.rows, 1), labels: self.labels.numel(), reference, largest }
    }

    /// The tensors that gradients are with respect to.
    fn sources(&self) -> Vec<&Tensor> {
        std::iter::once(self.embeddings).chain(self.reference.iter().map(|reference| reference.embeddings)).collect()
    }

    fn with_grad(&self) -> [bool; 2] {
        [needs_grad(self.embeddings), self.reference.as_ref().is_some_and(|reference| needs_grad(reference.embeddings))]
    }
}

/// Checks the arguments and runs the loss where they are.
pub(crate) fn forward<L: Passes>(
    loss: &L,
    embeddings: &Tensor,
    labels: &Tensor,
    reference: Option<&TensorReference<'_>>,
    step: Option<&Tensor>,
) -> Result<WithStats, Error> {
    let arguments = Arguments::new(embeddings, labels, reference, step)?;
    let problem = loss.check(&arguments.shape())?;
    let per_row = loss.reduction() == Reduction::None;
    match embeddings.device() {
        Device::Cpu => with_element!(embeddings.kind(), T => on_cpu::<L, T>(problem, per_row, &arguments)),
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => match embeddings.kind() {
            Kind::Half => on_cuda::<L, half::f16>(problem, per_row, ordinal, &arguments),
            Kind::BFloat16 => on_cuda::<L, half::bf16>(problem, per_row, ordinal, &arguments),
            _ => on_cuda::<L, f32>(problem, per_row, ordinal, &arguments),
        },
        device => unreachable!("checked: {device:?}"),
    }
}

fn on_cpu<L: Passes, T: OfKind>(
    problem: L::Problem,
    per_row: bool,
    arguments: &Arguments<'_>,
) -> Result<WithStats, Error>
where
    T::Scalar: OfKind,
{
    let problem = match &arguments.step {
        Some(step) => L::at_step(problem, step.f_int64_value(&[])?),
        None => problem,
    };
    let with_grad = arguments.with_grad();
    let set = arguments.reference.as_ref().map(|reference| {
        Ok::<_, Error>(Reference {
            embeddings: matrix::<T>(&reference.rows)?,
            labels: labels_of(&reference.labels),
            own: match &reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(*offset),
                Own::Rows(rows) => Own::Rows(labels_of(rows)),
            },
        })
    });
    let set = set.transpose()?;
    let rows = matrix::<T>(&arguments.rows)?;
    let found = L::find(&problem, &rows, labels_of(&arguments.labels), set.as_ref(), with_grad);
    let mut output = empty_output(per_row, arguments.embeddings)?;
    match per_row {
        true => slice_mut::<T::Scalar>(&mut output).copy_from_slice(L::losses(&found)),
        false => slice_mut::<T::Scalar>(&mut output)[0] = L::loss(&problem, &found),
    }
    let stats = TensorStats::of(&L::stats(&found));
    if with_grad == [false; 2] {
        return Ok(WithStats { loss: output, stats });
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
        L::gradients(&problem, &found, Some(slice::<T::Scalar>(&upstream)), slices);
        Ok(grads)
    })?;
    Ok(WithStats { loss, stats })
}

#[cfg(feature = "cuda")]
fn on_cuda<L: Passes, T: OfKind>(
    problem: L::Problem,
    per_row: bool,
    ordinal: usize,
    arguments: &Arguments<'_>,
) -> Result<WithStats, Error> {
    use crate::cuda::mined::{Inputs, OtherInput, Output};
    use crate::torch::launcher::{TorchLauncher, address};

    let with_grad = arguments.with_grad();
    let output = empty_output(per_row, arguments.embeddings)?;
    let sums = Tensor::f_empty([5], (Kind::Double, output.device()))?;
    let places = Output {
        losses: if per_row { address(&output) } else { 0 },
        loss: if per_row { 0 } else { address(&output) },
        stats: address(&sums),
        ..Output::default()
    };
    let inputs = Inputs {
        anchors: input(&arguments.rows, Some(&arguments.labels)),
        reference: arguments.reference.as_ref().map(|reference| OtherInput {
            rows: input(&reference.rows, Some(&reference.labels)),
            count: reference.labels.numel(),
            own: match &reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(*offset),
                Own::Rows(rows) => Own::Rows(address(rows)),
            },
        }),
        step: arguments.step.as_ref().map_or(0, address),
    };
    let launcher = TorchLauncher::current(ordinal)?;
    // SAFETY: checked tensors on this device, of the problem's shape; outputs are contiguous tensors of this function's
    // making. PyTorch's allocator keeps memory for this stream's work until the stream has done it.
    let kept = unsafe { L::forward::<T, _>(&launcher, &problem, &inputs, &places, with_grad)? };
    let stats = TensorStats::of_sums(&sums)?;
    if with_grad == [false; 2] {
        return Ok(WithStats { loss: output, stats });
    }
    let sources = arguments.sources();
    let options = (output_options(&arguments.rows), sources.iter().map(|source| source.size()).collect::<Vec<_>>());
    let saved = if L::READS_AGAIN { &sources[..] } else { &[] };
    let loss = CustomFunction::new(L::NAME).inputs(&sources).saved(saved).attach(&output, move |ctx| {
        let (options, sizes) = &options;
        let rows = ctx.all_saved().iter().map(with_contiguous_rows).collect::<Result<Vec<_>, _>>()?;
        let upstream = as_in_memory(ctx.upstream())?.f_contiguous()?;
        let mut grads = Vec::with_capacity(sizes.len());
        for (which, size) in sizes.iter().enumerate() {
            let wanted = with_grad[which] && ctx.needs(which);
            grads.push(if wanted { Some(Tensor::f_empty(size, *options)?) } else { None });
        }
        let moved = |which: usize| rows.get(which).map_or(NOWHERE, |rows| input(rows, None));
        let others = inputs.reference.map(|reference| OtherInput { rows: moved(1), ..reference });
        let inputs = Inputs { anchors: moved(0), reference: others, step: 0 };
        let to = [0, 1].map(|which| grads.get(which).and_then(Option::as_ref).map_or(0, address));
        let launcher = TorchLauncher::current(ordinal)?;
        // The factor of the mean is among the statistics, which this closure keeps.
        let _ = &sums;
        // SAFETY: as above; where the loss reads the embeddings again they are what they were (`saved`), and `kept` was made
        // of them.
        unsafe { L::backward::<T, _>(&launcher, &problem, &kept, &inputs, address(&upstream), to)? };
        Ok(grads)
    })?;
    Ok(WithStats { loss, stats })
}

/// Rows, and labels where they are looked at, as kernels take them; the tensors must outlive the launches.
#[cfg(feature = "cuda")]
pub(crate) fn input(rows: &Tensor, labels: Option<&Tensor>) -> crate::cuda::batch::Input {
    use crate::torch::launcher::address;
    crate::cuda::batch::Input { x: address(rows), stride: row_stride(rows), labels: labels.map_or(0, address) }
}

/// Of a loss that does not read its rows again.
#[cfg(feature = "cuda")]
const NOWHERE: crate::cuda::batch::Input = crate::cuda::batch::Input { x: 0, stride: 0, labels: 0 };

#[cfg(feature = "cuda")]
fn output_options(rows: &Tensor) -> (Kind, Device) {
    (rows.kind(), rows.device())
}

/// One integer for each row of `model`, as contiguous i64.
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

/// One i64 on the device of `model`.
fn integer(argument: &'static str, tensor: &Tensor, other: &'static str, model: &Tensor) -> Result<Tensor, Error> {
    check_scalar(argument, tensor, Kind::Int64, other, model)?;
    Ok(as_in_memory(tensor)?.f_contiguous()?)
}

/// The memory of checked labels on the CPU.
fn labels_of(labels: &Tensor) -> &[i64] {
    assert_eq!((labels.kind(), labels.device(), labels.is_contiguous()), (Kind::Int64, Device::Cpu, true));
    match labels.numel() {
        0 => &[],
        // SAFETY: libtorch keeps `numel` i64 in memory while the tensor lives; nobody may write to it meanwhile.
        len => unsafe { std::slice::from_raw_parts(labels.data_ptr().cast::<i64>().cast_const(), len) },
    }
}

/// A scalar, or one number a row, for embeddings like these.
pub(crate) fn empty_output(per_row: bool, like: &Tensor) -> Result<Tensor, Error> {
    let kind = if like.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let shape: &[i64] = if per_row { &like.size()[..1] } else { &[] };
    Ok(Tensor::f_empty(shape, (kind, like.device()))?)
}

/// The calls on tensors of a mined loss.
macro_rules! tensor_calls {
    ($loss:ident) => {
        impl $loss {
            /// The loss of tch tensors, part of the autograd graph: a scalar, or `[N]` for `Reduction::None`.
            ///
            /// `embeddings` are `[N, D]`, dtype f32, f16, bf16 or on the CPU f64, on the CPU or a CUDA device; the rows may be
            /// views with any strides. `labels` are `[N]`, i64 or i32, on the same device. The result is f64 for f64 and f32
            /// for all others. On CUDA nothing waits for the device.
            ///
            /// # Panics
            /// Where [`f_forward`](Self::f_forward) returns an error, with its text.
            ///
            /// ```
            /// use tch::{Device, Kind, Tensor};
            ///
            /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
            #[doc = concat!("let loss = tercet::", stringify!($loss), "::default().forward(&embeddings, &labels);")]
            /// loss.backward();
            /// assert_eq!(embeddings.grad().size(), [8, 128]);
            /// ```
            pub fn forward(&self, embeddings: &tch::Tensor, labels: &tch::Tensor) -> tch::Tensor {
                self.f_forward(embeddings, labels)
                    .unwrap_or_else(|error| panic!("{}: {error}", <Self as $crate::mined::Loss>::NAME))
            }

            /// As [`forward`](Self::forward).
            ///
            /// # Errors
            /// If shapes, dtypes or devices are not as above, the batch is empty, an option is out of range, or memory runs
            /// out.
            pub fn f_forward(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
            ) -> Result<tch::Tensor, $crate::Error> {
                Ok(self.f_forward_with_stats(embeddings, labels)?.loss)
            }

            /// The loss, and what the batch is like; see [`loss_with_stats`](Self::loss_with_stats).
            ///
            /// # Panics
            /// Where [`f_forward_with_stats`](Self::f_forward_with_stats) returns an error, with its text.
            pub fn forward_with_stats(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
            ) -> $crate::torch::WithStats {
                self.f_forward_with_stats(embeddings, labels)
                    .unwrap_or_else(|error| panic!("{}: {error}", <Self as $crate::mined::Loss>::NAME))
            }

            /// As [`forward_with_stats`](Self::forward_with_stats).
            ///
            /// # Errors
            /// As [`f_forward`](Self::f_forward).
            pub fn f_forward_with_stats(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
            ) -> Result<$crate::torch::WithStats, $crate::Error> {
                $crate::torch::mined::forward(self, embeddings, labels, None, None)
            }

            /// The loss against a reference set, part of the graph of the embeddings and, where they require a gradient, of
            /// the reference embeddings.
            ///
            /// # Panics
            /// Where [`f_forward_against`](Self::f_forward_against) returns an error, with its text.
            ///
            /// ```
            /// use tch::{Device, Kind, Tensor};
            /// use tercet::{Own, Reference};
            ///
            /// let bank = Tensor::randn([8, 128], (Kind::Float, Device::Cpu));
            /// let bank_labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
            /// let embeddings = Tensor::randn([2, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            /// let labels = Tensor::from_slice(&[0i64, 3]);
            /// let reference = Reference { embeddings: &bank, labels: &bank_labels, own: Own::None };
            #[doc = concat!(
                "let loss = tercet::", stringify!($loss), "::default().forward_against(&embeddings, &labels, &reference);"
            )]
            /// loss.backward();
            /// assert_eq!(embeddings.grad().size(), [2, 128]);
            /// ```
            pub fn forward_against(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
                reference: &$crate::Reference<&tch::Tensor, &tch::Tensor>,
            ) -> tch::Tensor {
                self.f_forward_against(embeddings, labels, reference)
                    .unwrap_or_else(|error| panic!("{}: {error}", <Self as $crate::mined::Loss>::NAME))
            }

            /// As [`forward_against`](Self::forward_against).
            ///
            /// # Errors
            /// As [`f_forward`](Self::f_forward), also for the reference set's tensors.
            pub fn f_forward_against(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
                reference: &$crate::Reference<&tch::Tensor, &tch::Tensor>,
            ) -> Result<tch::Tensor, $crate::Error> {
                Ok(self.f_forward_against_with_stats(embeddings, labels, reference)?.loss)
            }

            /// The loss against a reference set, and what both are like.
            ///
            /// # Panics
            /// Where [`f_forward_against_with_stats`](Self::f_forward_against_with_stats) returns an error, with its text.
            pub fn forward_against_with_stats(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
                reference: &$crate::Reference<&tch::Tensor, &tch::Tensor>,
            ) -> $crate::torch::WithStats {
                self.f_forward_against_with_stats(embeddings, labels, reference)
                    .unwrap_or_else(|error| panic!("{}: {error}", <Self as $crate::mined::Loss>::NAME))
            }

            /// As [`forward_against_with_stats`](Self::forward_against_with_stats).
            ///
            /// # Errors
            /// As [`f_forward_against`](Self::f_forward_against).
            pub fn f_forward_against_with_stats(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
                reference: &$crate::Reference<&tch::Tensor, &tch::Tensor>,
            ) -> Result<$crate::torch::WithStats, $crate::Error> {
                $crate::torch::mined::forward(self, embeddings, labels, Some(reference), None)
            }
        }

        impl $crate::torch::mined::sealed::Sealed for $loss {}

        impl $crate::torch::MinedLoss for $loss {
            fn f_forward_with_stats(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
            ) -> Result<$crate::torch::WithStats, $crate::Error> {
                $crate::torch::mined::forward(self, embeddings, labels, None, None)
            }

            fn f_forward_against_with_stats(
                &self,
                embeddings: &tch::Tensor,
                labels: &tch::Tensor,
                reference: &$crate::Reference<&tch::Tensor, &tch::Tensor>,
            ) -> Result<$crate::torch::WithStats, $crate::Error> {
                $crate::torch::mined::forward(self, embeddings, labels, Some(reference), None)
            }
        }
    };
}
pub(crate) use tensor_calls;
