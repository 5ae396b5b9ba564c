//! A crate outside this repository, with two dependencies, builds and runs by the README's lines.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::releases;
use crate::support;
use crate::support::skipped::skipped;

const MAIN: &str = r#"
use tch::{Device, Kind, Tensor};
use tercet::TripletMarginLoss;

fn main() {
    let embeddings = || Tensor::ones([4, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let (anchor, positive, negative) = (embeddings(), embeddings(), embeddings());
    let loss = TripletMarginLoss::default().forward(&anchor, &positive, &negative);
    loss.backward();
    println!("loss {:.3}", loss.double_value(&[]));
}
"#;

/// A program that asks tch about CUDA, calls nothing of Tercet, and prints which libtorch libraries are loaded.
const ASKS: &str = r#"
fn main() {
    let _ = tch::Cuda::is_available();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    println!("libtorch_cuda: {}", maps.contains("/libtorch_cuda.so"));
}
"#;

/// The README's code block in `language` that contains `part`.
fn readme_block(root: &Path, language: &str, part: &str) -> String {
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let fence = format!("```{language}\n");
    let blocks: Vec<String> =
        readme.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_string()).collect();
    blocks
        .into_iter()
        .find(|block| block.contains(part))
        .unwrap_or_else(|| panic!("no {language} block with {part} in README.md"))
}

#[test]
fn a_crate_of_ones_own_builds_and_runs() {
    if env::var_os("TERCET_BUNDLE").is_some() {
        skipped("no cargo here: a_crate_of_ones_own_builds_and_runs");
        return;
    }
    let root = support::checkout();
    let folder = root.join("target/downstream");
    fs::create_dir_all(folder.join("src")).unwrap();
    let dependencies = readme_block(&root, "toml", "[dependencies]");
    let tch = format!("tch = \"={}\"", locked(&root, "tch"));
    let dependencies = dependencies.replace("tch = \"0.24\"", &tch);
    assert!(dependencies.contains(&tch), "{dependencies}");
    let (before, after) = dependencies.split_once("git = \"...\"").expect("the README names a git repository");
    let manifest = format!(
        "[package]\nname = \"downstream\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n{before}path = {root:?}{after}\n\
         # It runs two lines. Only libtorch's bindings are optimised, as they are compiled already.\n\
         [profile.release]\nopt-level = 0\ndebug = false\n[profile.release.package.torch-sys]\nopt-level = 1\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("build.rs"), readme_block(&root, "rust", "DEP_TERCET_LIBTORCH_LIB")).unwrap();
    fs::write(folder.join("src/main.rs"), MAIN).unwrap();
    fs::create_dir_all(folder.join("src/bin")).unwrap();
    fs::write(folder.join("src/bin/asks.rs"), ASKS).unwrap();
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();

    let libtorch = env::var_os("LIBTORCH").map_or_else(|| root.join(".libtorch"), PathBuf::from);
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let says = |program: &str| {
        let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["run", "--release", "--quiet", "--bin", program])
            .current_dir(&folder)
            .env("CARGO_TARGET_DIR", &target)
            .env("LIBTORCH", &libtorch)
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        out.trim().to_string()
    };
    assert_eq!(says("downstream"), "loss 0.200");
    let with_cuda = libtorch.join("lib/libtorch_cuda.so").exists();
    assert_eq!(says("asks"), format!("libtorch_cuda: {with_cuda}"));
}

/// The version of a package in this workspace's `Cargo.lock`.
fn locked(root: &Path, package: &str) -> String {
    let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
    let after = lock.split(&format!("name = \"{package}\"\nversion = \"")).nth(1).expect("it is locked");
    after.split('"').next().unwrap().into()
}

#[test]
fn the_readme_has_each_pair_of_libtorch_and_tch() {
    let readme = fs::read_to_string(support::checkout().join("README.md")).unwrap();
    for pair in releases::PAIRS {
        let row = format!("| {} | {} |", pair.tch, pair.libtorch);
        assert!(readme.contains(&row), "no {row} in README.md");
    }
    assert!(releases::pairs().starts_with("libtorch 2.11 with tch 0.24, "));
    assert_eq!(releases::release(Path::new("/nowhere")), None);
}
