//! `cargo xtask kernel-report`.
#![allow(clippy::print_stdout, reason = "this program prints its report")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, iter};

use tercet::internal::IMAGES;
use tercet_kernel_report::disassembler::Disassembler;
use tercet_kernel_report::report::{self, Wanted};
use tercet_kernel_report::work::Problem;

const HELP: &str = "\
What the kernels of this build are made of: registers, shared memory, blocks on a multiprocessor, instructions by loop

Usage: cargo xtask kernel-report [STEM] [OPTIONS]

  STEM            the kernels of this file alone, with their loops, such as batch_hard
  --target SM     those for this target alone, such as sm_90a
  --json          as a list in JSON
  --rows N        rows of the batch that bounds are for (8192)
  --dim D         numbers of a row (128)
  --positives P   other rows of each row's class (7)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let (mut stem, mut target, mut as_json, mut problem) = (None, None, false, Problem::default());
    let mut rest = arguments.iter().flat_map(|argument| match argument.split_once('=') {
        Some((name, value)) if name.starts_with("--") => vec![name, value],
        _ => vec![argument.as_str()],
    });
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{argument}: expected a value, got nothing"));
        let count = |value: &str| {
            let number = value.parse().ok().filter(|number| (1..=1 << 20).contains(number));
            number.ok_or_else(|| format!("{argument}: expected a whole number from 1 to 1048576, got `{value}`"))
        };
        match argument {
            "-h" | "--help" => {
                print!("{HELP}");
                return Ok(());
            }
            "--json" => as_json = true,
            "--target" => target = Some(known("--target", value()?, |image| image.0, "sm_")?),
            "--rows" => problem.rows = count(value()?)?,
            "--dim" => problem.dim = count(value()?)?,
            "--positives" => problem.positives = count(value()?)?,
            other if other.starts_with('-') => return Err(format!("unknown option `{other}`; --help shows all")),
            other if stem.is_none() => stem = Some(known("STEM", other, |image| image.1, "")?),
            other => return Err(format!("unexpected argument `{other}`: one stem at most")),
        }
    }
    let folder = |name| env::var_os(name).map(PathBuf::from);
    // Cargo names the package's folder, which is one of the checkout's.
    let checkout = folder("CARGO_MANIFEST_DIR").and_then(|package| Some(package.parent()?.to_path_buf()));
    let disassembler = match Disassembler::find(&checkout.unwrap_or_default()) {
        Ok(found) => Some(found),
        Err(why) => {
            eprintln!("without machine code: {why}");
            None
        }
    };
    let images = report::images(&Wanted { stem, target });
    let reports = report::of_images(&images, disassembler.as_ref(), &problem)?;
    if as_json {
        let list: Vec<_> = reports.iter().map(report::KernelReport::json).collect();
        println!("{}", serde_json::to_string_pretty(&list).map_err(|error| error.to_string())?);
    } else {
        print!("{}", report::table(&reports, &problem, stem.is_some()));
    }
    Ok(())
}

/// The name among those of this build's images that a person gave; the error lists them.
fn known<'a>(
    what: &str,
    name: &'a str,
    of: impl Fn(&(&'static str, &'static str)) -> &'static str,
    begin: &str,
) -> Result<&'a str, String> {
    let mut names: Vec<&str> =
        IMAGES.iter().map(|image| of(&(image.target, image.stem))).filter(|n| n.starts_with(begin)).collect();
    names.sort_unstable();
    names.dedup();
    let found = iter::once(name).find(|name| names.contains(name));
    found.ok_or_else(|| format!("{what}: expected one of {}, got `{name}`", names.join(", ")))
}
