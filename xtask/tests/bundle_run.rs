//! The script that runs a bundle on a machine without Rust, with fake programs in the bundle.

mod common;

use std::process::Command;

use common::{Outcome, Sandbox, run};

const PYTHON: &str = "#!/bin/sh
case \"$2\" in
*__version__*) echo \"${FAKE_TORCH:-2.11.0+cu130}\"; exit ${FAKE_TORCH_STATUS:-0} ;;
*) echo /fake/torch/lib ;;
esac
";

const PASSES: &str = "#!/bin/sh
if [ \"$1\" = --list ]; then echo \"some::$2::case: test\"; exit; fi
echo \"here: $(pwd) $CARGO_MANIFEST_DIR $LD_LIBRARY_PATH\"
echo \"with: $*\"
echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.00s'
";

/// A sandbox with a bundle in a checkout; `tests` are its test programs.
fn bundle(tests: &[(&str, &str)]) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.program("python3", PYTHON);
    sandbox.program("checkout/.bundle/run.sh", include_str!("../src/bundle_run.sh"));
    sandbox.write("checkout/Cargo.toml", "");
    sandbox.write("checkout/trainer/Cargo.toml", "");
    sandbox.write(
        "checkout/.bundle/about",
        "commit=abc\ntargets='sm_80 sm_90a'\nhashes_sm_80='batch:1'\nhashes_sm_90a='batch:2'\n",
    );
    let mut list = String::new();
    for (name, script) in tests {
        sandbox.program(&format!("checkout/.bundle/bin/{name}"), script);
        let kind = name.split('-').next().unwrap();
        let folder = if name.contains("trainer") { "trainer" } else { "." };
        list += &format!("{kind}\t{name}\t{folder}\n");
    }
    sandbox.write("checkout/.bundle/list.tsv", &list);
    sandbox
}

fn gpu(sandbox: &Sandbox) {
    gpu_of(sandbox, "9.0");
}

/// A GPU of that compute capability.
fn gpu_of(sandbox: &Sandbox, capability: &str) {
    let answer = format!("case \"$1\" in *compute_cap*) echo {capability} ;; *) echo 'GPU A' ;; esac");
    sandbox.program("nvidia-smi", &format!("#!/bin/sh\n{answer}\n"));
}

fn script(sandbox: &Sandbox, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
    let mut command = Command::new(sandbox.path("checkout/.bundle/run.sh"));
    let path = format!("{}:/usr/bin:/bin", sandbox.path("bin").display());
    command.args(arguments).env_clear().env("PATH", path).current_dir(&sandbox.dir).envs(variables.iter().copied());
    run(&mut command)
}

#[test]
fn tests_run_in_their_package_and_the_summary_comes_last() {
    let sandbox = bundle(&[("test-one", PASSES), ("test-trainer-two", PASSES)]);
    gpu(&sandbox);
    let ran = script(&sandbox, &["test", "name"], &[("TEST_THREADS", "2")]).succeeds();
    let root = sandbox.path("checkout").display().to_string();
    let ran = ran.says(&[
        &format!("{root}/trainer {root}/trainer /fake/torch/lib"),
        "with: --test-threads=2 name",
        "pass, 6 tests passed",
    ]);
    let last = ran.out.lines().last().unwrap();
    assert!(
        last.starts_with("| 2") && last.ends_with("| GPU A | abc | sm_90a | batch:2 | test | pass, 6 tests passed |"),
        "{last}"
    );
    assert!(sandbox.read("checkout/.bundle/logs/test.log").contains("== test-one"));
    assert!(sandbox.read("checkout/.bundle/logs/test-summary.txt").contains("pass, 6"));
}

#[test]
fn the_row_names_the_code_that_runs_on_the_device() {
    for (capability, expected) in [("8.6", "sm_80 | batch:1"), ("9.0", "sm_90a | batch:2"), ("12.0", "unknown | ")] {
        let sandbox = bundle(&[("test-one", PASSES)]);
        gpu_of(&sandbox, capability);
        let ran = script(&sandbox, &["test"], &[]).succeeds();
        let row = format!("| GPU A | abc | {expected} | test | pass, 3 tests passed |");
        assert!(ran.out.lines().last().is_some_and(|last| last.ends_with(&row)), "{}", ran.out);
    }
}

#[test]
fn a_failing_program_fails_the_run() {
    let fails = "#!/bin/sh\necho 'test result: FAILED. 2 passed; 1 failed; 0 ignored'\nexit 101\n";
    let dies = "#!/bin/sh\necho 'test result: ok. 1 passed; 0 failed'\nkill -11 $$\n";
    let silent = "#!/bin/sh\n";
    let sandbox = bundle(&[("test-a", fails), ("test-b", dies), ("test-c", silent), ("test-d", PASSES)]);
    gpu(&sandbox);
    let ran = script(&sandbox, &["test"], &[]).fails(1);
    ran.says(&[
        "exit status 101; test result: FAILED. 2 passed",
        "exit status 139",
        "ran no tests",
        "3 failed, 6 tests passed",
    ]);
}

#[test]
fn without_a_gpu_nothing_counts_as_verified() {
    let sandbox = bundle(&[("test-one", PASSES)]);
    let ran = script(&sandbox, &["test"], &[]).succeeds().says(&["nothing of this counts as a verification"]);
    assert!(!ran.out.contains("| abc |"), "{}", ran.out);
}

#[test]
fn a_program_that_hangs_is_stopped() {
    let sandbox = bundle(&[("test-one", "#!/bin/sh\nsleep 30\n")]);
    script(&sandbox, &["test"], &[("LIMIT", "1")]).fails(1).says(&["stopped after 1 s"]);
}

#[test]
fn another_torch_is_refused() {
    let sandbox = bundle(&[("test-one", PASSES)]);
    let ran = script(&sandbox, &["test"], &[("FAKE_TORCH", "2.10.1")]).fails(1);
    ran.says(&["has torch 2.10.1", "libtorch 2.11"]);
    script(&sandbox, &["test"], &[("FAKE_TORCH_STATUS", "1")]).fails(1).says(&["has no torch"]);
}

#[test]
fn wrong_usage() {
    let sandbox = bundle(&[]);
    script(&sandbox, &["tset"], &[]).fails(2).says(&["unknown command: tset", "usage:"]);
    script(&sandbox, &["test", "a", "b"], &[]).fails(2).says(&["one FILTER"]);
    script(&sandbox, &["help"], &[]).succeeds().says(&["sanitize"]);
    script(&sandbox, &["test"], &[]).fails(1).says(&["no test ran"]);
}

#[test]
fn logs_go_where_out_says() {
    let sandbox = bundle(&[("test-one", PASSES)]);
    script(&sandbox, &["test"], &[("OUT", "some/logs")]).succeeds();
    assert!(sandbox.exists("some/logs/test.log") && !sandbox.exists("checkout/.bundle/logs"));
}

#[test]
fn benches_end_with_the_table() {
    let rows = "#!/bin/sh\nmkdir -p target; echo '[]' >target/bench.json; echo \"ran $*\"\n";
    let sandbox = bundle(&[("bench-one", rows)]);
    gpu(&sandbox);
    sandbox.program("checkout/.bundle/bin/xtask", "#!/bin/sh\necho \"table: $* $CARGO_MANIFEST_DIR\"\n");
    let ran = script(&sandbox, &["bench"], &[]).succeeds();
    ran.says(&["ran --bench", "table: bench --table", "checkout/xtask", "---- bench on GPU A"]);
    assert!(sandbox.exists("checkout/.bundle/logs/bench.json"));
}

#[test]
fn a_bench_takes_arguments_and_may_have_no_rows() {
    let sandbox = bundle(&[("bench-one", "#!/bin/sh\necho \"ran $*\"\n")]);
    let ran = script(&sandbox, &["bench", "on_device", "--json", "file"], &[]).succeeds();
    ran.says(&[
        "ran --bench on_device --json file",
        "no row for target/bench.json was measured",
        "---- bench on no GPU",
    ]);
}

#[test]
fn sanitizer_runs_each_tool_on_matching_tests_or_says_that_it_is_missing() {
    let none = "#!/bin/sh\n[ \"$1\" = --list ] || exit 1\n";
    let sandbox = bundle(&[("test-one", PASSES), ("test-none", none)]);
    gpu(&sandbox);
    script(&sandbox, &["sanitize"], &[]).fails(1).says(&["compute-sanitizer was not found"]);
    let sanitizer = "#!/bin/sh\nwhile [ \"${1#-}\" != \"$1\" ]; do
case \"$1\" in --tool | --error-exitcode | --target-processes) echo \"$1 $2\"; shift 2 ;; *) shift ;; esac
done\nexec \"$@\"\n";
    sandbox.program("compute-sanitizer", sanitizer);
    let ran = script(&sandbox, &["sanitize"], &[]).succeeds();
    let ran = ran.says(&["--tool memcheck", "--tool racecheck", "--tool initcheck", "--tool synccheck"]);
    ran.says(&["with: --test-threads=1 cuda", "| sanitize | pass, 12 tests passed |"]);
}

/// A bundle with everything that `verify` and `measure` start, as fakes.
fn with_everything(tests: &[(&str, &str)]) -> Sandbox {
    let sandbox = bundle(tests);
    gpu(&sandbox);
    let sanitizer = "#!/bin/sh\nwhile [ \"${1#-}\" != \"$1\" ]; do shift 2; done\nexec \"$@\"\n";
    let sanitizer = sanitizer.replace("shift 2", "case \"$1\" in --*) shift 2 ;; esac");
    sandbox.program("compute-sanitizer", &sanitizer);
    sandbox.program("ncu", "#!/bin/sh\necho \"profile: $*\"\n");
    let bench = "#!/bin/sh\necho \"bench: $*\"\n";
    for name in ["bench-losses", "before"] {
        sandbox.program(&format!("checkout/.bundle/bin/{name}"), bench);
    }
    let list = sandbox.read("checkout/.bundle/list.tsv");
    sandbox.write("checkout/.bundle/list.tsv", &format!("{list}bench\tbench-losses\t.\nbefore\tbefore\ton_device\n"));
    sandbox.write("checkout/.bundle/tercet-1.whl", "");
    sandbox.write("checkout/.bundle/peers/other-1.whl", "");
    sandbox.write("checkout/python/tests/test_cuda.py", "");
    sandbox.write("checkout/tests/data/one.json", "");
    let python = format!("{PYTHON}case \"$1 $2\" in '-m unittest') echo OK ;; *) echo \"python: $*\" ;; esac\n");
    sandbox.program(
        "python3",
        &python.replace("*) echo /fake/torch/lib ;;", "*get_device* | *dirname*) echo /fake/torch/lib ;;"),
    );
    sandbox
}

/// Fails unless each of these parts is noted as fine.
fn all_are_fine(ran: &Outcome, parts: &[&str]) {
    for part in parts {
        let line = ran.out.lines().find(|line| line.starts_with(part) && line.contains(" ok "));
        assert!(line.is_some(), "{part}: {}", ran.out);
    }
}

#[test]
fn verify_runs_every_part_and_ends_with_a_table() {
    let sandbox = with_everything(&[("test-one", PASSES)]);
    let ran = script(&sandbox, &["verify"], &[]).succeeds();
    let ran = ran.says(&[
        "with: --test-threads=1 conformance::device --nocapture",
        "with: --test-threads=1 rates:: --nocapture",
        "with: --test-threads=4 cuda --nocapture --skip cuda_computes_what_it_did",
        "with: --test-threads=1 cuda_computes_what_it_did",
        "---- verify on GPU A, commit abc",
    ]);
    all_are_fine(
        &ran,
        &["conformance", "rates", "cuda", "regression", "memcheck", "racecheck", "synccheck", "initcheck"],
    );
    all_are_fine(&ran, &["wheel", "records-conformance", "records"]);
    assert!(ran.out.lines().last().is_some_and(|last| last.contains("| verify | pass, ")), "{}", ran.out);
}

#[test]
fn measure_runs_every_part() {
    let sandbox = with_everything(&[]);
    let ran = script(&sandbox, &["measure"], &[]).succeeds();
    let ran = ran.says(&[
        "bench: --bench on_device --json",
        "mined.py --json",
        "--jax 4096 8192 32768",
        "paired.py --json",
        "profile: --set full",
        "---- measure on GPU A, commit abc",
    ]);
    all_are_fine(&ran, &["bench", "before", "peers-mined", "peers-paired", "profile"]);
    assert!(ran.out.lines().last() == Some("pass"), "{}", ran.out);
}

#[test]
fn verify_names_what_found_no_time_and_what_failed_or_changed() {
    let slow = "#!/bin/sh\n[ \"$1\" = --list ] && { echo 'a: test'; exit; }\nsleep 5\n";
    let sandbox = with_everything(&[("test-one", slow)]);
    let ran = script(&sandbox, &["verify", "4"], &[]).fails(1);
    ran.says(&["stopped after 4 s", "left out the 4 s were over", "9 parts left out"]);
    let changes =
        PASSES.replace("echo \"with", "case \"$*\" in *--skip*) ;; *cuda_computes*) exit 101 ;; esac\necho \"with");
    let sandbox = with_everything(&[("test-one", &changes)]);
    script(&sandbox, &["verify"], &[]).fails(1).says(&["regression test-one", "changed  exit status 101", "1 changed"]);
    script(&sandbox, &["verify", "soon"], &[]).fails(2).says(&["verify takes a number of seconds, got: soon"]);
}

#[test]
fn encoders_are_trained_one_after_the_other() {
    let sandbox = bundle(&[]);
    gpu(&sandbox);
    sandbox.program("checkout/.bundle/bin/tercet", "#!/bin/sh\necho \"tercet $*\"\n");
    let ran = script(&sandbox, &["encoders", "30", "some/letters"], &[]).succeeds();
    for (encoder, data) in [("resnet152", "generated"), ("resnet50", "letters")] {
        let line = format!("train --encoder {encoder} --image-size 224 --precision bf16 --time-limit 30 --out");
        assert!(
            ran.out.lines().any(|said| said.contains(&line) && said.contains(&format!("{encoder}-{data}"))),
            "{}",
            ran.out
        );
    }
    assert_eq!(ran.out.matches("--data some/letters").count(), 2, "{}", ran.out);
}
