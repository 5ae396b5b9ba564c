//! `rustc-link-arg` does not reach dependents: each binary says itself where libtorch lies.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TERCET_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TERCET_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
