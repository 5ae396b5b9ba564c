//! A crate outside this repository, with two dependencies, builds and runs by the README's lines.
#![cfg(feature = "torch")]

#[path = "support/skipped.rs"]
mod skipped;
mod support;

use std::path::Path;
use std::process::Command;
use std::{env, fs};

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

/// The README's block of this language that contains `part`.
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
        skipped::skipped("no cargo here: a_crate_of_ones_own_builds_and_runs");
        return;
    }
    let root = support::package();
    let folder = root.join("target/downstream");
    fs::create_dir_all(folder.join("src")).unwrap();
    let dependencies = readme_block(&root, "toml", "[dependencies]");
    let (before, after) = dependencies.split_once("git = \"...\"").expect("the README names a git repository");
    let manifest = format!(
        "[package]\nname = \"downstream\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n{before}path = {root:?}{after}\n\
         # As it is compiled already, but for what takes long to optimise and would not be the same anyway.\n\
         [profile.release]\ndebug = false\n[profile.release.package.torch-sys]\nopt-level = 1\n\
         [profile.release.package.ndarray]\nopt-level = 0\n[profile.release.package.tch]\nopt-level = 0\n\
         [profile.release.package.tercet]\nopt-level = 0\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("build.rs"), readme_block(&root, "rust", "DEP_TERCET_LIBTORCH_LIB")).unwrap();
    fs::write(folder.join("src/main.rs"), MAIN).unwrap();
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();

    let libtorch = env::var_os("LIBTORCH").unwrap_or_else(|| root.join(".libtorch").into());
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["run", "--release", "--quiet"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", root.join("target"))
        .env("LIBTORCH", libtorch)
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert_eq!(out.trim(), "loss 0.200", "{err}");
}
