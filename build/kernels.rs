//! Compiles every `kernels/*.cu` with NVRTC to one cubin per architecture, plus PTX as the catch-all for GPUs that are
//! not in the list, and writes them compressed into `OUT_DIR` with the assembler's report on each kernel. Before that the
//! structs that kernels take are compared with the host's (`arguments.rs`).

use std::ffi::CString;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

use lzma_rust2::{LzmaOptions, LzmaWriter};

use crate::arguments;
use crate::assembler;
use crate::cache;
use crate::nvrtc::{self, Nvrtc};
use crate::script::{doc_only, fail};

#[path = "../src/cuda/compression.rs"]
mod compression;
#[path = "../src/constants.rs"]
mod constants;
#[path = "../src/cuda/targets.rs"]
mod targets;

const DEFAULT_ARCHS: &str = "80,90a,100,120";
/// PTX for this architecture is compiled by the driver if no cubin fits.
const PTX_ARCH: &str = "compute_80";
/// Kernels for tests alone, compiled as the losses' are: what each wrapped instruction does (tests/it/conformance), and how many of
/// them a device does in a clock (tests/it/rates.rs). Packages do not have them.
const FOR_TESTS: [&str; 2] = ["emulator/tests/kernels/conformance.cu", "tests/kernels/rates.cu"];

/// One file of kernels for one target.
struct Job {
    stem: String,
    source: PathBuf,
    /// `sm_90a`, or `compute_80` for PTX.
    target: String,
}

/// A compiled file of kernels, compressed.
struct Image {
    /// The number of bytes before compression.
    size: usize,
    compressed: Vec<u8>,
    log: String,
}

pub fn build() {
    for variable in ["CUDA_HOME", "CUDA_PATH", "LIBTORCH", "DEP_TCH_LIBTORCH_LIB", "TERCET_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=src/constants.rs");
    println!("cargo:rerun-if-changed=src/cuda/targets.rs");
    println!("cargo:rerun-if-changed=src/cuda/compression.rs");
    for source in FOR_TESTS.into_iter().filter(|source| Path::new(source).exists()) {
        println!("cargo:rerun-if-changed={source}");
    }
    let [host, kernels] =
        arguments::sources(Path::new("")).unwrap_or_else(|error| fail(&format!("src and kernels: {error}")));
    for source in &host {
        println!("cargo:rerun-if-changed={}", source.path);
    }
    arguments::check(&host, &kernels).unwrap_or_else(|error| fail(&error));

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if doc_only() {
        for table in ["images.rs", "test_images.rs"] {
            fs::write(out.join(table), "&[]").expect("OUT_DIR is writable");
        }
        fs::write(out.join("compiler.rs"), "(0, 0)").expect("OUT_DIR is writable");
        return;
    }

    let archs = architectures();
    let nvrtc = find_nvrtc(&archs);
    fs::write(out.join("compiler.rs"), format!("{:?}", nvrtc.version)).expect("OUT_DIR is writable");
    let jobs = jobs(&archs);
    let cache = cache::folder(&out, "tercet-kernels").unwrap_or_else(|e| fail(&format!("the target folder: {e}")));
    let key = common_key(&nvrtc);

    let next = AtomicUsize::new(0);
    let images: Mutex<Vec<(usize, Result<Image, String>)>> = Mutex::default();
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    thread::scope(|scope| {
        for _ in 0..jobs.len().min(threads) {
            scope.spawn(|| {
                while let Some((i, job)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(i).map(|job| (i, job))
                } {
                    let image = compile_cached(&nvrtc, job, key, &cache);
                    images.lock().expect("no compiling thread panics").push((i, image));
                }
            });
        }
    });
    let mut images = images.into_inner().expect("no compiling thread panics");
    images.sort_by_key(|(i, _)| *i);

    // An error ends the build here, with one thread left: exiting while another thread is inside NVRTC crashes.
    let images: Vec<(usize, Image)> =
        images.into_iter().map(|(i, image)| (i, image.unwrap_or_else(|error| fail(&error)))).collect();

    // src/cuda/images.rs includes the first, tests/it/support/cuda.rs the second: dependents are told where it lies.
    let for_tests = |job: &Job| FOR_TESTS.iter().any(|source| job.source == Path::new(source));
    let (tests, losses): (Vec<_>, Vec<_>) =
        images.iter().map(|(i, image)| (&jobs[*i], image)).partition(|(job, _)| for_tests(job));
    write_table(&out, "images.rs", &losses);
    write_table(&out, "test_images.rs", &tests);
    println!("cargo:test_images={}", out.join("test_images.rs").display());
}

/// Writes a table of `Image`s, with the files that it includes.
fn write_table(out: &Path, name: &str, images: &[(&Job, &Image)]) {
    let mut table = String::from("&[\n");
    for (job, image) in images {
        let file = format!("{}.{}", job.stem, job.target);
        fs::write(out.join(&file), &image.compressed).expect("OUT_DIR is writable");
        let _ = writeln!(
            table,
            "Image {{ stem: {:?}, target: {:?}, size: {}, compressed: include_bytes!({:?}), kernels: &[",
            job.stem,
            job.target,
            image.size,
            out.join(&file),
        );
        let source = job.source.to_string_lossy();
        for report in assembler::checked(&image.log, &source, &job.target).unwrap_or_else(|error| fail(&error)) {
            let _ = writeln!(table, "    {report},");
        }
        table.push_str("] },\n");
    }
    table.push(']');
    fs::write(out.join(name), table).expect("OUT_DIR is writable");
}

/// The architectures that `TERCET_CUDA_ARCHS` asks for, such as `80` and `90a`.
fn architectures() -> Vec<String> {
    let archs = env::var("TERCET_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let archs: Vec<String> = archs.split([',', ' ']).filter(|a| !a.is_empty()).map(String::from).collect();
    for arch in &archs {
        if number(arch).is_none_or(|number| number < 80) {
            fail(&format!(
                "TERCET_CUDA_ARCHS: expected compute capabilities of 80 and up such as \"{DEFAULT_ARCHS}\", got {arch:?}"
            ));
        }
    }
    archs
}

/// The number of an architecture: 90 of `90a`.
fn number(arch: &str) -> Option<u32> {
    arch.trim_end_matches(|c: char| c.is_ascii_lowercase()).parse().ok()
}

/// Each file of kernels for each architecture, and as PTX.
fn jobs(archs: &[String]) -> Vec<Job> {
    let mut targets: Vec<String> = archs.iter().map(|arch| format!("sm_{arch}")).collect();
    targets.push(PTX_ARCH.into());

    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .expect("the package has kernels/")
        .map(|entry| entry.expect("kernels/ is readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    sources.extend(FOR_TESTS.map(PathBuf::from).into_iter().filter(|source| source.exists()));
    let mut jobs = Vec::new();
    for source in sources {
        let stem = source.file_stem().expect("a .cu file has a stem").to_string_lossy().into_owned();
        for target in &targets {
            jobs.push(Job { stem: stem.clone(), source: source.clone(), target: target.clone() });
        }
    }
    jobs
}

// ---- NVRTC ----

fn find_nvrtc(archs: &[String]) -> Nvrtc {
    let folders = nvrtc::folders(|name| env::var_os(name));
    let numbers: Vec<u32> = archs.iter().filter_map(|arch| number(arch)).collect();
    let refused = match nvrtc::find(&folders, &numbers) {
        Ok(found) => return found,
        Err(refused) => refused,
    };
    let why = if refused.is_empty() {
        let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        format!("was not found. It needs no GPU. Looked in: {}", looked.join(", "))
    } else {
        format!("was found, but none that is fit:\n  {}", refused.join("\n  "))
    };
    fail(&format!(
        "NVRTC, which compiles the CUDA kernels, {why}\n\
         One of:\n  \
         cargo xtask setup                  gets it, with libtorch, into this checkout\n  \
         CUDA_HOME=/path/to/cuda            names an installed CUDA toolkit (12.8 or newer)\n  \
         TERCET_CUDA_ARCHS=80,90            compiles for these architectures alone, of \"{DEFAULT_ARCHS}\"\n  \
         --no-default-features [--features torch]   builds without CUDA"
    ))
}

fn options(target: &str) -> Vec<String> {
    let mut options: Vec<String> = ["--include-path=kernels", "--std=c++17", "--device-as-default-execution-space"]
        .into_iter()
        .map(String::from)
        .collect();
    options.push(format!("--gpu-architecture={target}"));
    if target.starts_with("sm_") {
        options.push("--ptxas-options=-v".into());
        // By default the assembler spills a few registers if that lets one more block fit on a multiprocessor.
        // These kernels hold their rows in registers; a spilled row is read twice.
        options.push("--ptxas-options=--register-usage-level=0".into());
    }
    let definitions = constants::definitions().into_iter().chain(targets::definitions(target));
    options.extend(definitions.map(|(name, value)| format!("--define-macro={name}={value}")));
    options
}

fn compile(nvrtc: &Nvrtc, job: &Job) -> Result<Image, String> {
    let path = job.source.display();
    let source = fs::read(&job.source).map_err(|e| format!("{path}: {e}"))?;
    let source = CString::new(source).map_err(|_| format!("{path} holds a NUL byte"))?;
    let name = CString::new(job.source.to_string_lossy().as_bytes()).expect("paths hold no NUL");
    let cubin = job.target.starts_with("sm_");
    let compiled = nvrtc
        .compile(&source, &name, &options(&job.target), cubin)
        .map_err(|error| format!("{path} for {}: {error}", job.target))?;
    let compressed = compress(&compiled.image, cubin).map_err(|e| format!("{path}: {e}"))?;
    Ok(Image { size: compiled.image.len(), compressed, log: compiled.log })
}

fn compress(image: &[u8], is_code: bool) -> io::Result<Vec<u8>> {
    let [lc, lp, pb] = compression::predicted_from(is_code);
    let preset = LzmaOptions::with_preset(compression::PRESET);
    let options = LzmaOptions { dict_size: compression::WINDOW, lc, lp, pb, ..preset };
    let mut writer = LzmaWriter::new_no_header(Vec::new(), &options, false)?;
    writer.write_all(image)?;
    writer.finish()
}

// ---- the cache ----

/// A hash of everything that all kernels depend on: the compiler and the shared headers.
fn common_key(nvrtc: &Nvrtc) -> u64 {
    let mut hasher = DefaultHasher::new();
    compression::COMPRESSION.hash(&mut hasher);
    nvrtc.to_string().hash(&mut hasher);
    // A patch release says the same version, and pip puts it into the same place: its size tells.
    fs::metadata(&nvrtc.file).map_or(0, |file| file.len()).hash(&mut hasher);
    let mut headers: Vec<PathBuf> = fs::read_dir("kernels")
        .expect("the package has kernels/")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cuh"))
        .collect();
    headers.sort();
    for header in headers {
        header.hash(&mut hasher);
        fs::read(&header).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}

/// The compiled image, from the cache if it was compiled before.
fn compile_cached(nvrtc: &Nvrtc, job: &Job, common: u64, cache: &Path) -> Result<Image, String> {
    let mut hasher = DefaultHasher::new();
    common.hash(&mut hasher);
    options(&job.target).hash(&mut hasher);
    fs::read(&job.source).unwrap_or_default().hash(&mut hasher);
    let stem = cache.join(format!("{}-{}-{:016x}", job.stem, job.target, hasher.finish()));
    // The file has the size, in 8 bytes, and the compressed image: an unoptimised build script takes long to compress.
    let (image, log) = (stem.with_extension("lzma"), stem.with_extension("log"));
    // The log is written last: if it exists, the image is whole.
    if let (Ok(log), Ok(bytes)) = (fs::read_to_string(&log), fs::read(&image))
        && let Some((size, compressed)) = bytes.split_first_chunk()
    {
        return Ok(Image { size: u64::from_le_bytes(*size) as usize, compressed: compressed.to_vec(), log });
    }
    let compiled = compile(nvrtc, job)?;
    write_whole(&image, &[&(compiled.size as u64).to_le_bytes(), &compiled.compressed[..]].concat())?;
    write_whole(&log, compiled.log.as_bytes())?;
    Ok(compiled)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), String> {
    cache::write_whole(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}
