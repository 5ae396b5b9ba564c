//! Compiles `src/torch/*.cpp` against the headers of the libtorch that torch-sys took, and sets run paths.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::script::{doc_only, fail};
use crate::{cache, headers};

const SOURCE: &str = "src/torch/autograd.cpp";
/// What both sources include.
pub const SHARED: &str = "src/torch/messages.h";
/// torch-sys's own variable, by which the user asks for another release of libtorch all the same.
const BYPASS: &str = "LIBTORCH_BYPASS_VERSION_CHECK";

/// The libtorch that torch-sys took.
pub struct Libtorch {
    /// The folder of its libraries.
    pub lib: PathBuf,
    /// The folder of its headers.
    pub include: PathBuf,
    pub with_cuda: bool,
}

/// Compiles the node, says what to link, and returns what else is to be compiled against; `None` for documentation alone.
pub fn build() -> Option<Libtorch> {
    for source in [SOURCE, SHARED] {
        println!("cargo:rerun-if-changed={source}");
    }
    if doc_only() {
        return None;
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

    let libtorch = Libtorch { with_cuda: lib.join("libtorch_cuda.so").is_file(), lib, include };
    let mut shim = libtorch.shim();
    if libtorch.with_cuda {
        shim.define("TERCET_WITH_TORCH_CUDA", None);
    }
    let object = libtorch.compiled(&mut shim, SOURCE, &[SHARED], |_| Ok(()));
    let object = object.unwrap_or_else(|e| fail(&format!("{SOURCE}: {e}")));
    cc::Build::new().cpp(true).object(object).compile("tercet_torch");
    Some(libtorch)
}

impl Libtorch {
    /// Says what to link: after the objects that refer to it.
    pub fn link(&self) {
        let lib = self.lib.display();
        println!("cargo:rustc-link-search=native={lib}");
        if self.with_cuda {
            // Linkers drop a library that nothing refers to, and without libtorch_cuda there are no CUDA tensors:
            // autograd.cpp refers to it.
            println!("cargo:rustc-link-lib=torch_cuda");
        }
        println!("cargo:rustc-link-lib=torch_cpu");
        println!("cargo:rustc-link-lib=c10");
        // Reaches this package's own tests, benches and examples; dependents set their own from DEP_TERCET_LIBTORCH_LIB.
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:libtorch_lib={lib}");
    }

    /// How a source is compiled against this libtorch.
    pub fn shim(&self) -> cc::Build {
        let mut shim = cc::Build::new();
        shim.cpp(true).std("c++17").warnings(false).opt_level(1);
        shim.include(&self.include).include(self.include.join("torch/csrc/api/include"));
        // The C++ ABI that torch-sys takes; old libtorch builds use the other one.
        let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
        shim.define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
        shim
    }

    /// The object of a source, from the cache if it was compiled before: libtorch's headers take half a minute. A new object goes
    /// to the cache if `accept` has nothing against it.
    pub fn compiled(
        &self,
        shim: &mut cc::Build,
        source: &str,
        included: &[&str],
        accept: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<PathBuf, String> {
        let said = |error: std::io::Error| error.to_string();
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let mut hasher = DefaultHasher::new();
        for file in [source].iter().chain(included) {
            fs::read(file).map_err(said)?.hash(&mut hasher);
        }
        let compiler = shim.get_compiler();
        let version = compiler.to_command().arg("--version").output().map_err(said)?.stdout;
        (compiler.path(), compiler.args(), version).hash(&mut hasher);
        // `.libtorch` is a link that may have come to point elsewhere.
        fs::canonicalize(&self.include).map_err(said)?.hash(&mut hasher);
        for version in ["torch/version.h", "torch/headeronly/version.h"] {
            fs::read(self.include.join(version)).unwrap_or_default().hash(&mut hasher);
        }
        let stem = Path::new(source).file_stem().unwrap_or_default().display();
        let folder = cache::folder(&out, "tercet-libtorch").map_err(said)?;
        let cached = folder.join(format!("{stem}-{:016x}.o", hasher.finish()));
        if !cached.is_file() {
            let objects = shim.file(source).try_compile_intermediates().map_err(|error| error.to_string())?;
            accept(&objects[0])?;
            fs::read(&objects[0]).and_then(|bytes| cache::write_whole(&cached, &bytes)).map_err(said)?;
        }
        Ok(cached)
    }
}
