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
            "kernel-report",
            "gpu-status",
            "records",
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
    run(&mut sandbox.xtask(&["records", "HEAD"])).fails(2).says(&["`HEAD`", "--diff COMMIT"]);
    run(&mut sandbox.xtask(&["records", "--diff", "HEAD", "x"])).fails(2).says(&["`x`"]);
    for nothing in [&["records", "--diff"][..], &["records", "--diff="]] {
        run(&mut sandbox.xtask(nothing)).fails(2).says(&["--diff: expected a commit, got nothing"]);
    }
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
fn gpu_status_asks_the_tests_for_hashes_and_reads_the_page() {
    let sandbox = Sandbox::new();
    let status = |script: &str| run(sandbox.xtask(&["gpu-status"]).env("FAKE_CARGO", script));
    status("true").fails(1).says(&["docs/gpu-verification.md"]);
    let header = "| date | device | commit | target | hashes | what ran | result |\n|---|---|---|---|---|---|---|\n";
    sandbox.write("checkout/docs/gpu-verification.md", header);
    status("true").fails(1).says(&["expected kernels::", "got no file"]);
    status("exit 101").fails(101);
    let writes = |hash: &str| format!("printf 'sm_90a batch {hash}\\n' >\"$TERCET_KERNEL_HASHES\"");
    status(&writes("11")).succeeds().says(&["never verified on a GPU", "now: sm_90a batch:11"]);
    let row = "| 2001-02-03 | GPU A | abc | sm_90a | batch:11 | test | pass |\n";
    sandbox.write("checkout/docs/gpu-verification.md", &format!("{header}{row}"));
    status(&writes("11")).succeeds().says(&["sm_90a: all stems verified on GPU A at abc, 2001-02-03"]);
    status(&writes("12")).succeeds().says(&["not verified as now", "GPU A at abc"]);
    let call = sandbox.read("cargo-calls").lines().last().unwrap().to_string();
    assert!(call.starts_with("test --release --quiet --workspace --test it kernels::launches::"), "{call}");
}

#[test]
fn kernel_report_passes_its_arguments_on() {
    let sandbox = Sandbox::new();
    run(&mut sandbox.xtask(&["kernel-report", "batch_hard", "--target", "sm_90a", "--json"])).succeeds();
    let expected = "run --release --quiet -p tercet-kernel-report -- batch_hard --target sm_90a --json\n";
    assert_eq!(sandbox.read("cargo-calls"), expected);
}

/// A checkout in git whose "tests", programs as in older commits, copy `bits-of-the-tests`; and git in it.
fn with_records(sandbox: &Sandbox) -> impl Fn(&[&str]) -> String {
    sandbox.program("git", "#!/bin/sh\nPATH=/usr/local/bin:/usr/bin:/bin\nexec git \"$@\"\n");
    sandbox.write("checkout/.gitignore", "/target\n/.venv*\n/.libtorch\n");
    sandbox.write("checkout/tests/support/records.rs", "TERCET_RECORD_BITS");
    sandbox.write("checkout/tests/op.rs", "fn cpu_computes_what_it_did() {}");
    sandbox.write("checkout/tests/other.rs", "fn another_test() {}");
    sandbox.write("checkout/emulator/tests/op.rs", "fn the_emulator_computes_what_it_did() {}");
    let root = sandbox.path("checkout");
    let git = move |arguments: &[&str]| {
        let who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"];
        let output = std::process::Command::new("git").args(who).args(arguments).current_dir(&root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    git(&["init", "--quiet"]);
    git
}

#[test]
fn records_of_a_commit_are_compared_case_by_case() {
    let sandbox = Sandbox::new();
    let git = with_records(&sandbox);
    let bits = "checkout/bits-of-the-tests";
    let case = |digit: char| format!("000000000000000{digit} f32, one\n");
    let copies = "/bin/cp bits-of-the-tests \"$TERCET_RECORD_BITS/op-cpu.txt\"";
    let records = |arguments: &[&str], cargo: &str| {
        run(sandbox.xtask(&[&["records"], arguments].concat()).env("FAKE_CARGO", cargo))
    };
    let clean = || {
        assert_eq!(git(&["worktree", "list"]).lines().count(), 1);
        assert!(!sandbox.exists("checkout/target/records/commit"));
    };
    sandbox.write(bits, &case('a'));
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "a"]);

    records(&[], copies).succeeds().says(&["op", "cpu", "total"]);
    let programs = "test --release --quiet --workspace --test op computes_what_it_did\n";
    assert_eq!(sandbox.read("cargo-calls"), programs);
    records(&["--diff", "HEAD"], copies).succeeds().says(&["equal: 1 cases, hash "]);
    clean();
    let environment = sandbox.read("cargo-environment");
    let root = sandbox.path("checkout").display().to_string();
    for line in [&format!("CARGO_TARGET_DIR={root}/target\n"), &format!("LIBTORCH={root}/.libtorch\n")] {
        assert!(environment.contains(line), "{line} in\n{environment}");
    }

    // The tests are a package now, in place of programs.
    sandbox.write("checkout/tests/Cargo.toml", "[package]");
    records(&["--diff", "HEAD"], copies).succeeds().says(&["equal: 1 cases, hash "]);
    clean();
    let package = "test --release --quiet -p tercet-tests computes_what_it_did\n";
    let calls = sandbox.read("cargo-calls");
    let calls: Vec<&str> = calls.split_inclusive('\n').collect();
    assert!(
        calls[calls.len() - 2] == package && calls[calls.len() - 1].ends_with(&programs["test ".len()..]),
        "{calls:?}"
    );

    sandbox.write(bits, &case('b'));
    let differs = records(&["--diff", "HEAD"], copies).fails(1);
    let short = &git(&["rev-parse", "HEAD"])[..10];
    differs.says(&[
        &format!("op on cpu: f32, one: 000000000000000a at {short}, 000000000000000b now"),
        &format!("1 cases are not as they were at {short}, 0 are"),
    ]);
    clean();

    // Tests that fail there, or write nothing.
    let fails_there = format!("case $PWD in */commit) echo broken; exit 101;; *) {copies};; esac");
    records(&["--diff", "HEAD"], &fails_there).fails(101).says(&["broken", &format!("{short}: its tests failed")]);
    clean();
    let silent_there = format!("case $PWD in */commit) ;; *) {copies};; esac");
    records(&["--diff", "HEAD"], &silent_there)
        .fails(1)
        .says(&[&format!("{short}: expected its tests"), "got no file"]);
    clean();
    records(&[], "echo nothing >\"$TERCET_RECORD_BITS/op-cpu.txt\"")
        .fails(1)
        .says(&["op-cpu.txt: line 1", "`nothing`"]);
}

#[test]
fn a_commit_without_records_is_named() {
    let sandbox = Sandbox::new();
    let git = with_records(&sandbox);
    sandbox.write("checkout/tests/support/records.rs", "");
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "old"]);
    let diff = |commit: &str| run(&mut sandbox.xtask(&["records", "--diff", commit]));
    diff("HEAD").fails(1).says(&["--diff HEAD: expected a commit whose tests write hashes", "TERCET_RECORD_BITS"]);
    diff("nowhere").fails(2).says(&["--diff: expected a commit, got `nowhere`"]);
    assert!(!sandbox.exists("cargo-calls"));
}

/// Packs a bundle with a cargo that reports two executables of `size` bytes, the first of which knows the kernels' hashes, and
/// `xz` as the script that compresses them.
fn bundle(sandbox: &Sandbox, size: &str, xz: &str) -> Outcome {
    let root = sandbox.path("checkout").display().to_string();
    let message = |kind: &str, name: &str, package: &str, test: bool, file: &str| {
        format!(
            r#"{{"manifest_path":"{root}{package}/Cargo.toml","target":{{"kind":["{kind}"],"name":"{name}"}},"profile":{{"test":{test}}},"executable":"{root}/{file}"}}"#
        )
    };
    let messages = [message("test", "it", "/tests", true, "one"), message("bin", "tercet", "", false, "two")];
    sandbox.write("messages", &messages.join("\n"));
    let tests = "#!/bin/sh\nprintf 'sm_90a batch 11\\n' >\"$TERCET_KERNEL_HASHES\"\nexit\n";
    sandbox.program("checkout/one", tests);
    sandbox.write("checkout/tests/Cargo.toml", "");
    sandbox.program("strip", "#!/bin/sh\nexec /bin/cp \"$3\" \"$2\"\n");
    sandbox.program("tar", "#!/bin/sh\nPATH=/usr/bin:/bin\nexec tar \"$@\"\n");
    sandbox.program("xz", &format!("#!/bin/sh\nPATH=/usr/bin:/bin\nexec {xz}\n"));
    let script = format!("truncate -s {size} {root}/one {root}/two; cat {root}/../messages");
    run(sandbox.xtask(&["bundle"]).env("FAKE_CARGO", script))
}

#[test]
fn bundle_collects_programs_and_says_what_it_was_made_from() {
    let sandbox = Sandbox::new();
    bundle(&sandbox, "1K", "xz \"$@\"").succeeds().says(&["test-tests-it", "packed and with the wheel, in .bundle"]);
    let list = sandbox.read("checkout/.bundle/list.tsv");
    assert_eq!(list, "test\ttest-tests-it\ttests\nbin\ttercet\t.\n");
    let about = "commit=unknown\ntargets='sm_90a'\nhashes_sm_90a='batch:11'\n";
    assert_eq!(sandbox.read("checkout/.bundle/about"), about);
    let packed = sandbox.path("checkout/.bundle/bin.tar.xz");
    let names = std::process::Command::new("tar").arg("-tf").arg(packed).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    for program in ["test-tests-it", "tercet", "xtask"] {
        assert!(names.contains(&format!("bin/{program}\n")), "{program}: {names}");
    }
    assert!(!sandbox.exists("checkout/.bundle/bin"), "it would be carried too");
    assert!(sandbox.exists("checkout/.bundle/tercet-0.1.0-py3-none-any.whl"));
    assert!(sandbox.read("checkout/.bundle/run.sh").starts_with("#!/usr/bin/env bash"));
    assert!(sandbox.read("cargo-environment").contains("TERCET_CUDA_ARCHS=90a\n"));
}

#[test]
fn a_bundle_that_is_too_large_fails() {
    let sandbox = Sandbox::new();
    bundle(&sandbox, "40M", "cat").fails(1).says(&["larger than 60 MiB"]);
}
