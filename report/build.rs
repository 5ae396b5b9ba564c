//! In a build of the whole workspace tercet has its torch feature, and the tests need libtorch to start.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TERCET_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TERCET_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
