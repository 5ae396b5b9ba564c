//! Losses that mine a batch: `tercet::batch_hard` and the others.
//!
//! A forward pass also gives the gradients that are wanted, for an upstream gradient of 1 and in the type of arithmetic: what
//! is left to the backward pass is a product with the upstream gradient, and one rounding. Where that is not so, because each
//! anchor has an upstream gradient of its own, or rows of 16 bits are on a CUDA device, whose kernels write gradients of the
//! rows' type, the gradient is empty, and `tercet::batch_hard_backward` mines again.

use tercet::internal::{MinedInputs, mined_gradients, mined_pass};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Error, Matrix, MinedLoss, Own, Reduction, Reference, Stats,
};

use crate::operator::{Operator, Stack, nothing};
use crate::options::Options;
use crate::tensor::{
    Dtype, InTensors, OfDtype, Tensor, check_dtype_and_device, check_embeddings, integer, integers, with_element, wrong,
};

/// A mined loss with its options.
pub trait Loss: MinedLoss + Options {
    const STEM: &'static str;
    fn reduction(&self) -> Reduction;
}

macro_rules! losses {
    ($($Loss:ident = $stem:literal,)*) => {
        $(impl Loss for $Loss {
            const STEM: &'static str = $stem;
            fn reduction(&self) -> Reduction {
                self.reduction
            }
        })*
    };
}
losses! {
    BatchAllTripletLoss = "batch_all",
    BatchHardTripletLoss = "batch_hard",
    BatchSemiHardTripletLoss = "batch_semi_hard",
    BatchNegativeTripletLoss = "batch_negative",
    BatchContrastiveLoss = "batch_contrastive",
}

/// The 8-byte numbers of the statistics: how many are valid and active, int64; the mean distances to positives and to
/// negatives, and what the sum of the losses is multiplied by, the bits of float64; whether there was no room for the pairs.
const STATS: usize = tercet::internal::STATS_WRITTEN;

/// The arguments that both passes have.
struct Arguments {
    embeddings: Tensor,
    labels: Tensor,
    reference_embeddings: Option<Tensor>,
    reference_labels: Option<Tensor>,
    own: Option<Tensor>,
    own_offset: Option<i64>,
    step: Option<Tensor>,
    /// Which gradients are wanted.
    wants: [bool; 2],
}

const ARGUMENTS: &str = "Tensor embeddings, Tensor labels, Tensor? reference_embeddings, Tensor? reference_labels, \
                         Tensor? own, int? own_offset, Tensor? step, int wants";

impl Arguments {
    fn take(stack: &mut Stack) -> Self {
        Self {
            embeddings: stack.tensor(),
            labels: stack.tensor(),
            reference_embeddings: stack.optional_tensor(),
            reference_labels: stack.optional_tensor(),
            own: stack.optional_tensor(),
            own_offset: stack.optional_int(),
            step: stack.optional_tensor(),
            wants: wants(stack.int()),
        }
    }
}

/// Bit i: whether gradient i is wanted.
pub fn wants<const K: usize>(bits: i64) -> [bool; K] {
    std::array::from_fn(|i| bits >> i & 1 != 0)
}

/// The tensors of a call, checked and in readable form: contiguous rows; labels, indices and the step as contiguous int64.
struct Checked {
    rows: Tensor,
    labels: Tensor,
    reference: Option<Reference<Tensor, Tensor>>,
    step: Option<Tensor>,
    wants: [bool; 2],
}

impl Checked {
    fn new(arguments: &Arguments) -> Result<Self, Error> {
        let embeddings = &arguments.embeddings;
        check_embeddings("embeddings", embeddings, false)?;
        let labels = integers("labels", &arguments.labels, "embeddings", embeddings)?;
        let reference = match (&arguments.reference_embeddings, &arguments.reference_labels) {
            (None, None) => {
                if arguments.own.is_some() || arguments.own_offset.is_some() {
                    return Err(wrong("reference.own", "a reference set that it is about", "none"));
                }
                None
            }
            (Some(of), Some(labels)) => {
                check_embeddings("reference.embeddings", of, false)?;
                check_dtype_and_device("reference.embeddings", of, "embeddings", embeddings)?;
                let own = match (&arguments.own, arguments.own_offset) {
                    (None, None) => Own::None,
                    (None, Some(offset)) => Own::Offset(offset),
                    (Some(rows), None) => Own::Rows(integers("reference.own", rows, "embeddings", embeddings)?),
                    (Some(_), Some(_)) => return Err(wrong("reference.own", "an offset or indices", "both")),
                };
                let labels = integers("reference.labels", labels, "reference.embeddings", of)?;
                Some(Reference { embeddings: of.with_contiguous_rows()?, labels, own })
            }
            _ => return Err(wrong("reference", "embeddings and labels", "one of the two")),
        };
        let step = arguments.step.as_ref().map(|step| integer("step", step, "embeddings", embeddings)).transpose()?;
        Ok(Self { rows: embeddings.with_contiguous_rows()?, labels, reference, step, wants: arguments.wants })
    }

    fn shapes(&self) -> [Option<[usize; 2]>; 2] {
        let shape = |rows: &Tensor| [rows.size(0), rows.size(1)];
        [Some(shape(&self.rows)), self.reference.as_ref().map(|reference| shape(&reference.embeddings))]
    }

    /// Runs `f` on the memory of CPU tensors.
    fn in_memory<T: OfDtype, R>(&self, f: impl FnOnce(&MinedInputs<'_, T>) -> Result<R, Error>) -> Result<R, Error> {
        let reference = match &self.reference {
            None => None,
            Some(Reference { embeddings, labels, own }) => {
                let own = match own {
                    Own::None => Own::None,
                    Own::Offset(offset) => Own::Offset(*offset),
                    Own::Rows(rows) => Own::Rows(rows.slice::<i64>()),
                };
                let (embeddings, labels): (Matrix<'_, T>, _) = (embeddings.matrix()?, labels.slice::<i64>());
                Some(Reference { embeddings, labels, own })
            }
        };
        let step = self.step.as_ref().map_or(0, |step| step.slice::<i64>()[0]);
        f(&MinedInputs {
            embeddings: self.rows.matrix()?,
            labels: self.labels.slice(),
            reference: reference.as_ref(),
            step,
        })
    }

    #[cfg(feature = "cuda")]
    fn on_device(&self) -> tercet::internal::Inputs {
        use tercet::internal::{Input, Inputs, ReferenceInput};
        let input = |rows: &Tensor, labels: &Tensor| Input {
            x: rows.address(),
            stride: rows.row_stride(),
            labels: labels.address(),
        };
        Inputs {
            anchors: input(&self.rows, &self.labels),
            reference: self.reference.as_ref().map(|Reference { embeddings, labels, own }| ReferenceInput {
                rows: input(embeddings, labels),
                count: labels.count(),
                own: match own {
                    Own::None => Own::None,
                    Own::Offset(offset) => Own::Offset(*offset),
                    Own::Rows(rows) => Own::Rows(rows.address()),
                },
            }),
            step: self.step.as_ref().map_or(0, Tensor::address),
        }
    }
}

/// The forward pass of a loss.
pub struct Forward<L> {
    arguments: Arguments,
    loss_fn: L,
}

impl<L: Loss> Operator for Forward<L> {
    fn name() -> String {
        L::STEM.into()
    }

    fn schema() -> String {
        format!("({ARGUMENTS}, {}) -> (Tensor loss, Tensor stats, Tensor grad, Tensor reference_grad)", L::schema())
    }

    fn take(stack: &mut Stack) -> Result<Self, Error> {
        let arguments = Arguments::take(stack);
        Ok(Self { arguments, loss_fn: L::take(stack)? })
    }

    fn run(self) -> Result<Vec<Tensor>, Error> {
        let call = Checked::new(&self.arguments)?;
        let dtype = call.rows.dtype();
        match call.rows.device().is_cpu() {
            true => with_element!(dtype, T => forward_on_cpu::<L, T>(&self.loss_fn, &call)),
            #[cfg(feature = "cuda")]
            false => match dtype {
                Dtype::Float16 => on_cuda::forward::<L, half::f16>(&self.loss_fn, &call),
                Dtype::Bfloat16 => on_cuda::forward::<L, half::bf16>(&self.loss_fn, &call),
                _ => on_cuda::forward::<L, f32>(&self.loss_fn, &call),
            },
            #[cfg(not(feature = "cuda"))]
            false => Err(wrong("embeddings", "a CPU tensor (built without the cuda feature)", "a CUDA tensor")),
        }
    }
}

fn loss_shape(reduction: Reduction, rows: usize) -> Vec<usize> {
    if reduction == Reduction::None { vec![rows] } else { Vec::new() }
}

fn forward_on_cpu<L: Loss, T: OfDtype>(loss_fn: &L, call: &Checked) -> Result<Vec<Tensor>, Error> {
    let (device, dtype) = (call.rows.device(), T::Scalar::DTYPE);
    let mut loss = Tensor::empty(&loss_shape(loss_fn.reduction(), call.rows.size(0)), dtype, device)?;
    let at_once = loss_fn.reduction() != Reduction::None;
    let mut grads = Vec::new();
    for (shape, wanted) in call.shapes().into_iter().zip(call.wants) {
        grads.push(match shape.filter(|_| wanted && at_once) {
            Some(shape) => Some(Tensor::empty(&shape, dtype, device)?),
            None => None,
        });
    }
    let counted = {
        let mut to = grads.iter_mut().map(|grad| grad.as_mut().map(Tensor::slice_mut::<T::Scalar>));
        let to = [to.next().flatten(), to.next().flatten()];
        call.in_memory::<T, _>(|inputs| mined_pass(loss_fn, inputs, loss.slice_mut(), to))?
    };
    let mut results = vec![loss, stats_in_memory(&counted, &call.rows)?];
    for grad in grads {
        results.push(grad.map_or_else(|| nothing(dtype, &call.rows), Ok)?);
    }
    Ok(results)
}

/// The statistics as a device writes them.
fn stats_in_memory(counted: &Stats, like: &Tensor) -> Result<Tensor, Error> {
    let mut stats = Tensor::empty(&[STATS], Dtype::Int64, like.device())?;
    let bits = |x: f64| x.to_bits().cast_signed();
    let of_call = [
        counted.valid as i64,
        counted.active as i64,
        bits(counted.mean_positive_distance),
        bits(counted.mean_negative_distance),
        // What the sum of the losses is multiplied by: devices need it themselves.
        bits(f64::NAN),
        i64::from(counted.too_many_pairs),
    ];
    stats.slice_mut::<i64>().copy_from_slice(&of_call);
    Ok(stats)
}

/// The gradients of a loss times the upstream gradient, by mining again.
pub struct Backward<L> {
    upstream: Tensor,
    arguments: Arguments,
    loss_fn: L,
}

impl<L: Loss> Operator for Backward<L> {
    fn name() -> String {
        format!("{}_backward", L::STEM)
    }

    fn schema() -> String {
        format!("(Tensor upstream, {ARGUMENTS}, {}) -> (Tensor grad, Tensor reference_grad)", L::schema())
    }

    fn take(stack: &mut Stack) -> Result<Self, Error> {
        let (upstream, arguments) = (stack.tensor(), Arguments::take(stack));
        Ok(Self { upstream, arguments, loss_fn: L::take(stack)? })
    }

    fn run(self) -> Result<Vec<Tensor>, Error> {
        let call = Checked::new(&self.arguments)?;
        let dtype = call.rows.dtype();
        let upstream =
            checked_upstream(&self.upstream, &loss_shape(self.loss_fn.reduction(), call.rows.size(0)), &call.rows)?;
        let mut grads = Vec::new();
        for (shape, wanted) in call.shapes().into_iter().zip(call.wants) {
            grads.push(match shape.filter(|_| wanted) {
                Some(shape) => Some(Tensor::empty(&shape, dtype, call.rows.device())?),
                None => None,
            });
        }
        match call.rows.device().is_cpu() {
            true => with_element!(dtype, T => {
                let mut to = grads.iter_mut().map(|grad| grad.as_mut().map(Tensor::slice_mut::<T>));
                let to = [to.next().flatten(), to.next().flatten()];
                call.in_memory::<T, _>(|inputs| mined_gradients(&self.loss_fn, inputs, upstream.slice(), to))?
            }),
            #[cfg(feature = "cuda")]
            false => match dtype {
                Dtype::Float16 => on_cuda::backward::<L, half::f16>(&self.loss_fn, &call, &upstream, &grads)?,
                Dtype::Bfloat16 => on_cuda::backward::<L, half::bf16>(&self.loss_fn, &call, &upstream, &grads)?,
                _ => on_cuda::backward::<L, f32>(&self.loss_fn, &call, &upstream, &grads)?,
            },
            #[cfg(not(feature = "cuda"))]
            false => return Err(wrong("embeddings", "a CPU tensor (built without the cuda feature)", "a CUDA tensor")),
        }
        grads.into_iter().map(|grad| grad.map_or_else(|| nothing(dtype, &call.rows), Ok)).collect()
    }
}

/// An upstream gradient, contiguous: of this shape, and of the dtype of losses of these rows.
pub fn checked_upstream(upstream: &Tensor, shape: &[usize], rows: &Tensor) -> Result<Tensor, Error> {
    let expected = rows.dtype().of_losses();
    if upstream.dtype() != expected {
        return Err(wrong("upstream", format!("dtype {}", expected.name()), upstream.dtype().name()));
    }
    let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    if upstream.sizes() != shape {
        return Err(wrong("upstream", format!("shape {shape:?}"), format!("{:?}", upstream.sizes())));
    }
    crate::tensor::check_device("upstream", upstream, "the rows", rows)?;
    upstream.contiguous()
}

#[cfg(feature = "cuda")]
mod on_cuda {
    use tercet::internal::{Memory, Output, mined_backward, mined_forward};
    use tercet::{Error, Reduction};

    use super::{Checked, Loss, STATS, loss_shape};
    use crate::launcher::PyTorchLauncher;
    use crate::operator::nothing;
    use crate::tensor::{Dtype, OfDtype, Tensor};

    pub fn forward<L: Loss, T: OfDtype>(loss_fn: &L, call: &Checked) -> Result<Vec<Tensor>, Error> {
        let device = call.rows.device();
        let per_row = loss_fn.reduction() == Reduction::None;
        let loss = Tensor::empty(&loss_shape(loss_fn.reduction(), call.rows.size(0)), Dtype::Float32, device)?;
        let stats = Tensor::empty(&[STATS], Dtype::Int64, device)?;
        let output = Output {
            losses: if per_row { loss.address() } else { 0 },
            loss: if per_row { 0 } else { loss.address() },
            stats: stats.address(),
            ..Output::default()
        };
        let at_once = !per_row && T::DTYPE == Dtype::Float32;
        let with_grad = call.wants.map(|wanted| wanted && at_once);
        let inputs = call.on_device();
        let launcher = PyTorchLauncher::current(device)?;
        let shape = [call.rows.size(0), call.rows.size(1)];
        // SAFETY: checked tensors on this device, of the call's sizes; outputs are contiguous tensors of this function's
        // making. PyTorch's allocator keeps memory for this stream's work until the stream has done it.
        let kept = unsafe { mined_forward::<L, T, _>(loss_fn, &launcher, shape, &inputs, &output, with_grad)? };
        let mut grads = [None, None];
        for ((grad, shape), wanted) in grads.iter_mut().zip(call.shapes()).zip(with_grad) {
            if let Some(shape) = shape.filter(|_| wanted) {
                *grad = Some(Tensor::empty(&shape, Dtype::Float32, device)?);
            }
        }
        if with_grad != [false; 2] {
            let one = launcher.ones(1)?;
            let to = grads.each_ref().map(|grad| grad.as_ref().map_or(0, Tensor::address));
            // SAFETY: as above; `kept` is of the same call, whose rows are as they were.
            unsafe { mined_backward::<L, T, _>(loss_fn, &launcher, shape, &kept, &inputs, one.address(), to)? };
        }
        let mut results = vec![loss, stats];
        for grad in grads {
            results.push(grad.map_or_else(|| nothing(Dtype::Float32, &call.rows), Ok)?);
        }
        Ok(results)
    }

    pub fn backward<L: Loss, T: OfDtype>(
        loss_fn: &L,
        call: &Checked,
        upstream: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<(), Error> {
        let with_grad = [0, 1].map(|which| grads[which].is_some());
        if with_grad == [false; 2] {
            return Ok(());
        }
        let inputs = call.on_device();
        let launcher = PyTorchLauncher::current(call.rows.device())?;
        let shape = [call.rows.size(0), call.rows.size(1)];
        let to = [0, 1].map(|which| grads[which].as_ref().map_or(0, Tensor::address));
        // SAFETY: as in `forward`; the upstream gradient is contiguous, and one number or one a row, as the loss has it.
        unsafe {
            let kept = mined_forward::<L, T, _>(loss_fn, &launcher, shape, &inputs, &Output::default(), with_grad)?;
            mined_backward::<L, T, _>(loss_fn, &launcher, shape, &kept, &inputs, upstream.address(), to)
        }
    }
}
