//! Paired losses in launches that only the emulator can vary so much: strides and alignments of each matrix, outputs that
//! are not wanted, devices of several sizes, rows that hold NaN.

use std::fmt::Debug;

use half::{bf16, f16};
use tercet::internal::{Address, DeviceProperties, Launcher, Memory, Pass, Plan, RowAccess};
use tercet::{Element, Matrix, PairedDistance, Reduction};
use tercet_emulator::{Buffer, Emulator, Options};

use super::bounds;
use super::property::Paired;
use crate::support::cases;

/// A loss with random launches.
pub trait Launched<const K: usize>: Paired<K> {
    /// Draws options at random.
    fn draw(random: &mut Random) -> Self;
    fn plan<T: Element>(&self, device: &DeviceProperties, shape: [usize; 2], pass: &Pass<K>) -> Plan;
    /// Whether forward makes the gradients of T too, for an upstream of 1.
    fn grads_with_loss<T: Element>(&self, shape: [usize; 2]) -> bool;
    /// What a launch must return, and for each row how far from that it may be.
    fn expect<T: Element>(&self, x: [Matrix<'_, f64>; K], seed: u64, upstream: &[f64]) -> Expected<K>;
}

/// The losses, their sum or mean, the gradients, and the bounds of each row.
pub struct Expected<const K: usize> {
    pub losses: Vec<f64>,
    pub loss: f64,
    pub grads: [Vec<f64>; K],
    pub bounds: Vec<bounds::Row<K>>,
}

/// The factor of row `b`'s gradients: upstream and the mean.
pub fn weight(reduction: Reduction, rows: usize, upstream: &[f64], b: usize) -> f64 {
    let mean = if reduction == Reduction::Mean { 1.0 / rows as f64 } else { 1.0 };
    mean * upstream[if upstream.len() == 1 { 0 } else { b }]
}

pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ self.0 >> 33;
        (x.wrapping_mul(0xff51_afd7_ed55_8ccd)) >> 11
    }
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize]
    }
    pub fn chance(&mut self, one_in: u64) -> bool {
        self.next().is_multiple_of(one_in)
    }
    /// Uniform in [-1, 1).
    fn number(&mut self) -> f64 {
        self.next() as f64 / (1u64 << 52) as f64 - 1.0
    }
    pub fn distance(&mut self) -> PairedDistance {
        match self.next() % 8 {
            0 | 1 => PairedDistance::SquaredEuclidean,
            2 => PairedDistance::Euclidean,
            3 | 4 => PairedDistance::Cosine,
            _ => PairedDistance::Lp { p: self.pick(&[1.0, 2.0, 3.0, f64::INFINITY]), eps: self.pick(&[0.0, 1e-6]) },
        }
    }
    pub fn reduction(&mut self) -> Reduction {
        self.pick(&[Reduction::None, Reduction::Mean, Reduction::Sum])
    }
}

const DIMS: [usize; 22] = [1, 2, 3, 4, 5, 7, 9, 15, 17, 31, 33, 36, 63, 65, 68, 127, 129, 132, 255, 257, 513, 516];
/// Whole 16-byte vectors in every dtype, at the limits of the kinds of access that hold rows in registers.
const ALIGNED: [usize; 14] = [8, 16, 24, 32, 40, 64, 72, 128, 136, 256, 264, 512, 520, 1032];
const ROWS: [usize; 12] = [1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 65, 97];

/// One random call: options, inputs and which outputs are wanted.
struct Call<T, L, const K: usize> {
    loss: L,
    /// The seed of what the loss takes beside the matrices.
    seed: u64,
    shape: [usize; 2],
    data: [Vec<T>; K],
    strides: [usize; K],
    /// Elements before the first row: 0 keeps the alignment.
    offsets: [usize; K],
    upstream: Option<Vec<f64>>,
    wanted: [bool; K],
    want_losses: bool,
    want_loss: bool,
    idle_if_one: bool,
    /// Rows that hold a NaN or an infinity.
    broken: Vec<usize>,
}

fn call<T: Element, L: Launched<K>, const K: usize>(random: &mut Random, most: usize) -> Call<T, L, K> {
    let aligned = random.chance(2);
    let dim = if aligned { random.pick(&ALIGNED) } else { random.pick(&DIMS) };
    let mut rows = random.pick(&ROWS);
    while rows > 1 && rows * dim > most {
        rows /= 2;
    }
    let (loss, seed) = (L::draw(random), random.next());
    let strides = [0; K].map(|_| dim + random.pick(if aligned { &[0, 8, 16] } else { &[0, 0, 1] }));
    let offsets = [0; K].map(|_| if random.chance(12) { 1 } else { 0 });
    let scale = random.pick(&[1.0, 1.0, 0.01, 16.0]);
    let whole = random.chance(6);
    let mut draw = |n: usize| -> Vec<T> {
        (0..n)
            .map(|_| {
                let x = random.number() * scale;
                T::from_f64(if whole { (x * 3.0).round() } else { x })
            })
            .collect()
    };
    let mut data = std::array::from_fn(|k| draw(offsets[k] + (rows - 1) * strides[k] + dim));
    let row = |k: usize, b: usize| offsets[k] + b * strides[k]..offsets[k] + b * strides[k] + dim;
    let mut broken = Vec::new();
    for b in 0..rows {
        let one = |random: &mut Random| (random.next() % K as u64) as usize;
        if random.chance(8) {
            // Two of the row's points coincide.
            let from = one(random);
            let to = (from + 1 + (random.next() % (K as u64 - 1)) as usize) % K;
            let copy = data[from][row(from, b)].to_vec();
            data[to][row(to, b)].copy_from_slice(&copy);
        }
        if random.chance(12) {
            let k = one(random);
            data[k][row(k, b)].fill(T::default());
        }
        if random.chance(20) {
            let k = one(random);
            let at = row(k, b).start + (random.next() % dim as u64) as usize;
            data[k][at] = T::from_f64(random.pick(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]));
            broken.push(b);
        }
    }
    let per_row = loss.reduction() == Reduction::None;
    let mut upstream = (!random.chance(3)).then(|| {
        let n = if per_row { rows } else { 1 };
        (0..n).map(|_| f64::from(random.number() as f32)).collect::<Vec<_>>()
    });
    let idle_if_one = upstream.is_some() && !per_row && random.chance(3);
    if let (true, Some(upstream)) = (idle_if_one && random.chance(2), &mut upstream) {
        upstream[0] = 1.0;
    }
    Call {
        loss,
        seed,
        shape: [rows, dim],
        data,
        strides,
        offsets,
        upstream,
        wanted: [0; K].map(|_| !random.chance(4)),
        want_losses: random.chance(2),
        want_loss: random.chance(2),
        idle_if_one,
        broken,
    }
}

/// How much was checked, and the largest ratio of an error to its bound.
#[derive(Default)]
struct Tally {
    cases: usize,
    numbers: usize,
    worst: f64,
    accesses: Vec<RowAccess>,
}

impl Tally {
    fn check(&mut self, what: &str, case: impl Debug, got: f64, expected: f64, bound: f64) {
        self.numbers += 1;
        if expected.is_nan() {
            assert!(got.is_nan(), "{what}: {got}, expected NaN\n{case:?}");
            return;
        }
        let error = if got == expected { 0.0 } else { (got - expected).abs() };
        assert!(error <= bound, "{what}: {got}, expected {expected}; error {error:e} over bound {bound:e}\n{case:?}");
        if error > 0.0 {
            self.worst = self.worst.max(error / bound);
        }
    }
}

fn scalars<T: Element>(emulator: &Emulator, numbers: &[f64]) -> Buffer {
    emulator.upload(&numbers.iter().map(|&x| T::Scalar::from_f64(x)).collect::<Vec<_>>())
}

fn address_if(wanted: bool, buffer: &Buffer) -> Address {
    if wanted { buffer.address() } else { 0 }
}

fn run<T: Element, L: Launched<K>, const K: usize>(emulator: &Emulator, case: &Call<T, L, K>, tally: &mut Tally) {
    let [rows, dim] = case.shape;
    let inputs = case.data.each_ref().map(|x| emulator.upload(x));
    let size = size_of::<T>();
    let poison = |n: usize| emulator.allocate(n).expect("memory");
    let grads = [0; K].map(|_| poison(rows * dim * size));
    let (losses, loss) = (poison(rows * size_of::<T::Scalar>()), poison(size_of::<T::Scalar>()));
    let upstream = case.upstream.as_ref().map(|u| scalars::<T>(emulator, u));
    let pass = Pass {
        inputs: std::array::from_fn(|k| inputs[k].address() + (case.offsets[k] * size) as Address),
        strides: case.strides,
        upstream: upstream.as_ref().map_or(0, Memory::address),
        upstream_per_row: case.loss.reduction() == Reduction::None,
        idle_if_one: case.idle_if_one,
        losses: address_if(case.want_losses, &losses),
        loss: address_if(case.want_loss, &loss),
        grads: std::array::from_fn(|k| address_if(case.wanted[k], &grads[k])),
    };
    let plan = case.loss.plan::<T>(emulator.properties(), case.shape, &pass);
    let about = (case.loss, case.seed, case.shape, case.strides, case.offsets, plan.clone(), &case.upstream);
    tally.accesses.push(plan.access);
    let ready = case.loss.ready(emulator, rows, case.seed);
    // SAFETY: buffers of the emulator, of the shapes that `pass` says.
    unsafe { case.loss.launch::<T, _>(&ready, emulator, case.shape, &pass) }
        .unwrap_or_else(|e| panic!("{e}\n{about:?}"));
    tally.cases += 1;

    let exact: [Vec<f64>; K] =
        std::array::from_fn(|k| case.data[k][case.offsets[k]..].iter().map(|x| x.to_f64()).collect());
    let view = std::array::from_fn(|k| Matrix::strided(&exact[k], rows, dim, case.strides[k]).expect("fits"));
    let weights = case.upstream.clone().unwrap_or_else(|| vec![1.0]);
    let oracle = case.loss.expect::<T>(view, case.seed, &weights);
    let got_losses: Vec<T::Scalar> = losses.read();
    let got_loss: Vec<T::Scalar> = loss.read();
    let got: [Vec<T>; K] = grads.each_ref().map(Buffer::read);

    if case.idle_if_one && weights[0] == 1.0 {
        let idle = got.iter().flatten().all(|x| x.to_f64().is_nan()) && got_loss[0].to_f64().is_nan();
        assert!(idle && got_losses.iter().all(|x| x.to_f64().is_nan()), "idle_if_one wrote\n{about:?}");
        return;
    }
    for &b in &case.broken {
        assert!(oracle.losses[b].is_nan(), "the oracle's row {b} holds a NaN or an infinity\n{about:?}");
    }
    // The kernel and the oracle both sum over rows in f64, in some order; then come the mean and the conversion.
    let mut loss_bound = 2.0 * (bounds::unit::<T::Scalar>() + rows as f64 * bounds::unit::<f64>()) * oracle.loss.abs();
    for (b, bound) in oracle.bounds.iter().enumerate() {
        loss_bound += weight(case.loss.reduction(), rows, &[1.0], b) * bound.loss;
        if case.want_losses {
            tally.check("loss of a row", (b, &about), got_losses[b].to_f64(), oracle.losses[b], bound.loss);
        }
        for k in (0..K).filter(|&k| case.wanted[k]) {
            for d in 0..dim {
                let i = b * dim + d;
                let (got, expected) = (got[k][i].to_f64(), oracle.grads[k][i]);
                if bound.ambiguous && oracle.losses[b].is_finite() {
                    assert!(!got.is_nan(), "gradient {k} of row {b} is {got}\n{about:?}");
                } else {
                    let bound = bound.grads[k][d] + bounds::rounding::<T>(expected);
                    // Gradients of rows of zeros are divided by 1e-12, which may overflow f16: then infinity is right.
                    let over = T::NAME == "f16" && got.is_infinite() && (expected * got.signum()) + bound >= 65520.0;
                    let expected = if over { got } else { expected };
                    tally.check("gradient", (k, b, d, &about), got, expected, bound);
                }
            }
        }
    }
    if case.want_loss {
        tally.check("loss", &about, got_loss[0].to_f64(), oracle.loss, loss_bound);
    }
    let untouched = |wanted: bool, all_nan: bool| assert!(wanted || all_nan, "wrote what was not asked for\n{about:?}");
    untouched(case.want_losses, got_losses.iter().all(|x| x.to_f64().is_nan()));
    untouched(case.want_loss, got_loss[0].to_f64().is_nan());
    (0..K).for_each(|k| untouched(case.wanted[k], got[k].iter().all(|x| x.to_f64().is_nan())));
}

/// Checks random calls, each on a device of its own; returns how many.
pub fn run_many<T: Element, L: Launched<K>, const K: usize>(detect: bool, count: usize, most: usize) -> usize {
    let start = std::time::Instant::now();
    let mut tally = Tally::default();
    let seed = size_of::<T>() as u64 + u64::from(detect) * 77 + T::NAME.len() as u64;
    let mut random = Random(seed ^ cases::seed().unwrap_or(0));
    for i in 0..cases::count(count as u32) as usize {
        let mut emulator = Emulator::new(Options { detect, seed: (i % 5) as u64, os_threads: 1 + i % 2 });
        emulator.properties_mut().multiprocessors = random.pick(&[1, 2]);
        emulator.properties_mut().threads_per_multiprocessor = random.pick(&[256, 512]);
        run(&emulator, &call::<T, L, K>(&mut random, most), &mut tally);
    }
    let count = |access| tally.accesses.iter().filter(|a| **a == access).count();
    println!(
        "emulator, {} {}, detector {}: {} cases, {} numbers, worst error / bound {:.3}, {:.1} s; \
         l16 {} l32 {} l32x4 {} vector {} scalar {}",
        L::STEM,
        T::NAME,
        if detect { "on" } else { "off" },
        tally.cases,
        tally.numbers,
        tally.worst,
        start.elapsed().as_secs_f64(),
        count(RowAccess::L16),
        count(RowAccess::L32),
        count(RowAccess::L32x4),
        count(RowAccess::Vector),
        count(RowAccess::Scalar),
    );
    let accesses: &[RowAccess] = match size_of::<T>() {
        8 => &[RowAccess::Vector, RowAccess::Scalar],
        _ => &[RowAccess::L16, RowAccess::L32, RowAccess::L32x4, RowAccess::Vector, RowAccess::Scalar],
    };
    assert!(detect || accesses.iter().all(|&access| count(access) > 0), "a kernel was never chosen");
    tally.cases
}

/// Random calls of every dtype with the detector on; a report is an error of the launch, and fails the test.
pub fn nothing_to_report<L: Launched<K>, const K: usize>(count: usize) {
    let launches = run_many::<f32, L, K>(true, count, 2000)
        + run_many::<f64, L, K>(true, count, 2000)
        + run_many::<f16, L, K>(true, count, 2000)
        + run_many::<bf16, L, K>(true, count, 2000);
    println!("emulator, {}: {launches} launches with the detector, no report", L::STEM);
}
