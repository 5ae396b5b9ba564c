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

/// What decides a verification: the kernels, and the code that plans and launches them.
pub struct Hashes {
    /// Over `kernels/`.
    pub kernels: String,
    /// Over `src/cuda/` and each `src/<stem>/cuda.rs`.
    pub cuda: String,
}

impl Hashes {
    pub fn of(checkout: &Checkout) -> Result<Self> {
        let root = &checkout.root;
        let mut cuda = files(&root.join("src/cuda"))?;
        cuda.extend(files(&root.join("src"))?.into_iter().filter(|file| {
            // Rooms are one level deep: src/<stem>/cuda.rs.
            file.strip_prefix(root.join("src")).is_ok_and(|f| f.ends_with("cuda.rs") && f.components().count() == 2)
        }));
        Ok(Self { kernels: hash(root, files(&root.join("kernels"))?)?, cuda: hash(root, cuda)? })
    }
}

/// All files under `dir`, at any depth; none where there is no such folder.
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

/// Over each file's path from the root, length and bytes, in the order of the paths: the same on every machine,
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

/// The newest row, which is the last; the error names the line that is not a row of the table.
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
fn verdict(row: Option<&Row>, now: &Hashes) -> String {
    let Some(row) = row else {
        return "never verified on a GPU".into();
    };
    let Row { date, device, commit, what, result, .. } = row;
    let changed = match (row.kernels == now.kernels, row.cuda == now.cuda) {
        (true, true) if result.starts_with("pass") => {
            return format!("verified on {device} at {commit}, {date} ({what}: {result})");
        }
        (true, true) => {
            return format!("FAILED on {device} at {commit}, {date} ({what}: {result})");
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
    println!("{}", verdict(row.as_ref(), &now));
    println!("now: kernels hash {}, cuda hash {}", now.kernels, now.cuda);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# Page\n\n| date | device | commit | kernels hash | cuda hash | what ran | result |\n\
                          |---|---|:---|---|---|---|---|\n";

    fn now() -> Hashes {
        Hashes { kernels: "aaaa".into(), cuda: "bbbb".into() }
    }

    fn said(rows: &str) -> String {
        verdict(newest(&format!("{HEADER}{rows}")).unwrap().as_ref(), &now())
    }

    #[test]
    fn each_verdict() {
        assert_eq!(said(""), "never verified on a GPU");
        let good = "| 2001-02-03 | GPU A | abc | `aaaa` | `bbbb` | test | pass, 12 tests |\n";
        assert_eq!(said(good), "verified on GPU A at abc, 2001-02-03 (test: pass, 12 tests)");
        assert!(said(&good.replace("aaaa", "a0")).starts_with("kernels have changed since abc, 2001-02-03"));
        let launch = said(&good.replace("bbbb", "b0"));
        assert!(launch.starts_with("the code that launches the kernels has changed since abc"), "{launch}");
        let both = said(&good.replace("bbbb", "b0").replace("aaaa", "a0"));
        assert!(both.starts_with("kernels and the code that launches them have changed since"), "{both}");
        assert!(said(&good.replace("pass, 12 tests", "1 failed")).starts_with("FAILED on GPU A"));
    }

    #[test]
    fn the_last_row_counts() {
        let rows = "| d1 | A | c1 | aaaa | bbbb | test | pass |\n| d2 | B | c2 | a0 | bbbb | test | pass |\n";
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
        write("src/lib.rs", "x");
        let empty = hashes();
        assert_eq!(empty.0, sha256::hex(b"")[..DIGITS]);
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
        // Host code: src/cuda and each room's cuda.rs; not the rest of src.
        let (kernels, before) = hashes();
        write("src/some_loss/cpu.rs", "x");
        write("src/lib.rs", "y");
        assert_eq!(hashes().1, before);
        write("src/some_loss/cuda.rs", "x");
        let room = hashes().1;
        assert_ne!(room, before);
        write("src/cuda/mod.rs", "x");
        assert_ne!(hashes().1, room);
        assert_eq!(hashes().0, kernels);
        fs::remove_dir_all(&root).unwrap();
    }
}
