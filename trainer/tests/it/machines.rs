//! The program on machines other than this one, by made-up drivers.

use crate::made_up;
use crate::program::{program, stderr};
use crate::skipped;
use std::process::{Command, Output};

/// `tercet train` on images that do not exist, with a driver of this source.
fn train(driver: &str, device: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    made_up::as_driver(folder.path(), driver);
    let mut command = Command::new(program());
    command.args(["train", "--data", "/nowhere/images", "--device", device]).env("OMP_NUM_THREADS", "1");
    command.env("LD_LIBRARY_PATH", folder.path()).env_remove("OMP_WAIT_POLICY").env_remove("GOMP_SPINCOUNT");
    command.output().expect("tercet starts")
}

#[test]
fn auto_takes_the_cpu_and_says_once_that_a_gpu_is_of_no_use() {
    if std::env::var_os("TERCET_BUNDLE").is_some() {
        skipped::skipped("no compiler here: auto_takes_the_cpu_and_says_once_that_a_gpu_is_of_no_use");
        return;
    }
    // This driver answers questions and does no more, so libtorch does not run on it.
    let output = train(&made_up::driver(13000, &[(9, 0)]), "auto");
    let text = stderr(&output);
    let line =
        "--device auto takes the CPU: the driver sees 1, so this libtorch is one without CUDA, or needs a newer driver";
    assert_eq!(text.matches(line).count(), 1, "{text}");
    assert!(text.contains("/nowhere/images"), "{text}");
    assert_eq!(output.status.code(), Some(2), "{text}");
    // If there is no device at all, there is nothing to say.
    let none = stderr(&train(&made_up::refusing(100), "auto"));
    assert!(!none.contains("--device auto") && none.contains("/nowhere/images"), "{none}");
}

#[test]
fn a_gpu_that_cannot_be_used_is_refused_before_images_are_read() {
    if std::env::var_os("TERCET_BUNDLE").is_some() {
        skipped::skipped("no compiler here: a_gpu_that_cannot_be_used_is_refused_before_images_are_read");
        return;
    }
    let output = train(&made_up::driver(13000, &[(9, 0)]), "cuda");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--device cuda: libtorch sees 0 GPUs; the driver sees 1"), "{text}");
    assert!(!text.contains("/nowhere/images"), "{text}");
}
