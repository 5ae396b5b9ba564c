//! The loss on tch tensors: the forward pass makes the gradient as well, but for the factor that backward brings.

use tch::Tensor;

use super::{BatchAllTripletLoss, Problem, cpu};
use crate::Error;
use crate::torch::mined::{self, Mined, TensorStats, WithStats};
use crate::torch::tensors::{OfKind, as_in_memory, matrix, slice, slice_mut};
use crate::torch::{CustomFunction, needs_grad, pool};

const NAME: &str = "BatchAllTripletLoss";

impl BatchAllTripletLoss {
    /// The loss of tch tensors, a scalar, part of the autograd graph.
    ///
    /// `embeddings` are `[N, D]`, dtype f32, f16, bf16 or on the CPU f64, on the CPU or a CUDA device; the rows may be
    /// views with any strides. `labels` are `[N]`, i64 or i32, on the same device. The result is f64 for f64 and f32 for
    /// all others. On CUDA nothing waits for the device; as the sizes of the classes are known there alone, there is room
    /// for 128 rows a class on average (any classes up to N = 2048, 1024 rows at 4096, 512 at 8192, 256 at 16384): a batch
    /// with larger ones gives NaN.
    ///
    /// # Panics
    /// Where [`f_forward`](Self::f_forward) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::BatchAllTripletLoss;
    ///
    /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let loss = BatchAllTripletLoss::default().forward(&embeddings, &labels);
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

impl Mined for BatchAllTripletLoss {
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
        let with_grad = needs_grad(embeddings);
        let swept = cpu::sweep(&problem, &matrix::<T>(rows)?, mined::labels_of(labels), with_grad);
        let mut output = mined::empty_output(false, embeddings)?;
        slice_mut::<T::Scalar>(&mut output)[0] = swept.loss(&problem);
        let stats = TensorStats::of(&swept.stats);
        if !with_grad {
            return Ok(WithStats { loss: output, stats });
        }
        let size = rows.size();
        let loss = CustomFunction::new(NAME).inputs(&[embeddings]).attach(&output, move |ctx| {
            let upstream = as_in_memory(ctx.upstream())?.f_contiguous()?;
            let mut grad = pool::empty(&size, T::KIND)?;
            cpu::gradient(&problem, &swept, Some(slice::<T::Scalar>(&upstream)[0]), slice_mut::<T>(&mut grad));
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

        let with_grad = needs_grad(embeddings);
        let output = mined::empty_output(false, embeddings)?;
        let sums = Tensor::f_empty([5], (tch::Kind::Double, embeddings.device()))?;
        let places = Output { loss: address(&output), stats: address(&sums) };
        let launcher = TorchLauncher::current(ordinal)?;
        // SAFETY: checked tensors on this device, of the problem's shape; outputs are contiguous tensors of this
        // function's making. PyTorch's allocator keeps memory for this stream's work until the stream has done it.
        let swept =
            unsafe { forward::<T, _>(&launcher, &problem, &mined::input(rows, Some(labels)), &places, with_grad)? };
        let stats = TensorStats::of_sums(&sums)?;
        if !with_grad {
            return Ok(WithStats { loss: output, stats });
        }
        let options = (rows.kind(), rows.device());
        let size = rows.size();
        let loss = CustomFunction::new(NAME).inputs(&[embeddings]).attach(&output, move |ctx| {
            let upstream = as_in_memory(ctx.upstream())?.f_contiguous()?;
            let grad = Tensor::f_empty(&size, options)?;
            let launcher = TorchLauncher::current(ordinal)?;
            // The factor of the mean is among the statistics, which this closure keeps.
            let _ = &sums;
            // SAFETY: as above; `swept` was made with gradient.
            unsafe { backward::<T, _>(&launcher, &problem, &swept, address(&upstream), address(&grad))? };
            Ok(vec![Some(grad)])
        })?;
        Ok(WithStats { loss, stats })
    }
}
