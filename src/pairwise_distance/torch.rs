//! The distances on tch tensors.

#[cfg(feature = "cuda")]
use tch::Kind;
use tch::{Device, Tensor};

use super::PairwiseDistance;
use super::cpu::{self, PairwiseProblem};
use crate::torch::tensors::{
    InTensors, OfKind, as_in_memory, check_embeddings, matrix, slice, slice_mut, strided, with_contiguous_rows,
    with_element,
};
use crate::torch::threads::on_libtorchs;
use crate::torch::{CustomFunction, needs_grad, pool};
use crate::{Distance, Error};

const NAME: &str = "PairwiseDistance";

impl PairwiseDistance {
    /// The distances `[N, M]` between the rows of `x`, `[N, D]`, and of `y`, `[M, D]`, part of the autograd graph.
    ///
    /// Both are f32, f16, bf16 or on the CPU f64, of one dtype, on the CPU or one CUDA device; the rows may be views
    /// with any strides, and both may be the same tensor. The result is f64 for f64 and f32 for all others. On CUDA
    /// nothing waits for the device. On the CPU the graph holds copies of both matrices and, for Euclidean distances, the
    /// result.
    ///
    /// # Panics
    /// If [`f_forward`](Self::f_forward) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::PairwiseDistance;
    ///
    /// let x = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let y = Tensor::randn([100, 128], (Kind::Float, Device::Cpu));
    /// let nearest = PairwiseDistance::default().forward(&x, &y).amin([1], false);
    /// nearest.sum(Kind::Float).backward();
    /// assert_eq!(x.grad().size(), [8, 128]);
    /// ```
    pub fn forward(&self, x: &Tensor, y: &Tensor) -> Tensor {
        self.f_forward(x, y).unwrap_or_else(|error| panic!("{NAME}: {error}"))
    }

    /// The distances of tch tensors as [`forward`](Self::forward) gives them, or an error.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not match or are not supported, a matrix is empty or too large, or memory runs
    /// out.
    pub fn f_forward(&self, x: &Tensor, y: &Tensor) -> Result<Tensor, Error> {
        check_embeddings("x", x)?;
        check_embeddings("y", y)?;
        let differs =
            |what: &str, of_x: String, of_y: String| Error::argument("y", format!("{what} {of_x}, as x"), of_y);
        if y.kind() != x.kind() {
            return Err(differs("dtype", format!("{:?}", x.kind()), format!("{:?}", y.kind())));
        }
        if y.device() != x.device() {
            return Err(differs("the device", format!("{:?}", x.device()), format!("{:?}", y.device())));
        }
        let size = |tensor: &Tensor, i: usize| tensor.size()[i] as usize;
        let problem = self.checked([size(x, 0), size(y, 0)], [size(x, 1), size(y, 1)])?;
        match x.device() {
            Device::Cpu => with_element!(x.kind(), T => on_cpu::<T>(problem, x, y)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => match x.kind() {
                Kind::Double => Err(Error::argument("x", "dtype f32, f16 or bf16 on a CUDA device", "Double")),
                Kind::Half => on_cuda::<half::f16>(problem, ordinal, x, y),
                Kind::BFloat16 => on_cuda::<half::bf16>(problem, ordinal, x, y),
                _ => on_cuda::<f32>(problem, ordinal, x, y),
            },
            _ => Err(Error::argument("x", "a CPU tensor (built without the cuda feature)", "a CUDA tensor")),
        }
    }
}

fn on_cpu<T: OfKind>(problem: PairwiseProblem, x: &Tensor, y: &Tensor) -> Result<Tensor, Error>
where
    T::Scalar: OfKind,
{
    let shape = problem.rows.map(|rows| rows as i64);
    let mut output = pool::empty(&shape, T::Scalar::KIND)?;
    let prepared = {
        let rows = [with_contiguous_rows(x)?, with_contiguous_rows(y)?];
        let matrices = [&matrix::<T>(&rows[0])?, &matrix::<T>(&rows[1])?];
        on_libtorchs(|| cpu::Prepared::new(&problem, matrices))
    };
    let near = on_libtorchs(|| prepared.distances(slice_mut::<T::Scalar>(&mut output)));
    let wanted = [needs_grad(x), needs_grad(y)];
    if wanted == [false; 2] {
        return Ok(output);
    }
    // The gradient of the root divides by it. The result is kept for that, as it is now: where it has been changed in
    // place since, the distances are computed again.
    let root = problem.distance == Distance::Euclidean;
    let distances = root.then(|| (output.shallow_clone(), output.internal_version()));
    // The matrices are saved so that a change in place is an error, as on CUDA; they are not read again.
    CustomFunction::new(NAME).inputs(&[x, y]).saved(&[x, y]).attach(&output, move |ctx| {
        let upstream = as_in_memory(ctx.upstream())?;
        // The upstream gradient of a sum is one number, expanded.
        let upstream = if upstream.stride()[1] <= 1 { upstream } else { upstream.f_contiguous()? };
        let mut grads = [None, None];
        for (which, grad) in grads.iter_mut().enumerate() {
            let wanted = wanted[which] && ctx.needs(which);
            let shape = [shape[which], problem.dim as i64];
            *grad = if wanted { Some(pool::empty(&shape, T::KIND)?) } else { None };
        }
        let to = grads.each_mut().map(|grad| grad.as_mut().map(slice_mut::<T>));
        let unchanged = distances.as_ref().filter(|(output, version)| output.internal_version() == *version);
        let known = cpu::Known { near: &near, distances: unchanged.map(|(output, _)| slice::<T::Scalar>(output)) };
        let (numbers, steps) = strided::<T::Scalar>(&upstream);
        on_libtorchs(|| prepared.gradients(Some(known), cpu::OfPairs { numbers, steps }, to));
        Ok(grads.into())
    })
}

#[cfg(feature = "cuda")]
fn on_cuda<T: OfKind>(problem: PairwiseProblem, ordinal: usize, x: &Tensor, y: &Tensor) -> Result<Tensor, Error> {
    use super::cuda::{backward, forward};
    use crate::torch::call::input;
    use crate::torch::launcher::{TorchLauncher, address};

    let shape = problem.rows.map(|rows| rows as i64);
    let output = Tensor::f_empty(shape, (Kind::Float, x.device()))?;
    let rows = [with_contiguous_rows(x)?, with_contiguous_rows(y)?];
    let launcher = TorchLauncher::current(ordinal)?;
    // SAFETY: checked tensors on this device, of the problem's shape; the output is a contiguous tensor of this
    // function's making. PyTorch's allocator keeps memory for this stream's work until the stream has done it.
    unsafe {
        forward::<T, _>(
            &launcher,
            &problem,
            problem.precision.into(),
            &rows.each_ref().map(|rows| input(rows, None)),
            address(&output),
        )?
    };
    let wanted = [needs_grad(x), needs_grad(y)];
    if wanted == [false; 2] {
        return Ok(output);
    }
    CustomFunction::new(NAME).inputs(&[x, y]).saved(&[x, y]).attach(&output, move |ctx| {
        let upstream = as_in_memory(ctx.upstream())?.f_contiguous()?;
        let rows = [with_contiguous_rows(ctx.saved(0))?, with_contiguous_rows(ctx.saved(1))?];
        let mut grads = [None, None];
        for (which, (grad, rows)) in grads.iter_mut().zip(&rows).enumerate() {
            let wanted = wanted[which] && ctx.needs(which);
            *grad = if wanted { Some(Tensor::f_empty(rows.size(), (rows.kind(), rows.device()))?) } else { None };
        }
        let launcher = TorchLauncher::current(ordinal)?;
        let to = grads.each_ref().map(|grad| grad.as_ref().map_or(0, address));
        let inputs = rows.each_ref().map(|rows| input(rows, None));
        // SAFETY: as above; the matrices are what they were (`saved`).
        unsafe { backward::<T, _>(&launcher, &problem, problem.precision.into(), &inputs, address(&upstream), to)? };
        Ok(grads.into())
    })
}
