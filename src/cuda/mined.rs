//! What mined losses on a device share: their inputs, the shape of their passes, and the calls on cudarc slices.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, sys};

use super::batch::Input;
use super::device::error;
use super::paired::Wanted;
use super::{Address, CudaLauncher, CudaMatrix, Launcher, Memory, refuse_f64};
use crate::element::largest;
use crate::matrix::check_len;
use crate::mined::{ReferenceShape, Shape};
use crate::{Element, Error, Own, Reduction, Reference};

/// The arguments of a call, in device memory.
#[derive(Clone, Copy, Debug)]
#[doc(hidden)]
pub struct Inputs {
    pub anchors: Input,
    /// `None`: the batch itself.
    pub reference: Option<OtherInput>,
    /// An i64; 0: step 0.
    pub step: Address,
}

impl Inputs {
    /// Of anchors `[rows, dim]`.
    fn shape(&self, [rows, dim]: [usize; 2]) -> Shape {
        let reference = self.reference.as_ref().map(|reference| ReferenceShape {
            rows: reference.count,
            dim,
            labels: reference.count,
            own: match reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(offset),
                Own::Rows(_) => Own::Rows(rows),
            },
        });
        Shape { rows, dim, labels: rows, reference, largest: largest::<f32>() }
    }

    /// A batch that is its own reference set.
    pub fn itself(anchors: Input) -> Self {
        Self { anchors, reference: None, step: 0 }
    }
}

/// A reference set; its own rows are i64.
#[derive(Clone, Copy, Debug)]
#[doc(hidden)]
pub struct OtherInput {
    pub rows: Input,
    /// How many there are.
    pub count: usize,
    pub own: Own<Address>,
}

/// Where a forward pass writes, in device memory; 0: not wanted, or to memory of its own.
#[derive(Clone, Copy, Debug, Default)]
#[doc(hidden)]
pub struct Output {
    /// One f32 an anchor.
    pub losses: Address,
    /// The reduced loss, an f32.
    pub loss: Address,
    /// Five f64: what was counted as valid and active, the sums of both distances, and what the sum of the losses is
    /// multiplied by.
    pub stats: Address,
    /// What was chosen, for losses that choose; each says what.
    pub chosen: [Address; 2],
}

/// The passes of a mined loss on a device.
#[doc(hidden)]
pub trait OnDevice: crate::mined::Loss {
    /// What the backward pass needs of a forward pass.
    type Kept<M: Memory>: Send + 'static;

    /// Mines the batch and writes its loss. `with_grad`: with what it takes for the gradients with respect to the anchors
    /// and to the reference set.
    ///
    /// # Safety
    /// The inputs are device memory of the launcher, of the problem's shape, the outputs too; all alive until the kernels
    /// have run.
    unsafe fn forward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Self::Problem,
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Self::Kept<L::Memory>, Error>;

    /// The gradients times `upstream`, an f32, or one an anchor; 0 in place of one skips it.
    ///
    /// # Safety
    /// The inputs hold what they held in the forward pass, wherever they lie now; the gradients are `[N, D]` and `[M, D]` of
    /// T, contiguous; these, the upstream and the forward pass's statistics alive until the kernels have run.
    unsafe fn backward<T: Element, L: Launcher>(
        launcher: &L,
        problem: &Self::Problem,
        kept: &Self::Kept<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error>;

    /// Forward for callers that hold device memory of their own: tests on whatever implements [`Launcher`].
    ///
    /// # Safety
    /// As [`forward`](Self::forward), for anchors `[rows, dim]`.
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    unsafe fn forward_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        shape: [usize; 2],
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<Self::Kept<L::Memory>, Error> {
        // SAFETY: the caller's contract.
        unsafe { Self::forward::<T, L>(launcher, &self.check(&inputs.shape(shape))?, inputs, output, with_grad) }
    }

    /// Backward, likewise.
    ///
    /// # Safety
    /// As [`backward`](Self::backward), for what `forward_on` made of the same shape.
    ///
    /// # Errors
    /// If the device refuses.
    unsafe fn backward_on<T: Element, L: Launcher>(
        &self,
        launcher: &L,
        shape: [usize; 2],
        kept: &Self::Kept<L::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { Self::backward::<T, L>(launcher, &self.check(&inputs.shape(shape))?, kept, inputs, upstream, grads) }
    }
}

/// A batch in cudarc slices.
pub(crate) struct Slices<'a, T> {
    pub embeddings: CudaMatrix<'a, T>,
    pub labels: &'a CudaSlice<i64>,
    pub reference: Option<&'a CudaSet<'a, T>>,
}

/// A reference set in cudarc slices.
pub(crate) type CudaSet<'a, T> = Reference<CudaMatrix<'a, T>, &'a CudaSlice<i64>>;

impl<'a, T> Slices<'a, T> {
    fn shape(&self) -> Shape {
        let reference = self.reference.map(|reference| ReferenceShape {
            rows: reference.embeddings.rows,
            dim: reference.embeddings.dim,
            labels: reference.labels.len(),
            own: match reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(offset),
                Own::Rows(rows) => Own::Rows(rows.len()),
            },
        });
        let CudaMatrix { rows, dim, .. } = self.embeddings;
        Shape { rows, dim, labels: self.labels.len(), reference, largest: largest::<f32>() }
    }

    /// The guards tell cudarc when the slices are done with.
    fn inputs(&'a self, stream: &'a Arc<CudaStream>, guards: &mut Vec<SyncOnDrop<'a>>) -> Inputs {
        let mut input = |rows: &'a CudaMatrix<'a, T>, labels: &'a CudaSlice<i64>| {
            let ((x, of_rows), (labels, of_labels)) = (rows.data.device_ptr(stream), labels.device_ptr(stream));
            guards.extend([of_rows, of_labels]);
            Input { x, stride: rows.stride, labels }
        };
        let anchors = input(&self.embeddings, self.labels);
        let reference = self.reference.map(|reference| (reference, input(&reference.embeddings, reference.labels)));
        let reference = reference.map(|(reference, rows)| {
            let own = match reference.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(offset),
                Own::Rows(rows) => {
                    let (rows, guard) = rows.device_ptr(stream);
                    guards.push(guard);
                    Own::Rows(rows)
                }
            };
            OtherInput { rows, count: reference.embeddings.rows, own }
        });
        Inputs { anchors, reference, step: 0 }
    }
}

/// Runs the passes that a call is for, in the order of `stream`.
pub(crate) fn run_on_stream<T: Element + DeviceRepr, L: OnDevice>(
    loss_fn: &L,
    stream: &Arc<CudaStream>,
    slices: Slices<'_, T>,
    wanted: Wanted<'_, f32>,
    mut grads: [Option<&mut CudaSlice<T>>; 2],
) -> Result<(), Error> {
    refuse_f64::<T>("embeddings")?;
    let shape = slices.shape();
    let problem = loss_fn.check(&shape)?;
    let per_row = loss_fn.reduction() == Reduction::None;
    let upstreams = if per_row { shape.rows } else { 1 };
    match &wanted {
        Wanted::Losses(losses) => check_len("loss", losses.len(), upstreams)?,
        Wanted::Upstream(upstream) => check_len("upstream", upstream.len(), upstreams)?,
    }
    for ((name, rows), grad) in [("grad", shape.rows), ("reference_grad", shape.others())].into_iter().zip(&grads) {
        if let Some(grad) = grad {
            check_len(name, grad.len(), rows * shape.dim)?;
        }
    }
    let with_grad = grads.each_ref().map(Option::is_some);
    let launcher = CudaLauncher::new(stream)?;
    // An upstream of ones, where gradients come with the loss.
    let ones = match &wanted {
        Wanted::Losses(_) if with_grad != [false; 2] => {
            let ones = launcher.allocate(upstreams * size_of::<f32>())?;
            // SAFETY: fresh memory of that size. No copy: a graph would read the host's memory again in each replay.
            let filled = unsafe {
                sys::cuMemsetD32Async(ones.address(), 1f32.to_bits(), upstreams, stream.cu_stream()).result()
            };
            filled.map_err(|e| error("filling memory with ones", e))?;
            Some(ones)
        }
        _ => None,
    };

    let mut guards = Vec::new();
    let inputs = slices.inputs(stream, &mut guards);
    let (mut output, mut upstream) = (Output::default(), 0);
    match wanted {
        Wanted::Losses(losses) => {
            let (address, guard) = losses.device_ptr_mut(stream);
            *(if per_row { &mut output.losses } else { &mut output.loss }) = address;
            guards.push(guard);
        }
        Wanted::Upstream(given) => {
            let (address, guard) = given.device_ptr(stream);
            upstream = address;
            guards.push(guard);
        }
    }
    if let Some(ones) = &ones {
        upstream = ones.address();
    }
    let to = grads.each_mut().map(|grad| {
        let Some(grad) = grad else { return 0 };
        let (address, guard) = grad.device_ptr_mut(stream);
        guards.push(guard);
        address
    });
    // SAFETY: the addresses come from slices whose lengths were checked here and by `CudaMatrix`, borrowed for the call;
    // cudarc frees a slice on its stream, after the kernels, and so does the launcher what the passes allocate.
    unsafe {
        let kept = L::forward::<T, _>(&launcher, &problem, &inputs, &output, with_grad)?;
        if with_grad != [false; 2] {
            L::backward::<T, _>(&launcher, &problem, &kept, &inputs, upstream, to)?;
        }
    }
    Ok(())
}

/// The calls on cudarc slices of a mined loss.
macro_rules! cuda_calls {
    ($loss:ident) => {
        impl $loss {
            /// The loss on cudarc slices, and its gradient with respect to the embeddings, `[N, D]`, where it is wanted; in
            /// the order of `stream`: nothing waits for the device.
            ///
            /// The embeddings are f32, f16 or bf16. `loss` takes one number, or for `Reduction::None` one a row; the gradient
            /// is then that of the losses' sum.
            ///
            /// # Errors
            /// As [`loss_and_grad`](Self::loss_and_grad), if `loss` has another length, or if the device refuses.
            pub fn loss_and_grad_cuda<T: $crate::Element + cudarc::driver::DeviceRepr>(
                &self,
                stream: &std::sync::Arc<cudarc::driver::CudaStream>,
                embeddings: $crate::cuda::CudaMatrix<'_, T>,
                labels: &cudarc::driver::CudaSlice<i64>,
                loss: &mut cudarc::driver::CudaSlice<f32>,
                grad: Option<&mut cudarc::driver::CudaSlice<T>>,
            ) -> Result<(), $crate::Error> {
                let slices = $crate::cuda::mined::Slices { embeddings, labels, reference: None };
                let wanted = $crate::cuda::paired::Wanted::Losses(loss);
                $crate::cuda::mined::run_on_stream(self, stream, slices, wanted, [grad, None])
            }

            /// Likewise, against a reference set, and with the gradient with respect to it, `[M, D]`.
            ///
            /// # Errors
            /// As [`loss_and_grad_against`](Self::loss_and_grad_against), if `loss` has another length, or if the device
            /// refuses.
            pub fn loss_and_grad_against_cuda<T: $crate::Element + cudarc::driver::DeviceRepr>(
                &self,
                stream: &std::sync::Arc<cudarc::driver::CudaStream>,
                embeddings: $crate::cuda::CudaMatrix<'_, T>,
                labels: &cudarc::driver::CudaSlice<i64>,
                reference: &$crate::Reference<$crate::cuda::CudaMatrix<'_, T>, &cudarc::driver::CudaSlice<i64>>,
                loss: &mut cudarc::driver::CudaSlice<f32>,
                grads: [Option<&mut cudarc::driver::CudaSlice<T>>; 2],
            ) -> Result<(), $crate::Error> {
                let slices = $crate::cuda::mined::Slices { embeddings, labels, reference: Some(reference) };
                let wanted = $crate::cuda::paired::Wanted::Losses(loss);
                $crate::cuda::mined::run_on_stream(self, stream, slices, wanted, grads)
            }

            /// [`grad`](Self::grad) on cudarc slices.
            ///
            /// # Errors
            /// As [`grad`](Self::grad), or if the device refuses.
            pub fn grad_cuda<T: $crate::Element + cudarc::driver::DeviceRepr>(
                &self,
                stream: &std::sync::Arc<cudarc::driver::CudaStream>,
                embeddings: $crate::cuda::CudaMatrix<'_, T>,
                labels: &cudarc::driver::CudaSlice<i64>,
                upstream: &cudarc::driver::CudaSlice<f32>,
                grad: &mut cudarc::driver::CudaSlice<T>,
            ) -> Result<(), $crate::Error> {
                let slices = $crate::cuda::mined::Slices { embeddings, labels, reference: None };
                let wanted = $crate::cuda::paired::Wanted::Upstream(upstream);
                $crate::cuda::mined::run_on_stream(self, stream, slices, wanted, [Some(grad), None])
            }

            /// [`grad_against`](Self::grad_against) on cudarc slices.
            ///
            /// # Errors
            /// As [`grad_against`](Self::grad_against), or if the device refuses.
            pub fn grad_against_cuda<T: $crate::Element + cudarc::driver::DeviceRepr>(
                &self,
                stream: &std::sync::Arc<cudarc::driver::CudaStream>,
                embeddings: $crate::cuda::CudaMatrix<'_, T>,
                labels: &cudarc::driver::CudaSlice<i64>,
                reference: &$crate::Reference<$crate::cuda::CudaMatrix<'_, T>, &cudarc::driver::CudaSlice<i64>>,
                upstream: &cudarc::driver::CudaSlice<f32>,
                grads: [Option<&mut cudarc::driver::CudaSlice<T>>; 2],
            ) -> Result<(), $crate::Error> {
                let slices = $crate::cuda::mined::Slices { embeddings, labels, reference: Some(reference) };
                let wanted = $crate::cuda::paired::Wanted::Upstream(upstream);
                $crate::cuda::mined::run_on_stream(self, stream, slices, wanted, grads)
            }
        }
    };
}
pub(crate) use cuda_calls;
