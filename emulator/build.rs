//! Compiles each `kernels/*.cu`, and the small kernels of the emulator's own tests, with the host's C++ compiler: once
//! plain, and once with `-fsanitize=thread` for the detector. Each becomes a shared library that is opened at run time,
//! so both live in one process and keep their line numbers whatever the profile strips.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

#[path = "../src/constants.rs"]
mod constants;

fn main() {
    // In a build of the whole workspace tercet has its torch feature, and the tests need libtorch to start.
    println!("cargo:rerun-if-env-changed=DEP_TERCET_LIBTORCH_LIB");
    if let Ok(folder) = env::var("DEP_TERCET_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let kernels = out.join("kernels");
    let _ = fs::remove_dir_all(&kernels);
    fs::create_dir_all(&kernels).expect("OUT_DIR is writable");
    // An #include in quotes looks beside the including file first: beside these copies stands the stand-in.
    for folder in ["../kernels", "tests/kernels", "cuda"] {
        println!("cargo:rerun-if-changed={folder}");
        for file in fs::read_dir(folder).expect("part of the repository") {
            let path = file.expect("readable").path();
            let name = path.file_name().expect("a file");
            fs::copy(&path, kernels.join(name)).expect("OUT_DIR is writable");
        }
    }
    println!("cargo:rerun-if-changed=../src/constants.rs");

    let mut stems: Vec<String> = Vec::new();
    for file in fs::read_dir(&kernels).expect("just made") {
        let path = file.expect("readable").path();
        if path.extension().is_some_and(|e| e == "cu") {
            stems.push(path.file_stem().expect("a stem").to_string_lossy().into_owned());
        }
    }
    stems.sort();

    let compiler = compiler();
    let hooks = out.join("hooks.o");
    run(
        compiler
            .to_command()
            .args(["-c", "-O2", "-fPIC", "-fvisibility=hidden", "kernels/hooks.cpp", "-o"])
            .arg(&hooks),
        &out,
    );
    let mut jobs: Vec<(String, bool)> = stems.iter().flat_map(|s| [(s.clone(), true), (s.clone(), false)]).collect();
    let table = jobs.iter().fold(String::new(), |mut table, (stem, detect)| {
        let _ = writeln!(table, "({stem:?}, {detect}, {:?}),", library(&out, stem, *detect));
        table
    });
    fs::write(out.join("libraries.rs"), format!("&[{table}]")).expect("OUT_DIR is writable");

    let at_once: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let share = jobs.len().div_ceil(at_once.max(1));
    thread::scope(|scope| {
        while !jobs.is_empty() {
            let part = jobs.split_off(jobs.len().saturating_sub(share));
            let (compiler, out, hooks) = (&compiler, &out, &hooks);
            scope.spawn(move || part.iter().for_each(|(stem, detect)| compile(compiler, out, hooks, stem, *detect)));
        }
    });
}

fn library(out: &Path, stem: &str, detect: bool) -> PathBuf {
    out.join(format!("{stem}{}.so", if detect { ".detect" } else { "" }))
}

fn compiler() -> cc::Tool {
    cc::Build::new().cpp(true).no_default_flags(true).get_compiler()
}

fn compile(compiler: &cc::Tool, out: &Path, hooks: &Path, stem: &str, detect: bool) {
    let object = out.join(format!("{stem}.{detect}.o"));
    let mut command = compiler.to_command();
    // A GPU fuses products and sums where the compiler chooses; the host must not, or results depend on its CPU.
    command.args(["-x", "c++", "-std=c++17", "-c", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]);
    command.args([
        "-fno-strict-aliasing",
        "-fno-exceptions",
        "-fno-rtti",
        "-fno-threadsafe-statics",
        "-fno-optimize-sibling-calls",
        "-w",
    ]);
    command.arg(format!("-DTERCET_PAIRED_THREADS={}", constants::PAIRED_THREADS));
    command.arg(format!("-DTERCET_MIN_NORM={:e}", constants::MIN_NORM));
    command.arg(format!("-DTERCET_TILE={}", constants::TILE));
    command.arg(format!("-DTERCET_SLAB={}", constants::SLAB));
    command.arg(format!("-DTERCET_COMPARED={}", constants::COMPARED));
    command.arg(format!("-DTERCET_DIGITS={}", constants::DIGITS));
    if detect {
        command.arg("-fsanitize=thread");
    }
    // A path from OUT_DIR, so that reports name `kernels/<file>`.
    run(command.arg(format!("kernels/{stem}.cu")).arg("-o").arg(&object), out);
    run(
        compiler
            .to_command()
            .args(["-shared", "-o"])
            .arg(library(out, stem, detect))
            .arg(&object)
            .arg(hooks)
            .arg("-lm"),
        out,
    );
}

fn run(command: &mut Command, folder: &Path) {
    let output = command.current_dir(folder).output();
    let output = output.unwrap_or_else(|e| fail(&format!("{command:?}: {e}")));
    if !output.status.success() {
        fail(&format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr)));
    }
}

/// Ends the build with a message a person can act on.
fn fail(message: &str) -> ! {
    eprintln!("\ntercet-emulator: {message}\n");
    std::process::exit(1)
}
