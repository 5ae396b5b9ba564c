//! Compiles each `kernels/*.cu`, and the small kernels of the emulator's own tests, with the host's C++ compiler: once
//! plain, and once with `-fsanitize=thread` for the detector. Each becomes a shared library that is opened at run time,
//! so both live in one process and keep their line numbers whatever the profile strips.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, io, thread};

#[path = "../build/cache.rs"]
mod cache;
#[path = "../src/constants.rs"]
mod constants;
#[path = "../src/cuda/targets.rs"]
mod targets;

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
    // An #include in quotes looks beside the including file first: beside these copies lies the stand-in.
    for folder in ["../kernels", "tests/kernels", "cuda"] {
        println!("cargo:rerun-if-changed={folder}");
        for file in fs::read_dir(folder).expect("part of the repository") {
            let path = file.expect("readable").path();
            let name = path.file_name().expect("a file");
            fs::copy(&path, kernels.join(name)).expect("OUT_DIR is writable");
        }
    }
    write_mistakes(&kernels, "strip");
    write_mistakes(&kernels, "triangle");
    write_mistakes(&kernels, "sweep");
    write_mistakes(&kernels, "choose");
    println!("cargo:rerun-if-changed=../src/constants.rs");
    println!("cargo:rerun-if-changed=../src/cuda/targets.rs");
    println!("cargo:rerun-if-changed=../build/cache.rs");

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
    let jobs: Vec<(String, bool)> = stems.iter().flat_map(|s| [(s.clone(), true), (s.clone(), false)]).collect();
    let table = jobs.iter().fold(String::new(), |mut table, (stem, detect)| {
        let _ = writeln!(table, "({stem:?}, {detect}, {:?}),", library(&out, stem, *detect));
        table
    });
    fs::write(out.join("libraries.rs"), format!("&[{table}]")).expect("OUT_DIR is writable");

    let cache = cache::folder(&out, "tercet-emulator").expect("the target directory is writable");
    let at_once: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    // Whoever is done takes the next one.
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().expect("no compiling thread panics").pop();
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((stem, detect)) = next() {
                    let (key, library) = (key(&compiler, &out, &stem, detect), library(&out, &stem, detect));
                    let cached = cache.join(format!("{stem}-{key:016x}.so"));
                    let bytes = fs::read(&cached).unwrap_or_else(|_| {
                        let bytes = compile(&compiler, &out, &hooks, &stem, detect);
                        cache::write_whole(&cached, &bytes).expect("the target directory is writable");
                        bytes
                    });
                    // Never into the file that is there: a test that is running has it mapped, and would be killed.
                    cache::write_whole(&library, &bytes).expect("OUT_DIR is writable");
                }
            });
        }
    });
}

/// Writes `<name>.bugs.cuh`: for each mistake of `<name>.bugs` a copy of `<name>.cuh` with it, in a namespace of its own, and
/// the kernels that use it.
fn write_mistakes(kernels: &Path, name: &str) {
    let read = |name: &str| fs::read_to_string(kernels.join(name)).expect("just copied");
    let engine = read(&format!("{name}.cuh"));
    let body: String = engine.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let mut copies = String::new();
    let mut bug = 0;
    let mut old = None;
    for line in read(&format!("{name}.bugs")).lines() {
        if let Some(text) = line.strip_prefix("- ") {
            old = Some(text.to_string());
        } else if let Some(new) = line.strip_prefix("+ ") {
            let old = old.take().expect("each + line follows a - line");
            let found = body.matches(&old).count();
            assert!(found == 1, "{name}.bugs: expected {old:?} once in {name}.cuh, got it {found} times");
            bug += 1;
            let _ = write!(
                copies,
                "namespace bug_{bug} {{\n{}\n}}\n{}_KERNEL({bug}, bug_{bug})\n",
                body.replace(&old, new),
                name.to_uppercase()
            );
        }
    }
    fs::write(kernels.join(format!("{name}.bugs.cuh")), copies).expect("OUT_DIR is writable");
}

fn library(out: &Path, stem: &str, detect: bool) -> PathBuf {
    out.join(format!("{stem}{}.so", if detect { ".detect" } else { "" }))
}

fn compiler() -> cc::Tool {
    cc::Build::new().cpp(true).no_default_flags(true).get_compiler()
}

/// A hash of all that a library is made of: its own kernels, every shared file, the compiler and its flags.
fn key(compiler: &cc::Tool, out: &Path, stem: &str, detect: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    let version = compiler.to_command().arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    (compiler.path(), compiler.args(), version, flags(detect)).hash(&mut hasher);
    let names = fs::read_dir(out.join("kernels"))
        .and_then(|files| files.map(|file| file.map(|file| file.file_name())).collect::<io::Result<Vec<_>>>());
    let mut names = names.expect("just made");
    names.sort();
    let own = format!("{stem}.cu");
    for name in names.into_iter().filter(|name| *name == *own || !name.to_string_lossy().ends_with(".cu")) {
        name.hash(&mut hasher);
        fs::read(out.join("kernels").join(name)).expect("just copied").hash(&mut hasher);
    }
    hasher.finish()
}

fn flags(detect: bool) -> Vec<String> {
    // On a GPU the compiler may fuse a product with a sum; on the host it must not, or results would depend on the CPU.
    let fixed = "-x c++ -std=c++17 -c -O1 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing \
                 -fno-exceptions -fno-rtti -fno-threadsafe-statics -fno-optimize-sibling-calls -w";
    let mut flags: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    // For no device's code: all kernels.
    let definitions = constants::definitions().into_iter().chain(targets::definitions("emulator"));
    flags.extend(definitions.map(|(name, value)| format!("-D{name}={value}")));
    if detect {
        flags.push("-fsanitize=thread".into());
    }
    flags
}

/// Compiles a library, and returns its bytes.
fn compile(compiler: &cc::Tool, out: &Path, hooks: &Path, stem: &str, detect: bool) -> Vec<u8> {
    let linked = out.join(format!("{stem}.{detect}.linked"));
    let object = out.join(format!("{stem}.{detect}.o"));
    // A path from OUT_DIR, so that reports name `kernels/<file>`.
    run(compiler.to_command().args(flags(detect)).arg(format!("kernels/{stem}.cu")).arg("-o").arg(&object), out);
    run(compiler.to_command().args(["-shared", "-o"]).arg(&linked).arg(&object).arg(hooks).arg("-lm"), out);
    let bytes = fs::read(&linked).expect("just linked");
    let _ = fs::remove_file(&linked);
    bytes
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
