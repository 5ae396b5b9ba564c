//! The loss on tch tensors.

use super::BatchHardTripletLoss;

crate::torch::mined::tensor_calls!(BatchHardTripletLoss);
