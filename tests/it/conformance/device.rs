//! The probes are compiled for every architecture in each build, and run if there is a device.

use std::collections::BTreeSet;
use std::sync::Arc;

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use tercet::internal::{CudaLauncher, Grid, IMAGES, Image, KernelReport, Launcher};

use super::probes::{self, Probe};
use crate::support;
use crate::support::cuda::{Shared, TEST_IMAGES, capability, shared, test_module};

#[test]
fn the_probes_compile_for_every_device() {
    let conformance = || TEST_IMAGES.iter().filter(|image| image.stem == "conformance");
    let targets = |images: &mut dyn Iterator<Item = &Image>| images.map(|image| image.target).collect::<BTreeSet<_>>();
    assert_eq!(targets(&mut conformance()), targets(&mut IMAGES.iter()));
    for image in conformance() {
        let bytes = image.decompressed();
        for Probe { kernel, .. } in probes::all() {
            let found = bytes.windows(kernel.len()).any(|window| window == kernel.as_bytes());
            assert!(found, "{kernel} is not in the image for {}", image.target);
            let report: Option<&KernelReport> = image.kernels.iter().find(|report| report.kernel == kernel);
            if image.target.starts_with("sm_") {
                let report = report.unwrap_or_else(|| panic!("no assembler's report on {kernel} for {}", image.target));
                assert_eq!(report.spill_bytes, 0, "{report:?} for {}", image.target);
            }
        }
    }
}

fn device(test: &str) -> Option<(Shared, Arc<CudaContext>)> {
    Some((shared(test)?, CudaContext::new(0).unwrap()))
}

/// More than 48 KiB of shared memory must be requested from the driver; more than a block can have is a harmless error.
#[test]
fn a_launch_may_ask_for_much_shared_memory() {
    let Some((_shared, context)) = device("a_launch_may_ask_for_much_shared_memory") else { return };
    let stream = context.default_stream();
    let launcher = CudaLauncher::new(&stream).unwrap();
    let launch = |shared_bytes| {
        let grid = Grid { blocks: 1, threads: 256, shared_bytes };
        // No rows and no outputs: the kernel does nothing.
        let arguments = [0u8; 192];
        // SAFETY: zeros are a valid argument of this kernel: it has no rows, and follows no null address.
        unsafe { launcher.launch("triplet_margin", "triplet_margin_difference_f32_l32", grid, &arguments) }
    };
    for bytes in [0, 1 << 10, 64 << 10, 48 << 10, 96 << 10] {
        launch(bytes).unwrap();
    }
    let error = launch(1 << 30).unwrap_err().to_string();
    assert!(error.contains("1073741824 bytes of dynamic shared memory"), "{error}");
    launch(96 << 10).unwrap();
    stream.synchronize().unwrap();
}

/// `TERCET_REWRITE_RECORDS=1` records what this device answers.
#[test]
fn a_device_answers_as_defined() {
    let Some((_shared, context)) = device("a_device_answers_as_defined") else { return };
    let [major, minor] = capability(&context);
    let module = test_module(&context, "conformance");
    let stream = context.default_stream();
    let probes = probes::all();
    let mut answers = Vec::new();
    for probe in &probes {
        let (input, mut out) = (stream.clone_htod(&probe.input).unwrap(), stream.clone_htod(&probe.initial).unwrap());
        let kernel = module.load_function(probe.kernel).unwrap();
        let config = LaunchConfig {
            grid_dim: (probe.blocks, 1, 1),
            block_dim: (probe.threads, 1, 1),
            shared_mem_bytes: probe.shared_bytes,
        };
        let (input_address, _input) = cudarc::driver::DevicePtr::device_ptr(&input, &stream);
        let (out_address, out_guard) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut out, &stream);
        let arguments = Arguments([input_address, out_address]);
        // SAFETY: the argument is the kernel's `Args`, with buffers of the sizes that the probe defines.
        unsafe { stream.launch_builder(&kernel).arg(&arguments).launch(config) }.unwrap();
        drop(out_guard);
        answers.push((probe, stream.clone_dtoh(&out).unwrap()));
    }

    let device = context.name().unwrap();
    let folder = probes::records();
    if support::rewrite_records() {
        let file = probes::write_record(&folder, &device, &format!("{major}.{minor}"), &answers);
        println!("{device}: {} probes written to {}", answers.len(), file.display());
    }
    let mut wrong: Vec<String> = answers.iter().filter_map(|(probe, out)| probe.check(out).err()).collect();
    for (file, record) in probes::read_records(&folder).iter().filter(|(_, record)| record["device"] == device) {
        for (probe, out) in &answers {
            let Some(recorded) = probes::answer(record, probe) else { continue }; // it is not held against a device yet
            let recorded = recorded.and_then(|record| probe.check_record(out, &record));
            wrong.extend(recorded.err().map(|e| format!("{file}: {e}")));
        }
    }
    assert!(wrong.is_empty(), "{device}:\n{}", wrong.join("\n"));
    println!("{device}: {} probes", answers.len());
}

/// The `Args` struct of the probe kernels.
#[repr(C)]
struct Arguments([u64; 2]);
// SAFETY: two device addresses, laid out as the kernels' struct of two pointers.
unsafe impl cudarc::driver::DeviceRepr for Arguments {}
