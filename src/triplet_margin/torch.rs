//! The loss on tch tensors.
//!
//! f32 and f64 with mean or sum: the forward pass also makes the gradients, for an upstream gradient of 1, and backward
//! hands them over; for another upstream it runs the pass again, which moves as many bytes as scaling would. 16-bit
//! inputs and `Reduction::None`: backward runs the pass, so that upstream and 1/B are multiplied in f32 and rounded once.

use tch::{Device, Kind, Tensor};

use super::{Problem, TripletMarginLoss, cpu};
use crate::torch::tensors::{
    OfKind, as_in_memory, check_embeddings, check_like, matrix, slice, slice_mut, with_contiguous_rows, with_element,
};
use crate::torch::{Backward, CustomFunction, needs_grad, pool};
use crate::{Error, Reduction};

const NAME: &str = "TripletMarginLoss";

impl TripletMarginLoss {
    /// The loss of tch tensors `[B, D]`, part of the autograd graph: a scalar, or `[B]` for `Reduction::None`.
    ///
    /// Dtype f32, f64, f16 or bf16, the same for all three, on the CPU or one CUDA device; the rows may be views with
    /// any strides. The result is f64 for f64 and f32 for all others. On CUDA nothing waits for the device.
    ///
    /// # Panics
    /// Where [`f_forward`](Self::f_forward) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::TripletMarginLoss;
    ///
    /// let embedding = || Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let (anchor, positive, negative) = (embedding(), embedding(), embedding());
    /// let loss = TripletMarginLoss::default().forward(&anchor, &positive, &negative);
    /// loss.backward();
    /// assert_eq!(anchor.grad().size(), [8, 128]);
    /// ```
    pub fn forward(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Tensor {
        self.f_forward(anchor, positive, negative).unwrap_or_else(|error| panic!("{NAME}: {error}"))
    }

    /// As [`forward`](Self::forward).
    ///
    /// # Errors
    /// If shapes, dtypes or devices differ or are not as above, a tensor has no elements, an option is out of range,
    /// or memory runs out.
    pub fn f_forward(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Result<Tensor, Error> {
        check_embeddings("anchor", anchor)?;
        check_like("positive", positive, "anchor", anchor)?;
        check_like("negative", negative, "anchor", anchor)?;
        let problem = self.checked(anchor.size()[0] as usize, anchor.size()[1] as usize)?;
        #[cfg(not(feature = "cuda"))]
        if anchor.device() != Device::Cpu {
            return Err(Error::argument("anchor", "a CPU tensor (built without the cuda feature)", "a CUDA tensor"));
        }

        let inputs = [anchor, positive, negative];
        let needed = inputs.map(needs_grad);
        let at_once = needed.contains(&true)
            && matches!(anchor.kind(), Kind::Float | Kind::Double)
            && self.reduction != Reduction::None;
        let mut grads = if at_once { empty_grads(anchor, needed)? } else { [None, None, None] };
        let output = empty_output(&problem, anchor)?;
        let reduced = self.reduction != Reduction::None;
        let output = tch::no_grad(|| run(&problem, inputs, None, Some((output, reduced)), &mut grads))?;
        let output = output.expect("asked for");
        if !needed.contains(&true) {
            return Ok(output);
        }
        let mut ready = at_once.then_some(grads);
        CustomFunction::new(NAME)
            .inputs(&inputs)
            .saved(&inputs)
            .attach(&output, move |ctx| Ok(backward(&problem, &mut ready, ctx)?.into()))
    }
}

/// The gradients: `ready` for an upstream of 1, or by running the pass.
fn backward(
    problem: &Problem,
    ready: &mut Option<[Option<Tensor>; 3]>,
    ctx: &Backward<'_>,
) -> Result<[Option<Tensor>; 3], Error> {
    let inputs = [ctx.saved(0), ctx.saved(1), ctx.saved(2)];
    let needed = [0, 1, 2].map(|i| ctx.needs(i));
    // Only where nobody will come again may the memory of `ready` be handed out.
    let mut grads = match ready.take() {
        Some(mut grads) if !ctx.keep_graph() => {
            for (grad, needed) in grads.iter_mut().zip(needed) {
                if !needed {
                    *grad = None;
                }
            }
            // On the CPU the upstream is known here; on CUDA the kernel looks at it.
            if ctx.upstream().device() == Device::Cpu && is_one(ctx.upstream()) {
                return Ok(grads);
            }
            run(problem, inputs, Some((ctx.upstream(), true)), None, &mut grads)?;
            return Ok(grads);
        }
        kept => {
            *ready = kept;
            empty_grads(inputs[0], needed)?
        }
    };
    run(problem, inputs, Some((ctx.upstream(), false)), None, &mut grads)?;
    Ok(grads)
}

fn is_one(upstream: &Tensor) -> bool {
    upstream.numel() == 1 && upstream.double_value(&[]) == 1.0
}

fn empty_grads(like: &Tensor, needed: [bool; 3]) -> Result<[Option<Tensor>; 3], Error> {
    let mut grads = [None, None, None];
    for (grad, needed) in grads.iter_mut().zip(needed) {
        if needed {
            *grad = Some(match like.device() {
                Device::Cpu => pool::empty(&like.size(), like.kind())?,
                device => Tensor::f_empty(like.size(), (like.kind(), device))?,
            });
        }
    }
    Ok(grads)
}

fn empty_output(problem: &Problem, like: &Tensor) -> Result<Tensor, Error> {
    let kind = if like.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let shape: &[i64] = if problem.reduction == Reduction::None { &[problem.rows as i64] } else { &[] };
    Ok(Tensor::f_empty(shape, (kind, like.device()))?)
}

/// One pass over the rows: fills `output` (a scalar where its flag says so, else one loss a row) and the gradients that
/// are there. `upstream` comes with a flag: the gradients hold those for an upstream of 1 already.
fn run(
    problem: &Problem,
    inputs: [&Tensor; 3],
    upstream: Option<(&Tensor, bool)>,
    output: Option<(Tensor, bool)>,
    grads: &mut [Option<Tensor>; 3],
) -> Result<Option<Tensor>, Error> {
    let inputs = [with_contiguous_rows(inputs[0])?, with_contiguous_rows(inputs[1])?, with_contiguous_rows(inputs[2])?];
    let upstream = match upstream {
        Some((tensor, ready)) => Some((as_in_memory(tensor)?.f_contiguous()?, ready)),
        None => None,
    };
    match inputs[0].device() {
        Device::Cpu => {
            with_element!(inputs[0].kind(), T => run_cpu::<T>(problem, &inputs, upstream.as_ref().map(|(u, _)| u), output, grads))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            with_element!(inputs[0].kind(), T => run_cuda::<T>(problem, ordinal, &inputs, upstream, output, grads))
        }
        device => unreachable!("checked: {device:?}"),
    }
}

fn run_cpu<T: OfKind>(
    problem: &Problem,
    inputs: &[Tensor; 3],
    upstream: Option<&Tensor>,
    mut output: Option<(Tensor, bool)>,
    grads: &mut [Option<Tensor>; 3],
) -> Result<Option<Tensor>, Error>
where
    T::Scalar: OfKind,
{
    let matrices = [matrix::<T>(&inputs[0])?, matrix::<T>(&inputs[1])?, matrix::<T>(&inputs[2])?];
    let losses = match &mut output {
        Some((tensor, false)) => Some(slice_mut::<T::Scalar>(tensor)),
        _ => None,
    };
    let grads = grads.each_mut().map(|grad| grad.as_mut().map(|grad| slice_mut::<T>(grad)));
    let upstream = upstream.map(slice::<T::Scalar>);
    let loss = T::triplet_margin(problem, cpu::Pass { inputs: matrices, upstream, losses, grads });
    if let Some((tensor, true)) = &mut output {
        slice_mut::<T::Scalar>(tensor)[0] = loss;
    }
    Ok(output.map(|(tensor, _)| tensor))
}

#[cfg(feature = "cuda")]
fn run_cuda<T: OfKind>(
    problem: &Problem,
    ordinal: usize,
    inputs: &[Tensor; 3],
    upstream: Option<(Tensor, bool)>,
    output: Option<(Tensor, bool)>,
    grads: &mut [Option<Tensor>; 3],
) -> Result<Option<Tensor>, Error> {
    use crate::torch::launcher::{TorchLauncher, address};
    use crate::torch::tensors::row_stride;

    let where_is =
        |wanted: bool| output.as_ref().filter(|(_, scalar)| *scalar == wanted).map_or(0, |(t, _)| address(t));
    let pass = super::cuda::Pass {
        inputs: inputs.each_ref().map(address),
        strides: inputs.each_ref().map(row_stride),
        upstream: upstream.as_ref().map_or(0, |(u, _)| address(u)),
        upstream_per_row: problem.reduction == Reduction::None,
        idle_if_one: upstream.as_ref().is_some_and(|(_, ready)| *ready),
        losses: where_is(false),
        loss: where_is(true),
        grads: grads.each_ref().map(|grad| grad.as_ref().map_or(0, address)),
    };
    let launcher = TorchLauncher::current(ordinal)?;
    // SAFETY: checked tensors of T on this device, with `problem`'s shape; outputs and gradients are contiguous tensors
    // of this crate's making. PyTorch's allocator keeps memory for this stream's work until the stream has done it.
    unsafe { super::cuda::run::<T, _>(&launcher, problem, &pass)? };
    Ok(output.map(|(tensor, _)| tensor))
}
