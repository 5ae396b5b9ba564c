//! Calls of mined losses on cudarc slices.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};

use super::arguments::{Input as Rows, Inputs, Output, ReferenceInput};
use super::paired::Wanted;
use super::{CudaLauncher, CudaMatrix, Launcher, Memory, refuse_f64};
use crate::call::{Call, Input, sealed};
use crate::element::largest;
use crate::matrix::check_len;
use crate::problem::{Problem, Sizes};
use crate::{Element, Error, MinedLoss, Reduction};

impl<'a, T: Element + DeviceRepr> Input for CudaMatrix<'a, T> {
    type Labels = &'a CudaSlice<i64>;
    type Step = &'a CudaSlice<i64>;
}
impl<T> sealed::Input for CudaMatrix<'_, T> {}

/// Calls on cudarc slices: the embeddings are a [`CudaMatrix`] of f32, f16 or bf16, and everything runs in the order of
/// a stream; nothing waits for the device.
///
/// Every method returns an error if a part of the call is invalid: the embeddings are f64, the batch or the reference
/// set is empty or too large, their rows differ in length, there is not one label a row, an option is out of range, or
/// a step is not one number. Further errors stand with each method.
impl<'a, L: MinedLoss, T: Element + DeviceRepr> Call<'_, L, CudaMatrix<'a, T>> {
    /// The loss: one number, or for `Reduction::None` one a row.
    ///
    /// # Errors
    /// If a part of the call is invalid, `loss` has the wrong length, or the device refuses.
    pub fn loss(self, stream: &Arc<CudaStream>, loss: &mut CudaSlice<f32>) -> Result<(), Error> {
        self.run(stream, Wanted::Losses(loss), [None, None])
    }

    /// The loss, and its gradient with respect to the embeddings, `[N, D]`. For `Reduction::None` the gradient is that
    /// of the losses' sum.
    ///
    /// # Errors
    /// If a part of the call is invalid, `loss` or `grad` has the wrong length, or the device refuses.
    pub fn loss_and_grad(
        self,
        stream: &Arc<CudaStream>,
        loss: &mut CudaSlice<f32>,
        grad: &mut CudaSlice<T>,
    ) -> Result<(), Error> {
        self.run(stream, Wanted::Losses(loss), [Some(grad), None])
    }

    /// The loss, and its gradients with respect to the embeddings, `[N, D]`, and to the reference set, `[M, D]`; `None`
    /// in place of a gradient skips it. For `Reduction::None` the gradients are those of the losses' sum.
    ///
    /// # Errors
    /// If a part of the call is invalid, `loss` or a gradient has the wrong length, there is a gradient with respect to
    /// a reference set that the call does not have, or the device refuses.
    pub fn loss_and_grads(
        self,
        stream: &Arc<CudaStream>,
        loss: &mut CudaSlice<f32>,
        grads: [Option<&mut CudaSlice<T>>; 2],
    ) -> Result<(), Error> {
        self.run(stream, Wanted::Losses(loss), grads)
    }

    /// The gradient with respect to the embeddings, `[N, D]`, times `upstream`, the gradient of what follows with
    /// respect to this loss: one number for mean and sum, one an anchor for `Reduction::None`.
    ///
    /// # Errors
    /// If a part of the call is invalid, `upstream` or `grad` has the wrong length, or the device refuses.
    pub fn grad(
        self,
        stream: &Arc<CudaStream>,
        upstream: &CudaSlice<f32>,
        grad: &mut CudaSlice<T>,
    ) -> Result<(), Error> {
        self.run(stream, Wanted::Upstream(upstream), [Some(grad), None])
    }

    /// The gradients with respect to the embeddings, `[N, D]`, and to the reference set, `[M, D]`, times `upstream`, as
    /// [`grad`](Self::grad) says; `None` in place of a gradient skips it.
    ///
    /// # Errors
    /// If a part of the call is invalid, `upstream` or a gradient has the wrong length, there is a gradient with
    /// respect to a reference set that the call does not have, or the device refuses.
    pub fn grads(
        self,
        stream: &Arc<CudaStream>,
        upstream: &CudaSlice<f32>,
        grads: [Option<&mut CudaSlice<T>>; 2],
    ) -> Result<(), Error> {
        self.run(stream, Wanted::Upstream(upstream), grads)
    }

    fn checked(&self) -> Result<Problem<L::Extra>, Error> {
        refuse_f64::<T>("embeddings")?;
        let shape = |matrix: &CudaMatrix<'_, T>| [matrix.rows, matrix.dim];
        let problem = self.loss_fn.problem(&Sizes {
            embeddings: shape(&self.embeddings),
            labels: self.labels.len(),
            reference: self.reference.map(|reference| reference.map(shape, |labels| labels.len())),
            largest: largest::<T>(),
        })?;
        if let Some(step) = self.step {
            check_len("step", step.len(), 1)?;
        }
        Ok(problem)
    }

    /// The addresses of the call's arguments. When the guards are dropped cudarc takes the slices as no longer in use.
    fn inputs<'s>(&'s self, stream: &'s Arc<CudaStream>, guards: &mut Vec<SyncOnDrop<'s>>) -> Inputs {
        let mut address = |slice: &'s CudaSlice<i64>| {
            let (address, guard) = slice.device_ptr(stream);
            guards.push(guard);
            address
        };
        let (labels, step) = (address(self.labels), self.step.map_or(0, &mut address));
        let reference = self.reference.map(|reference| reference.map(|rows| rows, |slice| address(slice)));
        let mut rows = |rows: &'s CudaMatrix<'a, T>, labels| {
            let (x, guard) = rows.data.device_ptr(stream);
            guards.push(guard);
            Rows { x, stride: rows.stride, labels }
        };
        let anchors = rows(&self.embeddings, labels);
        let reference = reference.map(|reference| ReferenceInput {
            rows: rows(reference.embeddings, reference.labels),
            count: reference.embeddings.rows,
            own: reference.own,
        });
        Inputs { anchors, reference, step }
    }

    /// Runs the forward pass and, for gradients, the backward pass.
    fn run(
        &self,
        stream: &Arc<CudaStream>,
        wanted: Wanted<'_, f32>,
        mut grads: [Option<&mut CudaSlice<T>>; 2],
    ) -> Result<(), Error> {
        let problem = self.checked()?;
        let upstreams = problem.upstreams();
        match &wanted {
            Wanted::Losses(losses) => check_len("loss", losses.len(), upstreams)?,
            Wanted::Upstream(upstream) => check_len("upstream", upstream.len(), upstreams)?,
        }
        problem.check_grads(grads.each_ref().map(|grad| grad.as_ref().map(|grad| grad.len())))?;
        let with_grad = grads.each_ref().map(Option::is_some);
        let launcher = CudaLauncher::new(stream)?;
        // If gradients come with the loss, their upstream gradient is ones.
        let ones = match &wanted {
            Wanted::Losses(_) if with_grad != [false; 2] => {
                let ones = launcher.allocate(upstreams * size_of::<f32>())?;
                // SAFETY: fresh memory of that size.
                unsafe { launcher.fill_with_ones(ones.address(), upstreams)? };
                Some(ones)
            }
            _ => None,
        };

        let mut guards = Vec::new();
        let inputs = self.inputs(stream, &mut guards);
        let (mut output, mut upstream) = (Output::default(), 0);
        match wanted {
            Wanted::Losses(losses) => {
                let (address, guard) = losses.device_ptr_mut(stream);
                let per_row = problem.options.reduction == Reduction::None;
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
        // SAFETY: the addresses come from slices whose lengths were checked here and by `CudaMatrix`, borrowed for the
        // call; cudarc frees a slice on its stream, after the kernels, and so does the launcher what the passes
        // allocate.
        unsafe {
            let kept = L::forward::<T, _>(&launcher, &problem, &inputs, &output, with_grad)?;
            if with_grad != [false; 2] {
                L::backward::<T, _>(&launcher, &problem, &kept, &inputs, upstream, to)?;
            }
        }
        Ok(())
    }
}
