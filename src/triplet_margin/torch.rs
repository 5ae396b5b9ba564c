//! The loss on tch tensors.

use tch::Tensor;

use super::cpu::CheckedTriplets;
use super::{NAMES, TripletMarginLoss};
use crate::cpu::paired::Pass;
use crate::torch::paired::{OnTensors, check_inputs, forward};
use crate::torch::tensors::{OfKind, largest};
use crate::{Error, paired};

const NAME: &str = "TripletMarginLoss";

impl TripletMarginLoss {
    /// The loss of tch tensors `[B, D]`, part of the autograd graph: a scalar, or `[B]` for `Reduction::None`.
    ///
    /// Dtype f32, f64, f16 or bf16, the same for all three, on the CPU or one CUDA device; the rows may be views with
    /// any strides. The result is f64 for f64 and f32 for all others. On CUDA nothing waits for the device.
    ///
    /// # Panics
    /// If [`f_forward`](Self::f_forward) returns an error, with its text.
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

    /// The loss of tch tensors as [`forward`](Self::forward) gives it, or an error.
    ///
    /// # Errors
    /// If shapes, dtypes or devices differ or are not supported, a tensor has no elements, an option is out of range,
    /// or memory runs out.
    pub fn f_forward(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Result<Tensor, Error> {
        let inputs = [anchor, positive, negative];
        forward(self.checked(check_inputs(NAMES, inputs)?, largest(inputs[0].kind()))?, inputs, &[])
    }
}

impl OnTensors<3> for CheckedTriplets {
    const NAME: &'static str = NAME;

    fn problem(&self) -> &paired::PairedProblem {
        &self.paired
    }

    fn on_cpu<T: OfKind>(&self, pass: Pass<'_, T, 3>, _: &[&Tensor]) -> Result<T::Scalar, Error> {
        Ok(super::cpu::triplet_margin(self, pass))
    }

    #[cfg(feature = "cuda")]
    unsafe fn on_cuda<T: OfKind>(
        &self,
        launcher: &crate::torch::launcher::TorchLauncher,
        pass: &super::cuda::Pass,
        _: &[&Tensor],
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { super::cuda::run::<T, _>(launcher, self, pass) }
    }
}
