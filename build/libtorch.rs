//! Compiles `src/torch/*.cpp` against the headers of the libtorch that torch-sys took, and sets run paths.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::script::{doc_only, fail};
use crate::{cache, headers};

const SOURCE: &str = "src/torch/autograd.cpp";
/// torch-sys's own variable, by which the user asks for another release of libtorch all the same.
const BYPASS: &str = "LIBTORCH_BYPASS_VERSION_CHECK";

pub fn build() {
    println!("cargo:rerun-if-changed={SOURCE}");
    if doc_only() {
        return;
    }
    for variable in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB", "LIBTORCH_USE_PYTORCH", BYPASS] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // From torch-sys: the folder of libtorch's libraries. Only a direct dependent of torch-sys is told.
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        fail("torch-sys did not say where libtorch is (DEP_TCH_LIBTORCH_LIB); set LIBTORCH or run `cargo xtask setup`");
    };
    let include = headers::folder(|name| env::var_os(name), &lib);
    if let Some(why) = headers::unfit(&include).filter(|_| env::var_os(BYPASS).is_none()) {
        fail(&why);
    }

    let with_cuda = lib.join("libtorch_cuda.so").is_file();
    let mut shim = cc::Build::new();
    shim.cpp(true).std("c++17").warnings(false).opt_level(1);
    shim.include(&include).include(include.join("torch/csrc/api/include"));
    shim.file(SOURCE);
    if with_cuda {
        shim.define("TERCET_WITH_TORCH_CUDA", None);
    }
    // The C++ ABI that torch-sys takes; old libtorch builds use the other one.
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    shim.define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
    let object = compile_cached(&shim, &include).unwrap_or_else(|e| fail(&format!("{SOURCE}: {e}")));
    cc::Build::new().cpp(true).object(object).compile("tercet_torch");

    println!("cargo:rustc-link-search=native={}", lib.display());
    if with_cuda {
        // Linkers drop a library that nothing refers to, and without libtorch_cuda there are no CUDA tensors:
        // autograd.cpp refers to it.
        println!("cargo:rustc-link-lib=torch_cuda");
    }
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // Reaches this package's own tests, benches and examples; dependents set their own from DEP_TERCET_LIBTORCH_LIB.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:libtorch_lib={}", lib.display());
}

/// The object file, from the cache if it was compiled before: libtorch's headers take half a minute.
fn compile_cached(shim: &cc::Build, include: &Path) -> std::io::Result<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut hasher = DefaultHasher::new();
    fs::read(SOURCE)?.hash(&mut hasher);
    let compiler = shim.get_compiler();
    let version = compiler.to_command().arg("--version").output()?.stdout;
    (compiler.path(), compiler.args(), version).hash(&mut hasher);
    // `.libtorch` is a link that may have come to point elsewhere.
    fs::canonicalize(include)?.hash(&mut hasher);
    for version in ["torch/version.h", "torch/headeronly/version.h"] {
        fs::read(include.join(version)).unwrap_or_default().hash(&mut hasher);
    }
    let cached = cache::folder(&out, "tercet-libtorch")?.join(format!("autograd-{:016x}.o", hasher.finish()));
    if !cached.is_file() {
        let objects = shim.compile_intermediates();
        cache::write_whole(&cached, &fs::read(&objects[0])?)?;
    }
    Ok(cached)
}
