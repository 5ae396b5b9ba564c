//! The images in this build: the kernels that the host asks for are in every one of them, and the assembler kept all of
//! their variables in registers.
#![cfg(feature = "cuda")]

mod support;

use std::collections::BTreeSet;

use tercet::cuda::{DeviceProperties, IMAGES};
use tercet::triplet_margin::cuda::kernel_names;

#[test]
fn every_kernel_is_in_every_image() {
    assert!(!IMAGES.is_empty());
    for image in IMAGES {
        let names: BTreeSet<String> = kernel_names().into_iter().collect();
        let bytes = image.inflate();
        assert_eq!(bytes.len(), image.size);
        for name in &names {
            let found = bytes.windows(name.len()).any(|window| window == name.as_bytes());
            assert!(found, "{name} is not in the image of {} for {}", image.stem, image.target);
        }
        if image.target.starts_with("sm_") {
            let reported: BTreeSet<String> = image.kernels.iter().map(|k| k.kernel.to_string()).collect();
            let missing: Vec<_> = names.difference(&reported).collect();
            assert!(missing.is_empty(), "no assembler's report for {}: {missing:?}", image.target);
        }
    }
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

#[test]
fn images_stay_within_their_budget() {
    let bytes: usize = IMAGES.iter().map(|image| image.deflated.len()).sum();
    println!("{} images, {} bytes in the binary", IMAGES.len(), bytes);
    assert!(bytes <= 8 << 20, "{bytes} bytes of kernels in every binary");
    for image in IMAGES {
        let most = image.kernels.iter().map(|k| k.registers).max().unwrap_or(0);
        println!("{:>16} {:>10}: {} kernels, at most {most} registers", image.stem, image.target, image.kernels.len());
    }
}

/// One room per loss: whoever adds a kernel adds its reference, CPU and CUDA versions, its test and its bench.
#[test]
fn every_loss_has_its_room_complete() {
    let root = support::package();
    if !root.join("kernels").is_dir() {
        println!("skipped: no sources here: every_loss_has_its_room_complete");
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
        for file in ["mod.rs", "reference.rs", "cpu.rs", "cuda.rs", "torch.rs"] {
            let file = root.join("src").join(&stem).join(file);
            assert!(file.is_file(), "{} is missing", file.display());
        }
        for folder in ["tests", "benches"] {
            let file = root.join(folder).join(format!("{stem}.rs"));
            assert!(file.is_file(), "{} is missing", file.display());
        }
    }
    assert!(stems > 0);
}

/// Plans depend on the problem and the device alone; what they choose, written down.
#[test]
fn plans_follow_size_type_and_alignment() {
    use tercet::triplet_margin::cuda::{Pass, Shape};
    let device = DeviceProperties {
        name: "a device of 132 multiprocessors".into(),
        major: 9,
        minor: 0,
        multiprocessors: 132,
        threads_per_multiprocessor: 2048,
        shared_bytes_per_block: 227 << 10,
    };
    let loss = tercet::TripletMarginLoss::default();
    let plan = |rows: usize, dim: usize, address: u64| {
        let pass = Pass { inputs: [address; 3], strides: [dim; 3], grads: [4096; 3], ..Pass::default() };
        loss.plan_on::<f32>(&device, [rows, dim], &pass).unwrap()
    };
    for (dim, shape) in [
        (1, Shape::Scalar),
        (4, Shape::L8),
        (32, Shape::L8),
        (36, Shape::L32),
        (128, Shape::L32),
        (132, Shape::L32x4),
        (512, Shape::L32x4),
        (516, Shape::Vector),
        (513, Shape::Scalar),
    ] {
        assert_eq!(plan(1000, dim, 4096).shape, shape, "dim {dim}");
    }
    assert_eq!(plan(1000, 128, 4096 + 4).shape, Shape::Scalar, "rows that start off a 16-byte boundary");
    assert_eq!(plan(1, 128, 4096).grid.blocks, 1);
    assert_eq!(plan(9, 128, 4096).grid.blocks, 2, "8 rows a block");
    assert_eq!(plan(1 << 20, 128, 4096).grid.blocks, 132 * 8, "no more blocks than the device holds");
    assert_eq!(plan(1000, 128, 4096).kernel, "triplet_margin_difference_f32_l32");
}
