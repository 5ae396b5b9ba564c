//! Tells the tests where libtorch lies, and the images of the kernels that are for tests alone.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for variable in ["DEP_TERCET_LIBTORCH_LIB", "DEP_TERCET_TEST_IMAGES"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if let Ok(folder) = std::env::var("DEP_TERCET_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    if let Ok(table) = std::env::var("DEP_TERCET_TEST_IMAGES") {
        println!("cargo:rustc-env=TERCET_TEST_IMAGES={table}");
    }
}
