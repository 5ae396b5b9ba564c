//! The CPU engine: fixed blocks of rows on threads, vectorised loops over a row, stores past the cache.

pub(crate) mod blocks;
pub(crate) mod rows;
pub(crate) mod simd;
pub(crate) mod store;
