//! Set-up against a fake Python, for everything that can go wrong on a user's machine.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use common::{Sandbox, fingerprint, kill, outcome, run, start};

const TORCH: &str = ".venv/lib/python3.11/site-packages/torch";

/// A sandbox whose checkout is set up.
fn set_up() -> Sandbox {
    let sandbox = Sandbox::new();
    run(&mut sandbox.setup()).succeeds();
    sandbox
}

fn assert_whole(sandbox: &Sandbox) {
    assert!(sandbox.read("checkout/.venv/tercet-setup").starts_with("ready\n"));
    assert!(sandbox.exists("checkout/.libtorch/lib/libc10.so"));
}

#[test]
fn makes_environment_and_link_and_shows_stages() {
    let sandbox = Sandbox::new();
    run(&mut sandbox.setup()).succeeds().says(&[
        "making .venv with Python 3.11.7 and torch 2.11.0",
        "downloading torch 2.11.0 (530.7 MB)",
        "unpacking 2 packages",
        "ready (.venv, torch 2.11.0)",
    ]);
    assert_whole(&sandbox);
    // The link is relative, so that a checkout can be moved.
    assert_eq!(fs::read_link(sandbox.path("checkout/.libtorch")).unwrap().to_str(), Some(TORCH));
}

#[test]
fn second_run_does_nothing_and_at_once() {
    let sandbox = set_up();
    let (calls, before) = (sandbox.read("calls"), fingerprint(&sandbox.path("checkout")));
    let clock = Instant::now();
    let second = run(&mut sandbox.setup()).succeeds().says(&["ready (.venv, torch 2.11.0)"]);
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
    assert_eq!(second.out.lines().count(), 1, "{}", second.out);
    assert_eq!(sandbox.read("calls"), calls, "Python was started");
    assert_eq!(fingerprint(&sandbox.path("checkout")), before, "something was written");
}

#[test]
fn other_commands_set_up_first_and_are_silent_when_it_is_done() {
    let sandbox = Sandbox::new();
    run(&mut sandbox.xtask(&["test"])).succeeds().says(&["making .venv"]);
    assert_whole(&sandbox);
    assert_eq!(run(&mut sandbox.xtask(&["test"])).succeeds().out, "");
    assert_eq!(sandbox.calls("-m pip"), 1);
}

#[test]
fn a_failed_set_up_stops_the_command() {
    let sandbox = Sandbox::new();
    run(sandbox.xtask(&["test"]).env("FAKE_PIP", "network")).fails(1);
    assert!(!sandbox.exists("cargo-calls"));
}

#[test]
fn wrong_python_is_named_and_nothing_is_made() {
    let sandbox = Sandbox::new();
    run(sandbox.setup().env("FAKE_VERSION", "3.9.18"))
        .fails(1)
        .says(&["needs Python 3.10 to 3.14", "python3: is 3.9.18, older than 3.10"]);
    run(sandbox.setup().env("FAKE_VERSION", "3.15.0")).fails(1).says(&["python3: is 3.15.0", "newest 3.14"]);
    run(sandbox.setup().env("FAKE_VENV", "no venv")).fails(1).says(&["apt-get install python3.11-venv"]);
    assert!(!sandbox.exists("checkout/.venv") && !sandbox.exists("checkout/.libtorch"));
    run(&mut sandbox.setup()).succeeds();
    assert_whole(&sandbox);
}

#[test]
fn a_wrong_python_does_not_cost_a_broken_environment() {
    // The old environment is deleted only when a new one can be made.
    let sandbox = set_up();
    fs::remove_file(sandbox.path(&format!("checkout/{TORCH}/lib/libc10.so"))).unwrap();
    run(sandbox.setup().env("FAKE_VERSION", "3.9.18")).fails(1);
    assert!(sandbox.exists(&format!("checkout/{TORCH}/version.py")));
}

#[test]
fn another_python_on_path_is_taken() {
    let sandbox = Sandbox::new();
    fs::rename(sandbox.path("bin/python3"), sandbox.path("bin/python3.12")).unwrap();
    sandbox.program("python3", "#!/bin/sh\necho 3.6.15; echo 64; echo venv\n");
    sandbox.program("python3.13", "#!/bin/sh\necho 'python3.13: command not found' >&2; exit 127\n");
    run(&mut sandbox.setup()).succeeds();
    assert_whole(&sandbox);
}

#[test]
fn no_python_at_all() {
    let sandbox = Sandbox::new();
    fs::remove_file(sandbox.path("bin/python3")).unwrap();
    run(&mut sandbox.setup()).fails(1).says(&["no Python found", "Python 3.10 to 3.14"]);
}

#[test]
fn no_network_is_explained_and_the_next_run_repairs() {
    let sandbox = Sandbox::new();
    run(sandbox.setup().env("FAKE_PIP", "network")).fails(1).says(&[
        "pip failed",
        "(from versions: none)",
        "could not be reached",
        "run the same command again",
    ]);
    assert!(!sandbox.exists("checkout/.venv"), "half an environment was left");
    assert!(!sandbox.exists("checkout/.libtorch"));
    run(&mut sandbox.setup()).succeeds();
    assert_whole(&sandbox);
}

#[test]
fn a_disk_that_is_full_is_seen_before_and_during() {
    let sandbox = Sandbox::new();
    run(sandbox.setup().env("FAKE_FREE", "1048576")).fails(1).says(&["not enough disk space", "1.0 GiB free"]);
    assert_eq!(sandbox.calls("-m"), 0, "work was begun");
    run(sandbox.setup().env("FAKE_PIP", "disk")).fails(1).says(&["No space left", "disk is full"]);
    assert!(!sandbox.exists("checkout/.venv"));
    run(&mut sandbox.setup()).succeeds();
    assert_whole(&sandbox);
}

#[test]
fn packages_that_come_incomplete_are_an_error() {
    let sandbox = Sandbox::new();
    run(sandbox.setup().env("FAKE_PIP", "short")).fails(1).says(&["not fit", "has no NVRTC of CUDA 12.8 or newer"]);
    assert!(!sandbox.exists("checkout/.libtorch"));
    run(&mut sandbox.setup()).succeeds();
    assert_whole(&sandbox);
}

#[test]
fn killed_in_the_middle_it_is_made_anew() {
    let sandbox = Sandbox::new();
    let first = start(sandbox.setup().env("FAKE_PIP", "hang"));
    sandbox.wait_for("hanging");
    kill(-i64::from(first.id()));
    outcome(first);
    assert!(
        sandbox.exists(&format!("checkout/{TORCH}/lib/libtorch_cpu.so")),
        "the kill came too early to mean anything"
    );
    assert!(!sandbox.exists("checkout/.libtorch"));
    run(&mut sandbox.setup()).succeeds().says(&[".venv is made anew: the set-up of it did not finish"]);
    assert_whole(&sandbox);
    assert_eq!(sandbox.calls("-m venv"), 2);
}

#[test]
fn what_an_interrupted_deletion_left_is_deleted() {
    let sandbox = Sandbox::new();
    sandbox.write("checkout/.venv.old/lib/gigabytes", "x");
    run(&mut sandbox.setup()).succeeds();
    assert!(!sandbox.exists("checkout/.venv.old"));
    assert_whole(&sandbox);
}

#[test]
fn a_pip_that_outlives_its_set_up_is_waited_for() {
    let sandbox = Sandbox::new();
    let first = start(sandbox.setup().env("FAKE_PIP", "slow"));
    sandbox.wait_for("hanging");
    let process = first.id();
    kill(i64::from(process)); // xtask alone; its pip goes on writing for a second
    outcome(first);
    let second = run(&mut sandbox.setup()).succeeds().says(&["waiting for another set-up", "made anew"]);
    assert!(second.out.contains(&format!("process {process}")), "{}", second.out);
    assert_whole(&sandbox);
}

#[test]
fn two_checkouts_at_once_share_one_environment() {
    let sandbox = Sandbox::new();
    sandbox.checkout("second");
    let shared = sandbox.path("shared/env");
    let first = start(sandbox.setup().env("TERCET_VENV", &shared).env("FAKE_PIP", "slow"));
    sandbox.wait_for("hanging");
    let second = start(sandbox.xtask_in("second", &["setup"]).env("TERCET_VENV", &shared));
    outcome(first).succeeds();
    outcome(second).succeeds().says(&["waiting for another set-up"]);
    assert_eq!(sandbox.calls("-m pip"), 1);
    assert!(sandbox.exists("checkout/.libtorch/lib/libc10.so") && sandbox.exists("second/.libtorch/lib/libc10.so"));
    assert!(!sandbox.exists("checkout/.venv") && !sandbox.exists("second/.venv"));
}

#[test]
fn tercet_venv_may_be_relative_and_is_remembered() {
    let sandbox = Sandbox::new();
    // A relative path counts from the root, even if the command starts in a folder inside the checkout.
    let inside = sandbox.path("checkout/xtask");
    run(sandbox.setup().env("TERCET_VENV", "../env/").current_dir(inside)).succeeds();
    assert!(sandbox.exists("env/tercet-setup") && sandbox.exists("env.lock"));
    // Without the variable, the next command uses the environment that the link leads to, and makes no second one.
    run(&mut sandbox.setup()).succeeds();
    assert!(!sandbox.exists("checkout/.venv"));
    // If that environment goes, the checkout gets its own.
    fs::remove_dir_all(sandbox.path("env")).unwrap();
    run(&mut sandbox.setup()).succeeds();
    assert_whole(&sandbox);
}

#[test]
fn somebody_elses_environment_is_used_or_refused_but_never_changed() {
    let sandbox = Sandbox::new();
    sandbox.write("theirs/pyvenv.cfg", "version = 3.11.7\n");
    sandbox.write("theirs/lib/python3.11/site-packages/mine/__init__.py", "");
    let theirs = sandbox.path("theirs");
    let before = fingerprint(&theirs);
    run(sandbox.setup().env("TERCET_VENV", &theirs)).fails(1).says(&[
        "TERCET_VENV names",
        "did not make",
        "no torch",
        "-m pip install -r",
    ]);
    assert_eq!(fingerprint(&theirs), before);
    // A complete environment without set-up's mark is used as it is.
    let made = set_up();
    fs::remove_file(made.path("checkout/.venv/tercet-setup")).unwrap();
    fs::rename(made.path("checkout/.venv"), made.path("whole")).unwrap();
    let before = fingerprint(&made.path("whole"));
    run(made.setup().env("TERCET_VENV", made.path("whole"))).succeeds();
    assert_eq!(fingerprint(&made.path("whole")), before);
    assert!(made.exists("checkout/.libtorch/lib/libc10.so"));
    assert_eq!(made.calls("-m pip"), 1);
}

#[test]
fn a_folder_of_something_else_is_not_deleted() {
    let sandbox = Sandbox::new();
    sandbox.write("checkout/.venv/letters.txt", "dear");
    run(&mut sandbox.setup()).fails(1).says(&[".venv", "did not make"]);
    assert_eq!(sandbox.read("checkout/.venv/letters.txt"), "dear");
}

#[test]
fn damage_is_seen_and_repaired() {
    for file in [
        "torch/lib/libtorch_cpu.so",
        "torch/version.py",
        "torch/include/torch/csrc/api/include/torch/torch.h",
        "torch-2.11.0.dist-info/RECORD",
        "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
    ] {
        let sandbox = set_up();
        let path = sandbox.path("checkout/.venv/lib/python3.11/site-packages").join(file);
        fs::remove_file(&path).unwrap();
        run(&mut sandbox.setup()).succeeds().says(&[".venv is made anew"]);
        assert!(path.exists(), "{file}");
        assert_whole(&sandbox);
    }
}

#[test]
fn new_requirements_make_a_new_environment_and_new_comments_do_not() {
    let sandbox = set_up();
    sandbox.write("checkout/requirements.txt", "# pinned, as before\n\ntorch==2.11.0\n");
    run(&mut sandbox.setup()).succeeds();
    assert_eq!(sandbox.calls("-m pip"), 1);
    sandbox.write("checkout/requirements.txt", "torch==2.11.0\nnumpy==2.3.0\n");
    run(&mut sandbox.setup()).succeeds().says(&["requirements.txt has changed since"]);
    assert_eq!(sandbox.calls("-m pip"), 2);
}

#[test]
fn a_shared_environment_of_another_checkouts_requirements_is_not_deleted() {
    let sandbox = Sandbox::new();
    let shared = sandbox.path("env");
    run(sandbox.setup().env("TERCET_VENV", &shared)).succeeds();
    let before = fingerprint(&shared);
    sandbox.checkout("second");
    sandbox.write("second/requirements.txt", "torch==2.11.0\nnumpy==2.3.0\n");
    let second = run(sandbox.xtask_in("second", &["setup"]).env("TERCET_VENV", &shared)).fails(1);
    second.says(&["TERCET_VENV names", "another requirements.txt"]);
    assert_eq!(fingerprint(&shared), before);
}

#[test]
fn another_python_in_the_environment_makes_it_anew() {
    let sandbox = set_up();
    sandbox.write("checkout/.venv/pyvenv.cfg", "version = 3.12.1\n");
    run(&mut sandbox.setup()).succeeds().says(&["its Python has changed since"]);
    assert_whole(&sandbox);
}

#[test]
fn a_broken_link_is_made_anew() {
    let sandbox = set_up();
    let link = sandbox.path("checkout/.libtorch");
    for target in ["/nowhere/torch", "xtask"] {
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        run(&mut sandbox.setup()).succeeds();
        assert_whole(&sandbox);
    }
    fs::remove_file(&link).unwrap();
    run(&mut sandbox.setup()).succeeds();
    assert_whole(&sandbox);
    assert_eq!(sandbox.calls("-m pip"), 1);
    // A folder in the place of the link is the user's, and stays.
    fs::remove_file(&link).unwrap();
    sandbox.write("checkout/.libtorch/lib/mine.so", "x");
    run(&mut sandbox.setup()).fails(1).says(&[".libtorch is a folder"]);
    assert!(sandbox.exists("checkout/.libtorch/lib/mine.so"));
}

/// A libtorch laid out as in its archive, and a CUDA toolkit.
fn own_parts(sandbox: &Sandbox) -> (String, String) {
    sandbox.write("libtorch/lib/libtorch_cpu.so", "x");
    sandbox.write("libtorch/build-version", "2.11.0+cpu\n");
    sandbox.write("cuda/lib64/libnvrtc.so.12.9.86", "x");
    let path = |name: &str| sandbox.path(name).display().to_string();
    (path("libtorch"), path("cuda"))
}

#[test]
fn with_libtorch_and_cuda_home_no_environment_is_made() {
    let sandbox = Sandbox::new();
    let (libtorch, cuda) = own_parts(&sandbox);
    let own = |sandbox: &Sandbox, arguments: &[&str]| {
        let mut command = sandbox.xtask(arguments);
        command.env("LIBTORCH", &libtorch).env("CUDA_HOME", &cuda);
        command
    };
    run(&mut own(&sandbox, &["setup"])).succeeds().says(&["ready", &libtorch, &cuda]);
    assert!(!sandbox.exists("calls") && !sandbox.exists("checkout/.venv") && !sandbox.exists("checkout/.libtorch"));
    run(&mut own(&sandbox, &["test"])).succeeds();
    let seen = sandbox.read("cargo-environment");
    assert!(
        seen.contains(&format!("LIBTORCH={libtorch}\n")) && seen.contains(&format!("CUDA_HOME={cuda}\n")),
        "{seen}"
    );
}

#[test]
fn libtorch_alone_still_needs_nvrtc() {
    let sandbox = Sandbox::new();
    let (libtorch, _) = own_parts(&sandbox);
    run(sandbox.setup().env("LIBTORCH", &libtorch)).succeeds().says(&["making .venv"]);
    assert_whole(&sandbox);
    // A libtorch within a Python environment comes with that environment's NVRTC.
    let other = Sandbox::new();
    let torch = sandbox.path("checkout").join(TORCH);
    run(other.setup().env("LIBTORCH", torch)).succeeds();
    assert!(!other.exists("calls"));
}

#[test]
fn cuda_home_alone_still_needs_libtorch() {
    let sandbox = Sandbox::new();
    let (_, cuda) = own_parts(&sandbox);
    // With a toolkit the environment need not bring NVRTC.
    run(sandbox.setup().env("CUDA_HOME", &cuda).env("FAKE_PIP", "short")).succeeds();
    assert_whole(&sandbox);
}

#[test]
fn libraries_and_headers_may_lie_in_two_folders() {
    let sandbox = Sandbox::new();
    let (_, cuda) = own_parts(&sandbox);
    sandbox.write("out/lib/libtorch_cpu.so", "x");
    let version = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n";
    sandbox.write("dev/include/torch/headeronly/version.h", version);
    let (lib, include) = (sandbox.path("out"), sandbox.path("dev"));
    let parts = |sandbox: &Sandbox| {
        let mut command = sandbox.setup();
        command.env("LIBTORCH_LIB", &lib).env("LIBTORCH_INCLUDE", &include).env("CUDA_HOME", &cuda);
        command
    };
    run(&mut parts(&sandbox)).succeeds().says(&["ready (libtorch from", lib.to_str().unwrap()]);
    assert!(!sandbox.exists("calls") && !sandbox.exists("checkout/.venv"));
    sandbox.write("dev/include/torch/headeronly/version.h", &version.replace("11", "13"));
    run(&mut parts(&sandbox)).fails(1).says(&["is libtorch 2.13, and 2.11 is needed", "libtorch 2.13 with tch 0.26"]);
    // If only one of the two folders is named, set-up makes an environment for the other part.
    run(sandbox.setup().env("LIBTORCH_LIB", &lib)).succeeds().says(&["making .venv"]);
    // A link to the libraries of a Python environment leads to that environment's NVRTC.
    let other = Sandbox::new();
    let torch = sandbox.path("checkout").join(TORCH);
    fs::create_dir_all(other.path("out")).unwrap();
    symlink(torch.join("lib"), other.path("out/lib")).unwrap();
    run(other.setup().env("LIBTORCH_LIB", other.path("out")).env("LIBTORCH_INCLUDE", torch)).succeeds();
    assert!(!other.exists("calls"));
}

#[test]
fn a_useless_libtorch_is_an_error_that_says_why() {
    let sandbox = Sandbox::new();
    let (libtorch, _) = own_parts(&sandbox);
    let says = |value: &str, why: &str| {
        run(sandbox.setup().env("LIBTORCH", value)).fails(1).says(&["LIBTORCH is of no use", why]);
    };
    says("/nowhere/libtorch", "no folder /nowhere/libtorch");
    says("libtorch", "absolute");
    says(sandbox.dir.to_str().unwrap(), "has no lib/libtorch_cpu.so");
    sandbox.write("libtorch/build-version", "2.5.1\n");
    says(&libtorch, "is libtorch 2.5.1, and 2.11 is needed");
    sandbox.write("libtorch/build-version", "2.110.0\n");
    says(&libtorch, "is libtorch 2.110.0");
    fs::remove_file(sandbox.path("libtorch/build-version")).unwrap();
    says(&libtorch, "does not say its version");
    sandbox.write(
        "libtorch/include/torch/headeronly/version.h",
        "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 10\n",
    );
    says(&libtorch, "is libtorch 2.10, and 2.11 is needed");
    assert!(!sandbox.exists("calls"));
}

#[test]
fn a_useless_cuda_home_is_noted_and_not_handed_on() {
    let sandbox = Sandbox::new();
    sandbox.write("cuda/lib64/libnvrtc.so.12", "x");
    let cuda = sandbox.path("cuda");
    run(sandbox.xtask(&["test"]).env("CUDA_HOME", cuda))
        .succeeds()
        .says(&["CUDA_HOME is not used", "has no NVRTC of CUDA 12.8 or newer"]);
    assert_whole(&sandbox);
    assert!(!sandbox.read("cargo-environment").contains("CUDA_HOME="));
}

#[test]
fn a_compiler_is_needed() {
    let sandbox = Sandbox::new();
    run(sandbox.setup().env("CXX", "no-such-compiler -O2")).fails(1).says(&["CXX names", "no-such-compiler"]);
    fs::rename(sandbox.path("bin/c++"), sandbox.path("bin/g++")).unwrap();
    run(&mut sandbox.setup()).fails(1).says(&["set CXX=g++"]);
    run(sandbox.setup().env("CXX", "g++ -pipe")).succeeds();
    fs::remove_file(sandbox.path("bin/g++")).unwrap();
    run(&mut sandbox.setup()).fails(1).says(&["no C++ compiler found", "apt-get install g++"]);
}
