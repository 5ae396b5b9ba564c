//! `top_k` among a million rows of 128 numbers, k = 10, for one query and for a thousand, in each type that rows are stored
//! in; for a thousand against the same search in tch operations, a block of rows at a time.
//!
//! The floor of one query is to read the rows once, on as many threads as the search has; of a thousand it is the matrix
//! product, as libtorch computes it.
//!
//! `cargo bench -p tercet -- top_k --answers` compares the answers of ten thousand queries among rows of fewer bits and
//! exact ones with those of the exact rows alone. benches/peers/top_k.py measures faiss at the same sizes.

use std::cell::Cell;
use std::hint::black_box;
use std::time::Instant;

use half::f16;
use tch::{Device, Kind, Tensor};
use tercet::{Int8Rows, Matrix, Stored, TopK};

use crate::support::{Clock, Row, asked, medians, peak_bytes, product_ms, testing, write_rows};

const ROWS: i64 = 1_000_000;
const DIM: i64 = 128;
const K: usize = 10;

/// The stored rows, in memory in every type.
struct Gallery {
    exact: Vec<f32>,
    half: Vec<f16>,
    integers: Vec<i8>,
    scales: Vec<f32>,
}

impl Gallery {
    fn new(rows: &Tensor) -> Self {
        let exact = numbers(rows);
        let half = exact.iter().map(|&x| f16::from_f32(x)).collect();
        let (mut integers, mut scales) = (vec![0; exact.len()], vec![0.0; rows.size()[0] as usize]);
        let matrix = Matrix::new(&exact, DIM as usize).expect("rows");
        Int8Rows::quantize(matrix, &mut integers, &mut scales).expect("one integer a number");
        Self { exact, half, integers, scales }
    }

    fn exact(&self) -> Matrix<'_, f32> {
        Matrix::new(&self.exact, DIM as usize).expect("rows")
    }

    /// Each type, its name, and the bytes of a row.
    fn forms(&self) -> [(&'static str, Stored<'_>, usize); 3] {
        let half = Matrix::new(&self.half, DIM as usize).expect("rows");
        let int8 = Int8Rows::new(&self.integers, &self.scales, DIM as usize).expect("rows");
        let dim = DIM as usize;
        [("f32", self.exact().into(), 4 * dim), ("f16", half.into(), 2 * dim), ("int8", int8.into(), dim + 4)]
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.reshape([-1])).expect("f32")
}

/// Distances and indices.
type Answers = (Vec<f32>, Vec<i64>);

fn answers(queries: &[f32], stored: Stored<'_>, exact: Option<Matrix<'_, f32>>) -> Answers {
    let top = TopK { k: K, ..Default::default() };
    let queries = Matrix::new(queries, DIM as usize).expect("rows");
    let mut answers = (vec![0.0; queries.rows() * K], vec![0; queries.rows() * K]);
    let mut search = top.on(queries, stored);
    if let Some(exact) = exact {
        search = search.exact(exact);
    }
    search.search(&mut answers.0, &mut answers.1).expect("shapes");
    answers
}

/// The search in tch operations: blocks of 50,000 rows, of which each has its k nearest merged with those before.
fn in_tch_operations(queries: &Tensor, rows: &Tensor) -> (Tensor, Tensor) {
    const BLOCK: i64 = 50_000;
    let norms = |x: &Tensor| x.square().sum_dim_intlist(1, false, Kind::Float);
    let (mut best, k) = (None::<(Tensor, Tensor)>, K as i64);
    for start in (0..rows.size()[0]).step_by(BLOCK as usize) {
        let block = rows.narrow(0, start, BLOCK.min(rows.size()[0] - start));
        let d = norms(queries).unsqueeze(1) + norms(&block).unsqueeze(0) - queries.matmul(&block.tr()) * 2.0;
        let (d, at) = d.topk(k.min(block.size()[0]), 1, false, true);
        let (d, at) = match best {
            Some((of, before)) => (Tensor::cat(&[of, d], 1), Tensor::cat(&[before, at + start], 1)),
            None => (d, at + start),
        };
        let (d, order) = d.topk(k, 1, false, true);
        best = Some((d, at.gather(1, &order, false)));
    }
    best.expect("rows")
}

/// Milliseconds to read the rows once, on as many threads as a search has.
fn read_ms(bytes: &[u8]) -> f64 {
    use rayon::prelude::*;
    let words: &[u64] = bytemuck::cast_slice(bytes);
    let sum = |part: &[u64]| {
        let mut sums = [0u64; 32];
        for words in part.chunks_exact(32) {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum ^= word;
            }
        }
        sums.iter().fold(0, |all, sum| all ^ sum)
    };
    let read = || {
        black_box(words.par_chunks(1 << 17).map(sum).reduce(|| 0, |x, y| x ^ y));
    };
    medians(&Clock::Wall, read, || ()).0
}

pub fn bench() {
    if testing() {
        let rows = Tensor::randn([300, DIM], (Kind::Float, Device::Cpu));
        let queries = rows.narrow(0, 100, 20);
        let (expected, of) = in_tch_operations(&queries, &rows);
        let gallery = Gallery::new(&rows);
        for (name, stored, _) in gallery.forms() {
            let (distances, indices) = answers(&numbers(&queries), stored, Some(gallery.exact()));
            assert_eq!(indices, Vec::<i64>::try_from(of.reshape([-1])).expect("i64"), "{name}");
            let found = Tensor::from_slice(&distances).view([20, K as i64]);
            assert!(found.allclose(&expected, 1e-4, 1e-3, false), "{name}");
        }
        return;
    }
    tch::manual_seed(1);
    let rows = Tensor::randn([ROWS, DIM], (Kind::Float, Device::Cpu));
    let gallery = Gallery::new(&rows);
    if asked("--answers") {
        let queries = numbers(&Tensor::randn([10_000, DIM], (Kind::Float, Device::Cpu)));
        let expected = answers(&queries, gallery.exact().into(), None);
        for (name, stored, _) in gallery.forms() {
            let equal = answers(&queries, stored, Some(gallery.exact())) == expected;
            println!("{name} with exact rows: 10000 queries answered as by f32 alone: {equal}");
        }
        return;
    }
    let mut measured = Vec::new();
    for queries in [1, 1000] {
        let x = Tensor::randn([queries, DIM], (Kind::Float, Device::Cpu));
        let of_queries = numbers(&x);
        let size = format!("{queries} of {ROWS}x{DIM}, k {K}");
        let product = if queries > 1 { Some(product_ms(&Clock::Wall, &x, &rows)) } else { None };
        // A thousand queries take seconds: once for all forms.
        let of_peer = Cell::new(None);
        let theirs = || {
            if queries == 1 || of_peer.get().is_none() {
                let start = Instant::now();
                drop(black_box(in_tch_operations(&x, &rows)));
                of_peer.set(Some(start.elapsed().as_secs_f64() * 1e3));
            }
        };
        for (name, stored, bytes) in gallery.forms() {
            for exact in [None, Some(gallery.exact())] {
                if exact.is_some() && name == "f32" {
                    continue;
                }
                let ours = || drop(black_box(answers(&of_queries, stored, exact)));
                let (ms, peer_ms) = medians(&Clock::Wall, ours, &theirs);
                let peer_ms = if queries == 1 { peer_ms } else { of_peer.get().unwrap_or(f64::NAN) };
                let pass = if exact.is_some() { "with exact rows" } else { "search" };
                let floor = product.unwrap_or_else(|| match name {
                    "f32" => read_ms(bytemuck::cast_slice(&gallery.exact)),
                    "f16" => read_ms(bytemuck::cast_slice(&gallery.half)),
                    _ => read_ms(bytemuck::cast_slice(&gallery.integers)),
                });
                let peak = peak_bytes(|| answers(&of_queries, stored, exact));
                println!(
                    "{size:<28} {name:>5} {pass:<16} {ms:>9.2} ms  tch operations on f32 {peer_ms:>9.2}  floor {floor:>8.2} \
                     ({:.1} GB/s)  {:.1} MiB beside the rows",
                    ROWS as f64 * bytes as f64 / ms / 1e6,
                    peak.unwrap_or(0) as f64 / f64::from(1 << 20),
                );
                let mut row = Row::new("top_k", &size, pass, "tch operations on f32", (ms, peer_ms), floor);
                (row.dtype, row.backend, row.peak_bytes) = (name.into(), "cpu".into(), peak);
                measured.push(row);
            }
        }
    }
    write_rows(&measured);
}
