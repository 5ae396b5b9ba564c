//! Timing two things in turn, the machine's copy bandwidth, and the rows of `target/bench.json`.

use std::fmt::Write as _;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

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
    pub ratio: f64,
    pub floor_ms: f64,
    pub peak_bytes: u64,
}

/// Median milliseconds of both, run in turn after two rounds of warm-up.
pub fn paired_medians(mut ours: impl FnMut(), mut peer: impl FnMut()) -> (f64, f64) {
    paired_medians_of(|| (), |_| ours(), || (), |_| peer())
}

/// Likewise, each with a preparation that is not timed; nor is the end of what it prepared.
pub fn paired_medians_of<A, B, X, Y>(
    mut prepare: impl FnMut() -> A,
    mut ours: impl FnMut(&A) -> X,
    mut prepare_peer: impl FnMut() -> B,
    mut peer: impl FnMut(&B) -> Y,
) -> (f64, f64) {
    const ROUNDS: usize = 25;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + 2 {
        let (x, y) = (time(&prepare(), &mut ours), time(&prepare_peer(), &mut peer));
        if round >= 2 {
            a.push(x);
            b.push(y);
        }
    }
    (median(&mut a), median(&mut b))
}

fn time<A, X>(prepared: &A, f: &mut impl FnMut(&A) -> X) -> f64 {
    let start = Instant::now();
    let result = f(prepared);
    let ms = start.elapsed().as_secs_f64() * 1e3;
    drop(result);
    ms
}

fn median(x: &mut [f64]) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Copies on two threads, as the kernels run on all of the machine's.
pub fn copy(from: &[Vec<f32>; 3], to: &mut [Vec<f32>; 3]) {
    use rayon::prelude::*;
    let part = from[0].len().div_ceil(rayon::current_num_threads()).max(1);
    for (from, to) in from.iter().zip(to) {
        from.par_chunks(part).zip(to.par_chunks_mut(part)).for_each(|(from, to)| to.copy_from_slice(from));
    }
}

/// Bytes a second, read and written together, of copying a large tensor or slice.
pub fn copy_bandwidth(device: Device) -> f64 {
    const LEN: i64 = 8 << 20;
    let bytes = 2.0 * 4.0 * LEN as f64;
    let ms = match device {
        Device::Cuda(i) => {
            let from = Tensor::randn([8 * LEN], (Kind::Float, device));
            let mut to = from.zeros_like();
            let run = || {
                to.copy_(&from);
                tch::Cuda::synchronize(i as i64);
            };
            return 8.0 * bytes / (paired_medians(run, || ()).0 / 1e3);
        }
        _ => {
            let from = [(); 3].map(|()| vec![1.0f32; LEN as usize / 3]);
            let mut to = from.clone();
            paired_medians(|| copy(&from, &mut to), || ()).0
        }
    };
    bytes / (ms / 1e3)
}

/// Writes `target/bench.json`, which `cargo xtask bench` prints as a table. Rows of other benches stay.
pub fn write_rows(rows: &[Row]) {
    let root = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), std::path::PathBuf::from);
    let path = root.join("target/bench.json");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let mut entries: Vec<String> =
        before.lines().map(|l| l.trim_end_matches(',')).filter(|l| l.starts_with('{')).map(String::from).collect();
    for r in rows {
        let mut entry = String::new();
        let _ = write!(
            entry,
            "{{\"op\": {:?}, \"size\": {:?}, \"dtype\": {:?}, \"backend\": {:?}, \"pass\": {:?}, \"ms\": {:.4}, \
             \"peer\": {:?}, \"peer_ms\": {:.4}, \"ratio\": {:.3}, \"floor_ms\": {:.4}, \"peak_bytes\": {}}}",
            r.op, r.size, r.dtype, r.backend, r.pass, r.ms, r.peer, r.peer_ms, r.ratio, r.floor_ms, r.peak_bytes
        );
        entries.push(entry);
    }
    let _ = std::fs::create_dir_all(root.join("target"));
    std::fs::write(&path, format!("[\n{}\n]\n", entries.join(",\n"))).expect("target/ is writable");
}
