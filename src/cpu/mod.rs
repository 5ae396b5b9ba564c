//! The CPU engine: fixed blocks of rows on threads, vectorised loops over a row, stores past the cache; for paired
//! losses one pass over their rows, for mined losses sorted batches and tiles of their distances.

pub(crate) mod anchors;
pub(crate) mod batch;
pub(crate) mod blocks;
pub(crate) mod call;
pub(crate) mod comparison;
pub(crate) mod distance;
pub(crate) mod distance_matrix;
pub(crate) mod gemm;
pub(crate) mod nearest;
#[cfg(feature = "openmp")]
pub(crate) mod openmp;
pub(crate) mod paired;
pub(crate) mod pulls;
pub(crate) mod rounds;
pub(crate) mod rows;
pub(crate) mod simd;
pub(crate) mod store;
pub(crate) mod threads;
pub(crate) mod tiles;
pub(crate) mod triplets;

/// What loops over rows need of the type of arithmetic: vector registers, products of matrices, the bits of a number.
pub trait Arithmetic: simd::Vectorised + gemm::Product + crate::random::Bits {}
impl<A: simd::Vectorised + gemm::Product + crate::random::Bits> Arithmetic for A {}
