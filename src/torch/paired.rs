//! Paired losses on tch tensors.
//!
//! For f32, f64 and bf16 with mean or sum the forward pass also makes the gradients, for an upstream gradient of 1, and
//! backward hands them over; for another upstream it runs the pass again, which moves as many bytes as scaling would, and
//! rounds once. For f16, whose upstream is a gradient scaler's, and for `Reduction::None` backward alone makes them. On
//! either way upstream and 1/B are multiplied in the type of arithmetic, before the one rounding to 16 bits, and nothing
//! after it.

use tch::{Device, Tensor};

use super::autograd::{Backward, CustomFunction, needs_grad};
use super::call::empty_output;
use super::pool;
use super::tensors::{
    OfKind, as_in_memory, check_embeddings, check_like, matrix, slice, slice_mut, with_contiguous_rows, with_element,
};
use super::threads::on_libtorchs;
use crate::cpu::paired::Pass;
use crate::paired::PairedProblem;
use crate::{Error, Reduction};

/// A paired loss with the options and shape of one call. Tensors that it takes beside the K matrices come as `others`,
/// of any kind and strides, and are saved for backward as the matrices are.
pub(crate) trait OnTensors<const K: usize>: Send + 'static {
    const NAME: &'static str;

    fn problem(&self) -> &PairedProblem;

    /// Runs a pass on the CPU; returns the reduced loss.
    fn on_cpu<T: OfKind>(&self, pass: Pass<'_, T, K>, others: &[&Tensor]) -> Result<T::Scalar, Error>;

    /// Launches a pass on a CUDA device.
    ///
    /// # Safety
    /// `pass` is as `cuda::paired::run` wants it; the other tensors are on the launcher's device.
    #[cfg(feature = "cuda")]
    unsafe fn on_cuda<T: OfKind>(
        &self,
        launcher: &super::launcher::TorchLauncher,
        pass: &crate::cuda::paired::Pass<K>,
        others: &[&Tensor],
    ) -> Result<(), Error>;
}

/// Checks that K matrices have one shape, dtype and device; returns the shape.
pub(crate) fn check_inputs<const K: usize>(
    names: [&'static str; K],
    inputs: [&Tensor; K],
) -> Result<[usize; 2], Error> {
    check_embeddings(names[0], inputs[0])?;
    for (name, input) in names.into_iter().zip(inputs).skip(1) {
        check_like(name, input, names[0], inputs[0])?;
    }
    if cfg!(not(feature = "cuda")) && inputs[0].device() != Device::Cpu {
        let expected = "a CPU tensor (built without the cuda feature)";
        return Err(Error::argument(names[0], expected, "a CUDA tensor"));
    }
    Ok([inputs[0].size()[0] as usize, inputs[0].size()[1] as usize])
}

/// The loss of checked tensors, part of the autograd graph.
pub(crate) fn forward<L: OnTensors<K>, const K: usize>(
    loss: L,
    inputs: [&Tensor; K],
    others: &[&Tensor],
) -> Result<Tensor, Error> {
    let reduced = loss.problem().reduction != Reduction::None;
    let needed = inputs.map(needs_grad);
    let at_once = needed.contains(&true) && with_element!(inputs[0].kind(), T => loss.problem().grads_with_loss::<T>());
    let mut grads = if at_once { empty_grads(inputs[0], needed)? } else { [(); K].map(|()| None) };
    let mut output = empty_output(!reduced, inputs[0])?;
    tch::no_grad(|| run(&loss, inputs, others, None, Some((&mut output, reduced)), &mut grads))?;
    if !needed.contains(&true) {
        return Ok(output);
    }
    let mut ready = at_once.then_some(grads);
    let saved = [&inputs[..], others].concat();
    CustomFunction::new(L::NAME)
        .inputs(&inputs)
        .saved(&saved)
        .attach(&output, move |ctx| Ok(backward(&loss, &mut ready, ctx)?.into()))
}

/// The gradients: those in `ready`, if the upstream gradient is 1, else by running the pass.
fn backward<L: OnTensors<K>, const K: usize>(
    loss: &L,
    ready: &mut Option<[Option<Tensor>; K]>,
    ctx: &Backward<'_>,
) -> Result<[Option<Tensor>; K], Error> {
    let saved: Vec<&Tensor> = ctx.all_saved().iter().collect();
    let (inputs, others) = saved.split_first_chunk::<K>().expect("`forward` saved them");
    let needed = std::array::from_fn(|i| ctx.needs(i));
    // The memory of `ready` may be handed out only if the graph is not kept for another backward.
    let mut grads = match ready.take() {
        Some(mut grads) if !ctx.keep_graph() => {
            for (grad, needed) in grads.iter_mut().zip(needed) {
                if !needed {
                    *grad = None;
                }
            }
            // On the CPU the upstream is known here; on CUDA the kernel reads it.
            if ctx.upstream().device() == Device::Cpu && is_one(ctx.upstream()) {
                return Ok(grads);
            }
            run(loss, *inputs, others, Some((ctx.upstream(), true)), None, &mut grads)?;
            return Ok(grads);
        }
        kept => {
            *ready = kept;
            empty_grads(inputs[0], needed)?
        }
    };
    run(loss, *inputs, others, Some((ctx.upstream(), false)), None, &mut grads)?;
    Ok(grads)
}

fn is_one(upstream: &Tensor) -> bool {
    upstream.numel() == 1 && upstream.double_value(&[]) == 1.0
}

fn empty_grads<const K: usize>(like: &Tensor, needed: [bool; K]) -> Result<[Option<Tensor>; K], Error> {
    let mut grads = [(); K].map(|()| None);
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

/// One pass over the rows: fills `output` and those gradients that are `Some`. The flag of `output`: whether it is a
/// scalar, else one loss a row. The flag of `upstream`: whether the gradients already hold those for an upstream of 1.
fn run<L: OnTensors<K>, const K: usize>(
    loss: &L,
    inputs: [&Tensor; K],
    others: &[&Tensor],
    upstream: Option<(&Tensor, bool)>,
    output: Option<(&mut Tensor, bool)>,
    grads: &mut [Option<Tensor>; K],
) -> Result<(), Error> {
    let inputs = each(inputs, with_contiguous_rows)?;
    let upstream = match upstream {
        Some((tensor, ready)) => Some((as_in_memory(tensor)?.f_contiguous()?, ready)),
        None => None,
    };
    match inputs[0].device() {
        Device::Cpu => {
            let upstream = upstream.as_ref().map(|(u, _)| u);
            with_element!(inputs[0].kind(), T => run_cpu::<T, L, K>(loss, &inputs, others, upstream, output, grads))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            with_element!(inputs[0].kind(), T => {
                run_cuda::<T, L, K>(loss, ordinal, &inputs, others, upstream, output, grads)
            })
        }
        device => unreachable!("checked: {device:?}"),
    }
}

/// `f` of each element of `x`, or the first error.
fn each<X, Y, const K: usize>(x: [X; K], f: impl Fn(X) -> Result<Y, Error>) -> Result<[Y; K], Error> {
    let all = x.into_iter().map(f).collect::<Result<Vec<Y>, Error>>()?;
    Ok(all.try_into().unwrap_or_else(|_| unreachable!("as many as there were")))
}

fn run_cpu<T: OfKind, L: OnTensors<K>, const K: usize>(
    loss: &L,
    inputs: &[Tensor; K],
    others: &[&Tensor],
    upstream: Option<&Tensor>,
    mut output: Option<(&mut Tensor, bool)>,
    grads: &mut [Option<Tensor>; K],
) -> Result<(), Error>
where
    T::Scalar: OfKind,
{
    let losses = match &mut output {
        Some((tensor, false)) => Some(slice_mut::<T::Scalar>(tensor)),
        _ => None,
    };
    let pass = Pass {
        inputs: each(inputs.each_ref(), matrix::<T>)?,
        upstream: upstream.map(slice::<T::Scalar>),
        losses,
        grads: grads.each_mut().map(|grad| grad.as_mut().map(|grad| slice_mut::<T>(grad))),
    };
    let loss = on_libtorchs(|| loss.on_cpu(pass, others))?;
    if let Some((tensor, true)) = output {
        slice_mut::<T::Scalar>(tensor)[0] = loss;
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn run_cuda<T: OfKind, L: OnTensors<K>, const K: usize>(
    loss: &L,
    ordinal: usize,
    inputs: &[Tensor; K],
    others: &[&Tensor],
    upstream: Option<(Tensor, bool)>,
    output: Option<(&mut Tensor, bool)>,
    grads: &mut [Option<Tensor>; K],
) -> Result<(), Error> {
    use super::launcher::{TorchLauncher, address};
    use super::tensors::row_stride;

    let where_is =
        |wanted: bool| output.as_ref().filter(|(_, scalar)| *scalar == wanted).map_or(0, |(t, _)| address(t));
    let pass = crate::cuda::paired::Pass {
        inputs: inputs.each_ref().map(address),
        strides: inputs.each_ref().map(row_stride),
        upstream: upstream.as_ref().map_or(0, |(u, _)| address(u)),
        upstream_per_row: loss.problem().reduction == Reduction::None,
        idle_if_one: upstream.as_ref().is_some_and(|(_, ready)| *ready),
        losses: where_is(false),
        loss: where_is(true),
        grads: grads.each_ref().map(|grad| grad.as_ref().map_or(0, address)),
    };
    let launcher = TorchLauncher::current(ordinal)?;
    // SAFETY: checked tensors of T on this device, with the problem's shape; outputs and gradients are contiguous
    // tensors of this crate's making. PyTorch's allocator keeps memory for this stream's work until the stream has done
    // it.
    unsafe { loss.on_cuda::<T>(&launcher, &pass, others) }
}
