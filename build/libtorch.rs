//! Compiles `src/torch/*.cpp` against the headers beside the libtorch that torch-sys found, and sets run paths.

use std::path::PathBuf;

const SOURCES: [&str; 1] = ["src/torch/autograd.cpp"];

pub fn build() {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    if crate::doc_only() {
        return;
    }
    // From torch-sys: the folder of libtorch's libraries. Only a direct dependent of torch-sys is told.
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        crate::fail(
            "torch-sys did not say where libtorch is (DEP_TCH_LIBTORCH_LIB); set LIBTORCH or run `cargo xtask setup`",
        );
    };
    let include = lib.parent().expect("libtorch's lib folder has a parent").join("include");
    if !include.join("torch/csrc/autograd/function.h").is_file() {
        crate::fail(&format!(
            "no autograd headers in {}: LIBTORCH must name a complete libtorch (2.11), headers included",
            include.display()
        ));
    }

    let with_cuda = lib.join("libtorch_cuda.so").is_file();
    let mut shim = cc::Build::new();
    shim.cpp(true).std("c++17").warnings(false).opt_level(1);
    shim.include(&include).include(include.join("torch/csrc/api/include"));
    shim.files(SOURCES);
    if with_cuda {
        shim.define("TERCET_WITH_TORCH_CUDA", None);
    }
    // As torch-sys does; old libtorch builds use the other ABI.
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    shim.define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
    shim.compile("tercet_torch");

    println!("cargo:rustc-link-search=native={}", lib.display());
    if with_cuda {
        // Linkers drop a library nobody refers to, and with libtorch_cuda its CUDA tensors; autograd.cpp refers to it.
        println!("cargo:rustc-link-lib=torch_cuda");
    }
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // Reaches this package's own tests, benches and examples; dependents set their own from DEP_TERCET_LIBTORCH_LIB.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:libtorch_lib={}", lib.display());
}
