//! Compiles `src/torch/c10d.cpp`, libtorch's process groups, against what a machine's libtorch has of them. What is missing is left
//! out, and said: when the build runs, and by the calls that would need it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::libtorch::{Libtorch, SHARED};
use super::releases::release;
use super::script::fail;

const SOURCE: &str = "src/torch/c10d.cpp";
const STUBS: &str = "src/torch/stubs";
/// The releases of libtorch whose own objects have the sizes that the stubs of gloo's headers give them.
const GLOO_CHECKED: [&str; 3] = ["2.11", "2.12", "2.13"];

/// `libtorch` is `None` where only documentation is wanted.
pub fn build(libtorch: Option<&Libtorch>) {
    println!("cargo:rustc-check-cfg=cfg(tercet_c10d, tercet_nccl)");
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-changed={STUBS}");
    for variable in ["CUDA_HOME", "CUDA_PATH", "NCCL_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let Some(libtorch) = libtorch else {
        println!("cargo:rustc-env=TERCET_WITHOUT_C10D=it is one for documentation alone");
        return;
    };
    match groups(libtorch) {
        Ok(without_nccl) => {
            println!("cargo:rustc-cfg=tercet_c10d");
            match without_nccl {
                None => println!("cargo:rustc-cfg=tercet_nccl"),
                Some(why) => println!("cargo:rustc-env=TERCET_WITHOUT_NCCL={why}"),
            }
        }
        Err(why) => {
            println!("cargo:warning=built without process groups: {why}");
            println!("cargo:rustc-env=TERCET_WITHOUT_C10D={why}");
        }
    }
}

/// Compiles the groups: why there is no NCCL in them, if there is none, or why there are no groups at all.
fn groups(libtorch: &Libtorch) -> Result<Option<String>, String> {
    if let Some(why) = missing(&libtorch.include) {
        return Err(why);
    }
    let nccl = match libtorch.with_cuda {
        false => Err("libtorch is one for CPUs alone".to_string()),
        true => nccl_headers(|name| env::var_os(name).map(PathBuf::from), &libtorch.include),
    };
    let without = match nccl {
        Err(why) => why,
        Ok(headers) => match compile(libtorch, &headers) {
            Ok(()) => return Ok(None),
            Err(why) => why,
        },
    };
    compile(libtorch, &[])?;
    Ok(Some(without))
}

/// Compiles and links the groups, with NCCL if there are folders of headers for it. The error is what libtorch lacks.
fn compile(libtorch: &Libtorch, nccl: &[PathBuf]) -> Result<(), String> {
    let mut shim = libtorch.shim();
    shim.includes(nccl);
    // Behind all others: headers that are there are taken.
    shim.flag("-idirafter").flag(STUBS);
    if !nccl.is_empty() {
        shim.define("TERCET_WITH_NCCL", None).flag("-idirafter").flag(format!("{STUBS}/cuda"));
    }
    let stubs = files(Path::new(STUBS)).unwrap_or_else(|e| fail(&format!("{STUBS}: {e}")));
    let included: Vec<&str> = [SHARED].into_iter().chain(stubs.iter().map(String::as_str)).collect();
    let libraries: &[&str] = if nccl.is_empty() { &["torch_cpu", "c10"] } else { &["torch_cuda", "torch_cpu", "c10"] };
    let mut lacks = None;
    let object = libtorch.compiled(&mut shim, SOURCE, &included, |object| {
        lacks = undefined(&shim_linker(libtorch), object, &libtorch.lib, libraries);
        lacks.clone().map_or(Ok(()), Err)
    });
    match (object, lacks) {
        (Ok(object), _) => {
            cc::Build::new().cpp(true).object(object).compile("tercet_c10d");
            Ok(())
        }
        (Err(_), Some(lacks)) => Err(lacks),
        // A libtorch that has the headers compiles.
        (Err(error), None) => fail(&format!("{SOURCE}: {error}")),
    }
}

fn shim_linker(libtorch: &Libtorch) -> cc::Tool {
    libtorch.shim().get_compiler()
}

/// What to say of a libtorch whose headers in this folder do not serve for process groups; `None` if they do.
pub fn missing(include: &Path) -> Option<String> {
    if !include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp").is_file() {
        return Some("libtorch was built without c10d: it has no ProcessGroupGloo.hpp".into());
    }
    if include.join("gloo/algorithm.h").is_file() {
        return None;
    }
    match release(include) {
        Some(release) if GLOO_CHECKED.contains(&release.as_str()) => None,
        release => Some(format!(
            "libtorch {} has no gloo headers of its own, and those of Tercet are for {}",
            release.as_deref().unwrap_or("of an unknown release"),
            GLOO_CHECKED.join(", ")
        )),
    }
}

/// The folders of NCCL's header and of the CUDA runtime's, or which of the two was not found. Beside libtorch lie pip's packages.
pub fn nccl_headers(variable: impl Fn(&str) -> Option<PathBuf>, include: &Path) -> Result<[PathBuf; 2], String> {
    let beside = fs::canonicalize(include).ok().and_then(|include| Some(include.parent()?.parent()?.join("nvidia")));
    let packages = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path().join("include")).collect();
        folders.sort();
        folders
    };
    let homes =
        ["NCCL_HOME", "CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| home.join("include"));
    let usual = ["/usr/local/cuda/include", "/usr/include"].map(PathBuf::from);
    let folders: Vec<PathBuf> = homes.chain(beside.as_deref().map(packages).unwrap_or_default()).chain(usual).collect();
    let find = |header: &str| {
        let found = folders.iter().find(|folder| folder.join(header).is_file()).cloned();
        found.ok_or_else(|| format!("{header} was not found: not beside libtorch, nor by NCCL_HOME and CUDA_HOME"))
    };
    Ok([find("cuda_runtime.h")?, find("nccl.h")?])
}

/// What the object refers to that these libraries do not have; `None` if it links.
fn undefined(compiler: &cc::Tool, object: &Path, lib: &Path, libraries: &[&str]) -> Option<String> {
    let linked = object.with_extension("so");
    let mut link = Command::new(compiler.path());
    link.args(["-shared", "-Wl,--no-undefined", "-Wl,--allow-shlib-undefined", "-o"]).arg(&linked).arg(object);
    link.arg("-L").arg(lib).args(libraries.iter().map(|library| format!("-l{library}")));
    let said = match link.output() {
        Ok(output) if output.status.success() => return None,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    let line = said.lines().find(|line| line.contains("undefined reference")).or_else(|| said.lines().next());
    let what = line.and_then(|line| Some(line.split_once("undefined reference to ")?.1)).or(line).unwrap_or_default();
    Some(format!("libtorch's libraries do not have {what}"))
}

/// All files of a folder and its folders.
fn files(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => all.extend(files(&path)?),
            false => all.push(path.display().to_string()),
        }
    }
    all.sort();
    Ok(all)
}
