//! What all parts of the build script share: its way to fail, and what it must not compile for.

/// Ends the build with a message a person can act on. Cargo shows a build script's error output when it fails.
pub fn fail(message: &str) -> ! {
    eprintln!("\ntercet: {message}\n");
    std::process::exit(1)
}

/// libtorch's and NVRTC's libraries are looked for under Linux's names.
pub fn refuse_other_systems() {
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if system != "linux" && !doc_only() {
        fail(&format!(
            "the features `torch` and `cuda` are built on Linux only, and this build is for {system}. \
             Losses on slices need neither: --no-default-features"
        ));
    }
}

/// Whether only the documentation is wanted, with neither libtorch nor NVRTC installed.
pub fn doc_only() -> bool {
    std::env::var_os("CARGO_FEATURE_DOC_ONLY").is_some()
}
