//! The loss on tch tensors.

use super::BatchAllTripletLoss;

crate::torch::mined::tensor_calls!(BatchAllTripletLoss);
