//! Made-up drivers stand for machines other than this one, with the devices that a user may have.

use std::env;

use crate::support::made_up::{as_driver, driver, refusing};
use crate::support::process;
use tercet::cuda::{check_device, device_count};

use crate::support::skipped::skipped;

/// Runs `test` again in a process whose CUDA driver is built from `source`, where it calls `look`; returns what that
/// process printed.
fn seen(source: &str, test: &str, look: impl Fn()) -> Option<String> {
    if env::var_os("TERCET_BUNDLE").is_some() {
        skipped(&format!("no compiler here: {test}"));
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    as_driver(folder.path(), source);
    match process::again(module_path!(), test, &[("LD_LIBRARY_PATH", folder.path())]) {
        Some(printed) => Some(printed),
        None => {
            look();
            None
        }
    }
}

fn says(printed: Option<String>, parts: &[&str]) {
    let Some(printed) = printed else { return };
    for part in parts {
        assert!(printed.contains(part), "no {part:?} in\n{printed}");
    }
}

fn show() {
    println!("{} devices", device_count());
    for ordinal in 0..=device_count() {
        match check_device(ordinal) {
            Ok(()) => println!("{ordinal} runs them"),
            Err(why) => println!("{ordinal}: {why}"),
        }
    }
}

#[test]
fn a_device_below_8_0_is_refused_beforehand_and_its_neighbour_is_not() {
    let two = driver(13000, &[(7, 5), (8, 9)]);
    let printed = seen(&two, "a_device_below_8_0_is_refused_beforehand_and_its_neighbour_is_not", show);
    says(
        printed,
        &[
            "2 devices",
            "0: CUDA: choosing kernels for GPU A: nothing in this build runs on compute capability 7.5; 8.0 is the least",
            "1 runs them",
            "2: device: expected one of 2 CUDA devices, got 2",
        ],
    );
}

#[test]
fn each_device_from_8_0_up_runs_them() {
    let five = driver(14000, &[(8, 0), (9, 0), (10, 0), (12, 0), (12, 1)]);
    let printed = seen(&five, "each_device_from_8_0_up_runs_them", show);
    says(printed, &["5 devices", "0 runs", "1 runs", "2 runs", "3 runs", "4 runs", "5: device: expected one of 5"]);
}

#[test]
fn a_driver_of_an_older_cuda_is_refused_with_both_releases() {
    let old = driver(11080, &[(8, 0)]);
    let printed = seen(&old, "a_driver_of_an_older_cuda_is_refused_with_both_releases", show);
    says(
        printed,
        &["1 devices", "0: CUDA: choosing kernels for GPU A: they were compiled with CUDA 1", "is of CUDA 11.8"],
    );
}

#[test]
fn a_stub_is_no_driver() {
    let printed = seen(&refusing(34), "a_stub_is_no_driver", show);
    says(printed, &["0 devices", "0: CUDA: looking for CUDA devices: libcuda.so is CUDA's stub; LD_LIBRARY_PATH"]);
}

#[test]
fn a_driver_without_a_device_is_none() {
    let printed = seen(&refusing(100), "a_driver_without_a_device_is_none", show);
    says(printed, &["0 devices", "0: CUDA: looking for CUDA devices: ", "CUDA_ERROR_NO_DEVICE"]);
}

#[test]
fn a_library_that_is_no_driver_is_none() {
    let printed = seen("int nothing;", "a_library_that_is_no_driver_is_none", show);
    says(printed, &["0 devices", "0: CUDA: looking for CUDA devices: there is no driver"]);
}
