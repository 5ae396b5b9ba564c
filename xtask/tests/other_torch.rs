//! `--torch`: another torch than the pinned one, with the tch that goes with it, and nothing in the checkout changed.

mod common;

use std::fs;

use common::{Sandbox, fingerprint, run};

const WORKSPACE: &str = "checkout/target/torch-2.13";

#[test]
fn another_torch_has_an_environment_and_a_workspace_of_its_own() {
    let sandbox = Sandbox::new();
    sandbox.write("checkout/src/lib.rs", "of the checkout");
    sandbox.write("checkout/.cargo/config.toml", "");
    sandbox.write("checkout/.venv/letters.txt", "dear");
    let setup = || sandbox.xtask(&["setup", "--torch", "2.13"]);
    run(&mut setup()).succeeds().says(&[
        "making .venv-2.13 with Python 3.11.7 and torch 2.13.0",
        "ready (.venv-2.13, torch 2.13.0, tch 0.26: cargo commands in target/torch-2.13)",
    ]);
    assert_eq!(sandbox.read("cargo-calls"), "update --quiet --package tch --precise 0.26.0\n");
    assert!(sandbox.read("cargo-environment").contains("PWD=") && sandbox.exists(&format!("{WORKSPACE}/Cargo.lock")));
    assert!(sandbox.exists(&format!("{WORKSPACE}/.libtorch/lib/libc10.so")));
    assert_eq!(sandbox.read(&format!("{WORKSPACE}/src/lib.rs")), "of the checkout");
    for linked in ["src", "xtask", "requirements.txt", ".cargo"] {
        assert!(fs::read_link(sandbox.path(WORKSPACE).join(linked)).is_ok(), "{linked}");
    }
    for own in ["Cargo.lock", "target", ".venv"] {
        assert!(fs::read_link(sandbox.path(WORKSPACE).join(own)).is_err(), "{own}");
    }
    // Nothing was installed for the pinned torch, as there was none before.
    assert!(!sandbox.exists("checkout/.libtorch"));
    assert_eq!(sandbox.read("checkout/.venv/letters.txt"), "dear");
    assert_eq!(sandbox.read("checkout/Cargo.lock"), "tch 0.24\n");
    // A second run does nothing.
    let (calls, before) = (sandbox.read("calls"), fingerprint(&sandbox.path("checkout")));
    run(&mut setup()).succeeds();
    assert_eq!((sandbox.read("calls"), fingerprint(&sandbox.path("checkout"))), (calls, before));
    assert_eq!(sandbox.read("cargo-calls").lines().count(), 1);
}

#[test]
fn tests_run_in_its_workspace_and_see_its_libtorch_alone() {
    let sandbox = Sandbox::new();
    sandbox.write("own/lib/libtorch_cpu.so", "x");
    sandbox.write("own/build-version", "2.11.0\n");
    let mut test = sandbox.xtask(&["test", "--torch=2.13", "some_test", "--", "--nocapture"]);
    run(test.env("LIBTORCH", sandbox.path("own")).env("LIBTORCH_LIB", sandbox.path("own"))).succeeds();
    let calls = sandbox.read("cargo-calls");
    assert_eq!(calls.lines().last(), Some("test --release --workspace some_test -- --nocapture"));
    let seen = sandbox.read("cargo-environment");
    assert!(seen.contains(&format!("PWD={}\n", sandbox.path(WORKSPACE).display())), "{seen}");
    assert!(!seen.contains("LIBTORCH"), "{seen}");
    // The release that Cargo.lock is for counts as the pinned one.
    run(&mut sandbox.xtask(&["test", "--torch", "2.11"])).succeeds().says(&["making .venv with", "torch 2.11.0"]);
    assert!(!sandbox.exists("checkout/.venv-2.11"));
}

#[test]
fn its_workspace_follows_the_checkout() {
    let sandbox = Sandbox::new();
    let setup = || sandbox.xtask(&["setup", "--torch", "2.12"]);
    let workspace = "checkout/target/torch-2.12";
    sandbox.write("checkout/old.rs", "");
    run(&mut setup()).succeeds();
    fs::remove_file(sandbox.path("checkout/old.rs")).unwrap();
    sandbox.write("checkout/new.rs", "new");
    sandbox.write("checkout/Cargo.lock", "another\n");
    run(&mut setup()).succeeds();
    assert_eq!(sandbox.read(&format!("{workspace}/new.rs")), "new");
    assert!(sandbox.path(workspace).join("old.rs").symlink_metadata().is_err());
    assert_eq!(sandbox.read(&format!("{workspace}/Cargo.lock")), "another\n");
    assert_eq!(sandbox.calls("-m pip"), 1);
    assert_eq!(sandbox.read("cargo-calls").lines().count(), 2);
}

#[test]
fn a_lock_that_could_not_be_made_is_made_the_next_time() {
    let sandbox = Sandbox::new();
    let setup = || sandbox.xtask(&["setup", "--torch", "2.13"]);
    run(setup().env("FAKE_CARGO", "echo 'no network' >&2; exit 101"))
        .fails(1)
        .says(&["could not take tch 0.26.0", "no network"]);
    run(&mut setup()).succeeds();
    assert_eq!(sandbox.read("cargo-calls").lines().count(), 2);
    assert_eq!(sandbox.calls("-m pip"), 1);
}

#[test]
fn a_shared_environment_of_another_torch_lies_beside_the_pinned_one() {
    let sandbox = Sandbox::new();
    let mut setup = sandbox.xtask(&["setup", "--torch", "2.13"]);
    run(setup.env("TERCET_VENV", sandbox.path("shared/env/"))).succeeds();
    assert!(sandbox.exists("shared/env-2.13/tercet-setup") && !sandbox.exists("shared/env"));
    assert!(!sandbox.exists("checkout/.venv-2.13"));
}

#[test]
fn a_release_that_does_not_fit_is_wrong_usage() {
    let sandbox = Sandbox::new();
    for arguments in [&["setup", "--torch", "2.10"][..], &["test", "--torch=2"], &["setup", "--torch"]] {
        run(&mut sandbox.xtask(arguments)).fails(2).says(&[
            "--torch",
            "libtorch 2.11 with tch 0.24",
            "2.13 with tch 0.26",
        ]);
    }
    run(&mut sandbox.xtask(&["setup", "--torch", "2.13", "now"])).fails(2).says(&["unexpected argument `now`"]);
    assert!(!sandbox.exists("calls") && !sandbox.exists("cargo-calls"));
}
