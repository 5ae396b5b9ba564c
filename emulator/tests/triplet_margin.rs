//! `triplet_margin`'s kernels, run by the emulator through the crate's own launch plans, against the f64 oracle: the
//! property test that every backend takes, and launches that no other backend can vary so: strides and alignments of
//! their own, outputs that are not wanted, devices of several sizes, rows that hold NaN.

use std::cell::Cell;

use half::{bf16, f16};
use tercet::cuda::{Address, Launcher, Memory};
use tercet::triplet_margin::cuda::{Pass, Shape};
use tercet::triplet_margin::reference::{self, Reference};
use tercet::{Distance, Element, Matrix, Reduction, TripletMarginLoss};
use tercet_emulator::{Buffer, Emulator, Options};

mod bounds;
#[path = "../../tests/support/triplet_margin_property.rs"]
mod property;
#[path = "../../tests/support/triplet_margin_records.rs"]
mod records;
#[path = "../../tests/support/mod.rs"]
mod support;

use property::{Backend, Output, property};

trait BackendElement {}
impl<T> BackendElement for T {}

/// With the detector or without.
#[derive(Default)]
struct Emulated<const DETECT: bool> {
    launches: Cell<u64>,
}

impl<const DETECT: bool> Backend for Emulated<DETECT> {
    const NAME: &'static str = if DETECT { "the emulator with its detector" } else { "the emulator" };
    fn run<T: Element + BackendElement>(&self, case: &property::Case, data: &property::Data<T>) -> Output<T>
    where
        T::Scalar: BackendElement,
    {
        let property::Case { rows, dim, gap, offset, seed, .. } = *case;
        let emulator = Emulator::new(Options { detect: DETECT, seed: seed % 4, os_threads: 1 });
        let inputs = data.laid_out.each_ref().map(|x| emulator.upload(x));
        let per_row = case.loss.reduction == Reduction::None;
        let pass = Pass {
            inputs: inputs.each_ref().map(|x| x.address() + (offset * size_of::<T>()) as Address),
            strides: [dim + gap; 3],
            upstream_per_row: per_row,
            ..Pass::default()
        };
        // Fresh memory is NaN.
        let memory = |bytes: usize| emulator.allocate(bytes).expect("memory");
        let outputs = || [(); 3].map(|()| memory(rows * dim * size_of::<T>()));
        let launch = |loss: &TripletMarginLoss, pass: Pass| {
            // SAFETY: buffers of the emulator, of the sizes that `pass` says.
            unsafe { loss.run_on::<T, _>(&emulator, [rows, dim], &pass) }.unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        };

        let losses = memory(rows * size_of::<T::Scalar>());
        let each = TripletMarginLoss { reduction: Reduction::None, ..case.loss };
        launch(&each, Pass { losses: losses.address(), ..pass });
        let (loss, grads) = (memory(size_of::<T::Scalar>()), outputs());
        if !per_row {
            launch(&case.loss, Pass { loss: loss.address(), grads: grads.each_ref().map(Memory::address), ..pass });
        }
        let upstream = scalars::<T>(&emulator, &data.upstream);
        let scaled = outputs();
        let grads_of = scaled.each_ref().map(Memory::address);
        launch(&case.loss, Pass { upstream: upstream.address(), grads: grads_of, ..pass });
        self.launches.set(self.launches.get() + emulator.launches());
        Output {
            losses: losses.read(),
            loss: (!per_row).then(|| loss.read()[0]),
            grads: (!per_row).then(|| grads.each_ref().map(Buffer::read)),
            scaled_grads: scaled.each_ref().map(Buffer::read),
        }
    }
}

/// `TERCET_EMULATOR_CASES` multiplies the number of cases.
fn times() -> usize {
    std::env::var("TERCET_EMULATOR_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn shared_property<const DETECT: bool>(count: u32) {
    let start = std::time::Instant::now();
    let backend = Emulated::<DETECT>::default();
    property(&backend, count * times() as u32);
    let (name, seconds) = (Emulated::<DETECT>::NAME, start.elapsed().as_secs_f64());
    println!("triplet_margin on {name}: {} launches, {seconds:.1} s", backend.launches.get());
}

#[test]
fn the_emulator_agrees_with_the_oracle() {
    shared_property::<false>(250);
}
#[test]
fn the_detector_agrees_with_the_oracle() {
    shared_property::<true>(60);
}

#[test]
fn the_emulator_computes_what_it_did() {
    let file = support::package().join("../tests/data/triplet_margin-emulator.json");
    records::unchanged(&Emulated::<false>::default(), &file);
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ self.0 >> 33;
        (x.wrapping_mul(0xff51_afd7_ed55_8ccd)) >> 11
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize]
    }
    fn chance(&mut self, one_in: u64) -> bool {
        self.next().is_multiple_of(one_in)
    }
    /// In -1..1.
    fn number(&mut self) -> f64 {
        self.next() as f64 / (1u64 << 52) as f64 - 1.0
    }
}

const DIMS: [usize; 22] = [1, 2, 3, 4, 5, 7, 9, 15, 17, 31, 33, 36, 63, 65, 68, 127, 129, 132, 255, 257, 513, 516];
/// Whole 16-byte vectors in every dtype, at the limits of the shapes that hold rows in registers.
const ALIGNED: [usize; 14] = [8, 16, 24, 32, 40, 64, 72, 128, 136, 256, 264, 512, 520, 1032];
const ROWS: [usize; 12] = [1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 65, 97];

/// One random call: options, inputs and what is asked for.
struct Case<T> {
    loss: TripletMarginLoss,
    shape: [usize; 2],
    data: [Vec<T>; 3],
    strides: [usize; 3],
    /// Elements before the first row: 0 keeps the alignment.
    offsets: [usize; 3],
    upstream: Option<Vec<f64>>,
    wanted: [bool; 3],
    want_losses: bool,
    want_loss: bool,
    idle_if_one: bool,
    /// Rows that hold a NaN or an infinity.
    broken: Vec<usize>,
}

fn case<T: Element>(random: &mut Random, most: usize) -> Case<T> {
    let aligned = random.chance(2);
    let dim = if aligned { random.pick(&ALIGNED) } else { random.pick(&DIMS) };
    let mut rows = random.pick(&ROWS);
    while rows > 1 && rows * dim > most {
        rows /= 2;
    }
    let distance = match random.next() % 8 {
        0 | 1 => Distance::SquaredEuclidean,
        2 => Distance::Euclidean,
        3 | 4 => Distance::Cosine,
        _ => Distance::Lp { p: random.pick(&[1.0, 2.0, 3.0, f64::INFINITY]), eps: random.pick(&[0.0, 1e-6]) },
    };
    let loss = TripletMarginLoss {
        margin: random.pick(&[0.0, 0.2, 1.0]),
        distance,
        normalize: random.chance(3),
        swap: random.chance(2),
        reduction: random.pick(&[Reduction::None, Reduction::Mean, Reduction::Sum]),
    };
    let strides = [0; 3].map(|_| dim + random.pick(if aligned { &[0, 8, 16] } else { &[0, 0, 1] }));
    let offsets = [0; 3].map(|_| if random.chance(12) { 1 } else { 0 });
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
    let mut data = [0, 1, 2].map(|k| draw(offsets[k] + (rows - 1) * strides[k] + dim));
    let row = |k: usize, b: usize| offsets[k] + b * strides[k]..offsets[k] + b * strides[k] + dim;
    let mut broken = Vec::new();
    for b in 0..rows {
        if random.chance(8) {
            // Coincident points.
            let (from, to) = random.pick(&[(0, 1), (0, 2), (1, 2)]);
            let copy = data[from][row(from, b)].to_vec();
            data[to][row(to, b)].copy_from_slice(&copy);
        }
        if random.chance(12) {
            let k = random.pick(&[0, 1, 2]);
            data[k][row(k, b)].fill(T::default());
        }
        if random.chance(20) {
            let k = random.pick(&[0, 1, 2]);
            let at = row(k, b).start + (random.next() % dim as u64) as usize;
            data[k][at] = T::from_f64(random.pick(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]));
            broken.push(b);
        }
    }
    let per_row = loss.reduction == Reduction::None;
    let mut upstream = (!random.chance(3)).then(|| {
        let n = if per_row { rows } else { 1 };
        (0..n).map(|_| f64::from(random.number() as f32)).collect::<Vec<_>>()
    });
    let idle_if_one = upstream.is_some() && !per_row && random.chance(3);
    if let (true, Some(upstream)) = (idle_if_one && random.chance(2), &mut upstream) {
        upstream[0] = 1.0;
    }
    Case {
        loss,
        shape: [rows, dim],
        data,
        strides,
        offsets,
        upstream,
        wanted: [0; 3].map(|_| !random.chance(4)),
        want_losses: random.chance(2),
        want_loss: random.chance(2),
        idle_if_one,
        broken,
    }
}

/// What was checked, and the worst of it.
#[derive(Default)]
struct Tally {
    cases: usize,
    numbers: usize,
    worst: f64,
    shapes: Vec<Shape>,
}

impl Tally {
    fn check(&mut self, what: &str, case: impl std::fmt::Debug, got: f64, expected: f64, bound: f64) {
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

fn run<T: Element>(emulator: &Emulator, case: &Case<T>, tally: &mut Tally) {
    let [rows, dim] = case.shape;
    let inputs = [0, 1, 2].map(|k| emulator.upload(&case.data[k]));
    let size = size_of::<T>();
    let poison = |n: usize| emulator.allocate(n).expect("memory");
    let grads = [0; 3].map(|_| poison(rows * dim * size));
    let (losses, loss) = (poison(rows * size_of::<T::Scalar>()), poison(size_of::<T::Scalar>()));
    let upstream = case.upstream.as_ref().map(|u| scalars::<T>(emulator, u));
    let pass = Pass {
        inputs: [0, 1, 2].map(|k| inputs[k].address() + (case.offsets[k] * size) as Address),
        strides: case.strides,
        upstream: upstream.as_ref().map_or(0, Memory::address),
        upstream_per_row: case.loss.reduction == Reduction::None,
        idle_if_one: case.idle_if_one,
        losses: address_if(case.want_losses, &losses),
        loss: address_if(case.want_loss, &loss),
        grads: [0, 1, 2].map(|k| address_if(case.wanted[k], &grads[k])),
    };
    let plan = case.loss.plan_on::<T>(emulator.properties(), case.shape, &pass).expect("valid options");
    let about = (case.loss, case.shape, case.strides, case.offsets, plan.clone(), &case.upstream);
    tally.shapes.push(plan.shape);
    // SAFETY: buffers of the emulator, of the shapes that `pass` says.
    unsafe { case.loss.run_on::<T, _>(emulator, case.shape, &pass) }.unwrap_or_else(|e| panic!("{e}\n{about:?}"));
    tally.cases += 1;

    let exact: [Vec<f64>; 3] = [0, 1, 2].map(|k| case.data[k][case.offsets[k]..].iter().map(|x| x.to_f64()).collect());
    let view = [0, 1, 2].map(|k| Matrix::strided(&exact[k], rows, dim, case.strides[k]).expect("fits"));
    let weights = case.upstream.clone().unwrap_or_else(|| vec![1.0]);
    let oracle: Reference = reference::run(&case.loss, view, &weights).expect("valid options");
    let got_losses: Vec<T::Scalar> = losses.read();
    let got_loss: Vec<T::Scalar> = loss.read();
    let got: [Vec<T>; 3] = [0, 1, 2].map(|k| grads[k].read());

    if case.idle_if_one && weights[0] == 1.0 {
        let idle = got.iter().flatten().all(|x| x.to_f64().is_nan()) && got_loss[0].to_f64().is_nan();
        assert!(idle && got_losses.iter().all(|x| x.to_f64().is_nan()), "idle_if_one wrote\n{about:?}");
        return;
    }
    for &b in &case.broken {
        assert!(oracle.losses[b].is_nan(), "the oracle's row {b} holds a NaN or an infinity\n{about:?}");
    }
    let mean = if case.loss.reduction == Reduction::Mean { 1.0 / rows as f64 } else { 1.0 };
    // The sum over rows is one in f64, the oracle's as well, in some order; then the mean and the conversion.
    let mut loss_bound = 2.0 * (bounds::unit::<T::Scalar>() + rows as f64 * bounds::unit::<f64>()) * oracle.loss.abs();
    for b in 0..rows {
        let weight = mean * weights[if weights.len() == 1 { 0 } else { b }];
        let bound = bounds::row::<T>(&case.loss, view.map(|m| m.row(b)), weight);
        loss_bound += mean * bound.loss;
        if case.want_losses {
            tally.check("loss of a row", (b, &about), got_losses[b].to_f64(), oracle.losses[b], bound.loss);
        }
        // Rounding decides whether the row is active, or which pair is the negative one.
        let close = |x: f64, bound: f64| x.is_finite() && x.abs() <= bound;
        let ambiguous = oracle.losses[b].is_finite()
            && (close(oracle.arguments[b], bound.loss) || close(oracle.swap_gaps[b], bound.swap));
        for k in (0..3).filter(|&k| case.wanted[k]) {
            for d in 0..dim {
                let i = b * dim + d;
                let (got, expected) = (got[k][i].to_f64(), oracle.grads[k][i]);
                if ambiguous {
                    assert!(!got.is_nan(), "gradient {k} of row {b} is {got}\n{about:?}");
                } else {
                    let bound = bound.grads[k][d] + bounds::rounding::<T>(expected);
                    // Gradients of rows of zeros are divided by 1e-12, beyond f16: then the infinity is right.
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
    (0..3).for_each(|k| untouched(case.wanted[k], got[k].iter().all(|x| x.to_f64().is_nan())));
}

fn run_many<T: Element>(detect: bool, count: usize, most: usize) -> usize {
    let start = std::time::Instant::now();
    let mut tally = Tally::default();
    let mut random = Random(size_of::<T>() as u64 + u64::from(detect) * 77 + T::NAME.len() as u64);
    for i in 0..count * times() {
        let mut emulator = Emulator::new(Options { detect, seed: (i % 5) as u64, os_threads: 1 + i % 2 });
        emulator.properties_mut().multiprocessors = random.pick(&[1, 2]);
        emulator.properties_mut().threads_per_multiprocessor = random.pick(&[256, 512]);
        run(&emulator, &case::<T>(&mut random, most), &mut tally);
    }
    let count = |shape| tally.shapes.iter().filter(|s| **s == shape).count();
    println!(
        "emulator, triplet_margin {}, detector {}: {} cases, {} numbers, worst error / bound {:.3}, {:.1} s; \
         l8 {} l32 {} l32x4 {} vector {} scalar {}",
        T::NAME,
        if detect { "on" } else { "off" },
        tally.cases,
        tally.numbers,
        tally.worst,
        start.elapsed().as_secs_f64(),
        count(Shape::L8),
        count(Shape::L32),
        count(Shape::L32x4),
        count(Shape::Vector),
        count(Shape::Scalar),
    );
    let shapes: &[Shape] = match size_of::<T>() {
        8 => &[Shape::Vector, Shape::Scalar],
        _ => &[Shape::L8, Shape::L32, Shape::L32x4, Shape::Vector, Shape::Scalar],
    };
    assert!(detect || shapes.iter().all(|&shape| count(shape) > 0), "a kernel was never chosen");
    tally.cases
}

#[test]
fn f32_meets_the_oracle() {
    run_many::<f32>(false, 250, 8000);
}
#[test]
fn f64_meets_the_oracle() {
    run_many::<f64>(false, 250, 8000);
}
#[test]
fn f16_meets_the_oracle() {
    run_many::<f16>(false, 250, 8000);
}
#[test]
fn bf16_meets_the_oracle() {
    run_many::<bf16>(false, 250, 8000);
}
#[test]
fn the_detector_has_nothing_to_report() {
    // A report is an error of the launch, and fails.
    let launches = run_many::<f32>(true, 250, 2000)
        + run_many::<f64>(true, 250, 2000)
        + run_many::<f16>(true, 250, 2000)
        + run_many::<bf16>(true, 250, 2000);
    println!("emulator, triplet_margin: {launches} launches with the detector, no report");
}
