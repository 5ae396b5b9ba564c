//! Tercet.
mod constants;
mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
mod distance;
mod element;
mod error;
mod matrix;
mod reduction;
#[cfg(feature = "torch")]
pub mod torch;
pub mod triplet_margin;

pub use distance::Distance;
pub use element::{Element, Scalar};
pub use error::Error;
pub use matrix::Matrix;
pub use reduction::Reduction;
pub use triplet_margin::TripletMarginLoss;
