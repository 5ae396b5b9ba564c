//! `cargo xtask bundle`: executables and a wheel for a GPU machine that has Python's torch and no Rust.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo::{cargo, check, run};
use crate::checkout::{Checkout, variable};
use crate::error::{Doing, Error, Result};
use crate::gpu_status::{Hashes, TEST};
use crate::json;
use crate::wheel::{self, ARCHITECTURES};

/// The script that runs the bundle on the GPU machine.
const RUN: &str = include_str!("bundle_run.sh");
/// The most bytes that may be copied to such a machine in one go, with room for the checkout itself.
const LARGEST: u64 = 60 << 20;
/// The architecture of the machines that bundles are made for. Only `tercet` is built again for it: libtorch's bindings do not
/// read the variable.
const ARCHITECTURE: &str = "90a";

/// The name of the executable with the losses' tests.
const TESTS: &str = "test-tests-it";

/// One executable of the bundle.
#[derive(Debug, PartialEq)]
struct Program {
    kind: &'static str,
    name: String,
    /// The package's folder, from which tests find their data files.
    package: PathBuf,
    built: PathBuf,
}

/// What the command line asks for: a checkout of another commit, whose bench is to run beside this one's.
pub fn parse(arguments: &[&str]) -> Result<Option<PathBuf>> {
    match arguments {
        [] => Ok(None),
        ["--before", folder] => Ok(Some(PathBuf::from(folder))),
        ["--before"] => Err(Error::Usage("--before: expected a checkout of another commit, got nothing".into())),
        [other, ..] => Err(Error::Usage(format!("unexpected argument `{other}` of `bundle`"))),
    }
}

pub fn make(checkout: &Checkout, before: Option<&Path>) -> Result<()> {
    // All features but the emulator, which runs kernels without a GPU, from files of this build.
    let packages = ["-p", "tercet", "-p", "tercet-tests", "-p", "tercet-trainer"];
    let features = "tercet/cuda,tercet/distributed,tercet-tests/cuda,tercet-tests/distributed,tercet-trainer/torch";
    let test = [&["test", "--release", "--no-run"], &packages[..], &["--no-default-features", "--features", features]];
    let mut programs = build(checkout, &test.concat())?;
    programs.extend(build(checkout, &["bench", "-p", "tercet", "--no-run"])?);
    programs.extend(build(checkout, &["build", "--release", "-p", "tercet-trainer", "--bin", "tercet"])?);
    let before = before.map(bench_of).transpose()?;

    let dir = checkout.root.join(".bundle");
    let bin = dir.join("bin");
    fs::remove_dir_all(&bin).ok();
    fs::create_dir_all(&bin).doing("make .bundle/bin")?;
    let mut list = String::new();
    for Program { kind, name, package, built } in &programs {
        strip(built, &bin.join(name))?;
        let package = package.strip_prefix(&checkout.root).unwrap_or(package).display().to_string();
        list += &format!("{kind}\t{name}\t{}\n", if package.is_empty() { "." } else { &package });
    }
    if let Some((bench, arguments)) = before {
        strip(&bench.built, &bin.join(&bench.name))?;
        list += &format!("{}\t{}\t{arguments}\n", bench.kind, bench.name);
    }
    let own = std::env::current_exe().doing("find this program")?;
    strip(&own, &bin.join("xtask"))?; // it prints the table of the benches there
    fs::write(dir.join("list.tsv"), list).doing("write .bundle/list.tsv")?;
    // By the very program that runs there.
    let tests = programs.iter().find(|program| program.name == TESTS);
    let tests = tests.ok_or_else(|| Error::Failed(format!("expected an executable {TESTS}, got none")))?;
    let mut test = Command::new(&tests.built);
    test.args(["--exact", TEST]).env("CARGO_MANIFEST_DIR", &tests.package).current_dir(&tests.package);
    let about = format!("commit={}\n{}", commit(checkout), Hashes::of(checkout, &mut test)?.variables());
    fs::write(dir.join("about"), about).doing("write .bundle/about")?;
    let script = dir.join("run.sh");
    fs::write(&script, RUN).doing("write .bundle/run.sh")?;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).doing("make .bundle/run.sh executable")?;
    for old in wheels(&dir)? {
        fs::remove_file(&old).doing(format_args!("remove {}", checkout.show(&old)))?;
    }
    // Not into target/wheels, where those are that fit every device.
    let wheel = wheel::make_in(checkout, &dir, Some(ARCHITECTURE))?;
    let packed = dir.join("bin.tar.xz");
    pack(&dir, &packed)?;
    report(&bin, &[&packed, &wheel])?;
    fs::remove_dir_all(&bin).doing("remove .bundle/bin, which is packed")
}

/// Packs `bin` of `dir`. All programs hold the same kernels: a window over several of them makes them a tenth as large.
fn pack(dir: &Path, packed: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    let mut tar = tar.arg("-C").arg(dir).args(["-c", "bin"]).stdout(Stdio::piped()).spawn().doing("start tar")?;
    let from = tar.stdout.take().expect("it is piped");
    let to = fs::File::create(packed).doing("write .bundle/bin.tar.xz")?;
    let mut xz = Command::new("xz");
    xz.args(["--threads=1", "--lzma2=preset=1,dict=256MiB", "--stdout"]).stdin(from).stdout(to);
    run(&mut xz).map_err(|error| match error {
        Error::Failed(text) => Error::Failed(format!("{text}\n`xz` is part of xz-utils.")),
        other => other,
    })?;
    check(tar.wait().doing("wait for tar")?)
}

/// Prints what lies in `bin`, and refuses a bundle that is too large; `carried`: the files that are copied.
fn report(bin: &Path, carried: &[&Path]) -> Result<()> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(bin).doing("read .bundle/bin")? {
        let entry = entry.doing("read .bundle/bin")?;
        sizes.push((entry.file_name().display().to_string(), entry.metadata().doing("read .bundle/bin")?.len()));
    }
    sizes.sort();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for (name, size) in &sizes {
        println!("{:8.1} MiB  {name}", mib(*size));
    }
    let total = sizes.iter().map(|(_, size)| size).sum::<u64>();
    let sizes = carried.iter().map(|file| fs::metadata(file).map(|found| found.len()));
    let carried = sizes.sum::<std::io::Result<u64>>().doing("look at the files of .bundle")?;
    println!(
        "{:8.1} MiB, {:.1} packed and with the wheel, in .bundle; run it there with .bundle/run.sh (see `help`)",
        mib(total),
        mib(carried)
    );
    if carried > LARGEST {
        return Err(Error::Failed(format!("the bundle is larger than {:.0} MiB", mib(LARGEST))));
    }
    Ok(())
}

/// The wheels in a folder.
fn wheels(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).doing(format_args!("read {}", dir.display()))? {
        let path = entry.doing(format_args!("read {}", dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The bench of another commit's checkout, which has been set up, and the arguments by which it measures on a device.
fn bench_of(folder: &Path) -> Result<(Program, &'static str)> {
    let root = folder.canonicalize().doing(format_args!("find {}", folder.display()))?;
    let programs = build(&Checkout { root }, &["bench", "-p", "tercet", "--no-run"])?;
    choose_bench(programs)
        .ok_or_else(|| Error::Failed(format!("{}: expected a bench of devices, got none", folder.display())))
}

/// `on_device` was a bench of its own once; it is a module of `losses` now.
fn choose_bench(programs: Vec<Program>) -> Option<(Program, &'static str)> {
    let arguments = |program: &Program| match program.name.as_str() {
        "bench-on_device" => Some(""),
        "bench-losses" => Some("on_device"),
        _ => None,
    };
    let (bench, arguments) = programs.into_iter().find_map(|program| arguments(&program).map(|of| (program, of)))?;
    Some((Program { kind: "before", name: "before".into(), ..bench }, arguments))
}

/// Builds and collects the executables that cargo reports.
fn build(checkout: &Checkout, arguments: &[&str]) -> Result<Vec<Program>> {
    println!("bundle: cargo {}", arguments.join(" "));
    let mut command = cargo(checkout, arguments);
    command.arg("--message-format=json-render-diagnostics").current_dir(&checkout.root).stdout(Stdio::piped());
    if variable(ARCHITECTURES).is_none() {
        command.env(ARCHITECTURES, ARCHITECTURE);
    }
    let mut child = command.spawn().doing("start cargo")?;
    let mut messages = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut messages).doing("read cargo's messages")?;
    }
    check(child.wait().doing("wait for cargo")?)?;
    collect(&messages, arguments[0], &checkout.root)
        .map_err(|error| Error::Failed(format!("cargo's messages: {error}")))
}

/// The executables among cargo's messages, one JSON object per line.
fn collect(messages: &str, subcommand: &str, root: &Path) -> Result<Vec<Program>, String> {
    let mut programs: Vec<Program> = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message = json::parse(line)?;
        let Some(built) = message.get("executable").text() else {
            continue;
        };
        let target = message.get("target");
        let json::Value::List(kinds) = target.get("kind") else {
            continue;
        };
        let kind = kinds.first().and_then(json::Value::text).unwrap_or_default();
        let name = target.get("name").text().ok_or("a target without a name")?;
        let manifest = Path::new(message.get("manifest_path").text().ok_or("a target without a manifest")?);
        let package = manifest.parent().ok_or("a manifest without a folder")?;
        let harness = message.get("profile").get("test") == &json::Value::Bool(true);
        // The names are stable. Unit tests carry their package's name; so do tests of the crates that are not the root.
        let folder = package.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let owner = if package == root { String::new() } else { format!("{folder}-") };
        let (kind, name) = match (subcommand, kind, harness) {
            ("test", "test", _) => ("test", format!("test-{owner}{name}")),
            ("test", "lib" | "rlib" | "bin", true) => ("test", format!("test-{owner}unit-{name}")),
            ("bench", "bench", _) => ("bench", format!("bench-{owner}{name}")),
            ("build", "bin", false) => ("bin", name.to_string()),
            _ => continue, // examples, and a library's empty bench
        };
        if programs.iter().any(|program| program.name == name) {
            return Err(format!("two executables of the name {name}"));
        }
        programs.push(Program { kind, name, package: package.into(), built: built.into() });
    }
    Ok(programs)
}

/// Copies an executable without symbols. The profile does not strip: a profile of its own would build everything twice.
fn strip(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("strip").arg("-o").arg(to).arg(from)).map_err(|error| match error {
        Error::Failed(text) => Error::Failed(format!("{text}\n`strip` is part of binutils.")),
        other => other,
    })
}

/// The commit that the bundle was made from, for the records. A checkout that is not git's has no commit to name.
fn commit(checkout: &Checkout) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(&checkout.root).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    match git(&["rev-parse", "--short=10", "HEAD"]) {
        None => "unknown".into(),
        Some(commit) => match git(&["status", "--porcelain"]) {
            Some(changes) if changes.is_empty() => commit,
            _ => format!("{commit}+changes"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, name: &str, package: &str, harness: bool, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"{package}/Cargo.toml","target":{{"kind":["{kind}"],"name":"{name}"}},"profile":{{"opt_level":"3","test":{harness}}},"executable":{executable}}}"#
        )
    }

    #[test]
    fn arguments_are_read() {
        assert_eq!(parse(&[]).ok(), Some(None));
        assert_eq!(parse(&["--before", "old"]).ok(), Some(Some("old".into())));
        for wrong in [&["--before"][..], &["old"], &["--before", "old", "older"]] {
            assert!(matches!(parse(wrong), Err(Error::Usage(_))), "{wrong:?}");
        }
    }

    #[test]
    fn the_bench_of_a_device_is_found_in_old_and_new_commits() {
        let program = |name: &str| Program {
            kind: "bench",
            name: name.into(),
            package: "/p".into(),
            built: format!("/t/{name}").into(),
        };
        for (names, built, arguments) in [
            (&["bench-growth", "bench-on_device"][..], "/t/bench-on_device", ""),
            (&["bench-losses"], "/t/bench-losses", "on_device"),
        ] {
            let (chosen, found) = choose_bench(names.iter().map(|name| program(name)).collect()).unwrap();
            assert_eq!((chosen.kind, chosen.name.as_str()), ("before", "before"));
            assert_eq!((chosen.built, found), (PathBuf::from(built), arguments));
        }
        assert_eq!(choose_bench(vec![program("bench-growth")]), None);
    }

    #[test]
    fn executables_get_stable_names() {
        let here = "/checkout".to_string();
        let trainer = format!("{here}/trainer");
        let messages = [
            message("lib", "tercet", &here, false, "null"),
            message("lib", "tercet", &here, true, "\"/t/deps/tercet-0a\""),
            message("test", "triplet_margin", &here, true, "\"/t/deps/triplet_margin-1b\""),
            message("example", "triplet", &here, false, "\"/t/examples/triplet\""),
            message("bin", "tercet", &trainer, false, "\"/t/tercet\""),
            message("bin", "tercet", &trainer, true, "\"/t/deps/tercet-2c\""),
            message("test", "loop", &trainer, true, "\"/t/deps/loop-3d\""),
            r#"{"reason":"build-finished","success":true}"#.into(),
        ]
        .join("\n");
        let names = |subcommand: &str, messages: &str| -> Vec<(String, String)> {
            let programs = collect(messages, subcommand, Path::new(&here)).unwrap();
            programs.into_iter().map(|p| (p.name, p.built.display().to_string())).collect()
        };
        let pair = |name: &str, built: &str| (name.to_string(), built.to_string());
        assert_eq!(
            names("test", &messages),
            [
                pair("test-unit-tercet", "/t/deps/tercet-0a"),
                pair("test-triplet_margin", "/t/deps/triplet_margin-1b"),
                pair("test-trainer-unit-tercet", "/t/deps/tercet-2c"),
                pair("test-trainer-loop", "/t/deps/loop-3d"),
            ]
        );
        assert_eq!(names("build", &messages), [pair("tercet", "/t/tercet")]);
        let bench = message("bench", "losses", &here, false, "\"/t/deps/losses-4e\"");
        assert_eq!(names("bench", &bench), [pair("bench-losses", "/t/deps/losses-4e")]);
        // Two executables of one name would overwrite each other.
        let twice = format!("{bench}\n{bench}");
        assert!(collect(&twice, "bench", Path::new(&here)).unwrap_err().contains("two executables"));
        assert!(collect("{nonsense", "bench", Path::new(&here)).is_err());
    }
}
