//! The inputs of the probes in `emulator/tests/kernels/conformance.cu`, what must come out by definition, and the
//! record of what a device answered. The same probes run on the emulator and on a device.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::support::records::slug;
use crate::support::{self, Numbers};

/// One number of a kernel's output, as it is defined.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    Bits(u32),
    /// The bits of this f32; any NaN if it is NaN.
    F32(f32),
    F16(f16),
    Bf16(bf16),
    /// Two words, the low one first: the bits of this f64; any NaN if it is NaN.
    F64(f64),
    /// An f32 that differs from the first number by at most the second; zeros may differ in sign.
    Near32(f64, f64),
    /// An f64 that differs from the first number by at most the second; zeros may differ in sign.
    Near64(f64, f64),
    /// A word that no definition pins down.
    Any32,
    Any64,
}
use Expected::*;

impl Expected {
    fn words(self) -> usize {
        if matches!(self, F64(_) | Near64(..) | Any64) { 2 } else { 1 }
    }

    /// Whether the bits `got` are right.
    fn admits(self, got: u64) -> bool {
        let near = |got: f64, exact: f64, bound: f64| {
            got == exact || got.is_nan() && exact.is_nan() || (got - exact).abs() <= bound
        };
        let (f32_got, f64_got) = (f32::from_bits(got as u32), f64::from_bits(got));
        match self {
            Bits(x) => got == u64::from(x),
            F32(x) => got == u64::from(x.to_bits()) || x.is_nan() && f32_got.is_nan(),
            F16(x) => got == u64::from(x.to_bits()) || x.is_nan() && f16::from_bits(got as u16).is_nan(),
            Bf16(x) => got == u64::from(x.to_bits()) || x.is_nan() && bf16::from_bits(got as u16).is_nan(),
            F64(x) => got == x.to_bits() || x.is_nan() && f64_got.is_nan(),
            Near32(exact, bound) => near(f32_got.into(), exact, bound),
            Near64(exact, bound) => near(f64_got, exact, bound),
            Any32 | Any64 => true,
        }
    }

    /// The same kind of expectation, for the bits that a device answered.
    fn recorded(self, bits: u64) -> Self {
        let (f32_bits, f64_bits) = (f32::from_bits(bits as u32), f64::from_bits(bits));
        match self {
            Bits(_) => Bits(bits as u32),
            F32(_) => F32(f32_bits),
            F16(_) => F16(f16::from_bits(bits as u16)),
            Bf16(_) => Bf16(bf16::from_bits(bits as u16)),
            F64(_) => F64(f64_bits),
            Near32(_, bound) => Near32(f32_bits.into(), bound),
            Near64(_, bound) => Near64(f64_bits, bound),
            Any32 | Any64 => self,
        }
    }
}

/// One launch of a probe kernel.
pub struct Probe {
    pub name: String,
    pub kernel: &'static str,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    pub input: Vec<u32>,
    /// What the output holds before the launch.
    pub initial: Vec<u32>,
    pub expected: Vec<Expected>,
}

/// The initial content of memory that a kernel need not write.
const POISON: u32 = u32::MAX;

impl Probe {
    fn new(kernel: &'static str, [blocks, threads]: [u32; 2], input: Vec<u32>, expected: Vec<Expected>) -> Self {
        let words = expected.iter().map(|e| e.words()).sum();
        let (name, initial) = (kernel.into(), vec![POISON; words]);
        Self { name, kernel, blocks, threads, shared_bytes: 0, input, initial, expected }
    }

    /// Whether `got` is what the definition says.
    pub fn check(&self, got: &[u32]) -> Result<(), String> {
        self.compare(got, None)
    }

    /// Whether `got` is what a device answered: the same bits, except where the definition has a bound.
    pub fn check_record(&self, got: &[u32], record: &[u32]) -> Result<(), String> {
        if record.len() != self.initial.len() {
            return Err(format!("{}: the record has {} words, not {}", self.name, record.len(), self.initial.len()));
        }
        self.compare(got, Some(record))
    }

    fn compare(&self, got: &[u32], record: Option<&[u32]>) -> Result<(), String> {
        assert_eq!(got.len(), self.initial.len(), "{}", self.name);
        let number = |words: &[u32], at: usize, of: usize| {
            u64::from(words[at]) | if of == 2 { u64::from(words[at + 1]) << 32 } else { 0 }
        };
        let mut at = 0;
        for expected in &self.expected {
            let words = expected.words();
            let expected = record.map_or(*expected, |record| expected.recorded(number(record, at, words)));
            let bits = number(got, at, words);
            if !expected.admits(bits) {
                let of = if record.is_some() { " recorded" } else { "" };
                let as_float = if words == 2 { f64::from_bits(bits) } else { f32::from_bits(bits as u32).into() };
                return Err(format!(
                    "{}: word {at} is {bits:#x} ({as_float:e}), expected{of} {expected:x?}",
                    self.name
                ));
            }
            at += words;
        }
        Ok(())
    }

    /// A hash of the input and of the initial output, to which a record belongs.
    fn digest(&self) -> String {
        let fnv = |hash: u64, x: &u32| (hash ^ u64::from(*x)).wrapping_mul(0x0000_0100_0000_01b3);
        format!("{:016x}", self.input.iter().chain(&self.initial).fold(0xcbf2_9ce4_8422_2325, fnv))
    }
}

// ---- records ----

/// The folder that records lie in.
pub fn records() -> PathBuf {
    support::data("")
}

/// Writes what `device` answered to the probes into a file in `folder`.
pub fn write_record(folder: &Path, device: &str, capability: &str, answers: &[(&Probe, Vec<u32>)]) -> PathBuf {
    let mut probes = Map::new();
    for (probe, out) in answers {
        let hex = out.iter().fold(String::new(), |mut hex, word| {
            let _ = write!(hex, "{word:08x}");
            hex
        });
        probes.insert(probe.name.clone(), json!({ "input": probe.digest(), "out": hex }));
    }
    let name = slug(device);
    std::fs::create_dir_all(folder).unwrap();
    let file = folder.join(format!("conformance-{name}.json"));
    let record = json!({ "device": device, "capability": capability, "probes": probes });
    std::fs::write(&file, format!("{record:#}\n")).unwrap();
    file
}

/// All records in `folder`: the device, and its answer to each probe.
pub fn read_records(folder: &Path) -> Vec<(String, Value)> {
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let files = files.map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|p| p.file_name().is_some_and(|name| name.to_string_lossy().starts_with("conformance-")))
        .collect();
    files.sort();
    let parse = |file: &PathBuf| serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    files.iter().map(|file| (file.display().to_string(), parse(file))).collect()
}

/// The answer to a probe in `record`; `None`: the device was not asked.
pub fn answer(record: &Value, probe: &Probe) -> Option<Result<Vec<u32>, String>> {
    let entry = &record["probes"][&probe.name];
    entry["out"].as_str().map(|out| read_answer(entry, out, probe))
}

fn read_answer(entry: &Value, out: &str, probe: &Probe) -> Result<Vec<u32>, String> {
    if entry["input"] != probe.digest() {
        return Err(format!("{}: the record belongs to another input", probe.name));
    }
    let word = |at: usize| u32::from_str_radix(out.get(at..at + 8).unwrap_or("a short record"), 16);
    (0..out.len()).step_by(8).map(|at| word(at).map_err(|e| format!("{}: {e}", probe.name))).collect()
}

// ---- probes ----

/// All probes. The last one is at which a device might fault.
pub fn all() -> Vec<Probe> {
    let mut probes = vec![shuffles(), votes(), conversions(), arithmetic(), arithmetic_f64(), single_instructions()];
    probes.extend([reciprocals(), atomics(), named_barriers(), copies(), few_copies(), matrices(), dynamic_shared()]);
    probes.extend(products());
    probes.push(copies_from_nowhere());
    probes
}

fn bytes(seed: u64, count: usize) -> Vec<u32> {
    let mut numbers = Numbers(seed);
    (0..count).map(|_| numbers.below(256) as u32).collect()
}

fn words(seed: u64, count: usize) -> Vec<u32> {
    let mut numbers = Numbers(seed);
    (0..count).map(|_| numbers.next() as u32).collect()
}

fn shuffles() -> Probe {
    let x = bytes(1, 32);
    let mut expected = Vec::new();
    for lane in 0..32 {
        let down = if lane < 31 { lane + 1 } else { lane };
        let up = if lane > 0 { lane - 1 } else { lane };
        expected.extend([
            Bits(x[5]),
            Bits(x[37 % 32]),
            Bits(x[x[lane] as usize % 32]),
            Bits(x[lane ^ 3]),
            Bits(x[lane ^ 16]),
            Bits(x[if lane + 4 < 32 { lane + 4 } else { lane }]),
            Bits(x[if lane >= 4 { lane - 4 } else { lane }]),
            Bits(x[lane ^ 1]),
            F64(f64::from(x[down]) + 0.25),
            F32(x[up] as f32 + 0.5),
            Bits(x[lane ^ 7]),
        ]);
        if lane < 24 {
            let first = if lane < 8 { 7 } else { 8 };
            expected.extend([Bits(x[..24].iter().sum()), Bits(x[first]), Bits(x[lane]), Bits(POISON)]);
        } else {
            expected.extend([Bits(POISON); 4]);
        }
    }
    Probe::new("shuffles", [1, 32], x, expected)
}

fn votes() -> Probe {
    let x = bytes(2, 32);
    let mut expected = Vec::new();
    for lane in 0..32usize {
        let parts: [&dyn Fn(usize) -> bool; 3] = [&|_| true, &|l| l / 16 == lane / 16, &|l| l % 3 == lane % 3];
        for part in parts {
            let lanes: Vec<usize> = (0..32).filter(|&l| part(l)).collect();
            let mask = |test: &dyn Fn(u32) -> bool| lanes.iter().map(|&l| u32::from(test(x[l])) << l).sum::<u32>();
            let all = || lanes.iter().map(|&l| x[l]);
            expected.extend(
                [
                    mask(&|y| y % 2 == 1),
                    all().all(|y| y % 64 != 63).into(),
                    all().any(|y| y % 64 == 63).into(),
                    mask(&|y| y % 4 == x[lane] % 4),
                    all().fold(0, |sum, y| sum.wrapping_add(y.wrapping_mul(0x0100_0193))),
                    all().min().unwrap(),
                    all().max().unwrap(),
                    all().fold(0, |a, b| a | b),
                    all().fold(u32::MAX, |a, b| a & (b | 64)),
                    mask(&|y| y == x[lane]),
                ]
                .map(Bits),
            );
        }
        expected.extend([Bits(POISON); 2]);
    }
    Probe::new("votes", [1, 32], x, expected)
}

/// The conversions of each of these words, a multiple of 256 of them.
pub fn conversions_of(input: Vec<u32>) -> Probe {
    let mut expected = Vec::new();
    for &word in &input {
        let (low, x) = (word as u16, f32::from_bits(word));
        expected.extend([
            F32(f16::from_bits(low).to_f32()),
            F32(bf16::from_bits(low).to_f32()),
            F16(f16::from_f32(x)),
            Bf16(bf16::from_f32(x)),
        ]);
    }
    Probe::new("conversions", [input.len() as u32 / 256, 256], input, expected)
}

/// Every exponent of f16, ties and their neighbours, to even and to odd; subnormals, overflow and NaN of both types.
fn conversions() -> Probe {
    let mut input = Vec::new();
    for exponent in 0..32u16 {
        for fraction in [0, 1, 2, 1022, 1023] {
            let x = f16::from_bits(exponent << 10 | fraction);
            let next = f16::from_bits((exponent << 10 | fraction) + 1);
            let tie = (x.to_f32() + next.to_f32()) / 2.0;
            let sign = u32::from(fraction % 2) << 31;
            input.extend([-1, 0, 1].map(|i| tie.to_bits().wrapping_add_signed(i) | sign));
        }
    }
    for high in [0, 1, 0x7f, 0x80, 0x3f80, 0x3f81, 0x7f7e, 0x7f7f, 0xff7f, 0x8000, 0x8001, 0x7f80, 0x7fc0] {
        input.extend([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
    }
    // Words whose low half is converted as a 16-bit float: further special patterns.
    for pattern in [0, 1, 0x3ff, 0x400, 0x7bff, 0x7c00, 0x7e00, 0x7f80, 0x7fc0, 0x8001, 0xfbff, 0xfc00, 0xff80, 0xff7f]
    {
        input.push(0x3f80_0000 | pattern);
    }
    input.extend(words(3, input.len().next_multiple_of(256) - input.len()));
    conversions_of(input)
}

/// Triples, in turn of special numbers, at which arithmetic is delicate, and of any bits.
fn triples<F: Copy>(special: &[F], count: usize, any: impl Fn(u64) -> F) -> Vec<[F; 3]> {
    let mut numbers = Numbers(4);
    let mut triple = |i: usize| {
        [(); 3].map(|()| if i.is_multiple_of(2) { special[numbers.below(special.len())] } else { any(numbers.next()) })
    };
    (0..count).map(&mut triple).collect()
}

/// As fmin and fmax do, drops NaN; zeros of either sign are equal.
fn drops_nan(a: f64, b: f64, pick: impl Fn(f64, f64) -> f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else {
        pick(a, b)
    }
}

fn arithmetic() -> Probe {
    let tiny = f32::from_bits(1);
    let special = [0.0, -0.0, 1.0, -1.0, 3.0, 1.0 / 3.0, 1.0 + f32::EPSILON, -1.0 - f32::EPSILON, tiny, -3.0 * tiny];
    let special =
        [&special[..], &[f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e20, 2.5]].concat();
    let triples = triples(&special, 256, |bits| {
        let x = f32::from_bits(bits as u32);
        if x.is_nan() { f32::NAN } else { x }
    });
    let mut expected = Vec::new();
    for &[a, b, c] in &triples {
        let power = f64::from(a.abs()).powf(b.into());
        // CUDA promises 4 units in the last place.
        let in_range = (1e-37..1e38).contains(&power);
        let power = if in_range { Near32(power, power * 4.0 * f64::from(f32::EPSILON)) } else { Any32 };
        expected.extend([
            F32(a.mul_add(b, c)),
            F32(a / b),
            F32(a.sqrt()),
            Near32(drops_nan(a.into(), b.into(), f64::min), 0.0),
            Near32(drops_nan(a.into(), b.into(), f64::max), 0.0),
            F32(a + b),
            F32(a * b),
            power,
            F32(a * b + c),
        ]);
    }
    let input = triples.as_flattened().iter().map(|x| x.to_bits()).collect();
    Probe::new("arithmetic", [4, 64], input, expected)
}

fn arithmetic_f64() -> Probe {
    let tiny = f64::from_bits(1);
    let special =
        [0.0, -0.0, 1.0, -1.0, 3.0, 1.0 / 3.0, 1.0 + f64::EPSILON, tiny, f64::MIN_POSITIVE, f64::MAX, 0.5, 700.0];
    let special =
        [&special[..], &[f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-40, -0.7, 1e20, 2.5, 16777217.0]].concat();
    let triples = triples(&special, 128, |bits| {
        let x = f64::from_bits(bits);
        if x.is_nan() { f64::NAN } else { x }
    });
    // CUDA promises one unit in the last place, as the host's library does here.
    let near = |x: f64| if x.is_normal() { Near64(x, 2.0 * f64::EPSILON * x.abs()) } else { Any64 };
    let mut expected = Vec::new();
    for &[a, b, c] in &triples {
        expected.extend([
            F64(a.mul_add(b, c)),
            F64(a / b),
            F64(a.sqrt()),
            Near64(drops_nan(a, b, f64::min), 0.0),
            Near64(drops_nan(a, b, f64::max), 0.0),
            near(a.exp()),
            near(a.ln()),
            F32(a as f32),
            Bits(POISON),
            F64(a * b + c),
        ]);
    }
    let input = triples.as_flattened().iter().flat_map(|x| [x.to_bits() as u32, (x.to_bits() >> 32) as u32]).collect();
    Probe::new("arithmetic_f64", [2, 64], input, expected)
}

fn single_instructions() -> Probe {
    // Two f16 in one word, f32 near to each other and of either sign, ties of rounding, and NaN.
    let special = [
        0u32,
        0x8000_0000,
        0x3f80_0000,
        0x3f80_0001,
        0xbf80_0000,
        0x3c00_3c01,
        0x0001_7bff,
        0x8001_fbff,
        0x7c00_0400,
        0x7e00_3555,
        0x3555_7e00,
        0x0000_0001,
        0x8000_0001,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x477f_f000,
        0x477f_efff,
        0x3380_0000,
        0x3380_0001,
        0xffff_ffff,
    ];
    let triples = triples(&special, 512, |bits| bits as u32);
    let mut expected = Vec::new();
    for &[x, y, z] in &triples {
        let halves = |word: u32| [word as u16, (word >> 16) as u16].map(|half| f16::from_bits(half).to_f32());
        let ([x0, x1], [y0, y1], [z0, z1]) = (halves(x), halves(y), halves(z));
        let (a, b) = (f32::from_bits(x), f32::from_bits(y));
        expected.extend([
            // A product of two f16 is exact in f32, and is rounded once.
            F16(f16::from_f32(x0 * y0)),
            F16(f16::from_f32(x1 * y1)),
            F16(f16::from_f32(a)),
            F16(f16::from_f32(b)),
            F32(z0),
            F32(z1),
            F32(if a < b { 1.0 } else { 0.0 }),
            Bits([x, y, z].map(|word| word as i32).into_iter().min().unwrap() as u32),
            Bits(x.wrapping_add(y).min(z)),
        ]);
    }
    Probe::new("single_instructions", [8, 64], triples.as_flattened().to_vec(), expected)
}

fn reciprocals() -> Probe {
    let mut numbers = Numbers(11);
    let mut input = Vec::new();
    for exponent in 2..253u32 {
        let sign = (exponent % 2) << 31;
        input
            .extend([0, 0x7f_ffff, numbers.next() as u32 & 0x7f_ffff].map(|fraction| sign | exponent << 23 | fraction));
    }
    input.extend((input.len()..768).map(|_| 0x3f80_0000 | numbers.next() as u32 & 0x7f_ffff));
    let mut expected = Vec::new();
    for &word in &input {
        let x = f64::from(f32::from_bits(word));
        let near = |exact: f64| Near32(exact, exact.abs() * 2f64.powi(-22));
        expected.extend([near(1.0 / x.abs().sqrt()), near(1.0 / x)]);
    }
    Probe::new("reciprocals", [12, 64], input, expected)
}

fn atomics() -> Probe {
    let input = bytes(5, 32);
    let of_block: Vec<u32> = (0..64).map(|i| input[i % 32] + i as u32).collect();
    let (least, most) = (*of_block.iter().min().unwrap(), *of_block.iter().max().unwrap());
    let sum: u32 = of_block.iter().sum();
    let key = |i: usize| u64::from(of_block[i]) << 32 | i as u64;
    let signed = |x: u32| x as i32 - 200;
    let mut initial = vec![0; 52];
    (initial[1], initial[4], initial[17]) = (u32::MAX, u32::MAX, i32::MAX as u32);
    initial[18] = i32::MIN as u32;
    initial[20] = 13;
    initial[32..34].fill(u32::MAX);
    initial[40..42].fill(u32::MAX);
    (initial[46], initial[47]) = (21, 22);
    let mut out = initial.clone();
    out[..8].copy_from_slice(&[2 * sum, least, most, u32::MAX, 0, 128, 128, 128]);
    out[8..16].fill(u32::MAX);
    out[16] = (2 * (sum as i32 - 64 * 200)) as u32;
    (out[17], out[18]) = (signed(least) as u32, signed(most) as u32);
    (out[19], out[20]) = (13, 77);
    let wide = [
        (0..64).map(key).min().unwrap(),
        (0..64).map(key).max().unwrap(),
        2 * (u64::from(sum) << 20),
        u64::MAX,
        0,
        128 << 33,
        22 << 32 | 21,
        5 << 32 | 6,
    ];
    for (i, x) in wide.into_iter().enumerate() {
        (out[32 + i * 2], out[33 + i * 2]) = (x as u32, (x >> 32) as u32);
    }
    out[48..].copy_from_slice(&[sum, most, sum, most]);
    let probe = Probe::new("atomics", [2, 64], input, out.into_iter().map(Bits).collect());
    Probe { initial, ..probe }
}

fn named_barriers() -> Probe {
    let input = bytes(6, 128);
    let mut expected = Vec::new();
    for i in 0..128 {
        let other = input[i / 64 * 64 + (i + 33) % 64];
        expected.extend((0..4).map(|round| Bits(if round < 3 + i as u32 / 64 { other + round } else { POISON })));
    }
    Probe::new("named_barriers", [1, 128], input, expected)
}

fn copies() -> Probe {
    let input = words(7, 256);
    let row = |group: usize, lane: usize| {
        let from = &input[group * 128 + lane * 4..][..4];
        if from[0] >> 31 == 0 { [from[0], from[1], from[2], from[3]] } else { [0; 4] }
    };
    let expected = (0..32).flat_map(|lane| [row(0, lane ^ 1), row(1, lane ^ 1)]).flatten().map(Bits).collect();
    Probe::new("copies", [1, 32], input, expected)
}

fn few_copies() -> Probe {
    const UNTOUCHED: u32 = 0xabab_abab;
    let input = words(12, 256);
    let expected = (0..32).flat_map(|lane| {
        let row = |at: usize| <[u32; 4]>::try_from(&input[at * 4..][..4]).unwrap();
        let if_wanted = |wanted: bool| if wanted { row(lane) } else { [UNTOUCHED; 4] };
        let [_, second, third, fourth] = row(lane);
        // The odd lanes copy what lies a row before theirs.
        [[second, UNTOUCHED, third, fourth], row(32 + lane), if_wanted(lane % 3 == 0), if_wanted(lane % 2 == 0)]
    });
    let expected = expected.flatten().map(Bits).collect();
    Probe::new("few_copies", [1, 32], input, expected)
}

fn copies_from_nowhere() -> Probe {
    let input = words(8, 128);
    let expected = (0..128).map(|i| Bits(if i / 4 % 2 == 0 { input[i] } else { 0 })).collect();
    Probe::new("copies_from_nowhere", [1, 32], input, expected)
}

fn matrices() -> Probe {
    let input = words(9, 128);
    let half = |at: usize| input[at / 2] >> (at % 2 * 16) & 0xffff;
    let mut expected = Vec::new();
    for lane in 0..32 {
        let element = |j: usize, row: usize, column: usize| half((j * 8 + row) * 8 + column);
        let (major, minor) = (lane / 4, lane % 4 * 2);
        expected.extend((0..4).map(|j| Bits(element(j, major, minor) | element(j, major, minor + 1) << 16)));
        expected.extend((0..4).map(|j| Bits(element(j, minor, major) | element(j, minor + 1, major) << 16)));
    }
    Probe::new("matrices", [1, 32], input, expected)
}

fn dynamic_shared() -> Probe {
    let input = words(10, 1024);
    let expected = input.iter().rev().copied().map(Bits).collect();
    Probe { shared_bytes: 4096, ..Probe::new("dynamic_shared", [1, 32], input, expected) }
}

/// Products of A [16, 16] and B [16, 8] of f16 plus C, and without C, one a block, in the fragments that the PTX ISA lays down ("Matrix
/// fragments for mma.m16n8k16"): two numbers share a register.
fn products() -> Vec<Probe> {
    type Numbers2 = Box<dyn Fn(usize, usize) -> f64>;
    const K: usize = 16;
    // Numbers of 8 significant bits.
    let eighth = |i: usize, salt: usize| {
        let bits = (i * 2_654_435_761 + salt * 40_503) >> 7;
        let (fraction, exponent) = (128 + bits % 128, (bits >> 7) % 12);
        fraction as f64 * 2f64.powi(exponent as i32 - 13) * if bits >> 12 & 1 == 1 { -1.0 } else { 1.0 }
    };
    // The smallest number of f16.
    let small = 2f64.powi(-24);
    let sets: [(&str, Numbers2, Numbers2, Numbers2); 7] = [
        (
            "integers",
            Box::new(|row, column| ((row * 5 + column * 3) % 11) as f64 - 5.0),
            Box::new(|row, column| ((row * 7 + column * 2) % 13) as f64 - 6.0),
            Box::new(|row, column| (row * 8 + column) as f64 / 4.0),
        ),
        (
            "mixed",
            Box::new(move |row, column| eighth(row * 16 + column, 1)),
            Box::new(move |row, column| eighth(row * 8 + column, 2)),
            Box::new(move |row, column| eighth(row * 8 + column, 3)),
        ),
        // Each product is half a unit in C's last place and less: truncated one by one they vanish.
        (
            "below C",
            Box::new(|row, column| if column <= row { 1.0 } else { 0.0 }),
            Box::new(|_, column| 1.0 + column as f64 / 8.0),
            Box::new(|row, _| if row % 2 == 0 { 16_777_216.0 } else { -16_777_216.0 }),
        ),
        // Large products cancel; what is left shows how many bits were kept of the small ones.
        (
            "cancelling",
            Box::new(|_, column| if column < 2 { 128.0 } else { 1.0 / 64.0 }),
            Box::new(|row, column| match row {
                0 => 128.0,
                1 => -128.0,
                _ => (1 + column) as f64 / 64.0,
            }),
            Box::new(|_, _| 0.0),
        ),
        (
            "rounding",
            Box::new(|row, column| if column == 0 { 1.0 } else { 2f64.powi(-12 - (row % 3) as i32) }),
            Box::new(|row, column| if row == 0 { 1.0 } else { 2f64.powi(-12) * (1.0 + (column % 4) as f64 / 4.0) }),
            Box::new(|_, column| if column % 2 == 0 { 1.0 } else { -0.5 }),
        ),
        (
            "subnormal",
            Box::new(move |row, column| ((row + column) % 5) as f64 * small),
            Box::new(|row, column| ((row * 3 + column) % 7) as f64 - 3.0),
            Box::new(|_, _| 0.0),
        ),
        (
            "special",
            Box::new(|row, column| match (row, column) {
                (1, 2) | (3, 0) => f64::INFINITY,
                (3, 1) => f64::NEG_INFINITY,
                (5, 3) => f64::NAN,
                _ => 1.0,
            }),
            Box::new(|row, column| if row == 2 && column == 4 { 0.0 } else { 1.0 }),
            Box::new(|row, column| if row == 7 && column == 7 { f64::NEG_INFINITY } else { 0.5 }),
        ),
    ];
    let probes = sets.into_iter().flat_map(|(set, a, b, c)| {
        let mut input = Vec::new();
        for lane in 0..32 {
            let (group, place) = (lane / 4, lane % 4);
            let register = |number: &dyn Fn(usize) -> f64| {
                (0..2).map(|h| u32::from(f16::from_f64(number(h)).to_bits()) << (16 * h)).sum::<u32>()
            };
            for i in 0..4 {
                input.push(register(&|h| a(group + i % 2 * 8, place * 2 + h + i / 2 * K / 2)));
            }
            for i in 0..2 {
                input.push(register(&|h| b(place * 2 + h + i * K / 2, group)));
            }
            input.extend((0..4).map(|i| (c(group + i / 2 * 8, place * 2 + i % 2) as f32).to_bits()));
        }
        let places = (0..128usize).map(|place| (place / 4, place % 4));
        let sums = |c: &dyn Fn(usize, usize) -> f64| {
            let sum = |(lane, i)| {
                let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                let terms = || (0..K).map(|k| a(row, k) * b(k, column));
                let exact = c(row, column) + terms().sum::<f64>();
                let size = c(row, column).abs() + terms().map(f64::abs).sum::<f64>();
                match set {
                    "integers" | "special" => F32(exact as f32),
                    // Each term may lose what lies below f32's last place beside the largest, and so may the result.
                    _ => Near32(exact, (K + 2) as f64 * f64::from(f32::EPSILON) * size + f64::from(f32::MIN_POSITIVE)),
                }
            };
            places.clone().map(sum).collect::<Vec<_>>()
        };
        let all = [("product_f16", sums(&c)), ("product_f16_first", sums(&|_, _| 0.0))];
        all.map(|(kernel, expected)| {
            let probe = Probe::new(kernel, [1, 32], input.clone(), expected);
            Probe { name: format!("{kernel}, {set}"), ..probe }
        })
    });
    probes.collect()
}
