//! Whether the kernels as they are were verified on a GPU, by the table in `docs/gpu-verification.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cargo::{cargo, check};
use crate::checkout::Checkout;
use crate::error::{Doing, Error, Result};

const TABLE: &str = "docs/gpu-verification.md";
const COLUMNS: [&str; 7] = ["date", "device", "commit", "target", "hashes", "what ran", "result"];
/// The columns of the first rows, whose hashes are of files.
const FIRST_COLUMNS: [&str; 7] = ["date", "device", "commit", "kernels hash", "cuda hash", "what ran", "result"];

/// Names the file where the test below writes lines of target, stem and hash.
pub const FILE: &str = "TERCET_KERNEL_HASHES";
/// The test that knows the hashes: it is where the images and the launches are.
pub const TEST: &str = "kernels::launches::each_stem_has_a_hash_of_its_machine_code_and_launches";

/// What a device executes: of each target and stem the hash of its machine code and of its launches.
#[derive(Debug, PartialEq)]
pub struct Hashes(BTreeMap<String, BTreeMap<String, String>>);

impl Hashes {
    fn parse(text: &str) -> Result<Self, String> {
        let mut hashes = Self(BTreeMap::new());
        for (at, line) in text.lines().enumerate() {
            let [target, stem, hash] = line.split(' ').collect::<Vec<_>>()[..] else {
                return Err(format!("line {}: expected a target, a stem and a hash, got `{line}`", at + 1));
            };
            hashes.0.entry(target.into()).or_default().insert(stem.into(), hash.into());
        }
        if hashes.0.is_empty() { Err("expected hashes, got none".into()) } else { Ok(hashes) }
    }

    /// Runs a program that has the test, and reads what the test wrote.
    pub fn of(checkout: &Checkout, program: &mut Command) -> Result<Self> {
        let folder = checkout.root.join("target");
        fs::create_dir_all(&folder).doing("make target")?;
        let file = folder.join(format!("kernel-hashes-{}.txt", std::process::id()));
        program.env(FILE, &file).stdin(Stdio::null()).stdout(Stdio::piped());
        let output = program.spawn().doing("start the test of the hashes")?.wait_with_output();
        let output = output.doing("wait for the test of the hashes")?;
        let text = fs::read_to_string(&file);
        fs::remove_file(&file).ok();
        check(output.status).inspect_err(|_| eprint!("{}", String::from_utf8_lossy(&output.stdout)))?;
        let text =
            text.map_err(|_| Error::Failed(format!("expected {TEST} to write {}, got no file", file.display())))?;
        Self::parse(&text).map_err(|error| Error::Failed(format!("{}: {error}", file.display())))
    }

    /// Lines of a shell's variables: `targets`, and of each target `hashes_<target>`, as a row of the table has them.
    pub fn variables(&self) -> String {
        let targets: Vec<&str> = self.0.keys().map(String::as_str).collect();
        let line = |(target, stems): (&String, &BTreeMap<String, String>)| {
            let hashes: Vec<String> = stems.iter().map(|(stem, hash)| format!("{stem}:{hash}")).collect();
            format!("hashes_{target}='{}'\n", hashes.join(" "))
        };
        format!("targets='{}'\n{}", targets.join(" "), self.0.iter().map(line).collect::<String>())
    }
}

/// One line of the table.
#[derive(Debug, PartialEq)]
struct Row {
    date: String,
    device: String,
    commit: String,
    target: String,
    hashes: BTreeMap<String, String>,
    what: String,
    result: String,
}

impl Row {
    fn run(&self) -> String {
        let Self { date, device, commit, what, result, .. } = self;
        format!("{device} at {commit}, {date} ({what}: {result})")
    }
}

/// What the page says, oldest first.
#[derive(Debug, Default, PartialEq)]
struct Page {
    /// Rows with hashes of files: what a device has seen, of which none can be told to be as it is now.
    first: Vec<Row>,
    rows: Vec<Row>,
}

impl Page {
    /// The error names a line that is not a row.
    fn parse(page: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        let (mut columns, mut tables): (Option<[&str; 7]>, _) = (None, 0);
        for (at, line) in page.lines().enumerate().map(|(at, line)| (at + 1, line)) {
            if !line.starts_with('|') {
                columns = None;
                continue;
            }
            let cells = cells(line);
            let Some(of_table) = columns else {
                columns = [COLUMNS, FIRST_COLUMNS].into_iter().find(|columns| cells == *columns);
                if columns.is_none() {
                    return Err(format!("line {at}: the columns should be | {} |", COLUMNS.join(" | ")));
                }
                tables += usize::from(columns == Some(COLUMNS));
                continue;
            };
            if cells.iter().all(|cell| !cell.is_empty() && cell.chars().all(|c| c == '-' || c == ':')) {
                continue; // the dashes under the header
            }
            let count = COLUMNS.len();
            let Ok([date, device, commit, target, hashes, what, result]) = <[String; 7]>::try_from(cells) else {
                return Err(format!("line {at}: a row has {count} columns"));
            };
            if of_table == FIRST_COLUMNS {
                let (target, hashes) = (String::new(), BTreeMap::new());
                parsed.first.push(Row { date, device, commit, target, hashes, what, result });
                continue;
            }
            let pair = |pair: &str| pair.split_once(':').map(|(stem, hash)| (stem.to_string(), hash.to_string()));
            let hashes: Option<BTreeMap<_, _>> = hashes.split_whitespace().map(pair).collect();
            let hashes = hashes.ok_or_else(|| format!("line {at}: expected hashes such as `batch:01234567`"))?;
            parsed.rows.push(Row { date, device, commit, target, hashes, what, result });
        }
        if tables == 1 {
            Ok(parsed)
        } else {
            Err(format!("expected a table with | {} |, got {tables}", COLUMNS.join(" | ")))
        }
    }

    /// The verdict: a line for each target of the build, or for what is so of all of them.
    fn verdict(&self, now: &Hashes) -> String {
        let Some(last) = self.rows.last().or(self.first.last()) else { return "never verified on a GPU".into() };
        let mut lines = Vec::new();
        // Of targets that no device has run, nothing is to be said.
        for (target, stems) in now.0.iter().filter(|(target, _)| self.rows.iter().any(|row| row.target == **target)) {
            // The newest run of this very code of a stem.
            let run = |stem: &str, hash: &str| {
                let mut rows = self.rows.iter().rev();
                rows.find(|row| row.target == *target && row.hashes.get(stem).is_some_and(|of_row| of_row == hash))
            };
            let (mut by_run, mut never): (BTreeMap<String, BTreeSet<&str>>, BTreeSet<&str>) = Default::default();
            for (stem, hash) in stems {
                match run(stem, hash) {
                    None => drop(never.insert(stem)),
                    Some(row) => {
                        let verdict = if row.result.starts_with("pass") { "verified" } else { "FAILED" };
                        by_run.entry(format!("{verdict} on {}", row.run())).or_default().insert(stem);
                    }
                }
            }
            let list = |of: &BTreeSet<&str>| {
                let all = of.len() == stems.len();
                if all { "all stems".into() } else { of.iter().copied().collect::<Vec<_>>().join(", ") }
            };
            lines.extend(by_run.iter().map(|(verdict, of)| format!("{target}: {} {verdict}", list(of))));
            if !never.is_empty() {
                lines.push(format!("{target}: {} not verified as now", list(&never)));
            }
        }
        if lines.is_empty() || lines.iter().any(|line| line.ends_with("not verified as now")) {
            let what = if lines.is_empty() { "not verified as now; the" } else { "the" };
            lines.push(format!("{what} last state that a device has seen: {}", last.run()));
        }
        lines.join("\n")
    }
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().trim_matches('`').to_string()).collect()
}

/// Prints the verdict, and the hashes of the build.
pub fn print(checkout: &Checkout) -> Result<()> {
    let page = page(&checkout.root)?;
    // As `cargo xtask test` builds, so that nothing is compiled after it.
    let test = ["test", "--release", "--quiet", "--workspace", "--test", "it", TEST, "--", "--exact"];
    let now = Hashes::of(checkout, cargo(checkout, &test).current_dir(&checkout.root))?;
    println!("{}", page.verdict(&now));
    for (target, stems) in &now.0 {
        let stems: Vec<String> = stems.iter().map(|(stem, hash)| format!("{stem}:{hash}")).collect();
        println!("now: {target} {}", stems.join(" "));
    }
    Ok(())
}

fn page(root: &Path) -> Result<Page> {
    let page = fs::read_to_string(root.join(TABLE)).doing(format_args!("read {TABLE}"))?;
    Page::parse(&page).map_err(|error| Error::Failed(format!("{TABLE}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "# Page\n\n| date | device | commit | kernels hash | cuda hash | what ran | result |\n\
                         |---|---|---|---|---|---|---|\n";
    const HEADER: &str =
        "\n| date | device | commit | target | hashes | what ran | result |\n|---|---|---|---|---|:---|---|\n";
    const OLD: &str = "| 2001-02-03 | GPU A | abc | 11 | 22 | test | pass |\n";

    fn now() -> Hashes {
        Hashes::parse("sm_80 batch 11\nsm_80 batch_hard 12\nsm_90a batch 21\nsm_90a batch_hard 22\n").unwrap()
    }

    fn said(first: &str, rows: &str) -> String {
        Page::parse(&format!("{FIRST}{first}{HEADER}{rows}")).unwrap().verdict(&now())
    }

    fn row(date: &str, hashes: &str, result: &str) -> String {
        format!("| {date} | GPU B | def | sm_90a | `{hashes}` | test | {result} |\n")
    }

    #[test]
    fn each_verdict() {
        assert_eq!(said("", ""), "never verified on a GPU");
        // Hashes of files say nothing of machine code.
        assert_eq!(
            said(OLD, ""),
            "not verified as now; the last state that a device has seen: GPU A at abc, 2001-02-03 (test: pass)"
        );
        let good = row("d1", "batch:21 batch_hard:22", "pass, 12 tests");
        assert_eq!(said(OLD, &good), "sm_90a: all stems verified on GPU B at def, d1 (test: pass, 12 tests)");
        let failed = row("d2", "batch:21 batch_hard:22", "1 failed");
        assert_eq!(
            said(OLD, &format!("{good}{failed}")),
            "sm_90a: all stems FAILED on GPU B at def, d2 (test: 1 failed)"
        );
    }

    #[test]
    fn a_stem_stays_verified_while_others_change() {
        let rows = row("d1", "batch:21 batch_hard:0", "pass") + &row("d2", "batch:9 batch_hard:1", "pass");
        assert_eq!(
            said(OLD, &rows),
            "sm_90a: batch verified on GPU B at def, d1 (test: pass)\nsm_90a: batch_hard not verified as now\n\
             the last state that a device has seen: GPU B at def, d2 (test: pass)"
        );
        // What ran on another target is no run of this one.
        let other = row("d1", "batch:11 batch_hard:12", "pass").replace("sm_90a", "sm_80");
        assert_eq!(said("", &other), "sm_80: all stems verified on GPU B at def, d1 (test: pass)");
        let other = row("d1", "batch:21 batch_hard:22", "pass").replace("sm_90a", "sm_80");
        assert!(said("", &other).starts_with("sm_80: all stems not verified as now\n"));
    }

    #[test]
    fn a_damaged_page_is_an_error_with_its_line() {
        let error = |page: &str| Page::parse(page).unwrap_err();
        assert!(error("nothing").starts_with("expected a table with | date |"));
        assert!(error("| date | device |\n|---|---|\n").starts_with("line 1: the columns"));
        assert_eq!(error(&format!("{HEADER}| d | A |\n")), "line 4: a row has 7 columns");
        let no_hash = format!("{HEADER}{}", row("d", "0123", "pass"));
        assert!(error(&no_hash).starts_with("line 4: expected hashes"));
    }

    #[test]
    fn the_page_in_this_repository_is_readable() {
        let page = Page::parse(include_str!("../../docs/gpu-verification.md")).unwrap();
        assert!(page.first.iter().any(|row| row.commit == "4baa890701"));
    }

    #[test]
    fn a_bundle_takes_them_as_variables() {
        assert_eq!(
            now().variables(),
            "targets='sm_80 sm_90a'\nhashes_sm_80='batch:11 batch_hard:12'\nhashes_sm_90a='batch:21 batch_hard:22'\n"
        );
        assert!(Hashes::parse("").is_err());
        assert!(Hashes::parse("sm_80 batch").unwrap_err().contains("line 1"));
    }
}
