//! `cargo xtask records`: a hash over all bits of what each recorded case computes, and which of them a change has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo::{cargo, check};
use crate::checkout::{Checkout, named_libtorch, variable};
use crate::error::{Doing, Error, Result};
use crate::sha256;

/// Names the folder where the tests write `<stem>-<backend>.txt`, with a line for each case: 16 hexadecimal digits, its name.
const FOLDER: &str = "TERCET_RECORD_BITS";
/// What the names of the tests that do so have in common.
const TESTS: &str = "computes_what_it_did";
/// The package of such tests, by its folder's manifest. Older commits have programs in `FOLDERS` in its place.
const PACKAGE: (&str, &str) = ("tests/Cargo.toml", "tercet-tests");
const FOLDERS: [&str; 2] = ["tests", "emulator/tests"];

/// The hashes of a loss's cases on a backend.
#[derive(Debug, PartialEq)]
struct Record {
    /// Hash and name, in the order of the test.
    cases: Vec<(u64, String)>,
}

impl Record {
    fn parse(text: &str) -> Result<Self, String> {
        let mut names = BTreeSet::new();
        let line = |(at, line): (usize, &str)| {
            let case = line.split_once(' ').filter(|(digits, name)| digits.len() == 16 && !name.is_empty());
            let case = case.and_then(|(digits, name)| Some((u64::from_str_radix(digits, 16).ok()?, name.to_string())));
            let case = case.ok_or_else(|| format!("line {}: expected a hash and a name, got `{line}`", at + 1))?;
            if names.insert(case.1.clone()) {
                Ok(case)
            } else {
                Err(format!("line {}: a second case of the name `{}`", at + 1, case.1))
            }
        };
        Ok(Self { cases: text.lines().enumerate().map(line).collect::<Result<_, _>>()? })
    }

    /// Over the bits of all cases, whatever they are named.
    fn hash(&self) -> String {
        let hashes: Vec<u8> = self.cases.iter().flat_map(|(hash, _)| hash.to_le_bytes()).collect();
        sha256::hex(&hashes)[..16].into()
    }
}

/// By stem and backend, in their order.
type Records = BTreeMap<(String, String), Record>;

fn count(records: &Records) -> usize {
    records.values().map(|record| record.cases.len()).sum()
}

/// Over the bits of all cases.
fn total(records: &Records) -> String {
    let lines = records.iter().map(|((stem, backend), record)| format!("{stem} {backend} {}\n", record.hash()));
    sha256::hex(lines.collect::<String>().as_bytes())[..16].into()
}

fn table(records: &Records) -> String {
    let mut text = format!("{:<20}{:<16}{:>6}  hash\n", "stem", "backend", "cases");
    for ((stem, backend), record) in records {
        let _ = writeln!(text, "{stem:<20}{backend:<16}{:>6}  {}", record.cases.len(), record.hash());
    }
    let _ = writeln!(text, "{:<20}{:<16}{:>6}  {}", "total", "", count(records), total(records));
    text
}

/// What became of the cases of an older state of the code.
#[derive(Debug, Default, PartialEq)]
struct Comparison {
    /// How many have the same bits.
    equal: usize,
    /// How many of these have another name than they had.
    renamed: usize,
    /// A sentence for each of the others.
    changes: Vec<String>,
}

/// Compares case by case; `commit` is what `before` is of. A case without its like by name may have it by its bits: a name
/// shows the loss's options, which may be called otherwise now.
fn compare(before: &Records, now: &Records, commit: &str) -> Comparison {
    let none = Record { cases: Vec::new() };
    let mut comparison = Comparison::default();
    for key @ (stem, backend) in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let [before, now] = [before, now].map(|records| records.get(key).unwrap_or(&none));
        let by_name: BTreeMap<&str, u64> = now.cases.iter().map(|(hash, name)| (&**name, *hash)).collect();
        let mut seen = BTreeSet::new();
        let mut gone: Vec<(u64, &str)> = Vec::new();
        for (was, name) in &before.cases {
            match by_name.get(&**name) {
                Some(is) if is == was => comparison.equal += 1,
                Some(is) => {
                    let bits = format!("{was:016x} at {commit}, {is:016x} now");
                    comparison.changes.push(format!("{stem} on {backend}: {name}: {bits}"));
                }
                None => gone.push((*was, name)),
            }
            seen.insert(&**name);
        }
        for (hash, name) in now.cases.iter().filter(|(_, name)| !seen.contains(&**name)) {
            if let Some(at) = gone.iter().position(|(was, _)| was == hash) {
                gone.remove(at);
                comparison.equal += 1;
                comparison.renamed += 1;
            } else {
                comparison.changes.push(format!("{stem} on {backend}: {name}: not at {commit}, {hash:016x} now"));
            }
        }
        let gone =
            gone.iter().map(|(was, name)| format!("{stem} on {backend}: {name}: {was:016x} at {commit}, not now"));
        comparison.changes.extend(gone);
    }
    comparison
}

/// Prints what the checkout computes.
pub fn print(checkout: &Checkout) -> Result<()> {
    print!("{}", table(&here(checkout)?));
    Ok(())
}

/// Prints which cases have other bits than at that commit; an error if any has.
pub fn diff(checkout: &Checkout, commit: &str) -> Result<()> {
    let revision =
        git(checkout, &["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{commit}^{{commit}}")])?;
    let Some(revision) = revision else {
        return Err(Error::Usage(format!("--diff: expected a commit, got `{commit}`")));
    };
    let short = &revision[..10.min(revision.len())];
    if git(checkout, &["grep", "--quiet", FOLDER, &revision, "--", "tests"])?.is_none() {
        return Err(Error::Failed(format!(
            "--diff {commit}: expected a commit whose tests write hashes where {FOLDER} says, got {short}, whose tests do not \
             know that variable: it is older than `cargo xtask records`"
        )));
    }
    let now = here(checkout)?;
    let before = at(checkout, &revision, short)?;
    let Comparison { equal, renamed, changes } = compare(&before, &now, short);
    if changes.is_empty() {
        let renamed = if renamed > 0 { format!(", {renamed} of them under another name") } else { String::new() };
        println!("equal: {equal} cases, hash {}{renamed}", total(&now));
        return Ok(());
    }
    println!("{}", changes.join("\n"));
    Err(Error::Failed(format!("{} cases are not as they were at {short}, {equal} are", changes.len())))
}

/// What the checkout computes.
fn here(checkout: &Checkout) -> Result<Records> {
    measure(checkout, &checkout.root, "the checkout", cargo(checkout, &["test"]))
}

/// What a commit computes, in a worktree that is gone afterwards.
fn at(checkout: &Checkout, revision: &str, short: &str) -> Result<Records> {
    let worktree = Worktree::add(checkout, revision)?;
    let mut cargo = cargo(checkout, &["test"]);
    // Everything but Tercet itself is built already, as long as it sees the same libtorch by the same path. Trap: cargo takes
    // a package of the same name and place in its workspace for the same one, so each build would undo the other. A setting
    // that is of no effect without debug information tells them apart.
    let packages = ["tercet", "tercet-emulator", "tercet-kernel-report", "tercet-tests"];
    // Older commits have no `report`.
    for package in
        packages.iter().filter(|name| **name != "tercet-kernel-report" || worktree.path.join("report").is_dir())
    {
        cargo.args(["--config", &format!("profile.release.package.{package}.split-debuginfo='unpacked'")]);
    }
    let target = variable("CARGO_TARGET_DIR").map_or_else(|| checkout.root.join("target"), PathBuf::from);
    cargo.env("CARGO_TARGET_DIR", std::path::absolute(target).doing("find the target folder")?);
    if named_libtorch(checkout).is_none() {
        cargo.env("LIBTORCH", checkout.libtorch_link());
    }
    measure(checkout, &worktree.path, short, cargo)
}

/// Runs the tests of a checkout or worktree that write hashes, and reads these.
fn measure(checkout: &Checkout, root: &Path, what: &str, mut cargo: Command) -> Result<Records> {
    let folder = checkout.root.join("target/records/bits");
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).doing(format_args!("make {}", folder.display()))?;
    cargo.args(["--release", "--quiet"]);
    if root.join(PACKAGE.0).is_file() {
        eprintln!("records: {what}, {}", PACKAGE.1);
        cargo.args(["-p", PACKAGE.1]);
    } else {
        let programs = programs(root)?;
        eprintln!("records: {what}, {}", programs.join(", "));
        cargo.arg("--workspace");
        for program in &programs {
            cargo.args(["--test", program]);
        }
    }
    cargo.arg(TESTS).env(FOLDER, &folder).current_dir(root).stdin(Stdio::null()).stdout(Stdio::piped());
    let output = cargo.spawn().doing("start cargo")?.wait_with_output().doing("wait for cargo")?;
    check(output.status).inspect_err(|_| {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        eprintln!("records: {what}: its tests failed");
    })?;
    let records = read(&folder)?;
    fs::remove_dir_all(&folder).doing(format_args!("remove {}", folder.display()))?;
    if records.is_empty() {
        return Err(Error::Failed(format!(
            "{what}: expected its tests {TESTS} to write <stem>-<backend>.txt to the folder {FOLDER}, got no file"
        )));
    }
    Ok(records)
}

/// The test programs of an older commit whose tests write hashes: both packages have them under the same names.
fn programs(root: &Path) -> Result<Vec<String>> {
    let mut programs = BTreeSet::new();
    for folder in FOLDERS.map(|folder| root.join(folder)) {
        for entry in fs::read_dir(&folder).doing(format_args!("read {}", folder.display()))? {
            let path = entry.doing(format_args!("read {}", folder.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).doing(format_args!("read {}", path.display()))?;
                if text.contains(TESTS) {
                    programs.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
                }
            }
        }
    }
    Ok(programs.into_iter().collect())
}

fn read(folder: &Path) -> Result<Records> {
    let mut records = Records::new();
    for entry in fs::read_dir(folder).doing(format_args!("read {}", folder.display()))? {
        let path = entry.doing(format_args!("read {}", folder.display()))?.path();
        let text = fs::read_to_string(&path).doing(format_args!("read {}", path.display()))?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        // Stems have no dash; names of devices may.
        let key = name.split_once('-').map(|(stem, backend)| (stem.to_string(), backend.to_string()));
        let key = key.ok_or_else(|| Error::Failed(format!("expected <stem>-<backend>.txt, got {}", path.display())))?;
        let record = Record::parse(&text).map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
        records.insert(key, record);
    }
    Ok(records)
}

/// What git prints; `None` if it says no.
fn git(checkout: &Checkout, arguments: &[&str]) -> Result<Option<String>> {
    let output = Command::new("git").args(arguments).current_dir(&checkout.root).output().doing("start git")?;
    match output.status.code() {
        Some(0) => Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_string())),
        Some(1) => Ok(None),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
            Err(Error::Failed(format!("`git {}` failed: {said}", arguments.join(" "))))
        }
    }
}

/// A commit's files, removed when it is dropped. They always lie at one path: what cargo builds of them takes the place of
/// what it built the last time.
struct Worktree<'a> {
    checkout: &'a Checkout,
    path: PathBuf,
}

impl<'a> Worktree<'a> {
    fn add(checkout: &'a Checkout, revision: &str) -> Result<Self> {
        let worktree = Self { checkout, path: checkout.root.join("target/records/commit") };
        worktree.remove(); // of a run that was killed
        let path = worktree.path.to_string_lossy();
        match git(checkout, &["worktree", "add", "--detach", "--quiet", &path, revision])? {
            Some(_) => Ok(worktree),
            None => Err(Error::Failed(format!("git made no worktree {path} of {revision}"))),
        }
    }

    fn remove(&self) {
        let path = self.path.to_string_lossy();
        git(self.checkout, &["worktree", "remove", "--force", "--force", &path]).ok();
        fs::remove_dir_all(&self.path).ok();
        git(self.checkout, &["worktree", "prune"]).ok();
    }
}

impl Drop for Worktree<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(of: &[(&str, &str, &str)]) -> Records {
        let record = |(stem, backend, text): &(&str, &str, &str)| {
            ((stem.to_string(), backend.to_string()), Record::parse(text).unwrap())
        };
        of.iter().map(record).collect()
    }

    const A: &str = "000000000000000a f32, one\n000000000000000b f32, two\n";

    #[test]
    fn equal_bits_are_equal_under_any_name() {
        let before = records(&[("op", "cpu", A), ("op", "emulator", A)]);
        let equal = |equal, renamed| Comparison { equal, renamed, changes: Vec::new() };
        assert_eq!(compare(&before, &before, "abc"), equal(4, 0));
        let now = records(&[("op", "cpu", A), ("op", "emulator", &A.replace("f32, two", "f32, 2"))]);
        assert_eq!(compare(&before, &now, "abc"), equal(4, 1));
        assert_eq!(total(&now), total(&before));
    }

    #[test]
    fn each_case_that_is_not_as_it_was_is_named() {
        let before = records(&[("op", "cpu", A), ("op", "emulator", A)]);
        let changes = |now: &[(&str, &str, &str)]| {
            let now = records(now);
            assert_ne!(total(&now), total(&before));
            let Comparison { equal, renamed, changes } = compare(&before, &now, "abc");
            assert_eq!(renamed, 0);
            (equal, changes)
        };
        let other = A.replace("000b", "000c");
        let (equal, changed) = changes(&[("op", "cpu", A), ("op", "emulator", &other)]);
        let what = "op on emulator: f32, two: 000000000000000b at abc, 000000000000000c now";
        assert_eq!((equal, changed), (3, vec![what.to_string()]));

        let (equal, changed) = changes(&[("op", "cpu", A)]);
        assert_eq!((equal, changed.len()), (2, 2));
        assert_eq!(changed[1], "op on emulator: f32, two: 000000000000000b at abc, not now");

        let more = format!("{A}000000000000000a f64, three\n");
        let (equal, changed) = changes(&[("op", "cpu", &more), ("op", "emulator", A)]);
        assert_eq!((equal, changed), (4, vec!["op on cpu: f64, three: not at abc, 000000000000000a now".to_string()]));
    }

    #[test]
    fn what_is_no_record_is_named_with_its_line() {
        let error = |text: &str| Record::parse(text).unwrap_err();
        assert_eq!(error("nonsense\n"), "line 1: expected a hash and a name, got `nonsense`");
        assert_eq!(error(&format!("{A}12 short\n")), "line 3: expected a hash and a name, got `12 short`");
        assert_eq!(error(&format!("{A}{A}")), "line 3: a second case of the name `f32, one`");
    }

    #[test]
    fn the_table_ends_with_the_total() {
        let table = table(&records(&[("op", "cpu", A), ("another_op", "gpu-a", A)]));
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["stem", "backend", "cases", "hash"]);
        assert_eq!(lines[1][..3], ["another_op", "gpu-a", "2"]);
        assert_eq!(lines[2][..3], ["op", "cpu", "2"]);
        assert_eq!(lines[1][3], lines[2][3]);
        assert_eq!(lines[3][..2], ["total", "4"]);
    }
}
