//! Compiles `src/torch/c10d.cpp`, libtorch's process groups, against what a machine's libtorch has of them. What is missing is left
//! out, and said: when the build runs, and by the calls that would need it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::headers;
use super::libtorch::{Libtorch, SHARED};
use super::script::fail;

const SOURCE: &str = "src/torch/c10d.cpp";
const STUBS: &str = "src/torch/stubs";

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
    if let Some(why) = headers::without_c10d(&libtorch.include) {
        return Err(why);
    }
    let nccl = match libtorch.with_cuda {
        false => Err("libtorch is one for CPUs alone".to_string()),
        true => headers::of_nccl(|name| env::var_os(name), &libtorch.include),
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
        lacks = undefined(&libtorch.shim().get_compiler(), object, &libtorch.lib, libraries);
        lacks.clone().map_or(Ok(()), Err)
    });
    match (object, lacks) {
        (Ok(object), _) => {
            cc::Build::new().cpp(true).object(object).compile("tercet_c10d");
            Ok(())
        }
        (Err(_), Some(lacks)) => Err(lacks),
        // Another release of NCCL or CUDA than libtorch was built with; without it the source must compile.
        (Err(_), None) if !nccl.is_empty() => Err(format!("{SOURCE} does not compile with the headers in {nccl:?}")),
        (Err(error), None) => fail(&format!("{SOURCE}: {error}")),
    }
}

/// What the object refers to that these libraries do not have; `None` if it links.
fn undefined(compiler: &cc::Tool, object: &Path, lib: &Path, libraries: &[&str]) -> Option<String> {
    let linked = object.with_extension("so");
    let mut link = Command::new(compiler.path());
    link.env("LC_ALL", "C");
    link.args(["-shared", "-Wl,--no-undefined", "-Wl,--allow-shlib-undefined", "-o"]).arg(&linked).arg(object);
    link.arg("-L").arg(lib).args(libraries.iter().map(|library| format!("-l{library}")));
    let said = match link.output() {
        Ok(output) if output.status.success() => return None,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    let lacks = |what: &str| said.lines().find(|line| line.contains("undefined reference") && line.contains(what));
    let line = lacks("c10d::").or_else(|| lacks("")).or_else(|| said.lines().next());
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
