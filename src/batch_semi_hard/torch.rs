//! The loss on tch tensors.

use super::BatchSemiHardTripletLoss;

crate::torch::mined::tensor_calls!(BatchSemiHardTripletLoss);
