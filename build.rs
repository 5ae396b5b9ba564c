//! Compiles the kernels (`build/kernels.rs`) and the autograd node (`build/libtorch.rs`), as the features ask.

#[cfg(feature = "cuda")]
#[path = "build/arguments.rs"]
mod arguments;
#[cfg(feature = "cuda")]
#[path = "build/assembler.rs"]
mod assembler;
#[cfg(any(feature = "cuda", feature = "torch"))]
#[path = "build/cache.rs"]
mod cache;
#[cfg(feature = "torch")]
#[path = "build/headers.rs"]
mod headers;
#[cfg(feature = "cuda")]
#[path = "build/kernels.rs"]
mod kernels;
#[cfg(feature = "torch")]
#[path = "build/libtorch.rs"]
mod libtorch;
#[cfg(feature = "cuda")]
#[path = "build/nvrtc.rs"]
mod nvrtc;
#[cfg(feature = "torch")]
#[path = "build/releases.rs"]
mod releases;
#[cfg(any(feature = "cuda", feature = "torch"))]
#[path = "build/script.rs"]
mod script;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    #[cfg(any(feature = "cuda", feature = "torch"))]
    script::refuse_other_systems();
    #[cfg(feature = "cuda")]
    kernels::build();
    #[cfg(feature = "torch")]
    libtorch::build();
}
