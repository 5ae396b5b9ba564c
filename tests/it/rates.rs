//! How many of each instruction a multiprocessor of a device executes in a clock: numbers for the bounds of `cargo xtask
//! kernel-report`. The kernels are in tests/kernels/rates.cu, compiled in each build, and run if there is a device.

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, DevicePtr, LaunchConfig, PushKernelArg};

use crate::support::cuda::{TEST_IMAGES, alone, attribute, test_module};

/// The threads of the kernels' blocks.
const THREADS: u32 = 512;
/// How many words they read.
const WORDS: usize = 1 << 20;

const KERNELS: [&str; 15] = [
    "rate_multiply_add",
    "rate_minimum",
    "rate_least_of",
    "rate_add_min",
    "rate_is_below",
    "rate_pack_f16",
    "rate_multiply_f16",
    "rate_reciprocal_root",
    "rate_shuffle",
    "rate_product_f16",
    "rate_load_matrix",
    "rate_read_32_pieces",
    "rate_read_4_pieces",
    "rate_atomic_minimum",
    "rate_copy_16_bytes",
];

#[test]
fn every_rate_is_compiled_without_spills() {
    for image in TEST_IMAGES.iter().filter(|image| image.stem == "rates" && image.target.starts_with("sm_")) {
        let mut names: Vec<&str> = image.kernels.iter().map(|report| report.kernel).collect();
        names.sort_unstable();
        let mut expected = KERNELS;
        expected.sort_unstable();
        assert_eq!(names, expected, "{}", image.target);
        for report in image.kernels {
            assert_eq!(report.spill_bytes, 0, "{report:?} for {}", image.target);
        }
    }
}

/// Prints a line of JSON for each instruction.
#[test]
fn a_device_has_these_rates() {
    let Some(_alone) = alone("a_device_has_these_rates") else { return };
    let context = CudaContext::new(0).unwrap();
    let multiprocessors = attribute(&context, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    let module = test_module(&context, "rates");
    let stream = context.default_stream();
    let threads = (multiprocessors * THREADS) as usize;
    let input: Vec<u32> = (0..WORDS as u32).map(|i| (1.0 + (i % 4096) as f32 / 4096.0).to_bits()).collect();
    let (input, words) = (stream.clone_htod(&input).unwrap(), stream.clone_htod(&vec![u64::MAX; threads]).unwrap());
    let (out, clocks) = (stream.alloc_zeros::<u32>(threads).unwrap(), stream.alloc_zeros::<u64>(threads).unwrap());
    for name in KERNELS {
        let kernel = module.load_function(name).unwrap();
        let config =
            LaunchConfig { grid_dim: (multiprocessors, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let arguments = Arguments([
            input.device_ptr(&stream).0,
            out.device_ptr(&stream).0,
            clocks.device_ptr(&stream).0,
            words.device_ptr(&stream).0,
        ]);
        // The first run loads the code and fills the caches.
        for _ in 0..3 {
            // SAFETY: the argument is the kernel's `Args`, with a word of each thread and of each block, and 2^20 to read.
            unsafe { stream.launch_builder(&kernel).arg(&arguments).launch(config) }.unwrap();
        }
        let written = stream.clone_dtoh(&clocks).unwrap();
        let blocks = &mut written.as_chunks::<2>().0[..multiprocessors as usize].to_vec();
        blocks.sort_unstable();
        let [median, of_a_warp] = blocks[blocks.len() / 2];
        assert!(median > 0 && of_a_warp > 0, "{name}");
        let rate = (of_a_warp * u64::from(THREADS / 32)) as f64 / median as f64;
        println!("{{\"rate\": {name:?}, \"per_clock\": {rate:.4}, \"clocks\": {median}}}");
    }
}

/// The `Args` struct of the kernels.
#[repr(C)]
struct Arguments([u64; 4]);
// SAFETY: four device addresses, laid out as the kernels' struct of four pointers.
unsafe impl cudarc::driver::DeviceRepr for Arguments {}
