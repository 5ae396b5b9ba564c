//! `cargo xtask`: set-up, training, tests, benches, bundles and wheels of Tercet. Standard library only, so that it
//! compiles in seconds on a machine that has nothing else yet.
#![warn(clippy::unwrap_used)]

#[cfg(not(target_os = "linux"))]
compile_error!("Tercet is set up on Linux: libtorch with CUDA, which requirements.txt pins, exists for it alone");

mod bench_table;
mod bundle;
mod cargo;
mod checkout;
mod error;
mod gpu_status;
mod json;
mod peers;
mod records;
#[path = "../../build/releases.rs"]
mod releases;
mod setup;
mod sha256;
mod wheel;

use std::env;
use std::process::ExitCode;

use checkout::Checkout;
use error::{Error, Result};

const HELP: &str = "\
Tercet's tasks

Usage: cargo xtask COMMAND [ARGUMENTS]

Commands:
  setup         make .venv and the link .libtorch (libtorch, NVRTC and the CUDA headers); nothing the second time.
                `--torch 2.13`: beside them .venv-2.13, and in target/torch-2.13 a workspace with the tch for it
  train [ARGS]  set-up, then train the built-in example: `tercet train ARGS` in the release profile
  test [ARGS]   set-up, then `cargo test --release --workspace ARGS`, documentation tests included.
                `test --torch 2.13 ARGS`: the same with that torch and its tch
  bench [ARGS]  set-up, then `cargo bench -p tercet ARGS`, then a table of target/bench.json
                (`--table` alone only prints the table of the last run)
  bundle        executables, a wheel and a run.sh in .bundle, for a GPU machine that has no Rust. `--before DIR`: with the
                bench of a checkout of another commit, which has been set up, to compare with
  kernel-report [STEM] [--target sm_90a] [--json] [--rows N --dim D --positives P]
                set-up, then what the compiled kernels are made of: instructions by loop, blocks on a multiprocessor,
                bounds on an H200
  gpu-status    set-up, then whether the kernels as they are were verified on a GPU (docs/gpu-verification.md)
  records       a hash over all bits that the recorded cases of each loss compute, on each backend.
                `--diff COMMIT`: which cases have other bits than at COMMIT, or none have
  wheel         the package for Python: a wheel in target/wheels. `--test [TEST]`: install it in a fresh folder, and run its
                tests. `--python PYTHON`: with that Python and its PyTorch; `--torch 2.15.0`: with that PyTorch, installed
                into target/wheels if it is not there
  peers         the tests of pytorch-metric-learning and sentence-transformers with the losses of the wheel in the place of
                their own: `--pml DIR`, `--sentence-transformers DIR`, checkouts of their repositories, whose dependencies
                PYTHONPATH may name. Fails where a test that was native is passed on; `--record` writes down which are.
                `--tests 'test_triplet*.py'`: only these files of the former
  help          this text; also -h, --help

Environment:
  TERCET_VENV   one Python environment for several checkouts, in place of .venv; made there if missing.
                A relative path counts from the checkout's root.
  LIBTORCH      an existing libtorch 2.11, by its absolute path, in place of the one in the environment;
                LIBTORCH_LIB and LIBTORCH_INCLUDE where its `lib` and its `include` lie in two folders
  CUDA_HOME     an existing CUDA toolkit, 12.8 or newer, whose NVRTC is used
  CXX           the C++ compiler, when it is not `c++`
";

fn main() -> ExitCode {
    match run(&arguments()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage(text)) => {
            eprintln!("error: {text}\n\n`cargo xtask --help` shows the commands.");
            ExitCode::from(2)
        }
        Err(Error::Failed(text)) => {
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
        Err(Error::Exit(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    }
}

/// Arguments as text. A path that is not UTF-8 loses those bytes here and is then reported as not found.
fn arguments() -> Vec<String> {
    env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect()
}

fn run(arguments: &[String]) -> Result<()> {
    let Some((command, rest)) = arguments.split_first() else {
        return Err(Error::Usage("no command given".into()));
    };
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let wants_help = rest.iter().any(|argument| matches!(*argument, "-h" | "--help"));
    match command.as_str() {
        "help" | "-h" | "--help" => {
            print!("{HELP}");
            Ok(())
        }
        "setup" | "bundle" | "gpu-status" | "records" | "wheel" | "peers" if wants_help => {
            print!("{HELP}");
            Ok(())
        }
        "setup" => {
            let (pair, rest) = torch(&rest)?;
            no_arguments("setup", rest)?;
            match pair {
                None => setup::ensure(&Checkout::find()?, setup::WhenReady::SaySo),
                Some(pair) => setup::ensure_torch(&Checkout::find()?, pair, setup::WhenReady::SaySo).map(drop),
            }
        }
        "train" => train(&rest, wants_help),
        "test" => {
            let (pair, rest) = torch(&rest)?;
            let test = ["test", "--release", "--workspace"];
            let mut cargo = match pair {
                None => cargo::cargo(&ready()?, &test),
                Some(pair) => {
                    let workspace = setup::ensure_torch(&Checkout::find()?, pair, setup::WhenReady::Silent)?;
                    cargo::cargo_in(&workspace, &test)
                }
            };
            cargo::run(cargo.args(rest))
        }
        "bench" => bench(&rest),
        "bundle" => {
            let before = bundle::parse(&rest)?;
            bundle::make(&ready()?, before.as_deref())
        }
        "wheel" => wheel::run(&ready()?, &wheel::Options::parse(&rest)?),
        "peers" => peers::run(&ready()?, &peers::Options::parse(&rest)?),
        "kernel-report" => kernel_report(&rest, wants_help),
        "gpu-status" => {
            no_arguments("gpu-status", &rest)?;
            gpu_status::print(&ready()?)
        }
        "records" => match diff(&rest)? {
            None => records::print(&ready()?),
            Some(commit) => records::diff(&ready()?, commit),
        },
        other => Err(Error::Usage(format!("unknown command `{other}`"))),
    }
}

/// The checkout, set up.
fn ready() -> Result<Checkout> {
    let checkout = Checkout::find()?;
    setup::ensure(&checkout, setup::WhenReady::Silent)?;
    Ok(checkout)
}

fn no_arguments(command: &str, rest: &[&str]) -> Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(extra) => Err(Error::Usage(format!("unexpected argument `{extra}`: `{command}` takes none"))),
    }
}

/// The release that `--torch` in front names, if it is another one than the first pair's, and the other arguments.
fn torch<'a>(arguments: &'a [&'a str]) -> Result<(Option<&'static releases::Pair>, &'a [&'a str])> {
    let (named, rest) = match arguments {
        ["--torch", named, rest @ ..] => (*named, rest),
        ["--torch"] => ("", &[][..]),
        [first, rest @ ..] if first.starts_with("--torch=") => (&first["--torch=".len()..], rest),
        _ => return Ok((None, arguments)),
    };
    let at = releases::PAIRS.iter().position(|pair| pair.libtorch == named);
    let at = at.ok_or_else(|| Error::Usage(format!("--torch {named}: expected one of {}", releases::pairs())))?;
    Ok(((at > 0).then_some(&releases::PAIRS[at]), rest))
}

/// The commit that `--diff` of `records` names.
fn diff<'a>(rest: &[&'a str]) -> Result<Option<&'a str>> {
    let (commit, extra) = match rest {
        ["--diff", commit, extra @ ..] => (Some(*commit), extra),
        ["--diff"] => (Some(""), &[][..]),
        [first, extra @ ..] if first.starts_with("--diff=") => (Some(&first["--diff=".len()..]), extra),
        extra => (None, extra),
    };
    match (commit, extra.first()) {
        (Some(""), _) => Err(Error::Usage("--diff: expected a commit, got nothing".into())),
        (_, Some(extra)) => {
            Err(Error::Usage(format!("unexpected argument `{extra}`: `records` takes `--diff COMMIT` alone")))
        }
        (commit, None) => Ok(commit),
    }
}

fn train(rest: &[&str], wants_help: bool) -> Result<()> {
    let checkout = Checkout::find()?;
    if wants_help && !setup::is_ready(&checkout) {
        // A help text is not worth a download of gigabytes.
        print!("{HELP}");
        println!("\nAfter `cargo xtask setup`, `cargo xtask train --help` shows the options of training.");
        return Ok(());
    }
    setup::ensure(&checkout, setup::WhenReady::Silent)?;
    let mut cargo =
        cargo::cargo(&checkout, &["run", "--release", "-p", "tercet-trainer", "--bin", "tercet", "--", "train"]);
    cargo::run(cargo.args(rest))
}

fn kernel_report(rest: &[&str], wants_help: bool) -> Result<()> {
    let checkout = Checkout::find()?;
    if wants_help && !setup::is_ready(&checkout) {
        print!("{HELP}");
        return Ok(());
    }
    setup::ensure(&checkout, setup::WhenReady::Silent)?;
    let mut cargo = cargo::cargo(&checkout, &["run", "--release", "--quiet", "-p", "tercet-kernel-report", "--"]);
    cargo::run(cargo.args(rest))
}

fn bench(rest: &[&str]) -> Result<()> {
    if let Some(at) = rest.iter().position(|argument| *argument == "--table") {
        let others: Vec<&str> = [&rest[..at], &rest[at + 1..]].concat();
        no_arguments("bench --table", &others)?;
        return bench_table::print(&Checkout::find()?);
    }
    let checkout = ready()?;
    bench_table::forget(&checkout)?;
    let mut cargo = cargo::cargo(&checkout, &["bench", "-p", "tercet"]);
    cargo::run(cargo.args(rest))?;
    bench_table::print(&checkout)
}
