//! The build script's parts, machines that it may meet, and a crate that depends on Tercet.

#[cfg(feature = "cuda")]
#[path = "../../../build/arguments.rs"]
mod arguments;
#[cfg(feature = "cuda")]
#[path = "../../../build/assembler.rs"]
mod assembler;
#[cfg(feature = "cuda")]
#[path = "../../../build/cache.rs"]
mod cache;
#[cfg(feature = "cuda")]
#[path = "../../../build/headers.rs"]
mod headers;
#[cfg(feature = "cuda")]
#[path = "../../../build/nvrtc.rs"]
mod nvrtc;
#[cfg(any(feature = "cuda", feature = "torch"))]
#[path = "../../../build/releases.rs"]
mod releases;

#[cfg(feature = "torch")]
mod downstream;
#[cfg(feature = "cuda")]
mod machines;
#[cfg(feature = "cuda")]
mod script;
