//! What this repository's tests, its emulator and its package for Python need of the crate's inside. No other code should use
//! it: each release may change all of it.

pub use crate::constants::{SHARED_OF_DRIVER, STATS_WRITTEN, TRIANGLE_FROM};
pub use crate::cpu::paired::Pass as SlicePass;
#[cfg(feature = "openmp")]
pub use crate::cpu::threads::Threads;
pub use crate::element::largest;
pub use crate::problem::Problem;
pub use in_memory::*;
#[cfg(feature = "cuda")]
pub use on_device::*;

mod in_memory {
    use super::SlicePass;
    use crate::cpu::distance_matrix::{Near, TASK_ROWS, TILE_COLUMNS};
    use crate::cpu::paired::PairedLoss;
    use crate::matrix::check_len;
    use crate::mined::Slices;
    use crate::paired::{PairedProblem, check_grads, one_shape};
    use crate::pairwise_distance::cpu::{Known, OfPairs, Prepared};
    use crate::problem::Problem;
    use crate::{
        ContrastiveLoss, Element, Error, Matrix, MinedLoss, PairwiseDistance, Reduction, Reference, Stats,
        TripletMarginLoss,
    };

    /// The arguments of a call of a mined loss on slices.
    #[derive(Clone, Copy, Debug)]
    pub struct MinedInputs<'a, T> {
        /// The batch, whose rows are the anchors.
        pub embeddings: Matrix<'a, T>,
        /// Its labels.
        pub labels: &'a [i64],
        /// The reference set; `None`: the batch is its own.
        pub reference: Option<&'a Reference<Matrix<'a, T>, &'a [i64]>>,
        /// The step of the random choices, for a loss that draws.
        pub step: i64,
    }

    impl<T: Element> MinedInputs<'_, T> {
        fn checked<L: MinedLoss>(&self, loss_fn: &L) -> Result<(Problem<L::Extra>, Slices<'_, T>), Error> {
            let Self { embeddings, labels, reference, step } = *self;
            let slices = Slices { embeddings, labels, reference };
            Ok((Problem { step, ..loss_fn.problem(&slices.sizes())? }, slices))
        }
    }

    /// The forward pass of a mined loss, and its gradients with respect to the batch and to the reference set for an upstream
    /// gradient of ones, in the type of arithmetic. `losses`: one number, or for `Reduction::None` one a row.
    ///
    /// # Errors
    /// If a part of the call is invalid, or an output has the wrong length.
    pub fn mined_pass<L: MinedLoss, T: Element>(
        loss_fn: &L,
        inputs: &MinedInputs<'_, T>,
        losses: &mut [T::Scalar],
        grads: [Option<&mut [T::Scalar]>; 2],
    ) -> Result<Stats, Error> {
        let (problem, slices) = inputs.checked(loss_fn)?;
        check_len("losses", losses.len(), problem.upstreams())?;
        let lens = grads.each_ref().map(|grad| grad.as_ref().map(|grad| grad.len()));
        problem.check_grads(lens)?;
        let found = L::find(&problem, &slices, lens.map(|len| len.is_some()));
        match problem.options.reduction {
            Reduction::None => losses.copy_from_slice(L::losses(&found)),
            _ => losses[0] = L::loss(&problem, &found),
        }
        if lens != [None; 2] {
            L::gradients::<T::Scalar>(&problem, &found, None, grads);
        }
        Ok(L::stats(&found))
    }

    /// The gradients of a mined loss times `upstream`: one number, or for `Reduction::None` one a row.
    ///
    /// # Errors
    /// If a part of the call is invalid, or `upstream` or a gradient has the wrong length.
    pub fn mined_gradients<L: MinedLoss, T: Element>(
        loss_fn: &L,
        inputs: &MinedInputs<'_, T>,
        upstream: &[T::Scalar],
        grads: [Option<&mut [T]>; 2],
    ) -> Result<(), Error> {
        let (problem, slices) = inputs.checked(loss_fn)?;
        check_len("upstream", upstream.len(), problem.upstreams())?;
        let lens = grads.each_ref().map(|grad| grad.as_ref().map(|grad| grad.len()));
        problem.check_grads(lens)?;
        let found = L::find(&problem, &slices, lens.map(|len| len.is_some()));
        L::gradients(&problem, &found, Some(upstream), grads);
        Ok(())
    }

    fn check_pass<T: Element, const K: usize>(
        problem: &PairedProblem,
        pass: &SlicePass<'_, T, K>,
    ) -> Result<(), Error> {
        if let Some(upstream) = pass.upstream {
            check_len("upstream", upstream.len(), problem.upstreams())?;
        }
        if let Some(losses) = &pass.losses {
            check_len("losses", losses.len(), problem.rows)?;
        }
        check_grads(problem, pass.grads.iter().map(|grad| grad.as_ref().map(|grad| grad.len())))
    }

    /// One pass of the triplet margin loss over slices; the reduced loss, for `Reduction::None` the sum.
    ///
    /// # Errors
    /// If the shapes differ or are empty, an option is out of range, or a part of the pass has the wrong length.
    pub fn triplet_margin_pass<T: Element>(
        loss_fn: &TripletMarginLoss,
        pass: SlicePass<'_, T, 3>,
    ) -> Result<T::Scalar, Error> {
        let shape = one_shape(["anchor", "positive", "negative"], pass.inputs.map(|m| [m.rows(), m.dim()]))?;
        let problem = loss_fn.checked(shape, super::largest::<T>())?;
        check_pass(&problem.paired, &pass)?;
        Ok(crate::triplet_margin::cpu::triplet_margin(&problem, pass))
    }

    /// One pass of the contrastive loss over slices; the reduced loss, for `Reduction::None` the sum.
    ///
    /// # Errors
    /// If the shapes differ or are empty, an option is out of range, or `same` or a part of the pass has the wrong length.
    pub fn contrastive_pass<T: Element>(
        loss_fn: &ContrastiveLoss,
        pass: SlicePass<'_, T, 2>,
        same: &[bool],
    ) -> Result<T::Scalar, Error> {
        let pairs = loss_fn.pairs(&pass.inputs, same)?;
        check_pass(PairedLoss::problem(&pairs), &pass)?;
        Ok(crate::contrastive::cpu::contrastive(&pairs, pass))
    }

    /// How many bytes [`pairwise_pass`] leaves for [`pairwise_gradients`], of matrices of N and M rows: at least one for each
    /// tile of distances.
    #[must_use]
    pub fn pairwise_near_bytes([n, m]: [usize; 2]) -> usize {
        n.div_ceil(TASK_ROWS) * m.div_ceil(TILE_COLUMNS)
    }

    /// The distances between all rows of two matrices, and in `near` what their gradients take: which tiles have pairs that
    /// are computed by difference. What `near` held before is overwritten.
    ///
    /// # Errors
    /// If a matrix is empty or too large, the rows of both differ in length, or an output has the wrong length.
    pub fn pairwise_pass<T: Element>(
        op: &PairwiseDistance,
        [x, y]: [Matrix<'_, T>; 2],
        to: &mut [T::Scalar],
        near: &mut [u8],
    ) -> Result<(), Error> {
        let problem = op.checked([x.rows(), y.rows()], [x.dim(), y.dim()])?;
        check_len("to", to.len(), problem.rows[0] * problem.rows[1])?;
        check_len("near", near.len(), pairwise_near_bytes(problem.rows))?;
        let found = Prepared::new(&problem, [&x, &y]).distances(to);
        near.fill(0);
        near.iter_mut().zip(found.flags()).for_each(|(to, flag)| *to = u8::from(*flag));
        Ok(())
    }

    /// What the gradients of [`PairwiseDistance`] take beside the matrices.
    #[derive(Clone, Copy, Debug)]
    pub struct PairwiseUpstream<'a, A> {
        /// The gradient of what follows with respect to distance (i, j) is number `i * steps[0] + j * steps[1]`; the second
        /// step is 1, or 0 where all columns have one number.
        pub numbers: &'a [A],
        /// See `numbers`.
        pub steps: [usize; 2],
        /// The distances `[N, M]`, as [`pairwise_pass`] wrote them.
        pub distances: &'a [A],
        /// What else it wrote.
        pub near: &'a [u8],
    }

    /// The gradients of the distances between all rows of two matrices, of which [`pairwise_pass`] has been called.
    ///
    /// # Errors
    /// If a matrix is empty or too large, the rows of both differ in length, or a part of the upstream or a gradient has the
    /// wrong length.
    pub fn pairwise_gradients<T: Element>(
        op: &PairwiseDistance,
        [x, y]: [Matrix<'_, T>; 2],
        upstream: PairwiseUpstream<'_, T::Scalar>,
        grads: [Option<&mut [T]>; 2],
    ) -> Result<(), Error> {
        let problem = op.checked([x.rows(), y.rows()], [x.dim(), y.dim()])?;
        let PairwiseUpstream { numbers, steps, distances, near } = upstream;
        check_len("distances", distances.len(), problem.rows[0] * problem.rows[1])?;
        check_len("near", near.len(), pairwise_near_bytes(problem.rows))?;
        problem.check_grads(grads.each_ref().map(|grad| grad.as_ref().map(|grad| grad.len())))?;
        let needed = (problem.rows[0] - 1) * steps[0] + (problem.rows[1] - 1) * steps[1] + 1;
        if numbers.len() < needed {
            return Err(Error::argument("upstream", format!("{needed} numbers"), numbers.len().to_string()));
        }
        let near = Near::from_flags(problem.rows[0], problem.rows[1], near);
        let known = Known { near: &near, distances: Some(distances) };
        Prepared::new(&problem, [&x, &y]).gradients(Some(known), OfPairs { numbers, steps }, grads);
        Ok(())
    }
}

/// Calls `f`, whose tasks run on these threads of the OpenMP library that the program has loaded; without one, on rayon's.
/// `threads` has [`run_on_openmp`] as its `run`.
#[cfg(feature = "openmp")]
pub fn on_openmp<R>(threads: &'static Threads, f: impl FnOnce() -> R) -> R {
    crate::cpu::openmp::on(threads, f)
}

/// Calls `work` on `count` threads of the OpenMP library that the program has loaded.
///
/// # Panics
/// If `work` does, or there is no such library.
#[cfg(feature = "openmp")]
pub fn run_on_openmp(count: usize, work: &(dyn Fn() + Sync)) {
    crate::cpu::openmp::run(count, work);
}

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
