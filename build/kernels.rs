//! Compiles every `kernels/*.cu` with NVRTC to one cubin per architecture, plus PTX as the catch-all for GPUs that are
//! not in the list, and writes them compressed into `OUT_DIR` with the assembler's report on each kernel.

use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use cudarc::nvrtc::{result as nvrtc, sys};

use crate::{cache, fail};

#[path = "../src/constants.rs"]
mod constants;

const DEFAULT_ARCHS: &str = "80,90a,100,120";
/// PTX for this architecture is compiled by the driver where no cubin fits.
const PTX_ARCH: &str = "compute_80";
/// What each wrapped instruction does: compiled as the losses' kernels are, but for tests/conformance.rs alone. Packages
/// do not have it.
const CONFORMANCE: &str = "emulator/tests/kernels/conformance.cu";

/// One file of kernels for one target.
struct Job {
    stem: String,
    source: PathBuf,
    /// `sm_90a`, or `compute_80` for PTX.
    target: String,
}

struct Image {
    /// Before compression.
    size: usize,
    deflated: Vec<u8>,
    log: String,
}

pub fn build() {
    for variable in ["CUDA_HOME", "CUDA_PATH", "LIBTORCH", "TERCET_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=src/constants.rs");
    if Path::new(CONFORMANCE).exists() {
        println!("cargo:rerun-if-changed={CONFORMANCE}");
    }

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if crate::doc_only() {
        for table in ["images.rs", "conformance.rs"] {
            fs::write(out.join(table), "&[]").expect("OUT_DIR is writable");
        }
        return;
    }

    let found = load_nvrtc();
    let jobs = jobs(&found);
    let cache = cache::folder(&out, "tercet-kernels").unwrap_or_else(|e| fail(&format!("the target folder: {e}")));
    let key = common_key(&found);

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
                    let image = compile_cached(job, key, &cache);
                    images.lock().expect("no compiling thread panics").push((i, image));
                }
            });
        }
    });
    let mut images = images.into_inner().expect("no compiling thread panics");
    images.sort_by_key(|(i, _)| *i);

    // Said here, by the one thread that is left: to leave while NVRTC is at work in another is to crash in it.
    let images: Vec<(usize, Image)> =
        images.into_iter().map(|(i, image)| (i, image.unwrap_or_else(|error| fail(&error)))).collect();

    // src/cuda/images.rs includes the first, tests/conformance.rs the second.
    let (conformance, losses): (Vec<_>, Vec<_>) =
        images.iter().map(|(i, image)| (&jobs[*i], image)).partition(|(job, _)| job.source == Path::new(CONFORMANCE));
    write_table(&out, "images.rs", &losses);
    write_table(&out, "conformance.rs", &conformance);
}

/// A table of `Image`s, with the files that it includes.
fn write_table(out: &Path, name: &str, images: &[(&Job, &Image)]) {
    let mut table = String::from("&[\n");
    for (job, image) in images {
        let file = format!("{}.{}", job.stem, job.target);
        fs::write(out.join(&file), &image.deflated).expect("OUT_DIR is writable");
        let _ = writeln!(
            table,
            "Image {{ stem: {:?}, target: {:?}, size: {}, deflated: include_bytes!({:?}), kernels: &[",
            job.stem,
            job.target,
            image.size,
            out.join(&file),
        );
        for report in assembler_reports(&image.log) {
            let _ = writeln!(table, "    {report},");
        }
        table.push_str("] },\n");
    }
    table.push(']');
    fs::write(out.join(name), table).expect("OUT_DIR is writable");
}

fn jobs(nvrtc: &str) -> Vec<Job> {
    let archs = env::var("TERCET_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let supported = supported_archs();
    let mut targets = Vec::new();
    for arch in archs.split([',', ' ']).filter(|a| !a.is_empty()) {
        let digits = arch.trim_end_matches(|c: char| c.is_ascii_lowercase());
        match digits.parse::<u32>() {
            Ok(number) if number >= 80 && supported.contains(&number) => targets.push(format!("sm_{arch}")),
            Ok(number) if number >= 80 => fail(&format!(
                "TERCET_CUDA_ARCHS asks for {arch}, which {nvrtc} cannot compile for; it knows {supported:?}"
            )),
            _ => fail(&format!(
                "TERCET_CUDA_ARCHS: expected compute capabilities of 80 and up such as \"{DEFAULT_ARCHS}\", got {arch:?}"
            )),
        }
    }
    targets.push(PTX_ARCH.into());

    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .expect("the package has kernels/")
        .map(|entry| entry.expect("kernels/ is readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    sources.extend(Some(PathBuf::from(CONFORMANCE)).filter(|source| source.exists()));
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

/// Loads NVRTC from a CUDA toolkit, from beside libtorch, or from the system; describes what it found.
fn load_nvrtc() -> String {
    let mut folders = Vec::new();
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = env::var_os(variable).map(PathBuf::from) {
            folders.extend([home.join("lib64"), home.join("lib"), home.join("targets/x86_64-linux/lib")]);
        }
    }
    if let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) {
        // A pip installation: site-packages/torch beside site-packages/nvidia. `.libtorch` is a link into it.
        let real = fs::canonicalize(&libtorch).unwrap_or(libtorch);
        if let Some(site) = real.parent() {
            folders.push(site.join("nvidia/cu13/lib"));
        }
        folders.push(real.join("lib"));
    }
    folders.push("/usr/local/cuda/lib64".into());

    for folder in &folders {
        let (Some(builtins), Some(library)) =
            (shared_library(folder, "libnvrtc-builtins"), shared_library(folder, "libnvrtc"))
        else {
            continue;
        };
        // NVRTC opens its builtins by bare name and would not find them in this folder; once loaded they are found,
        // and cudarc then finds NVRTC itself by its bare name in the same way.
        // SAFETY: NVIDIA's libraries; their initialisers have no preconditions. They stay loaded.
        unsafe {
            match (libloading::Library::new(&builtins), libloading::Library::new(&library)) {
                (Ok(b), Ok(l)) => {
                    std::mem::forget((b, l));
                    return format!("NVRTC {} in {}", version(), folder.display());
                }
                (b, l) => {
                    let error = b.err().or(l.err()).map(|e| e.to_string()).unwrap_or_default();
                    fail(&format!("found NVRTC in {} but could not load it: {error}", folder.display()));
                }
            }
        }
    }
    // SAFETY: only looks for the library in the system's own search path.
    if unsafe { sys::is_culib_present() } {
        return format!("the system's NVRTC {}", version());
    }
    let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    fail(&format!(
        "NVRTC, which compiles the CUDA kernels, was not found. It needs no GPU. One of:\n  \
         cargo xtask setup                  gets it, with libtorch, into this checkout\n  \
         CUDA_HOME=/path/to/cuda            names an installed CUDA toolkit (12.8 or newer)\n  \
         --no-default-features [--features torch]   builds without CUDA\n\
         looked in: {}",
        looked.join(", ")
    ))
}

/// `folder/stem.so` or its versioned name, but not NVIDIA's `.alt` variants.
fn shared_library(folder: &Path, stem: &str) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{stem}.so"))))
        .collect();
    found.sort();
    found.pop()
}

fn version() -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two out-pointers to live integers.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    format!("{major}.{minor}")
}

fn supported_archs() -> Vec<u32> {
    let mut count = 0;
    // SAFETY: the second call writes exactly the number of integers that the first one announced.
    unsafe {
        if sys::nvrtcGetNumSupportedArchs(&mut count).result().is_err() {
            return Vec::new();
        }
        let mut archs = vec![0i32; count as usize];
        if sys::nvrtcGetSupportedArchs(archs.as_mut_ptr()).result().is_err() {
            return Vec::new();
        }
        archs.into_iter().map(|a| a as u32).collect()
    }
}

fn options(target: &str) -> Vec<String> {
    let mut options: Vec<String> = ["--include-path=kernels", "--std=c++17", "--device-as-default-execution-space"]
        .into_iter()
        .map(String::from)
        .collect();
    options.push(format!("--gpu-architecture={target}"));
    if target.starts_with("sm_") {
        options.push("--ptxas-options=-v".into());
        // By default the assembler spills a few registers where that lets one more block fit on a multiprocessor.
        // These kernels hold their rows in registers; a spilled row is read twice.
        options.push("--ptxas-options=--register-usage-level=0".into());
    }
    options.extend(definitions().into_iter().map(|(name, value)| format!("--define-macro={name}={value}")));
    options
}

/// The constants that host and kernels share; a kernel refuses to compile without the ones it needs.
fn definitions() -> [(&'static str, String); 8] {
    [
        ("TERCET_TILE", constants::TILE.to_string()),
        ("TERCET_SLAB", constants::SLAB.to_string()),
        ("TERCET_COMPARED", constants::COMPARED.to_string()),
        ("TERCET_DIGITS", constants::DIGITS.to_string()),
        ("TERCET_PAIRED_THREADS", constants::PAIRED_THREADS.to_string()),
        ("TERCET_MIN_NORM", format!("{:e}", constants::MIN_NORM)),
        ("TERCET_LIFT_F32", format!("{:e}", constants::LIFT_F32)),
        ("TERCET_LIFT_F64", format!("{:e}", constants::LIFT_F64)),
    ]
}

fn compile(job: &Job) -> Result<Image, String> {
    let path = job.source.display();
    let source = fs::read(&job.source).map_err(|e| format!("{path}: {e}"))?;
    let source = CString::new(source).map_err(|_| format!("{path} holds a NUL byte"))?;
    let name = CString::new(job.source.to_string_lossy().as_bytes()).expect("paths hold no NUL");
    let program = nvrtc::create_program(&source, Some(&name)).map_err(|e| format!("NVRTC: {e:?}"))?;
    // SAFETY: `program` was made above and is destroyed once, below; source and name outlive it.
    let (result, log) = unsafe {
        let result = nvrtc::compile_program(program, &options(&job.target));
        let log = nvrtc::get_program_log(program).unwrap_or_default();
        (result, text(&log))
    };
    if let Err(error) = result {
        return Err(format!("{path} does not compile for {} ({error:?})\n{log}", job.target));
    }
    // SAFETY: the program compiled; each buffer has the size that NVRTC announced.
    let bytes = unsafe {
        if job.target.starts_with("sm_") {
            let mut size = 0;
            let mut cubin = Vec::new();
            let read = sys::nvrtcGetCUBINSize(program, &mut size).result().and_then(|()| {
                cubin.resize(size, 0u8);
                sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()
            });
            read.map_err(|e| format!("NVRTC gave no cubin for {}: {e:?}", job.target))?;
            cubin
        } else {
            let ptx = nvrtc::get_ptx(program).map_err(|e| format!("NVRTC gave no PTX: {e:?}"))?;
            ptx.into_iter().map(|c| c as u8).collect()
        }
    };
    // SAFETY: as above; nothing of the program is used afterwards.
    let _ = unsafe { nvrtc::destroy_program(program) };
    Ok(Image { size: bytes.len(), deflated: miniz_oxide::deflate::compress_to_vec(&bytes, 9), log })
}

fn text(c_chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = c_chars.iter().map(|&c| c as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

// ---- the cache ----

/// Everything that all kernels depend on: the compiler and the shared headers.
fn common_key(nvrtc: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    nvrtc.hash(&mut hasher);
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

fn compile_cached(job: &Job, common: u64, cache: &Path) -> Result<Image, String> {
    let mut hasher = DefaultHasher::new();
    common.hash(&mut hasher);
    options(&job.target).hash(&mut hasher);
    fs::read(&job.source).unwrap_or_default().hash(&mut hasher);
    let stem = cache.join(format!("{}-{}-{:016x}", job.stem, job.target, hasher.finish()));
    // The size, 8 bytes, and the compressed image: compression takes a while in an unoptimised build script.
    let (image, log) = (stem.with_extension("deflated"), stem.with_extension("log"));
    // The log is written last: where it exists, the image is whole.
    if let (Ok(log), Ok(bytes)) = (fs::read_to_string(&log), fs::read(&image))
        && let Some((size, deflated)) = bytes.split_first_chunk()
    {
        return Ok(Image { size: u64::from_le_bytes(*size) as usize, deflated: deflated.to_vec(), log });
    }
    let compiled = compile(job)?;
    write_whole(&image, &[&(compiled.size as u64).to_le_bytes(), &compiled.deflated[..]].concat())?;
    write_whole(&log, compiled.log.as_bytes())?;
    Ok(compiled)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), String> {
    cache::write_whole(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

// ---- the assembler's report ----

/// `KernelReport { .. }` literals, from lines such as
///
/// ```text
/// ptxas info    : Function properties for triplet_margin_difference_f32_l32
/// ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 63 registers, used 1 barriers, 68 bytes smem
/// ```
fn assembler_reports(log: &str) -> Vec<String> {
    let mut reports = Vec::new();
    let (mut kernel, mut stack, mut spills) = (String::new(), 0, 0);
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            kernel = name.trim().to_string();
        } else if line.contains("bytes stack frame") {
            stack = number_before(line, " bytes stack frame");
            spills = number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        } else if line.contains(" registers") {
            reports.push(format!(
                "KernelReport {{ kernel: {kernel:?}, registers: {}, shared_bytes: {}, stack_bytes: {stack}, spill_bytes: {spills} }}",
                number_before(line, " registers"),
                number_before(line, " bytes smem"),
            ));
        }
    }
    reports
}

fn number_before(line: &str, unit: &str) -> u64 {
    let Some((before, _)) = line.split_once(unit) else {
        return 0;
    };
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}
