//! Compiles the kernels (`build/kernels.rs`) and the autograd node (`build/libtorch.rs`), as the features ask.

#[cfg(any(feature = "cuda", feature = "torch"))]
#[path = "build/cache.rs"]
mod cache;
#[cfg(feature = "cuda")]
#[path = "build/kernels.rs"]
mod kernels;
#[cfg(feature = "torch")]
#[path = "build/libtorch.rs"]
mod libtorch;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    #[cfg(feature = "cuda")]
    kernels::build();
    #[cfg(feature = "torch")]
    libtorch::build();
}

/// Ends the build with a message a person can act on. Cargo shows a build script's error output when it fails.
#[cfg(any(feature = "cuda", feature = "torch"))]
fn fail(message: &str) -> ! {
    eprintln!("\ntercet: {message}\n");
    std::process::exit(1)
}

/// Whether only the documentation is wanted, with neither libtorch nor NVRTC installed.
#[cfg(any(feature = "cuda", feature = "torch"))]
fn doc_only() -> bool {
    std::env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() || std::env::var_os("DOCS_RS").is_some()
}
