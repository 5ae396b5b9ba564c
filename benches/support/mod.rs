//! The arguments, timing two things in turn, the machine's copy bandwidth, peak memory, and the rows of
//! `target/bench.json`.

pub mod contest;
pub mod mined;
pub mod paired;

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cudarc::driver::{result::event, sys};
use tch::{Device, Kind, Tensor};

/// The variable that is set in a second run of the same program, in which the C library keeps the memory that is freed.
const RECYCLING: &str = "TERCET_BENCH_RECYCLING_MALLOC";

/// One measurement; the fields of `target/bench.json`.
pub struct Row {
    pub op: String,
    pub size: String,
    pub dtype: String,
    pub backend: String,
    pub pass: String,
    pub ms: f64,
    pub peer: String,
    pub peer_ms: f64,
    pub floor_ms: Option<f64>,
    pub peak_bytes: Option<u64>,
}

impl Row {
    /// Milliseconds through tch, ours and the peer's.
    pub fn new(op: &str, size: &str, pass: &str, peer: &str, (ms, peer_ms): (f64, f64), floor_ms: f64) -> Self {
        let malloc = if recycling() { ", recycling malloc" } else { "" };
        Self {
            op: op.into(),
            size: size.into(),
            dtype: "f32".into(),
            backend: if device() == Device::Cpu { "cpu through tch" } else { "cuda through tch" }.into(),
            pass: pass.into(),
            ms,
            peer: format!("{peer}{malloc}"),
            peer_ms,
            floor_ms: Some(floor_ms),
            peak_bytes: None,
        }
    }
}

/// The device that is benched.
pub fn device() -> Device {
    Device::cuda_if_available()
}

pub fn asked(option: &str) -> bool {
    std::env::args().any(|a| a == option)
}

/// Whether the benches are only tried: criterion's rule, by which `cargo test --benches`, which passes nothing, tries them.
pub fn testing() -> bool {
    asked("--test") || !asked("--bench") && !asked("--list")
}

/// How the time of work on a device is taken: by the clock, or on CUDA by events before and after it.
pub enum Clock {
    Wall,
    Events { start: sys::CUevent, end: sys::CUevent },
}

impl Clock {
    pub fn of(device: Device) -> Self {
        if device == Device::Cpu {
            return Self::Wall;
        }
        // PyTorch makes the device's context current to this thread; events then belong to it.
        drop(Tensor::zeros([1], (Kind::Float, device)));
        let new = || event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).expect("an event");
        Self::Events { start: new(), end: new() }
    }

    /// Milliseconds that `f` takes; its result is dropped afterwards.
    pub fn time<X>(&self, f: impl FnOnce() -> X) -> f64 {
        let (result, ms);
        match self {
            Self::Wall => {
                let start = Instant::now();
                result = f();
                ms = start.elapsed().as_secs_f64() * 1e3;
            }
            Self::Events { start, end } => {
                // The stream that PyTorch uses unless told otherwise.
                let stream = std::ptr::null_mut();
                // SAFETY: live events of the current context, and its default stream.
                unsafe {
                    event::record(*start, stream).expect("an event on the stream");
                    result = f();
                    event::record(*end, stream).expect("an event on the stream");
                    while event::query(*end).is_err() {
                        std::hint::spin_loop();
                    }
                    ms = f64::from(event::elapsed(*start, *end).expect("two events that have happened"));
                }
            }
        }
        drop(result);
        ms
    }
}

/// The median milliseconds of `ours` and of `peer`.
///
/// They run in turn, several times each: so a machine whose speed drifts is fair to both, and neither pays for what the
/// other left behind, its data in the caches and its threads that spin for a while before they sleep. The first third of
/// each turn, which does pay, is not counted.
pub fn medians(clock: &Clock, mut ours: impl FnMut(), mut peer: impl FnMut()) -> (f64, f64) {
    medians_of(clock, || (), |()| ours(), || (), |()| peer())
}

/// [`medians`] of two that each have a preparation, which is not timed; nor is the end of what it prepared.
pub fn medians_of<A, B, X, Y>(
    clock: &Clock,
    mut prepare: impl FnMut() -> A,
    mut ours: impl FnMut(&A) -> X,
    mut prepare_peer: impl FnMut() -> B,
    mut peer: impl FnMut(&B) -> Y,
) -> (f64, f64) {
    const TURNS: usize = 12;
    const ENOUGH: Duration = Duration::from_secs(4);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for turn in 0..TURNS {
        let of_ours = a_turn(|| {
            let prepared = prepare();
            clock.time(|| ours(&prepared))
        });
        let of_peer = a_turn(|| {
            let prepared = prepare_peer();
            clock.time(|| peer(&prepared))
        });
        // In the first turn thread pools and allocators settle.
        if turn > 0 {
            a.extend(of_ours);
            b.extend(of_peer);
        }
        if turn >= 2 && start.elapsed() > ENOUGH {
            break;
        }
    }
    (median(&mut a), median(&mut b))
}

/// The times of a turn that count.
fn a_turn(mut run: impl FnMut() -> f64) -> Vec<f64> {
    const RUNS: usize = 6;
    const LASTS: Duration = Duration::from_millis(30);
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < RUNS || start.elapsed() < LASTS {
        times.push(run());
    }
    times.split_off(times.len() / 3)
}

fn median(x: &mut [f64]) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// The gradients of a value, or of the sum of a matrix.
pub fn gradients<const K: usize>(value: &Tensor, inputs: [&Tensor; K]) -> Vec<Tensor> {
    let sum = (value.dim() > 0).then(|| value.sum(Kind::Float));
    Tensor::run_backward(&[sum.as_ref().unwrap_or(value)], &inputs, false, false)
}

/// Milliseconds of the matrix product `X Y^T` alone, as libtorch computes it.
pub fn product_ms(clock: &Clock, x: &Tensor, y: &Tensor) -> f64 {
    tch::no_grad(|| medians(clock, || drop(black_box(x.matmul(&y.tr()))), || ()).0)
}

/// Copies on as many threads as the kernels run on.
pub fn copy<const K: usize>(from: &[Vec<f32>; K], to: &mut [Vec<f32>; K]) {
    use rayon::prelude::*;
    let part = from[0].len().div_ceil(rayon::current_num_threads()).max(1);
    for (from, to) in from.iter().zip(to) {
        from.par_chunks(part).zip(to.par_chunks_mut(part)).for_each(|(from, to)| to.copy_from_slice(from));
    }
}

/// Bytes a second, read and written together, of copying a large tensor or slice.
pub fn copy_bandwidth(clock: &Clock) -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let (bytes, ms) = match device() {
            device @ Device::Cuda(_) => {
                const LEN: i64 = 64 << 20;
                let from = Tensor::randn([LEN], (Kind::Float, device));
                let mut to = from.zeros_like();
                (2.0 * 4.0 * LEN as f64, medians(clock, || to.copy_(&from), || ()).0)
            }
            _ => {
                const LEN: usize = 8 << 20;
                let from = [vec![1.0f32; LEN]];
                let mut to = from.clone();
                (2.0 * 4.0 * LEN as f64, medians(clock, || copy(&from, &mut to), || ()).0)
            }
        };
        bytes / (ms / 1e3)
    })
}

/// The most memory that the process holds during one run of `f`, beyond what it held before, as Linux counts it. Memory
/// that was freed before is given back to the system first.
pub fn peak_bytes<X>(f: impl FnOnce() -> X) -> Option<u64> {
    tercet::torch::release_cpu_memory();
    // SAFETY: no precondition.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    let before = status_bytes("VmRSS:")?;
    let result = f();
    let peak = status_bytes("VmHWM:")?;
    drop(result);
    Some(peak.saturating_sub(before))
}

/// A field of `/proc/self/status`, in bytes.
fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Whether this is the run in which the C library keeps freed memory.
pub fn recycling() -> bool {
    std::env::var_os(RECYCLING).is_some()
}

/// Runs this program again with a C library that keeps the memory that is freed instead of giving it back to the system
/// and faulting it in again: large tensors of libtorch's operations on the CPU are several times faster then.
pub fn run_again_recycling() {
    run_again(&[
        (RECYCLING, "1"),
        // Variables of glibc: no mapping of its own for a large request, and nothing given back.
        ("MALLOC_MMAP_MAX_", "0"),
        ("MALLOC_TRIM_THRESHOLD_", &(1u64 << 62).to_string()),
        ("MALLOC_TOP_PAD_", &(64u64 << 20).to_string()),
    ]);
}

/// Runs this program again, with its arguments and with these variables.
pub fn run_again(variables: &[(&str, &str)]) {
    let program = std::env::current_exe().expect("a running program has a file");
    let mut again = std::process::Command::new(program);
    let status = again.args(std::env::args_os().skip(1)).envs(variables.iter().copied()).status();
    let status = status.expect("this program starts again");
    assert!(status.success(), "the run with {variables:?}: {status}");
}

/// The checkout's folder. A bundle's program gets it by the variable, on a machine where it was not compiled.
pub fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Adds rows to `target/bench.json`, which `cargo xtask bench` prints as a table.
pub fn write_rows(rows: &[Row]) {
    let root = root();
    let path = root.join("target/bench.json");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let mut entries: Vec<String> =
        before.lines().map(|l| l.trim_end_matches(',')).filter(|l| l.starts_with('{')).map(String::from).collect();
    let or_null = |x: Option<String>| x.unwrap_or("null".into());
    for r in rows {
        let mut entry = String::new();
        let _ = write!(
            entry,
            "{{\"op\": {:?}, \"size\": {:?}, \"dtype\": {:?}, \"backend\": {:?}, \"pass\": {:?}, \"ms\": {:.4}, \
             \"peer\": {:?}, \"peer_ms\": {:.4}, \"ratio\": {:.3}, \"floor_ms\": {}, \"peak_bytes\": {}}}",
            r.op,
            r.size,
            r.dtype,
            r.backend,
            r.pass,
            r.ms,
            r.peer,
            r.peer_ms,
            r.peer_ms / r.ms,
            or_null(r.floor_ms.map(|ms| format!("{ms:.4}"))),
            or_null(r.peak_bytes.map(|bytes| bytes.to_string())),
        );
        entries.push(entry);
    }
    let _ = std::fs::create_dir_all(root.join("target"));
    std::fs::write(&path, format!("[\n{}\n]\n", entries.join(",\n"))).expect("target/ is writable");
}
