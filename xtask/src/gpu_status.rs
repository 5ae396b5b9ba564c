//! Whether the kernels as they are were verified on a GPU, by the table in `docs/gpu-verification.md`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkout::Checkout;
use crate::error::{Doing, Error, Result};
use crate::sha256;

const TABLE: &str = "docs/gpu-verification.md";
const COLUMNS: [&str; 7] = ["date", "device", "commit", "kernels hash", "cuda hash", "what ran", "result"];
/// Digits of a hash that are kept: enough that two contents never share them by chance.
const DIGITS: usize = 16;

/// What stands before a hash of [`Hashes::of`]. The hashes of the first rows have nothing before them: they are of
/// [`Hashes::of_the_first_rows`].
const SCOPE: &str = "2-";

/// What decides a verification: the machine code, and the code that plans and launches it.
pub struct Hashes {
    /// The hash of what makes the machine code: `kernels/`, their constants and compile options, and the compiler.
    pub kernels: String,
    /// The hash of `src/` without what runs on the CPU alone. A new file counts, until somebody says that it does not.
    pub cuda: String,
}

impl Hashes {
    pub fn of(checkout: &Checkout) -> Result<Self> {
        let root = &checkout.root;
        let mut kernels = files(&root.join("kernels"))?;
        let compiled_with = ["src/constants.rs", "build/kernels.rs", "build/nvrtc.rs", "requirements.txt"];
        kernels.extend(compiled_with.map(|file| root.join(file)).into_iter().filter(|file| file.is_file()));
        let src = root.join("src");
        let mut cuda = files(&src)?;
        cuda.retain(|file| !file.strip_prefix(&src).is_ok_and(is_of_the_cpu));
        Ok(Self { kernels: format!("{SCOPE}{}", hash(root, kernels)?), cuda: format!("{SCOPE}{}", hash(root, cuda)?) })
    }

    /// Hashes of `kernels/`, and of `src/cuda/` and each `src/<stem>/cuda.rs`. They did not cover a constant that every
    /// kernel is compiled with, nor PyTorch's side of a launch.
    fn of_the_first_rows(checkout: &Checkout) -> Result<Self> {
        let root = &checkout.root;
        let mut cuda = files(&root.join("src/cuda"))?;
        cuda.extend(files(&root.join("src"))?.into_iter().filter(|file| {
            // Rooms are one level deep: src/<stem>/cuda.rs.
            file.strip_prefix(root.join("src")).is_ok_and(|f| f.ends_with("cuda.rs") && f.components().count() == 2)
        }));
        Ok(Self { kernels: hash(root, files(&root.join("kernels"))?)?, cuda: hash(root, cuda)? })
    }
}

/// Whether a file of `src/` runs on the CPU alone: the CPU's engine, a loss's part of it, and the oracles.
fn is_of_the_cpu(file: &Path) -> bool {
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    match &parts[..] {
        [file] => file == "oracle.rs",
        [folder, .., _] if folder == "cpu" => true,
        [_, file] => file == "cpu.rs" || file == "oracle.rs",
        [_, folder, ..] => folder == "cpu",
        [] => false,
    }
}

/// All files under `dir`, at any depth; none if there is no such folder.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if dir.is_dir() {
        for entry in fs::read_dir(dir).doing(format_args!("read {}", dir.display()))? {
            let path = entry.doing(format_args!("read {}", dir.display()))?.path();
            if path.is_dir() {
                found.extend(files(&path)?);
            } else {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The hash of each file's path from the root, length and bytes, in the order of the paths: the same on every machine,
/// and with no git at hand.
fn hash(root: &Path, mut files: Vec<PathBuf>) -> Result<String> {
    files.sort();
    let mut content = Vec::new();
    for file in files {
        let bytes = fs::read(&file).doing(format_args!("read {}", file.display()))?;
        let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        content.extend_from_slice(format!("{path}\0{}\0", bytes.len()).as_bytes());
        content.extend_from_slice(&bytes);
    }
    Ok(sha256::hex(&content)[..DIGITS].to_string())
}

/// One line of the table.
#[derive(Debug, PartialEq)]
struct Row {
    date: String,
    device: String,
    commit: String,
    kernels: String,
    cuda: String,
    what: String,
    result: String,
}

/// The newest row of the table, which is the last; the error names a line that is not a row.
fn newest(page: &str) -> Result<Option<Row>, String> {
    let lines = page.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
    let mut rows = lines.map(|(index, line)| (index + 1, cells(line)));
    match rows.next() {
        None => return Err("it has no table".into()),
        Some((_, cells)) if cells == COLUMNS => {}
        Some((line, _)) => {
            return Err(format!("line {line}: the columns should be | {} |", COLUMNS.join(" | ")));
        }
    }
    let Some((line, cells)) = rows.last() else {
        return Err("the table has no line of dashes under its header".into());
    };
    if cells.iter().all(|cell| cell.chars().all(|c| c == '-' || c == ':')) {
        return Ok(None); // only the dashes under the header
    }
    let Ok([date, device, commit, kernels, cuda, what, result]) = <[String; 7]>::try_from(cells) else {
        return Err(format!("line {line}: a row has {} columns", COLUMNS.len()));
    };
    Ok(Some(Row { date, device, commit, kernels, cuda, what, result }))
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().trim_matches('`').to_string()).collect()
}

/// The verdict in one sentence.
fn verdict(row: Option<&Row>, now: &Hashes, by_the_first_rows: &Hashes) -> String {
    let Some(row) = row else {
        return "never verified on a GPU".into();
    };
    let Row { date, device, commit, what, result, .. } = row;
    let of_today = row.kernels.starts_with(SCOPE);
    let now = if of_today { now } else { by_the_first_rows };
    let run = format!("{device} at {commit}, {date} ({what}: {result})");
    let changed = match (row.kernels == now.kernels, row.cuda == now.cuda) {
        (true, true) if !result.starts_with("pass") => return format!("FAILED on {run}"),
        (true, true) if of_today => return format!("verified on {run}"),
        (true, true) => {
            return format!(
                "not verified: kernels/, src/cuda/ and each src/<stem>/cuda.rs are as on {run}, but the hashes of that row \
                 cover neither the constants and options that kernels are compiled with nor the rest of the host code"
            );
        }
        (false, true) => "kernels",
        (true, false) => "the code that launches the kernels has",
        (false, false) => "kernels and the code that launches them",
    };
    let have = if changed.ends_with("has") { "" } else { " have" };
    format!("{changed}{have} changed since {commit}, {date}, the last run on {device} ({what}: {result})")
}

pub fn print(checkout: &Checkout) -> Result<()> {
    let page = fs::read_to_string(checkout.root.join(TABLE)).doing(format_args!("read {TABLE}"))?;
    let row = newest(&page).map_err(|error| Error::Failed(format!("{TABLE}: {error}")))?;
    let now = Hashes::of(checkout)?;
    println!("{}", verdict(row.as_ref(), &now, &Hashes::of_the_first_rows(checkout)?));
    println!("now: kernels hash {}, cuda hash {}", now.kernels, now.cuda);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# Page\n\n| date | device | commit | kernels hash | cuda hash | what ran | result |\n\
                          |---|---|:---|---|---|---|---|\n";

    fn said(rows: &str) -> String {
        let hashes = |scope: &str| Hashes { kernels: format!("{scope}aaaa"), cuda: format!("{scope}bbbb") };
        verdict(newest(&format!("{HEADER}{rows}")).unwrap().as_ref(), &hashes(SCOPE), &hashes(""))
    }

    #[test]
    fn each_verdict() {
        assert_eq!(said(""), "never verified on a GPU");
        let good = "| 2001-02-03 | GPU A | abc | `2-aaaa` | `2-bbbb` | test | pass, 12 tests |\n";
        assert_eq!(said(good), "verified on GPU A at abc, 2001-02-03 (test: pass, 12 tests)");
        for row in [good.into(), good.replace("`2-", "`")] {
            assert!(said(&row.replace("aaaa", "a0")).starts_with("kernels have changed since abc, 2001-02-03"));
            let launch = said(&row.replace("bbbb", "b0"));
            assert!(launch.starts_with("the code that launches the kernels has changed since abc"), "{launch}");
            let both = said(&row.replace("bbbb", "b0").replace("aaaa", "a0"));
            assert!(both.starts_with("kernels and the code that launches them have changed since"), "{both}");
            assert!(said(&row.replace("pass, 12 tests", "1 failed")).starts_with("FAILED on GPU A"));
        }
    }

    #[test]
    fn a_row_whose_hashes_covered_less_verifies_no_more_than_they_did() {
        let first = said("| 2001-02-03 | GPU A | abc | aaaa | bbbb | test | pass |\n");
        assert!(first.starts_with("not verified: kernels/, src/cuda/"), "{first}");
        assert!(first.contains("as on GPU A at abc, 2001-02-03 (test: pass), but"), "{first}");
    }

    #[test]
    fn the_last_row_counts() {
        let rows = "| d1 | A | c1 | 2-aaaa | 2-bbbb | test | pass |\n| d2 | B | c2 | 2-a0 | 2-bbbb | test | pass |\n";
        assert!(said(rows).starts_with("kernels have changed since c2"));
    }

    #[test]
    fn a_damaged_table_is_an_error_with_its_line() {
        assert_eq!(newest("nothing").unwrap_err(), "it has no table");
        assert!(newest("| date | device |\n|---|---|\n").unwrap_err().starts_with("line 1: the columns"));
        assert_eq!(newest(&format!("{HEADER}| d | A |\n")).unwrap_err(), "line 5: a row has 7 columns");
    }

    #[test]
    fn the_hash_sees_names_and_bytes_and_nothing_else() {
        let root = std::env::temp_dir().join(format!("tercet-hash-{}", std::process::id()));
        let checkout = Checkout { root: root.clone() };
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let hashes = || {
            let Hashes { kernels, cuda } = Hashes::of(&checkout).unwrap();
            (kernels, cuda)
        };
        let empty = hashes();
        assert_eq!(empty.0, format!("{SCOPE}{}", &sha256::hex(b"")[..DIGITS]));
        write("kernels/a.cu", "12");
        write("kernels/deep/b.cuh", "3");
        let (kernels, cuda) = hashes();
        assert_ne!(kernels, empty.0);
        assert_eq!(cuda, empty.1);
        // A byte that moves from one file to the next, and a new name, are changes.
        write("kernels/a.cu", "1");
        write("kernels/deep/b.cuh", "23");
        assert_ne!(hashes().0, kernels);
        write("kernels/a.cu", "12");
        write("kernels/deep/b.cuh", "3");
        assert_eq!(hashes(), (kernels.clone(), cuda.clone()));
        fs::rename(root.join("kernels/a.cu"), root.join("kernels/c.cu")).unwrap();
        assert_ne!(hashes().0, kernels);
        // What kernels are compiled with is part of them; the oracle and the CPU's code are not verified on a GPU.
        let mut seen = hashes();
        for file in ["src/constants.rs", "build/kernels.rs", "build/nvrtc.rs", "requirements.txt"] {
            write(file, "x");
            assert_ne!(hashes().0, seen.0, "{file}");
            seen = hashes();
        }
        for file in [
            "src/lib.rs",
            "src/mined.rs",
            "src/reference.rs",
            "src/cuda/mod.rs",
            "src/torch/launcher.rs",
            "src/torch/autograd.cpp",
            "src/some_loss/cuda.rs",
            "src/some_loss/torch.rs",
            "src/some_loss/mod.rs",
        ] {
            write(file, "x");
            assert_ne!(hashes().1, seen.1, "{file}");
            assert_eq!(hashes().0, seen.0, "{file}");
            seen = hashes();
        }
        for file in [
            "src/cpu/rows.rs",
            "src/cpu/deep/a.rs",
            "src/oracle.rs",
            "src/some_loss/cpu.rs",
            "src/some_loss/cpu/count.rs",
            "src/some_loss/oracle.rs",
            "build/cache.rs",
            "tests/a.rs",
        ] {
            write(file, "x");
            assert_eq!(hashes(), seen, "{file}");
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
