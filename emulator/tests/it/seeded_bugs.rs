//! Kernels that are wrong on purpose: with the detector on, each must be caught, by a report or by its results. Correct
//! kernels must give no report.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable, bytes_of};
use half::f16;
use tercet::internal::{
    self, Address, DeviceProperties, Grid, Input, Inputs, Launcher, Memory, Output, ReferenceInput,
};
use tercet::{BatchSemiHardTripletLoss, Error, Own};
use tercet_emulator::{Buffer, Emulator, Options};

/// Schedules that each bug is run under; those of large kernels under the first few.
const SEEDS: u64 = 5;
const FEW_SEEDS: u64 = 2;

/// What a report reports, by its first line.
fn kind(report: &str) -> &'static str {
    const KINDS: [&str; 12] = [
        "divergent barrier",
        "race",
        "out of bounds",
        "nobody has written",
        "in flight",
        "deadlock",
        "misaligned",
        "not multiples",
        "not in the mask",
        "not in its mask",
        "beside",
        "cp.async out of shared",
    ];
    KINDS.into_iter().find(|kind| report.contains(kind)).unwrap_or("another report")
}

/// What caught the bug of a kernel, and in how many seeds with and without the detector.
struct Caught {
    by: BTreeSet<&'static str>,
    with: u64,
    without: u64,
}

/// Runs so many seeds with each of `detectors`: on and, if the bug cannot damage the host's memory, also off.
fn try_seeds(seeds: u64, detectors: &[bool], run: impl Fn(&Emulator) -> Result<bool, String>) -> Caught {
    let mut caught = Caught { by: BTreeSet::new(), with: 0, without: 0 };
    for &detect in detectors {
        for seed in 0..seeds {
            let mut emulator = Emulator::new(Options { detect, seed, os_threads: 1 });
            // Whichever device the seed chooses: these kernels have one shape.
            emulator.properties_mut().shared_bytes_per_block = 227 << 10;
            let by = match run(&emulator) {
                Ok(true) => continue,
                Ok(false) => "wrong numbers",
                Err(report) => {
                    assert!(report.contains("kernels/") || !detect, "a report without a line: {report}");
                    kind(&report)
                }
            };
            if detect {
                caught.with += 1;
                caught.by.insert(by);
            } else {
                caught.without += 1;
            }
        }
    }
    caught
}

fn table(stem: &str, bugs: &[&str], run: impl Fn(&Emulator, &str) -> Result<bool, String>) {
    table_with(stem, SEEDS, &[true, false], bugs, run);
}

/// The same for large kernels, which take long: with the detector alone.
fn table_of_large(stem: &str, bugs: &[&str], run: impl Fn(&Emulator, &str) -> Result<bool, String>) {
    table_with(stem, FEW_SEEDS, &[true], bugs, run);
}

fn table_with(
    stem: &str,
    seeds: u64,
    detectors: &[bool],
    bugs: &[&str],
    run: impl Fn(&Emulator, &str) -> Result<bool, String>,
) {
    println!("{stem}: bug | caught by | seeds of {seeds} | without the detector");
    let mut missed = Vec::new();
    for (bug, what) in bugs.iter().enumerate() {
        let wild = what.contains("store") || what.contains("16 bits");
        let detectors = if wild { &[true][..] } else { detectors };
        let caught = try_seeds(seeds, detectors, |emulator| run(emulator, &format!("{stem}_{bug}")));
        let by: Vec<_> = caught.by.iter().copied().collect();
        let without = if detectors.contains(&false) { caught.without.to_string() } else { "not run".into() };
        println!("{stem} {bug:2} {what} | {} | {} | {without}", by.join(", "), caught.with);
        if (bug == 0) != (caught.with == 0) || bug == 0 && caught.without > 0 || bug > 0 && caught.with < seeds {
            missed.push((bug, what));
        }
    }
    assert!(missed.is_empty(), "not as expected: {missed:?}");
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TileArgs {
    x: Address,
    y: Address,
    out: Address,
    least: Address,
    m: i32,
    n: i32,
    k: i32,
    unused: i32,
}

/// The launch's time, and whether the distances are right.
fn tile(emulator: &Emulator, kernel: &str, [m, n, k]: [usize; 3]) -> Result<(Duration, bool), String> {
    let numbers = |rows: usize, salt: usize| -> Vec<f16> {
        (0..rows * k).map(|i| f16::from_f64(((i * 37 + salt * 11 + i / k * 13) % 17) as f64 / 4.0 - 2.0)).collect()
    };
    let (x, y) = (numbers(m, 1), numbers(n, 2));
    let (x_there, y_there) = (emulator.upload(&x), emulator.upload(&y));
    let out = emulator.allocate(m * n * 4).expect("memory");
    let least = emulator.upload(&vec![u32::MAX; m]);
    let args = TileArgs {
        x: x_there.address(),
        y: y_there.address(),
        out: out.address(),
        least: least.address(),
        m: m as i32,
        n: n as i32,
        k: k as i32,
        unused: 0,
    };
    const SHARED: u32 = 4 * 64 * 40 * 2 + 3 * 64 * 4;
    let grid = Grid { blocks: (m.div_ceil(64) * n.div_ceil(64)) as u32, threads: 128, shared_bytes: SHARED };
    let start = Instant::now();
    // SAFETY: the kernel's argument; buffers of the sizes it says.
    unsafe { emulator.launch("tile", kernel, grid, bytes_of(&args)) }.map_err(|e| e.to_string())?;
    let time = start.elapsed();
    // Fewer than 2^24 sixteenths: exact in f32 in any order.
    let (x, y): (Vec<f32>, Vec<f32>) = (x.iter().map(|x| x.to_f32()).collect(), y.iter().map(|y| y.to_f32()).collect());
    let distance = |i: usize, j: usize| -> f32 { (0..k).map(|d| (x[i * k + d] - y[j * k + d]).powi(2)).sum() };
    let (out, least): (Vec<f32>, Vec<u32>) = (out.read(), least.read());
    let right = (0..m).all(|i| {
        let row: Vec<f32> = (0..n).map(|j| distance(i, j)).collect();
        row == out[i * n..(i + 1) * n] && row.iter().fold(f32::INFINITY, |a, b| a.min(*b)).to_bits() == least[i]
    });
    Ok((time, right))
}

#[test]
fn broken_tiles_are_caught() {
    let bugs = [
        "none",
        "no barrier between copies and products",
        "no barrier between products and the next copies",
        "no cp.async wait",
        "no cp.async commit",
        "load beyond the last row",
        "load beyond the last column",
        "load before the first column",
        "wrong column of an A fragment",
        "wrong column of a B fragment",
        "no barrier before the norms are read",
        "no barrier before the least is read",
        "stale double buffer",
        "shuffle mask without half of the warp",
        "barrier in one warp only",
        "least of the tile without an atomic",
        "least of the row without an atomic, between blocks",
        "rows padded to 8 bytes",
        "norm that nobody writes",
        "index in 16 bits",
        "one row too many in shared memory",
        "store below the last row",
        "store right of the last column",
    ];
    // No size is a multiple of the tile's, and there are more than 32767 distances.
    table("tile", &bugs, |emulator, kernel| Ok(tile(emulator, kernel, [200, 170, 72])?.1));
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StripArgs {
    rows: Address,
    columns: Address,
    terms: Address,
    out: Address,
    m: u32,
    n: u32,
    slabs: u32,
    splits: u32,
}

/// Rows of `k` numbers as planes: in panels of 64 rows x 128 bytes, [tile of rows][panel][plane], the 16-byte piece p of row r
/// of a panel at place p ^ r % 8.
fn planes(numbers: &[f32], k: usize, rows: usize, planes: usize) -> Vec<f16> {
    let panels = k.div_ceil(64);
    let mut bytes = vec![f16::ZERO; rows * panels * planes * 64];
    for (i, &x) in numbers.iter().enumerate() {
        let (row, column) = (i / k, i % k);
        let hi = f16::from_f32(x);
        for (plane, value) in [hi, f16::from_f32(x - hi.to_f32())].into_iter().enumerate().take(planes) {
            let panel = ((row / 64 * panels + column / 64) * planes + plane) * 64 * 64;
            let place = (column % 64 / 8) ^ (row % 8);
            bytes[panel + row % 64 * 64 + place * 8 + column % 8] = value;
        }
    }
    bytes
}

/// Whether both kernels' numbers are right: of rows that stay in shared memory, as hi + lo, and of long ones.
fn strip(emulator: &Emulator, kernel: &str) -> Result<bool, String> {
    let bug = kernel.strip_prefix("strip_").expect("strip_<n>");
    let mut right = true;
    // More columns than a block has at a time, tiles that are not whole, and long rows of three sums of 256 numbers.
    for (name, [m, n, k], parts) in
        [(format!("strip_{bug}"), [70, 200, 100], 2), (format!("strip_long_{bug}"), [70, 130, 530], 1)]
    {
        // Multiples of 2^-12 below 2, or of 1 / 4: products that are exact in f32, in any order.
        let numbers = |rows: usize, salt: usize| -> Vec<f32> {
            let number = |i: usize| ((i * 37 + salt * 11 + i / k * 13) % 17) as f32 / 4.0 - 2.0;
            let fine = |i: usize| if parts == 2 && i % 23 == salt { 1.0 / 4096.0 } else { 0.0 };
            (0..rows * k).map(|i| number(i) + fine(i)).collect()
        };
        let (x, y) = (numbers(m, 1), numbers(n, 2));
        let held = |rows: usize| rows.next_multiple_of(128);
        let terms: Vec<[f32; 2]> = (0..held(n)).map(|j| [j as f32, if j % 2 == 0 { -2.0 } else { 4.0 }]).collect();
        let (rows, columns) =
            (emulator.upload(&planes(&x, k, held(m), parts)), emulator.upload(&planes(&y, k, held(n), parts)));
        let (terms_there, out) = (emulator.upload(&terms), emulator.allocate(m * n * 4).expect("memory"));
        let args = StripArgs {
            rows: rows.address(),
            columns: columns.address(),
            terms: terms_there.address(),
            out: out.address(),
            m: m as u32,
            n: n as u32,
            slabs: (k * 2).div_ceil(64) as u32,
            splits: 2,
        };
        let panel = 64 * 128 * parts as u32;
        let stage = if parts == 2 { panel } else { 3 * panel };
        let (rows_bytes, stages) = if parts == 2 { (4 * panel, 3) } else { (128, 2) };
        let shared_bytes = rows_bytes + stages * stage + 2 * 64 * 8;
        let grid =
            Grid { blocks: 2 * m.div_ceil(128) as u32, threads: 128, shared_bytes: shared_bytes.next_multiple_of(128) };
        // SAFETY: the kernel's argument; buffers of the sizes it says.
        unsafe { emulator.launch("strip", &name, grid, bytes_of(&args)) }.map_err(|e| e.to_string())?;
        let product = |i: usize, j: usize| -> f32 { (0..k).map(|c| x[i * k + c] * y[j * k + c]).sum() };
        let out: Vec<f32> = out.read();
        right &= (0..m * n).all(|at| {
            let [norm, factor] = terms[at % n];
            let exact = f64::from(norm) + f64::from(factor) * f64::from(product(at / n, at % n));
            (f64::from(out[at]) - exact).abs() <= 1e-6 * exact.abs().max(1.0)
        });
    }
    Ok(right)
}

/// No mistake, and then those of a list.
fn listed(list: &str) -> Vec<&str> {
    // The first comment is the file's own.
    let bugs: Vec<&str> = list.lines().filter_map(|line| line.strip_prefix("# ")).skip(2).collect();
    assert_eq!(bugs.len(), list.lines().filter(|line| line.starts_with("+ ")).count(), "a line on each mistake");
    [&["none"], &bugs[..]].concat()
}

#[test]
fn broken_strips_are_caught() {
    table("strip", &listed(include_str!("../kernels/strip.bugs")), strip);
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TriangleArgs {
    planes: Address,
    terms: Address,
    key: Address,
    most: Address,
    seen: Address,
    looked: Address,
    window: f32,
    rows: u32,
    held: u32,
    slabs: u32,
    splits: u32,
    unused: u32,
}

/// Whether half of the tiles are each taken once, and each anchor looks at the rows that it must, and at no others.
fn triangle(emulator: &Emulator, kernel: &str) -> Result<bool, String> {
    // Rows of a warp and of a block, columns of a tile, and how many keys are kept.
    let [warp, block, columns, kept] = [32, 128, 64, 3];
    let bug = kernel.strip_prefix("triangle_").expect("triangle_<n>");
    let mut right = true;
    // Two blocks in as many parts as both have tiles, three, and four in two parts. Few different numbers, and many.
    for (rows, splits, values) in [(200_usize, 6, 5), (300, 4, 5), (390, 2, 40)] {
        let k = 8;
        let x: Vec<f32> = (0..rows * k).map(|i| ((i * 37 + i / k * i / 7) % values) as f32 - 2.0).collect();
        let held = rows.next_multiple_of(block);
        let norm = |i: usize| x[i * k..][..k].iter().map(|x| x * x).sum::<f32>();
        let terms: Vec<[f32; 2]> = (0..held).map(|i| [if i < rows { norm(i) } else { f32::INFINITY }, -2.0]).collect();
        let (blocks, tiles) = (rows.div_ceil(block), rows.div_ceil(columns));
        let (planes, terms_there) = (emulator.upload(&planes(&x, k, held, 1)), emulator.upload(&terms));
        let (key, most) = (emulator.allocate(held * kept * 8), emulator.allocate(held * 4));
        let (key, most) = (key.expect("memory"), most.expect("memory"));
        let (seen, looked) = (emulator.upload(&vec![0u32; blocks * tiles]), emulator.upload(&vec![0u32; rows * rows]));
        let window = 2.0;
        let args = TriangleArgs {
            planes: planes.address(),
            terms: terms_there.address(),
            key: key.address(),
            most: most.address(),
            seen: seen.address(),
            looked: looked.address(),
            window,
            rows: rows as u32,
            held: held as u32,
            slabs: (k * 2).div_ceil(64) as u32,
            splits,
            unused: 0,
        };
        let panel = 64 * 128;
        let shared_bytes = (4 * panel + 2 * panel + 2 * 64 * 8_u32).next_multiple_of(128);
        let pairs = (blocks as u32).div_ceil(2);
        for (name, blocks, shared_bytes) in [
            (format!("triangle_clear_{bug}"), held.div_ceil(256) as u32, 0),
            (format!("triangle_{bug}"), pairs * splits, shared_bytes),
            (format!("triangle_look_{bug}"), rows.div_ceil(8) as u32, 0),
        ] {
            let grid = Grid { blocks, threads: 256, shared_bytes };
            // SAFETY: the kernels' argument; buffers of the sizes it says.
            unsafe { emulator.launch("triangle", &name, grid, bytes_of(&args)) }.map_err(|e| e.to_string())?;
        }
        let (seen, looked): (Vec<u32>, Vec<u32>) = (seen.read(), looked.read());
        right &= (0..blocks * tiles).all(|at| seen[at] == u32::from(at % tiles >= at / tiles * (block / columns)));
        right &= (0..rows).all(|anchor| {
            let own = anchor / block * block;
            let number = |i: usize| norm(i) - 2.0 * (0..k).map(|c| x[i * k + c] * x[anchor * k + c]).sum::<f32>();
            let numbers: Vec<f32> = (0..own).map(number).collect();
            let least = |numbers: &mut dyn Iterator<Item = f32>| numbers.fold(f32::INFINITY, f32::min);
            let of_warps: Vec<f32> = numbers.chunks(warp).map(|rows| least(&mut rows.iter().copied())).collect();
            let most = least(&mut of_warps.iter().copied()) + window;
            let many = of_warps.iter().filter(|&&of_warp| of_warp <= most).count() >= kept;
            (0..rows).all(|i| {
                let expected = i < own && {
                    let eighth =
                        least(&mut (i / warp * warp + i % 8..(i / warp + 1) * warp).step_by(8).map(|i| numbers[i]));
                    many || (of_warps[i / warp] <= most && eighth <= of_warps[i / warp] + window)
                };
                looked[anchor * rows + i] == u32::from(expected)
            })
        });
    }
    Ok(right)
}

#[test]
fn broken_triangles_are_caught() {
    table("triangle", &listed(include_str!("../kernels/triangle.bugs")), triangle);
}

/// The emulator as a device that has shared memory for narrow strips alone, with `choose_<bug>` for the search of batch_semi_hard.
struct WithBug<'a> {
    emulator: &'a Emulator,
    properties: DeviceProperties,
    kernel: &'a str,
}

// SAFETY: the emulator's own memory and launches. A kernel that stands in for another takes the same arguments, and makes of
// them what that one does, but for a mistake that the emulator is to report.
unsafe impl Launcher for WithBug<'_> {
    type Memory = Buffer;

    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, Error> {
        self.emulator.allocate(bytes)
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { self.emulator.clear(to, bytes) }
    }

    unsafe fn launch(&self, stem: &str, kernel: &str, grid: Grid, arguments: &[u8]) -> Result<(), Error> {
        let is_search = kernel == "batch_semi_hard_choose_highest_narrow";
        let (stem, kernel) = if is_search { ("choose", self.kernel) } else { (stem, kernel) };
        // SAFETY: the caller's contract.
        unsafe { self.emulator.launch(stem, kernel, grid, arguments) }
    }
}

/// Whether each pair's negative is right: of integers with many equal distances, of anchors that are compared with three tiles of
/// rows, in classes of more pairs than registers hold. One block takes two of the tiles and another the third.
fn choose(emulator: &Emulator, kernel: &str) -> Result<bool, String> {
    const OF_CLASS: usize = 11;
    const CLASSES: usize = 13;
    let (anchors, rows, dim) = (30, CLASSES * OF_CLASS, 4);
    // The order of the classes is not that of the rows.
    let label = |i: usize| (i * 5 % CLASSES) as i64;
    let x: Vec<f32> = (0..rows * dim).map(|at| ((at * at * 7 + at / dim * 31) % 23 % 4) as f32).collect();
    let labels: Vec<i64> = (0..rows).map(label).collect();
    let mut properties = emulator.properties().clone();
    (properties.shared_bytes_per_multiprocessor, properties.multiprocessors) = (100 << 10, 2);
    let device = WithBug { emulator, properties, kernel };
    let (x_there, labels_there) = (emulator.upload(&x), emulator.upload(&labels));
    let chosen = emulator.upload(&vec![0u32; anchors * OF_CLASS]);
    let input = Input { x: x_there.address(), stride: dim, labels: labels_there.address() };
    let reference = ReferenceInput { rows: input, count: rows, own: Own::Offset(0) };
    let inputs = Inputs { anchors: input, reference: Some(reference), step: 0 };
    let output = Output { chosen: [chosen.address(), 0], ..Output::default() };
    // SAFETY: rows and labels of these sizes, and a choice for each row of each anchor's class, alive until the kernels have run.
    unsafe {
        internal::mined_forward::<_, f32, _>(
            &BatchSemiHardTripletLoss::default(),
            &device,
            [anchors, dim],
            &inputs,
            &output,
            [false; 2],
        )
    }
    .map_err(|e| e.to_string())?;
    let distance = |i: usize, j: usize| -> f32 { (0..dim).map(|c| (x[i * dim + c] - x[j * dim + c]).powi(2)).sum() };
    let mut order: Vec<usize> = (0..anchors).collect();
    order.sort_by_key(|&i| (label(i), i));
    let chosen: Vec<u32> = chosen.read();
    Ok(order.iter().zip(chosen.chunks(OF_CLASS)).all(|(&a, chosen)| {
        let class = (0..rows).filter(|&p| label(p) == label(a));
        class.zip(chosen).filter(|(p, _)| *p != a).all(|(p, &n)| {
            let negatives = || (0..rows).filter(|&j| label(j) != label(a));
            // Of equal ones min_by takes the first, and max_by the last.
            let beyond = negatives().filter(|&j| distance(a, j) > distance(a, p));
            let nearest = beyond.min_by(|&i, &j| distance(a, i).total_cmp(&distance(a, j)));
            let farthest = || negatives().rev().max_by(|&i, &j| distance(a, i).total_cmp(&distance(a, j)));
            nearest.or_else(farthest) == Some(n as usize)
        })
    }))
}

#[test]
fn broken_searches_are_caught() {
    table_of_large("choose", &listed(include_str!("../kernels/choose.bugs")), choose);
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SumArgs {
    x: Address,
    greatest: Address,
    partials: Address,
    ticket: Address,
    sum: Address,
    count: i64,
}

fn sum(emulator: &Emulator, kernel: &str) -> Result<bool, String> {
    const COUNT: usize = 1000;
    let x: Vec<f32> = (0..COUNT).map(|i| (i % 37) as f32).collect();
    let (numbers, greatest, ticket) = (emulator.upload(&x), emulator.upload(&[0u64]), emulator.upload(&[0u32]));
    let grid = Grid { blocks: 5, threads: 128, shared_bytes: 0 };
    let (partials, sum) = (emulator.allocate(5 * 8).expect("memory"), emulator.allocate(8).expect("memory"));
    let args = SumArgs {
        x: numbers.address(),
        greatest: greatest.address(),
        partials: partials.address(),
        ticket: ticket.address(),
        sum: sum.address(),
        count: COUNT as i64,
    };
    // SAFETY: the kernel's argument; buffers of the sizes it says.
    unsafe { emulator.launch("sums", kernel, grid, bytes_of(&args)) }.map_err(|e| e.to_string())?;
    let expected: f64 = x.iter().map(|&x| f64::from(x)).sum();
    Ok(sum.read::<f64>() == [expected] && greatest.read::<u64>() == [COUNT as u64 - 1])
}

#[test]
fn broken_sums_are_caught() {
    let bugs = [
        "none",
        "no __syncwarp",
        "__syncwarp of half a warp each",
        "load from another warp's numbers",
        "no barrier before warp sums are reused",
        "all warps write one place",
        "no barrier before warp sums are read",
        "load beyond a shared array",
        "load beyond the last number",
        "greatest index without an atomic",
        "barrier in the last warp only",
        "named barrier that too few threads reach",
        "full mask in half of the lanes",
        "shuffle from a lane outside of the mask",
        "all blocks write one partial sum",
        "ticket without release and acquire",
        "no barrier before the ticket is read",
        "one partial sum too many",
        "all threads write the result",
    ];
    table("sum", &bugs, sum);
}

#[test]
fn a_tile_in_time() {
    for detect in [false, true] {
        let emulator = Emulator::new(Options { detect, seed: 0, os_threads: 2 });
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let (time, right) = tile(&emulator, "tile_0", [256, 256, 64]).expect("no report");
            assert!(right);
            best = best.min(time);
        }
        println!("256 x 256 x 64, detector {}: {:.1} ms", if detect { "on" } else { "off" }, best.as_secs_f64() * 1e3);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SweepArgs {
    rows: Address,
    columns: Address,
    terms: Address,
    sums: Address,
    row_tiles: u32,
    tiles: u32,
    slabs: u32,
    splits: u32,
}

/// Whether the sums are right: of both shapes for short rows, one with weights in two planes, and of that for long ones.
fn sweep(emulator: &Emulator, kernel: &str) -> Result<bool, String> {
    let bug = kernel.strip_prefix("sweep_").expect("sweep_<n>");
    let mut right = true;
    // More than one tile of rows, and more tiles of columns for a block than a group has; one panel, two, and an odd number.
    let shapes = [
        ("", 128, 1, [70, 300, 100]),
        ("", 128, 1, [64, 200, 50]),
        ("narrow_", 256, 2, [70, 300, 100]),
        ("long_", 128, 1, [70, 330, 300]),
    ];
    for (name, threads, across, [m, n, k]) in shapes {
        let numbers = |rows: usize, salt: usize| -> Vec<f32> {
            let number = |i: usize| ((i * 37 + salt * 11 + i / k * 13) % 17) as f32 / 4.0 - 2.0;
            let fine = |i: usize| if i % 23 == salt { 1.0 / 4096.0 } else { 0.0 };
            (0..rows * k).map(|i| number(i) + fine(i)).collect()
        };
        let (x, y) = (numbers(m, 1), numbers(n, 2));
        let held = |rows: usize| rows.next_multiple_of(64);
        // Of every other place, which a copy of a number for each thread brings.
        let terms: Vec<f32> = (0..2 * held(n)).map(|at| (at % 128 % 7) as f32 + 0.031).collect();
        let term = |j: usize| terms[j / 64 * 128 + j % 64];
        let (rows, columns) =
            (emulator.upload(&planes(&x, k, held(m), 2)), emulator.upload(&planes(&y, k, held(n), 2)));
        let (width, splits, long) = (k.next_multiple_of(64), 2, name == "long_");
        let parts = splits * if long { 1 } else { across };
        let (terms_there, sums) = (emulator.upload(&terms), emulator.upload(&vec![f32::NAN; parts * held(m) * width]));
        let (row_tiles, tiles) = (held(m) / 64, held(n) / 64);
        let args = SweepArgs {
            rows: rows.address(),
            columns: columns.address(),
            terms: terms_there.address(),
            sums: sums.address(),
            row_tiles: row_tiles as u32,
            tiles: tiles as u32,
            slabs: (k * 2).div_ceil(64) as u32,
            splits: splits as u32,
        };
        let panel = 2 * 64 * 128;
        let own = if long { 4 * panel + (16 << 10) } else { 5 * panel };
        let shared_bytes = own + across as u32 * 128 * 4;
        let grid = Grid { blocks: (row_tiles * splits) as u32, threads, shared_bytes };
        // SAFETY: the kernel's argument; buffers of the sizes it says.
        unsafe { emulator.launch("sweep", &format!("sweep_{name}{bug}"), grid, bytes_of(&args)) }
            .map_err(|e| e.to_string())?;
        let found: Vec<f32> = sums.read();
        for i in 0..m {
            // Rows beyond the last weigh something too, but they are zeros.
            let weights: Vec<f64> = (0..n)
                .map(|j| {
                    let product: f64 = (0..k).map(|c| f64::from(x[i * k + c]) * f64::from(y[j * k + c])).sum();
                    let weight = if product > f64::from(term(j)) { 3.0 } else { 1.0 };
                    weight * if name == "narrow_" { 1.0 + 1.0 / 4096.0 } else { 1.0 }
                })
                .collect();
            for c in 0..k {
                let exact: f64 = 2.0 * (0..n).map(|j| weights[j] * f64::from(y[j * k + c])).sum::<f64>();
                let sum: f64 = (0..parts).map(|part| f64::from(found[(part * held(m) + i) * width + c])).sum();
                right &= (sum - exact).abs() <= 2e-6 * n as f64;
            }
        }
    }
    Ok(right)
}

#[test]
fn broken_sweeps_are_caught() {
    table_of_large("sweep", &listed(include_str!("../kernels/sweep.bugs")), sweep);
}
