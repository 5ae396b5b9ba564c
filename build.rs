//! Compiles the kernels (`build/kernels.rs`), the autograd node (`build/libtorch.rs`) and process groups (`build/c10d.rs`), as the
//! features ask.

#[cfg(feature = "cuda")]
#[path = "build/arguments.rs"]
mod arguments;
#[cfg(feature = "cuda")]
#[path = "build/assembler.rs"]
mod assembler;
#[cfg(feature = "distributed")]
#[path = "build/c10d.rs"]
mod c10d;
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
    {
        let libtorch = libtorch::build();
        #[cfg(feature = "distributed")]
        c10d::build(libtorch.as_ref());
        // After both objects, which refer to it.
        libtorch.iter().for_each(libtorch::Libtorch::link);
    }
}
