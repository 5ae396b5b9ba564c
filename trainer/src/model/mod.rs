//! The encoder, its weights and embeddings, and a trained one as a run folder keeps it.

pub mod calibration;
pub mod device;
pub mod distance;
pub mod encoder;
pub mod nearest;
pub mod saved;
pub mod vectors;
pub mod weights;
