//! Each instruction of the stand-in against its definition, and what a launch refuses.

use bytemuck::{Pod, Zeroable, bytes_of};
use half::{bf16, f16};
use tercet::cuda::{Address, Grid, Launcher, Memory};
use tercet_emulator::{Buffer, Emulator, Options};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    input: Address,
    out: Address,
    wide: Address,
    narrow: Address,
}

const ONE_WARP: Grid = Grid { blocks: 1, threads: 32, shared_bytes: 0 };

/// Launches with `out`, `wide` and `narrow` as given.
fn launch(emulator: &Emulator, kernel: &str, grid: Grid, input: &[u32], rest: [&Buffer; 3]) -> Result<(), String> {
    let input = emulator.upload(input);
    let [out, wide, narrow] = rest.map(Memory::address);
    let args = Args { input: input.address(), out, wide, narrow };
    // SAFETY: the kernels' argument; where they leave their buffers, on purpose, the detector is on.
    unsafe { emulator.launch("primitives", kernel, grid, bytes_of(&args)) }.map_err(|e| e.to_string())
}

/// The numbers that `kernel` writes to `out`, the same for several schedules.
fn out_of(kernel: &str, grid: Grid, input: &[u32], count: usize) -> Vec<u32> {
    let mut results = (0..4).map(|seed| {
        let emulator = Emulator::new(Options { detect: seed % 2 == 0, seed, os_threads: 2 });
        let (out, none) = (emulator.allocate(count * 4).expect("memory"), emulator.upload(&[0u64]));
        launch(&emulator, kernel, grid, input, [&out, &none, &none]).unwrap_or_else(|e| panic!("{e}"));
        out.read::<u32>()
    });
    let first = results.next().expect("four");
    assert!(results.all(|other| other == first), "{kernel} depends on the schedule");
    first
}

fn numbers(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 24).collect()
}

#[test]
fn warp_operations() {
    let x = numbers(32);
    let out = out_of("shuffles", ONE_WARP, &x, 32 * 16);
    for lane in 0..32 {
        let half: Vec<usize> = (lane / 16 * 16..lane / 16 * 16 + 16).collect();
        let mask = |test: &dyn Fn(usize) -> bool| half.iter().filter(|&&l| test(l)).map(|l| 1u32 << l).sum::<u32>();
        let of_half = || half.iter().map(|&l| x[l]);
        let got = &out[lane * 16..lane * 16 + 16];
        let expected = [
            x[5],
            x[lane ^ 3],
            x[if lane + 4 < 32 { lane + 4 } else { lane }],
            x[if lane >= 4 { lane - 4 } else { lane }],
            mask(&|l| x[l] % 2 == 1),
            1 | u32::from(of_half().any(|y| y == x[3])) << 1,
            mask(&|l| x[l] % 4 == x[lane] % 4),
            of_half().sum(),
            of_half().min().expect("16"),
            of_half().max().expect("16"),
            of_half().fold(0, |a, b| a | b),
            of_half().fold(u32::MAX, |a, b| a & (b | 64)),
            x[lane ^ 1],
        ];
        assert_eq!(got[..13], expected, "lane {lane}");
        let last =
            if lane < 24 { [x[..24].iter().sum(), x[if lane < 8 { 7 } else { 8 }], x[lane]] } else { [u32::MAX; 3] };
        assert_eq!(got[13..], last, "lane {lane}");
    }
}

#[test]
fn atomics_are_atomic() {
    let x = numbers(32);
    let all: Vec<u32> = (0..128).map(|i| x[i % 32] + (i % 64) as u32).collect();
    let keys = || all.iter().zip(0u64..).map(|(&x, i)| u64::from(x) << 32 | (i % 64));
    for seed in 0..4 {
        let emulator = Emulator::new(Options { detect: seed > 1, seed, os_threads: 2 });
        let (none, wide) = (emulator.upload(&[0u32]), emulator.upload(&[u64::MAX, 0, 0]));
        let narrow = emulator.upload(&[0, u32::MAX, 0, 0, u32::MAX, 0]);
        let grid = Grid { blocks: 2, threads: 64, shared_bytes: 0 };
        launch(&emulator, "atomics", grid, &x, [&none, &wide, &narrow]).unwrap_or_else(|e| panic!("{e}"));
        let (least, most) = (*all.iter().min().expect("some"), *all.iter().max().expect("some"));
        assert_eq!(narrow.read::<u32>(), [all.iter().sum(), least, most, u32::MAX, 0, 128]);
        let sum = all.iter().map(|&x| u64::from(x) << 20).sum();
        assert_eq!(wide.read::<u64>(), [keys().min().expect("some"), keys().max().expect("some"), sum]);
    }
}

#[test]
fn ldmatrix_both_ways() {
    let halves: Vec<u16> = (0..256).collect();
    let out = out_of("matrices", ONE_WARP, bytemuck::cast_slice(&halves), 32 * 8);
    let out: &[u16] = bytemuck::cast_slice(&out);
    for lane in 0..32 {
        for (j, half) in (0..4).flat_map(|j| [(j, 0), (j, 1)]) {
            let (row, column) = (lane / 4, lane % 4 * 2 + half);
            assert_eq!(out[lane * 16 + j * 2 + half], halves[(j * 8 + row) * 8 + column]);
            assert_eq!(out[lane * 16 + 8 + j * 2 + half], halves[(j * 8 + column) * 8 + row]);
        }
    }
}

/// PTX ISA, "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8": where number `i` of a lane belongs. `wide` numbers
/// share a register.
fn product(kernel: &str, wide: usize, pack: impl Fn(f64) -> u32) {
    let k = 8 * wide;
    let a = |row: usize, column: usize| ((row * 5 + column * 3) % 11) as f64 - 5.0;
    let b = |row: usize, column: usize| ((row * 7 + column * 2) % 13) as f64 - 6.0;
    let c = |row: usize, column: usize| (row * 8 + column) as f64 / 4.0;
    let mut input = Vec::new();
    for lane in 0..32 {
        let (group, place) = (lane / 4, lane % 4);
        let register = |number: &dyn Fn(usize) -> f64| (0..wide).map(|h| pack(number(h)) << (16 * h)).sum::<u32>();
        for i in 0..4 {
            input.push(register(&|h| a(group + i % 2 * 8, place * wide + h + i / 2 * k / 2)));
        }
        for i in 0..2 {
            input.push(register(&|h| b(place * wide + h + i * k / 2, group)));
        }
        input.extend((0..4).map(|i| (c(group + i / 2 * 8, place * 2 + i % 2) as f32).to_bits()));
    }
    let out = out_of(kernel, ONE_WARP, &input, 32 * 4);
    for (i, got) in out.iter().enumerate() {
        let (row, column) = (i / 16 + i % 4 / 2 * 8, i / 4 % 4 * 2 + i % 2);
        let expected = c(row, column) + (0..k).map(|k| a(row, k) * b(k, column)).sum::<f64>();
        assert_eq!(f64::from(f32::from_bits(*got)), expected, "{kernel}, row {row}, column {column}");
    }
}

#[test]
fn products() {
    product("product_f16", 2, |x| f16::from_f64(x).to_bits().into());
    product("product_bf16", 2, |x| bf16::from_f64(x).to_bits().into());
    product("product_tf32", 1, |x| (x as f32).to_bits() | 0x1abc); // the low bits are ignored
}

#[test]
fn every_16_bit_float() {
    let grid = Grid { blocks: 256, threads: 256, shared_bytes: 0 };
    let emulator = Emulator::new(Options { os_threads: 2, ..Options::default() });
    let (out, none) = (emulator.allocate(65536 * 16).expect("memory"), emulator.upload(&[0u64]));
    launch(&emulator, "conversions", grid, &[0], [&out, &none, &none]).unwrap_or_else(|e| panic!("{e}"));
    for (i, got) in out.read::<[u32; 4]>().into_iter().enumerate() {
        let same = |got: f32, expected: f32| {
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{i}: {got} {expected}")
        };
        same(f32::from_bits(got[0]), f16::from_bits(i as u16).to_f32());
        same(f32::from_bits(got[1]), bf16::from_bits(i as u16).to_f32());
        let x = f32::from_bits((i as u32).wrapping_mul(0x10001) ^ (i as u32) << 7);
        same(f16::from_bits(got[2] as u16).to_f32(), f16::from_f32(x).to_f32());
        same(bf16::from_bits(got[3] as u16).to_f32(), bf16::from_f32(x).to_f32());
    }
}

#[test]
fn what_a_launch_refuses() {
    let emulator = Emulator::new(Options { detect: true, ..Options::default() });
    let (out, one) = (emulator.allocate(128).expect("memory"), emulator.upload(&[0u32; 32]));
    let refusal = |kernel: &str, grid: Grid| {
        let result = launch(&emulator, kernel, grid, &numbers(64), [&out, &one, &one]);
        result.expect_err("an error")
    };
    for (kernel, grid, says) in [
        ("nothing", ONE_WARP, "no such kernel"),
        ("misaligned", ONE_WARP, "misaligned vector access\n  at kernels/primitives.cu:"),
        ("unwritten", ONE_WARP, "read of byte 0 of a buffer, which nobody has written\n  at kernels/primitives.cu:"),
        ("much_shared", ONE_WARP, "are too much\n  at kernels/primitives.cu:"),
        (
            "dynamic_shared",
            Grid { shared_bytes: 4000, ..ONE_WARP },
            "4096 bytes of dynamic shared memory, but the launch gave 4000",
        ),
        ("dynamic_shared", Grid { shared_bytes: 1 << 20, ..ONE_WARP }, "too much dynamic shared memory"),
        ("unwritten", Grid { threads: 33, ..ONE_WARP }, "its launch bounds are 32 threads"),
        ("unwritten", Grid { blocks: 0, ..ONE_WARP }, "no device takes such a grid"),
    ] {
        let text = refusal(kernel, grid);
        assert!(text.contains(says), "{text}\ndoes not say: {says}");
    }
    assert!(
        refusal("misaligned", ONE_WARP)
            .contains("by thread 0 of block 0\n(schedule 0: TERCET_EMULATOR_SEED=0 replays it)")
    );
    // SAFETY: refused before anything runs.
    let size = unsafe { emulator.launch("primitives", "shuffles", ONE_WARP, &[0; 24]) }.expect_err("an error");
    assert!(size.to_string().contains("its argument has 32 bytes, not 24"), "{size}");
    let exact = Grid { shared_bytes: 4096, ..ONE_WARP };
    assert_eq!(out_of("dynamic_shared", exact, &numbers(32), 32), numbers(32));
}
