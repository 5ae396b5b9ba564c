//! Compiles the kernels (`build/kernels.rs`) and the autograd node (`build/libtorch.rs`), as the features ask.

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

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    #[cfg(any(feature = "cuda", feature = "torch"))]
    refuse_other_systems();
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

/// libtorch's and NVRTC's libraries are looked for under Linux's names.
#[cfg(any(feature = "cuda", feature = "torch"))]
fn refuse_other_systems() {
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if system != "linux" && !doc_only() {
        fail(&format!(
            "the features `torch` and `cuda` are built on Linux only, and this build is for {system}. \
             Losses on slices need neither: --no-default-features"
        ));
    }
}

/// Whether only the documentation is wanted, with neither libtorch nor NVRTC installed.
#[cfg(any(feature = "cuda", feature = "torch"))]
fn doc_only() -> bool {
    std::env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() || std::env::var_os("DOCS_RS").is_some()
}
