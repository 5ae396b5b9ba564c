//! The loss on tch tensors.

use tch::Tensor;

use super::BatchNegativeTripletLoss;
use crate::torch::WithStats;
use crate::torch::mined;
use crate::{Error, Reference};

mined::tensor_calls!(BatchNegativeTripletLoss);

impl BatchNegativeTripletLoss {
    /// The loss with the draws of a step: one i64 on the embeddings' device, so that a replayed CUDA graph draws anew where it
    /// has been written to meanwhile. [`forward`](Self::forward) is step 0.
    ///
    /// # Panics
    /// Where [`f_forward_step`](Self::f_forward_step) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::{BatchNegativeTripletLoss, Negative};
    ///
    /// let embeddings = Tensor::randn([8, 128], (Kind::Float, Device::Cpu));
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2, 3, 3]);
    /// let loss_fn = BatchNegativeTripletLoss { negative: Negative::Random, margin: 100.0, ..Default::default() };
    /// let loss = loss_fn.forward_step(&embeddings, &labels, &Tensor::from(3i64));
    /// assert_eq!(loss, loss_fn.forward_step(&embeddings, &labels, &Tensor::from(3i64)));
    /// assert_ne!(loss, loss_fn.forward(&embeddings, &labels));
    /// ```
    pub fn forward_step(&self, embeddings: &Tensor, labels: &Tensor, step: &Tensor) -> Tensor {
        self.f_forward_step(embeddings, labels, step)
            .unwrap_or_else(|error| panic!("{}: {error}", <Self as crate::mined::Loss>::NAME))
    }

    /// As [`forward_step`](Self::forward_step).
    ///
    /// # Errors
    /// As [`f_forward`](Self::f_forward), or if `step` is not one i64 on the embeddings' device.
    pub fn f_forward_step(&self, embeddings: &Tensor, labels: &Tensor, step: &Tensor) -> Result<Tensor, Error> {
        Ok(self.f_forward_step_with_stats(embeddings, labels, None, step)?.loss)
    }

    /// The loss of a step, against a reference set where there is one, and what both are like.
    ///
    /// # Errors
    /// As [`f_forward_step`](Self::f_forward_step) and [`f_forward_against`](Self::f_forward_against).
    pub fn f_forward_step_with_stats(
        &self,
        embeddings: &Tensor,
        labels: &Tensor,
        reference: Option<&Reference<&Tensor, &Tensor>>,
        step: &Tensor,
    ) -> Result<WithStats, Error> {
        mined::forward(self, embeddings, labels, reference, Some(step))
    }
}
