//! The loss on tch tensors.

use super::BatchContrastiveLoss;

crate::torch::mined::tensor_calls!(BatchContrastiveLoss);
