//! The command line: what each command starts, and with which environment.

mod common;

use common::{Outcome, Sandbox, run};

const ROW: &str = r#"[{"op": "triplet_margin", "size": "8x4", "dtype": "f32", "backend": "cpu", "pass": "both",
    "ms": 1.0, "peer": "tch", "peer_ms": 4.0, "ratio": 4.0, "floor_ms": 0.5, "peak_bytes": 8}]"#;

#[test]
fn help_is_shown_and_names_every_command() {
    let sandbox = Sandbox::new();
    for arguments in [&["--help"][..], &["help"], &["-h"], &["setup", "--help"], &["bundle", "-h"]] {
        run(&mut sandbox.xtask(arguments)).succeeds().says(&[
            "setup",
            "train",
            "test",
            "bench",
            "bundle",
            "gpu-status",
            "TERCET_VENV",
            "LIBTORCH",
            "CUDA_HOME",
        ]);
    }
    assert!(!sandbox.exists("calls"), "help needs no set-up");
}

#[test]
fn wrong_usage_names_the_argument_and_exits_with_2() {
    let sandbox = Sandbox::new();
    run(&mut sandbox.xtask(&[])).fails(2).says(&["no command"]);
    run(&mut sandbox.xtask(&["tset"])).fails(2).says(&["unknown command `tset`", "--help"]);
    run(&mut sandbox.xtask(&["setup", "now"])).fails(2).says(&["unexpected argument `now`", "setup"]);
    run(&mut sandbox.xtask(&["bundle", "--fast"])).fails(2).says(&["`--fast`"]);
    run(&mut sandbox.xtask(&["gpu-status", "x"])).fails(2).says(&["`x`"]);
    run(&mut sandbox.xtask(&["bench", "--table", "y"])).fails(2).says(&["`y`"]);
    assert!(!sandbox.exists("calls") && !sandbox.exists("cargo-calls"));
}

#[test]
fn outside_a_checkout() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.setup();
    run(command.env_remove("CARGO_MANIFEST_DIR").current_dir(&sandbox.dir)).fails(1).says(&["not inside a checkout"]);
}

#[test]
fn arguments_reach_cargo_and_our_own_variables_do_not() {
    let sandbox = Sandbox::new();
    run(&mut sandbox.xtask(&["test", "some_test", "--", "--nocapture"])).succeeds();
    run(&mut sandbox.xtask(&["train", "--data", "a b", "--epochs", "1"])).succeeds();
    let calls = sandbox.read("cargo-calls");
    let calls: Vec<&str> = calls.lines().collect();
    assert_eq!(
        calls,
        [
            "test --release --workspace some_test -- --nocapture",
            "run --release -p tercet-trainer --bin tercet -- train --data a b --epochs 1"
        ]
    );
    let seen = sandbox.read("cargo-environment");
    assert!(seen.contains("PATH="), "{seen}");
    for name in ["CARGO_PKG_NAME=", "CARGO_MANIFEST_DIR=", "LIBTORCH="] {
        assert!(!seen.contains(name), "{name} in\n{seen}");
    }
}

#[test]
fn cargos_failure_is_ours() {
    let sandbox = Sandbox::new();
    run(sandbox.xtask(&["test"]).env("FAKE_CARGO", "exit 101")).fails(101);
    run(sandbox.xtask(&["train"]).env("FAKE_CARGO", "kill -9 $$")).fails(137);
    run(sandbox.xtask(&["train"]).env("CARGO", "/nowhere/cargo")).fails(1).says(&["cannot start /nowhere/cargo"]);
}

#[test]
fn help_of_train_does_not_download_anything() {
    let sandbox = Sandbox::new();
    run(&mut sandbox.xtask(&["train", "--help"])).succeeds().says(&["After `cargo xtask setup`"]);
    assert!(!sandbox.exists("checkout/.venv") && !sandbox.exists("cargo-calls"));
    run(&mut sandbox.setup()).succeeds();
    run(&mut sandbox.xtask(&["train", "--help"])).succeeds();
    assert!(sandbox.read("cargo-calls").ends_with("-- train --help\n"));
}

#[test]
fn bench_prints_the_rows_of_this_run_alone() {
    let sandbox = Sandbox::new();
    sandbox.write("checkout/target/bench.json", "[] old");
    sandbox.write("rows.json", ROW);
    let copy = format!("cp {} target/bench.json", sandbox.path("rows.json").display());
    let bench = run(sandbox.xtask(&["bench", "--", "triplet"]).env("FAKE_CARGO", copy)).succeeds();
    let bench = bench.says(&["triplet_margin", "4.00 x", "50 %"]);
    assert!(bench.out.contains("peer ms"), "{}", bench.out);
    assert_eq!(sandbox.read("cargo-calls"), "bench -p tercet -- triplet\n");
    run(&mut sandbox.xtask(&["bench", "--table"])).succeeds().says(&["triplet_margin"]);
    // A run that writes no rows must not show those of an earlier one.
    run(&mut sandbox.xtask(&["bench"])).fails(1).says(&["no target/bench.json"]);
    sandbox.write("checkout/target/bench.json", "[{]");
    run(&mut sandbox.xtask(&["bench", "--table"])).fails(1).says(&["target/bench.json: byte 2"]);
}

#[test]
fn gpu_status_reads_the_page() {
    let sandbox = Sandbox::new();
    run(&mut sandbox.xtask(&["gpu-status"])).fails(1).says(&["docs/gpu-verification.md"]);
    let page = include_str!("../../docs/gpu-verification.md");
    let header: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).take(2).collect();
    sandbox.write("checkout/docs/gpu-verification.md", &header.join("\n"));
    let fresh = run(&mut sandbox.xtask(&["gpu-status"])).succeeds().says(&["never verified on a GPU"]);
    let hash = |name: &str| {
        let after = fresh.out.split(&format!("{name} hash ")).nth(1).unwrap();
        after.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '-').collect::<String>()
    };
    let row = format!("| 2001-02-03 | GPU A | abc | {} | {} | test | pass |", hash("kernels"), hash("cuda"));
    sandbox.write("checkout/docs/gpu-verification.md", &format!("{}\n{row}\n", header.join("\n")));
    run(&mut sandbox.xtask(&["gpu-status"])).succeeds().says(&["verified on GPU A at abc, 2001-02-03"]);
    sandbox.write("checkout/kernels/new.cu", "x");
    run(&mut sandbox.xtask(&["gpu-status"])).succeeds().says(&["kernels have changed since abc"]);
    assert!(!sandbox.exists("calls"), "it needs no set-up");
}

#[test]
fn the_page_in_this_repository_is_readable() {
    let checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_xtask"));
    run(command.arg("gpu-status").current_dir(checkout)).succeeds().says(&["kernels hash"]);
}

/// Packs a bundle with a cargo that reports two executables of `size` bytes, and `xz` as the script that compresses
/// them.
fn bundle(sandbox: &Sandbox, size: &str, xz: &str) -> Outcome {
    let root = sandbox.path("checkout").display().to_string();
    let message = |kind: &str, name: &str, test: bool, file: &str| {
        format!(
            r#"{{"manifest_path":"{root}/Cargo.toml","target":{{"kind":["{kind}"],"name":"{name}"}},"profile":{{"test":{test}}},"executable":"{root}/{file}"}}"#
        )
    };
    let messages = [message("test", "triplet_margin", true, "one"), message("bin", "tercet", false, "two")];
    sandbox.write("messages", &messages.join("\n"));
    sandbox.program("strip", "#!/bin/sh\nexec /bin/cp \"$3\" \"$2\"\n");
    sandbox.program("tar", "#!/bin/sh\nPATH=/usr/bin:/bin\nexec tar \"$@\"\n");
    sandbox.program("xz", &format!("#!/bin/sh\nPATH=/usr/bin:/bin\nexec {xz}\n"));
    let script = format!("truncate -s {size} {root}/one {root}/two; cat {root}/../messages");
    run(sandbox.xtask(&["bundle"]).env("FAKE_CARGO", script))
}

#[test]
fn bundle_collects_programs_and_says_what_it_was_made_from() {
    let sandbox = Sandbox::new();
    bundle(&sandbox, "1K", "xz \"$@\"").succeeds().says(&["test-triplet_margin", "packed, in .bundle"]);
    let list = sandbox.read("checkout/.bundle/list.tsv");
    assert_eq!(list, "test\ttest-triplet_margin\t.\nbin\ttercet\t.\n");
    assert!(sandbox.read("checkout/.bundle/about").starts_with("commit=unknown\nkernels=2-"));
    let packed = sandbox.path("checkout/.bundle/bin.tar.xz");
    let names = std::process::Command::new("tar").arg("-tf").arg(packed).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    for program in ["test-triplet_margin", "tercet", "xtask"] {
        assert!(names.contains(&format!("bin/{program}\n")), "{program}: {names}");
    }
    assert!(!sandbox.exists("checkout/.bundle/bin"), "it would be carried too");
    assert!(sandbox.read("checkout/.bundle/run.sh").starts_with("#!/usr/bin/env bash"));
    assert!(sandbox.read("cargo-environment").contains("TERCET_CUDA_ARCHS=90a\n"));
}

#[test]
fn a_bundle_that_is_too_large_fails() {
    let sandbox = Sandbox::new();
    bundle(&sandbox, "40M", "cat").fails(1).says(&["larger than 60 MiB"]);
}
