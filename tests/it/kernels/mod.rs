//! The images in this build: all of one file have the same kernels, and the assembler kept all of their variables in
//! registers. That what the host launches is among them is what the emulator's tests show: it has these kernels too
//! (emulator/tests/it/kernels.rs), and refuses to launch any other.

mod budgets;
mod launches;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tercet::internal::{DeviceProperties, IMAGES, Image, Shared, Strip, choose, choose_for, is_left_out};
use tercet_kernel_report::devices::MULTIPROCESSORS;
use tercet_kernel_report::disassembler::Disassembler;
use tercet_kernel_report::parallel;
use tercet_kernel_report::report::Resources;
use tercet_kernel_report::work::Work;

use crate::support;
use crate::support::skipped::skipped;

/// What the assembler reports on, and in PTX, which it has not seen, the entries.
fn kernels_of(image: &Image) -> BTreeSet<String> {
    let bytes = image.decompressed();
    assert_eq!(bytes.len(), image.size);
    if !image.target.starts_with("sm_") {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        return text.split(".entry ").skip(1).filter_map(|rest| Some(rest.split_once('(')?.0.trim().into())).collect();
    }
    for report in image.kernels {
        let name = report.kernel.as_bytes();
        let found = bytes.windows(name.len()).any(|window| window == name);
        assert!(found, "{} is not in the image of {} for {}", report.kernel, image.stem, image.target);
    }
    let names: BTreeSet<String> = image.kernels.iter().map(|report| report.kernel.into()).collect();
    assert_eq!(names.len(), image.kernels.len(), "two reports on a kernel of {} for {}", image.stem, image.target);
    names
}

#[test]
fn all_images_of_a_file_have_the_kernels_that_their_devices_take() {
    let mut files: BTreeMap<&str, Vec<(&str, BTreeSet<String>)>> = BTreeMap::new();
    for image in IMAGES {
        files.entry(image.stem).or_default().push((image.target, kernels_of(image)));
    }
    assert!(!files.is_empty());
    let targets = |stem: &str| files[stem].iter().map(|(target, _)| *target).collect::<Vec<_>>();
    for (stem, images) in &files {
        assert_eq!(targets(stem), targets("batch"), "the targets of {stem}");
        // Each image has those that its devices take, and PTX those that fit everywhere.
        assert!(images.iter().any(|(target, _)| !target.starts_with("sm_")), "{stem} has no PTX");
        let kernels: BTreeSet<String> = images.iter().flat_map(|(_, kernels)| kernels).cloned().collect();
        assert!(!kernels.is_empty(), "{stem} has no kernels");
        for (target, found) in images {
            let expected: BTreeSet<_> = kernels.iter().filter(|kernel| !is_left_out(target, kernel)).cloned().collect();
            let difference: Vec<_> = expected.symmetric_difference(found).collect();
            assert!(difference.is_empty(), "{stem} for {target} should have others: {difference:?}");
        }
        let strange: Vec<_> = kernels.iter().filter(|name| !name.starts_with(&format!("{stem}_"))).collect();
        assert!(strange.is_empty(), "kernels of {stem} without its name: {strange:?}");
    }
}

/// Machine code for each device has the strips that its plans choose, and any other device finds them in PTX.
#[test]
fn every_device_finds_its_strips() {
    let kernel = |family: &str, product: &str, planes: u32, long: bool, shared: Shared| {
        format!("batch_hard_{family}_{product}_{}", Strip::fitting(long, planes, shared).name)
    };
    let mut in_code = 0;
    for device in &MULTIPROCESSORS {
        let (major, minor) = device.capability;
        let code = choose(IMAGES, "batch_hard", major, minor).expect("an image");
        // No device has so little: as if it were another kind than the one that the image was made for.
        let other = Shared { of_block: 99 << 10, of_multiprocessor: 100 << 10 };
        for (product, planes) in [("highest", 2), ("half", 1)] {
            for (family, long) in [("negatives", false), ("negatives", true), ("triangle", false), ("triangle", true)] {
                let taken = kernel(family, product, planes, long, device.shared);
                let found = choose_for(IMAGES, "batch_hard", &taken, major, minor).expect("an image with this kernel");
                assert_eq!(found.target, code.target, "{taken} for {}", device.name);
                in_code += usize::from(code.target.starts_with("sm_"));
                let strange = kernel(family, product, planes, long, other);
                assert!(choose_for(IMAGES, "batch_hard", &strange, major, minor).is_some(), "{strange}");
            }
        }
    }
    assert!(in_code > 0, "no machine code for any device");
    let none = choose_for(IMAGES, "batch_hard", "batch_hard_negatives_highest_wide", 7, 5);
    assert!(none.is_none(), "nothing runs on 7.5");
}

#[test]
fn no_kernel_spills_or_uses_local_memory() {
    let mut kernels = 0;
    for image in IMAGES {
        for kernel in image.kernels {
            kernels += 1;
            let local = kernel.spill_bytes + kernel.stack_bytes;
            assert!(local == 0, "{} for {}: {kernel:?}", kernel.kernel, image.target);
        }
    }
    assert!(kernels > 0, "the assembler reported on no kernel");
}

/// NVIDIA's disassembler; without one the test is skipped.
fn disassembler(test: &str) -> Option<Disassembler> {
    let found = Disassembler::find(&support::checkout());
    found.map_err(|why| skipped(&format!("{}: {test}", why.split(':').next().unwrap_or_default()))).ok()
}

/// What the assembler made of the kernels: rows are read and gradients written 16 bytes at a time, and a kernel that
/// holds its rows in registers reads each of them once.
#[test]
fn rows_move_in_vectors_of_16_bytes() {
    let Some(disassembler) = disassembler("rows_move_in_vectors_of_16_bytes") else { return };
    // Suffixes of the kernels that hold their rows in registers, and how many 16-byte vectors of a row each lane holds.
    let held =
        |name: &str| [("_l16", 1), ("_l32", 1), ("_l32x4", 4)].into_iter().find(|(shape, _)| name.ends_with(shape));
    // How many matrices a loss reads.
    let matrices = |stem| match stem {
        "triplet_margin" => 3,
        "contrastive" => 2,
        _ => 0,
    };
    let start = Instant::now();
    let images: Vec<&Image> = IMAGES.iter().filter(|i| i.target.starts_with("sm_") && matrices(i.stem) > 0).collect();
    let counts = parallel::map(&images, |image| {
        let listings = disassembler.list(&image.decompressed(), |name| held(name).is_some()).unwrap();
        for listing in &listings {
            let (_, vectors) = held(&listing.kernel).expect("asked for no other");
            let lines = |what: [&str; 2]| listing.text.lines().filter(|l| what.iter().all(|w| l.contains(w))).count();
            let (loads, stores) = (lines(["LDG.E", ".128"]), lines(["STG.E", ".128"]));
            let (name, wanted) = (format!("{} for {}", listing.kernel, image.target), matrices(image.stem) * vectors);
            assert_eq!(loads, wanted, "{name}: 16-byte loads");
            assert!(stores >= wanted, "{name}: {stores} 16-byte stores");
        }
        listings.len()
    });
    let kernels: usize = counts.iter().sum();
    assert!(kernels > 0, "no kernel of these shapes was found");
    println!("{kernels} kernels read each row once, in vectors of 16 bytes; {:.1} s", start.elapsed().as_secs_f64());
}

/// Kernels of tiles need warps to hide their latency: so many on a multiprocessor at least.
const WARPS: u32 = 8;

/// Kernels that do not fit: a part of their names, the target, the devices, and why.
type Exception = (&'static str, &'static str, &'static [(u32, u32)], &'static str);

/// Those that do not fit as the test below asks. A line goes when its kernels do.
const DO_NOT_FIT: &[Exception] = &[
    ("_half_wide_long", "sm_80", &[(8, 6), (8, 9)], "the plan takes narrow blocks there"),
    ("_half_wide", "sm_80", &[(8, 6), (8, 9)], "the plan takes narrow blocks there"),
    ("_choose_", "sm_80", &[(8, 6), (8, 9)], "rows, and a tile of distances: 66 and 82 KiB a block"),
    ("_choose_highest", "sm_80", &[(8, 0)], "rows, and a tile of distances: 82 KiB a block"),
    ("_choose_", "sm_120", &[(12, 0)], "rows, and a tile of distances: 66 and 82 KiB a block"),
    (
        "_left_",
        "sm_80",
        &[(8, 6), (8, 9)],
        "a tile of weights, and of batch_all one of distances: 51 to 89 KiB a block",
    ),
    ("batch_all_left_highest", "sm_80", &[(8, 0)], "two tiles, of distances and of weights: 89 KiB a block"),
    ("_left_", "sm_120", &[(12, 0)], "a tile of weights, and of batch_all one of distances: 51 to 89 KiB a block"),
    ("_pass_", "sm_80", &[(8, 6), (8, 9)], "a tile of weights: 59 and 73 KiB a block"),
    ("_pass_", "sm_120", &[(12, 0)], "a tile of weights: 59 and 73 KiB a block"),
];

#[test]
fn kernels_fit_the_multiprocessors_of_every_device_that_their_image_serves() {
    let mut exceptions = vec![false; DO_NOT_FIT.len()];
    let mut kernels = 0;
    for resources in IMAGES.iter().flat_map(|image| Resources::of_image(image).unwrap()) {
        kernels += 1;
        for (device, blocks) in &resources.blocks {
            let warps = blocks * resources.threads / 32;
            let enough = if Work::of(resources.kernel).is_some() { warps >= WARPS } else { warps > 0 };
            let of_this = |(part, target, devices, _): &Exception| {
                resources.kernel.contains(part) && resources.target == *target && devices.contains(device)
            };
            let exception = DO_NOT_FIT.iter().position(of_this);
            if !enough && let Some(at) = exception {
                exceptions[at] = true;
                continue;
            }
            assert!(enough, "a multiprocessor of {device:?} holds {blocks} blocks, {warps} warps: {resources:?}");
        }
    }
    assert!(kernels > 0);
    for (line, seen) in DO_NOT_FIT.iter().zip(exceptions) {
        let compiled = IMAGES.iter().any(|image| image.target == line.1);
        assert!(seen || !compiled, "these kernels fit now, so their line goes: {line:?}");
    }
}

#[test]
fn images_stay_within_their_budget() {
    let bytes: usize = IMAGES.iter().map(|image| image.compressed.len()).sum();
    println!("{} images, {} bytes in the binary", IMAGES.len(), bytes);
    // Of all default targets: 7.01 million were reached on 2026-11-30.
    assert!(bytes <= 7_400_000, "{bytes} bytes of kernels in every binary");
    for image in IMAGES {
        let most = image.kernels.iter().map(|k| k.registers).max().unwrap_or(0);
        println!("{:>16} {:>10}: {} kernels, at most {most} registers", image.stem, image.target, image.kernels.len());
    }
}

/// Every kernel file comes with its oracle, its CPU, CUDA and torch versions, its test and its bench.
#[test]
fn every_loss_has_its_room_complete() {
    let root = support::checkout();
    if !root.join("kernels").is_dir() {
        skipped("no sources here: every_loss_has_its_room_complete");
        return;
    }
    let mut stems = 0;
    for entry in std::fs::read_dir(root.join("kernels")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "cu") {
            continue;
        }
        stems += 1;
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if stem == "batch" {
            continue; // mined losses share it: src/cuda/batch.rs
        }
        // A mined loss's door for tensors is `Call`; any other has its own.
        let torch = (!stem.starts_with("batch_")).then_some("torch.rs");
        for file in ["mod.rs", "oracle.rs", "cpu.rs", "cuda.rs"].into_iter().chain(torch) {
            let file = root.join("src").join(&stem).join(file);
            assert!(file.is_file(), "{} is missing", file.display());
        }
        for file in [format!("tests/it/{stem}/property.rs"), format!("benches/{stem}.rs")] {
            let file = root.join(file);
            assert!(file.is_file(), "{} is missing", file.display());
        }
    }
    assert!(stems > 0);
}

/// Plans depend on the problem and the device alone; the expected choices are written out here.
#[test]
fn plans_follow_size_type_and_alignment() {
    use tercet::internal::{Pass, RowAccess, triplet_margin_plan};
    let device = DeviceProperties {
        name: "a device of 132 multiprocessors".into(),
        major: 9,
        minor: 0,
        multiprocessors: 132,
        threads_per_multiprocessor: 2048,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
    };
    let loss = tercet::TripletMarginLoss::default();
    let plan = |rows: usize, dim: usize, address: u64| {
        let pass = Pass { inputs: [address; 3], strides: [dim; 3], grads: [4096; 3], ..Pass::default() };
        triplet_margin_plan::<f32>(&loss, &device, [rows, dim], &pass).unwrap()
    };
    for (dim, access) in [
        (1, RowAccess::Scalar),
        (4, RowAccess::L16),
        (64, RowAccess::L16),
        (68, RowAccess::L32),
        (128, RowAccess::L32),
        (132, RowAccess::L32x4),
        (512, RowAccess::L32x4),
        (516, RowAccess::Vector),
        (513, RowAccess::Scalar),
    ] {
        assert_eq!(plan(1000, dim, 4096).access, access, "dim {dim}");
    }
    assert_eq!(plan(1000, 128, 4096 + 4).access, RowAccess::Scalar, "rows that start off a 16-byte boundary");
    assert_eq!(plan(1, 128, 4096).grid.blocks, 1);
    assert_eq!(plan(9, 128, 4096).grid.blocks, 2, "8 rows a block");
    assert_eq!(plan(1 << 20, 128, 4096).grid.blocks, 132 * 8, "no more blocks than the device holds");
    assert_eq!(plan(1000, 128, 4096).kernel, "triplet_margin_difference_f32_l32");
}
