//! What this repository's tests and emulator need of the crate's inside. No other code should use it: each release may
//! change all of it.

pub use crate::constants::{SHARED_OF_DRIVER, STATS_WRITTEN, TRIANGLE_FROM};
pub use crate::problem::Problem;
#[cfg(feature = "cuda")]
pub use on_device::*;

#[cfg(feature = "cuda")]
mod on_device {
    pub use crate::contrastive::cuda::Same;
    pub use crate::cuda::arguments::{Input, Inputs, Output, ReferenceInput};
    pub use crate::cuda::batch::{Cores, capacity};
    pub use crate::cuda::device::{CudaLauncher, Device};
    pub use crate::cuda::fitness::{Machine, fit};
    pub use crate::cuda::images::{IMAGES, Image, KernelReport, choose, choose_for};
    pub use crate::cuda::launcher::{Address, DeviceProperties, Grid, Launcher, Memory};
    pub use crate::cuda::mined::OnDevice;
    pub use crate::cuda::paired::{Pass, Plan, RowAccess};
    pub use crate::cuda::targets::{OfLoss, Shared, Strip, Sweep, is_left_out, of_batch_all, of_terms};
    pub use crate::top_k::cuda::{Chunks, Dtype, SearchInputs, StoredInput};
    #[cfg(feature = "torch")]
    pub use crate::torch::launcher::on_pool_stream;

    use crate::cuda::batch::{BatchShape, Places, Product, prepare};
    use crate::cuda::workspace::WorkspaceLayout;
    use crate::element::largest;
    use crate::problem::{Problem, Sizes};
    use crate::{
        ContrastiveLoss, Distance, Element, Error, PairwiseDistance, Precision, Reference, TopK, TripletMarginLoss,
    };

    /// The forward pass of a mined loss on the launcher's memory, for anchors `[rows, dim]`.
    ///
    /// # Safety
    /// The contract of [`OnDevice::forward`].
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    pub unsafe fn mined_forward<L: OnDevice, T: Element, D: Launcher>(
        loss_fn: &L,
        launcher: &D,
        shape: [usize; 2],
        inputs: &Inputs,
        output: &Output,
        with_grad: [bool; 2],
    ) -> Result<L::Kept<D::Memory>, Error> {
        // SAFETY: the caller's contract.
        unsafe { L::forward::<T, D>(launcher, &problem(loss_fn, shape, inputs)?, inputs, output, with_grad) }
    }

    /// Where rows lie in class order: what the preparation of every mined loss finds first, for embeddings `[rows, dim]`.
    /// Returns its memory, and where in it lie, as u32 each: the original index of each place, the place of each original
    /// index, and where the class of each place begins and ends.
    ///
    /// # Safety
    /// `input` is device memory of the launcher, alive until the kernels have run: embeddings of f32, and their labels.
    ///
    /// # Errors
    /// If the device refuses.
    pub unsafe fn class_order<D: Launcher>(
        launcher: &D,
        [rows, dim]: [usize; 2],
        input: &Input,
    ) -> Result<(D::Memory, [Address; 4]), Error> {
        let product = Product::of::<f32>(Precision::Highest.into());
        let shape =
            BatchShape { rows, dim, distance: Distance::SquaredEuclidean, normalize: false, product, keeps: false };
        let mut layout = WorkspaceLayout::default();
        let places = Places::new(&shape, input.labels != 0, launcher.properties(), &mut layout);
        let workspace = layout.allocate(launcher, false)?;
        // SAFETY: the caller's contract; the workspace is for these places.
        let batch = unsafe { prepare::<f32, D>(launcher, &shape, input, None, &places, &workspace)? };
        Ok((workspace.into_kept(), batch.class_order()))
    }

    /// The backward pass of a mined loss, for what [`mined_forward`] of the same shape kept.
    ///
    /// # Safety
    /// The contract of [`OnDevice::backward`].
    ///
    /// # Errors
    /// If the device refuses.
    pub unsafe fn mined_backward<L: OnDevice, T: Element, D: Launcher>(
        loss_fn: &L,
        launcher: &D,
        shape: [usize; 2],
        kept: &L::Kept<D::Memory>,
        inputs: &Inputs,
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { L::backward::<T, D>(launcher, &problem(loss_fn, shape, inputs)?, kept, inputs, upstream, grads) }
    }

    fn problem<L: OnDevice>(loss_fn: &L, embeddings: [usize; 2], inputs: &Inputs) -> Result<Problem<L::Extra>, Error> {
        let [rows, dim] = embeddings;
        let reference = inputs.reference.as_ref().map(|reference| Reference {
            embeddings: [reference.count, dim],
            labels: reference.count,
            own: reference.own.map(|_| rows),
        });
        loss_fn.problem(&Sizes { embeddings, labels: rows, reference, largest: largest::<f32>() })
    }

    /// Which kernel [`triplet_margin`] would launch.
    ///
    /// # Errors
    /// If the shape is empty or an option is out of range.
    pub fn triplet_margin_plan<T: Element>(
        loss_fn: &TripletMarginLoss,
        device: &DeviceProperties,
        shape: [usize; 2],
        pass: &Pass<3>,
    ) -> Result<Plan, Error> {
        let problem = loss_fn.checked(shape, largest::<T>())?;
        Ok(crate::cuda::paired::plan::<T, 3>(crate::triplet_margin::cuda::STEM, &problem.paired, pass, device))
    }

    /// One pass of the triplet margin loss over rows in the launcher's memory, `[rows, dim]`.
    ///
    /// # Safety
    /// The addresses in `pass` are device memory of the launcher, as [`Pass`] describes, alive until the kernel has
    /// run.
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    pub unsafe fn triplet_margin<T: Element, D: Launcher>(
        loss_fn: &TripletMarginLoss,
        launcher: &D,
        shape: [usize; 2],
        pass: &Pass<3>,
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { crate::triplet_margin::cuda::run::<T, D>(launcher, &loss_fn.checked(shape, largest::<T>())?, pass) }
    }

    /// Whether a forward pass on tensors of T makes the gradients of [`triplet_margin`] too, for an upstream of 1.
    ///
    /// # Errors
    /// If the shape is empty or an option is out of range.
    pub fn triplet_margin_grads_with_loss<T: Element>(
        loss_fn: &TripletMarginLoss,
        shape: [usize; 2],
    ) -> Result<bool, Error> {
        Ok(loss_fn.checked(shape, largest::<T>())?.paired.grads_with_loss::<T>())
    }

    /// Which kernel [`contrastive`] would launch.
    ///
    /// # Errors
    /// If the shape is empty or an option is out of range.
    pub fn contrastive_plan<T: Element>(
        loss_fn: &ContrastiveLoss,
        device: &DeviceProperties,
        shape: [usize; 2],
        pass: &Pass<2>,
    ) -> Result<Plan, Error> {
        let problem = loss_fn.checked(shape, largest::<T>())?;
        Ok(crate::cuda::paired::plan::<T, 2>(crate::contrastive::cuda::STEM, &problem, pass, device))
    }

    /// One pass of the contrastive loss over rows in the launcher's memory, `[rows, dim]`.
    ///
    /// # Safety
    /// The addresses in `pass` are device memory of the launcher, as [`Pass`] describes; `same` is one number a row,
    /// aligned to its size; all alive until the kernel has run.
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    pub unsafe fn contrastive<T: Element, D: Launcher>(
        loss_fn: &ContrastiveLoss,
        launcher: &D,
        shape: [usize; 2],
        pass: &Pass<2>,
        same: Same,
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { crate::contrastive::cuda::run::<T, D>(launcher, &loss_fn.checked(shape, largest::<T>())?, pass, same) }
    }

    /// Whether a forward pass on tensors of T makes the gradients of [`contrastive`] too, for an upstream of 1.
    ///
    /// # Errors
    /// If the shape is empty or an option is out of range.
    pub fn contrastive_grads_with_loss<T: Element>(
        loss_fn: &ContrastiveLoss,
        shape: [usize; 2],
    ) -> Result<bool, Error> {
        Ok(loss_fn.checked(shape, largest::<T>())?.grads_with_loss::<T>())
    }

    /// The distances between rows in the launcher's memory, `[N, dim]` and `[M, dim]`, with products by these cores.
    ///
    /// # Safety
    /// The inputs are device memory of the launcher, without labels; `out` is `[N, M]` of f32, contiguous; all alive
    /// until the kernels have run.
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    pub unsafe fn pairwise_distance<T: Element, D: Launcher>(
        op: (&PairwiseDistance, Cores),
        launcher: &D,
        shapes: [[usize; 2]; 2],
        inputs: &[Input; 2],
        out: Address,
    ) -> Result<(), Error> {
        let problem = op.0.checked(shapes.map(|[rows, _]| rows), shapes.map(|[_, dim]| dim))?;
        // SAFETY: the caller's contract.
        unsafe { crate::pairwise_distance::cuda::forward::<T, D>(launcher, &problem, op.1, inputs, out) }
    }

    /// The gradients of [`pairwise_distance`].
    ///
    /// # Safety
    /// The contract of [`pairwise_distance`]; `upstream` is `[N, M]` of f32, and `grads` `[N, dim]` and `[M, dim]` of
    /// T, all contiguous.
    ///
    /// # Errors
    /// If the shape is empty, an option is out of range, or the device refuses.
    pub unsafe fn pairwise_distance_backward<T: Element, D: Launcher>(
        op: (&PairwiseDistance, Cores),
        launcher: &D,
        shapes: [[usize; 2]; 2],
        inputs: &[Input; 2],
        upstream: Address,
        grads: [Address; 2],
    ) -> Result<(), Error> {
        let problem = op.0.checked(shapes.map(|[rows, _]| rows), shapes.map(|[_, dim]| dim))?;
        // SAFETY: the caller's contract.
        unsafe { crate::pairwise_distance::cuda::backward::<T, D>(launcher, &problem, op.1, inputs, upstream, grads) }
    }

    /// A search for queries `[Q, dim]` among rows `[M, dim]` in the launcher's memory. `chunks`: `None` for what a search takes
    /// by itself.
    ///
    /// # Safety
    /// The inputs are device memory of the launcher, of these shapes; the outputs are `[Q, k]` of f32 and of i64; all alive
    /// until the kernels have run.
    ///
    /// # Errors
    /// If an option is out of range, there is no query, or the device refuses.
    pub unsafe fn top_k<D: Launcher>(
        top_k: &TopK,
        launcher: &D,
        shapes: [[usize; 2]; 2],
        inputs: &SearchInputs,
        outputs: [Address; 2],
        chunks: Option<Chunks>,
    ) -> Result<(), Error> {
        let problem = top_k.checked(shapes[0], shapes[1])?;
        // SAFETY: the caller's contract.
        unsafe { crate::top_k::cuda::search(launcher, &problem, inputs, outputs, chunks) }
    }
}
