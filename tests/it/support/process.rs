//! Tests that run in a process of their own: with other libraries, or before anything else of the program has run.

use std::env;
use std::path::Path;
use std::process::Command;

/// Runs the test of this name once more, alone in a process of its own with these variables. Returns what that process
/// printed, and `None` inside it. `module` is the test's `module_path!()`.
pub fn again(module: &str, test: &str, environment: &[(&str, &Path)]) -> Option<String> {
    const INSIDE: &str = "TERCET_TEST_INSIDE";
    if env::var_os(INSIDE).is_some() {
        return None;
    }
    let (_, module) = module.split_once("::").expect("the program's name, and the module's");
    let name = format!("{module}::{test}");
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .envs(environment.iter().copied())
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("1 passed"), "no test of this name: {name}\n{out}");
    Some(format!("{out}{err}"))
}
