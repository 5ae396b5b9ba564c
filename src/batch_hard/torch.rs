//! The loss on tch tensors: the forward pass keeps what it mined, and backward gathers each row's gradient from that.

use tch::Tensor;

use super::{BatchHardTripletLoss, Problem, cpu};
use crate::torch::mined::{self, Mined, TensorStats, WithStats};
use crate::torch::tensors::{OfKind, as_in_memory, matrix, slice, slice_mut};
use crate::torch::{CustomFunction, needs_grad, pool};
use crate::{Error, Reduction};

const NAME: &str = "BatchHardTripletLoss";

impl BatchHardTripletLoss {
    /// The loss of tch tensors, part of the autograd graph: a scalar, or `[N]` for `Reduction::None`.
    ///
    /// `embeddings` are `[N, D]`, dtype f32, f16, bf16 or on the CPU f64, on the CPU or a CUDA device; the rows may be
    /// views with any strides. `labels` are `[N]`, i64 or i32, on the same device. The result is f64 for f64 and f32 for
    /// all others. On CUDA nothing waits for the device.
    ///
    /// # Panics
    /// Where [`f_forward`](Self::f_forward) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::BatchHardTripletLoss;
    ///
    /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let loss = BatchHardTripletLoss::default().forward(&embeddings, &labels);
    /// loss.backward();
    /// assert_eq!(embeddings.grad().size(), [8, 128]);
    /// ```
    pub fn forward(&self, embeddings: &Tensor, labels: &Tensor) -> Tensor {
        self.f_forward(embeddings, labels).unwrap_or_else(|error| panic!("{NAME}: {error}"))
    }

    /// As [`forward`](Self::forward).
    ///
    /// # Errors
    /// If shapes, dtypes or devices are not as above, the batch is empty, an option is out of range, or memory runs out.
    pub fn f_forward(&self, embeddings: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
        Ok(self.f_forward_with_stats(embeddings, labels)?.loss)
    }

    /// The loss, and what the batch is like; see [`loss_with_stats`](Self::loss_with_stats).
    ///
    /// # Panics
    /// Where [`f_forward_with_stats`](Self::f_forward_with_stats) returns an error, with its text.
    pub fn forward_with_stats(&self, embeddings: &Tensor, labels: &Tensor) -> WithStats {
        self.f_forward_with_stats(embeddings, labels).unwrap_or_else(|error| panic!("{NAME}: {error}"))
    }

    /// As [`forward_with_stats`](Self::forward_with_stats).
    ///
    /// # Errors
    /// As [`f_forward`](Self::f_forward).
    pub fn f_forward_with_stats(&self, embeddings: &Tensor, labels: &Tensor) -> Result<WithStats, Error> {
        mined::forward(self, embeddings, labels)
    }
}

impl Mined for BatchHardTripletLoss {
    type Problem = Problem;

    fn problem(&self, rows: usize, dim: usize, labels: usize) -> Result<Problem, Error> {
        self.checked(rows, dim, labels)
    }

    fn on_cpu<T: OfKind>(
        problem: Problem,
        embeddings: &Tensor,
        rows: &Tensor,
        labels: &Tensor,
    ) -> Result<WithStats, Error>
    where
        T::Scalar: OfKind,
    {
        let (batch, classes, selection) = cpu::select(&problem, &matrix::<T>(rows)?, mined::labels_of(labels));
        let per_row = problem.reduction == Reduction::None;
        let mut output = mined::empty_output(per_row, embeddings)?;
        match per_row {
            true => slice_mut::<T::Scalar>(&mut output).copy_from_slice(&selection.losses),
            false => slice_mut::<T::Scalar>(&mut output)[0] = selection.loss(&problem),
        }
        let stats = TensorStats::of(&selection.stats);
        if !needs_grad(embeddings) {
            return Ok(WithStats { loss: output, stats });
        }
        let loss =
            CustomFunction::new(NAME).inputs(&[embeddings]).saved(&[embeddings]).attach(&output, move |ctx| {
                let upstream = as_in_memory(ctx.upstream())?.f_contiguous()?;
                let mut grad = pool::empty(&ctx.saved(0).size(), T::KIND)?;
                let upstream = Some(slice::<T::Scalar>(&upstream));
                let grad_slice = slice_mut::<T>(&mut grad);
                cpu::gradient(&problem, &batch, Some(&classes.position), &selection, upstream, grad_slice);
                Ok(vec![Some(grad)])
            })?;
        Ok(WithStats { loss, stats })
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<T: OfKind>(
        problem: Problem,
        ordinal: usize,
        embeddings: &Tensor,
        rows: &Tensor,
        labels: &Tensor,
    ) -> Result<WithStats, Error> {
        use super::cuda::{Output, backward, forward};
        use crate::torch::launcher::{TorchLauncher, address};
        use crate::torch::tensors::with_contiguous_rows;

        let per_row = problem.reduction == Reduction::None;
        let output = mined::empty_output(per_row, embeddings)?;
        let sums = Tensor::f_empty([5], (tch::Kind::Double, embeddings.device()))?;
        let places = Output {
            losses: if per_row { address(&output) } else { 0 },
            loss: if per_row { 0 } else { address(&output) },
            stats: address(&sums),
            ..Output::default()
        };
        let launcher = TorchLauncher::current(ordinal)?;
        // SAFETY: checked tensors on this device, of the problem's shape; outputs are contiguous tensors of this function's
        // making. PyTorch's allocator keeps memory for this stream's work until the stream has done it.
        let mined = unsafe { forward::<T, _>(&launcher, &problem, &mined::input(rows, Some(labels)), &places)? };
        let stats = TensorStats::of_sums(&sums)?;
        if !needs_grad(embeddings) {
            return Ok(WithStats { loss: output, stats });
        }
        let loss =
            CustomFunction::new(NAME).inputs(&[embeddings]).saved(&[embeddings]).attach(&output, move |ctx| {
                let rows = with_contiguous_rows(ctx.saved(0))?;
                let upstream = as_in_memory(ctx.upstream())?.f_contiguous()?;
                let grad = Tensor::f_empty(rows.size(), (rows.kind(), rows.device()))?;
                let launcher = TorchLauncher::current(ordinal)?;
                // The factor of the mean is among the statistics, which this closure keeps.
                let _ = &sums;
                // SAFETY: as above; the embeddings are what they were (`saved`), and `mined` was made of them.
                unsafe {
                    backward::<T, _>(
                        &launcher,
                        &problem,
                        &mined,
                        &mined::input(&rows, None),
                        (address(&upstream), per_row),
                        address(&grad),
                    )?;
                }
                Ok(vec![Some(grad)])
            })?;
        Ok(WithStats { loss, stats })
    }
}
