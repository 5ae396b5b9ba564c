//! Files of pairs as LFW has them (`pairs.txt`), and what a set of folds amounts to.
//!
//! The first line is `FOLDS PAIRS` (LFW: `10 300`), or `PAIRS` alone for one fold. Each fold follows with
//! `PAIRS` genuine pairs `name number number` and `PAIRS` impostor pairs `name number name number`,
//! fields parted by tabs, or by spaces where a line has no tab. Image 7 of `Ada_Example` is the file
//! `Ada_Example/Ada_Example_0007` with an image's extension. A folder without any file of that form
//! (Omniglot's, `tercet generate`'s) is counted through instead: 7 is its 7th image by name.

use crate::bad_input::bad_input;
use crate::folders;
use crate::metrics::{accuracy, most_accurate};
use crate::ranking::mean_and_error;
use crate::tally::Tally;
use anyhow::Result;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Two images of [`Pairs::files`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    pub first: usize,
    pub second: usize,
    pub genuine: bool,
}

/// A file of pairs.
#[derive(Debug, PartialEq)]
pub struct Pairs {
    /// Each image once.
    pub files: Vec<PathBuf>,
    /// The pairs of each fold.
    pub folds: Vec<Vec<Line>>,
}

/// Reads `file`, and finds its images under `data`. Errors name the line.
pub fn read(file: &Path, data: &Path) -> Result<Pairs> {
    let wrong = |what: String| bad_input(format!("--pairs {}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    if !data.is_dir() {
        return Err(bad_input(format!("--data {}: not a folder", data.display())));
    }
    let lines: Vec<(usize, &str)> =
        text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.trim().is_empty()).collect();
    let Some(((number, header), lines)) = lines.split_first() else {
        return Err(wrong("empty".into()));
    };
    let counts: Vec<usize> = header.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let (folds, each) = match (&counts[..], header.split_whitespace().count()) {
        (&[each], 1) if each > 0 => (1, each),
        (&[folds, each], 2) if folds > 0 && each > 0 => (folds, each),
        _ => return Err(wrong(format!("line {number}: {header:?}; expected `FOLDS PAIRS` or `PAIRS`"))),
    };
    let expected = folds.checked_mul(each).and_then(|n| n.checked_mul(2));
    if expected != Some(lines.len()) {
        let said = format!("{folds} folds of {each} genuine and {each} impostor pairs");
        return Err(wrong(format!("{} pairs; line {number} says {said}", lines.len())));
    }
    let mut finder = Finder { data, files: Vec::new(), known: HashMap::new(), folders: BTreeMap::new() };
    let mut read = Vec::with_capacity(folds);
    for fold in lines.chunks(2 * each) {
        let mut pairs = Vec::with_capacity(2 * each);
        for (place, &(number, line)) in fold.iter().enumerate() {
            let genuine = place < each;
            let at_line = |what: String| wrong(format!("line {number}: {what}"));
            let fields: Vec<&str> = match line.contains('\t') {
                true => line.split('\t').map(str::trim).collect(),
                false => line.split_whitespace().collect(),
            };
            let ends = match (&fields[..], genuine) {
                ([name, a, b], true) => [(*name, *a), (*name, *b)],
                ([name, a, other, b], false) => [(*name, *a), (*other, *b)],
                (_, true) => return Err(at_line(format!("{line:?}; expected a genuine pair: name number number"))),
                (_, false) => {
                    return Err(at_line(format!("{line:?}; expected an impostor pair: name number name number")));
                }
            };
            let mut found = [0; 2];
            for (end, (name, image)) in found.iter_mut().zip(ends) {
                let image = image.parse().map_err(|_| at_line(format!("{image:?} is not an image's number")))?;
                *end = finder.find(name, image).map_err(&at_line)?;
            }
            pairs.push(Line { first: found[0], second: found[1], genuine });
        }
        read.push(pairs);
    }
    Ok(Pairs { files: finder.files, folds: read })
}

struct Finder<'a> {
    data: &'a Path,
    files: Vec<PathBuf>,
    /// Index into `files`.
    known: HashMap<(String, usize), usize>,
    /// The images of each folder, sorted.
    folders: BTreeMap<String, Vec<PathBuf>>,
}

impl Finder<'_> {
    fn find(&mut self, name: &str, image: usize) -> std::result::Result<usize, String> {
        let key = (name.to_owned(), image);
        if let Some(&index) = self.known.get(&key) {
            return Ok(index);
        }
        if !self.folders.contains_key(name) {
            let folder = self.data.join(name);
            let images = folders::images_in(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            self.folders.insert(name.to_owned(), images);
        }
        let images = &self.folders[name];
        let own = name.rsplit('/').next().unwrap_or(name);
        let numbered = |file: &PathBuf| -> Option<usize> {
            let stem = file.file_stem()?.to_str()?.strip_prefix(own)?.strip_prefix('_')?;
            (stem.len() >= 4).then(|| stem.parse().ok())?
        };
        let found = if images.iter().any(|file| numbered(file).is_some()) {
            images.iter().find(|file| numbered(file) == Some(image))
        } else {
            image.checked_sub(1).and_then(|index| images.get(index))
        };
        let folder = self.data.join(name);
        let file = found.ok_or_else(|| format!("no image {image} of {name:?} in {}", folder.display()))?;
        self.files.push(file.clone());
        self.known.insert(key, self.files.len() - 1);
        Ok(self.files.len() - 1)
    }
}

/// LFW's number: the accuracy of each fold at the threshold that is most accurate on the other folds; mean and
/// standard error. `None` for one fold.
pub fn cross_validated(folds: &[Vec<(f32, bool)>]) -> Option<(f64, f64)> {
    if folds.len() < 2 {
        return None;
    }
    let of_fold = |own: usize| {
        let others = folds.iter().enumerate().filter(|(fold, _)| *fold != own).flat_map(|(_, pairs)| pairs);
        accuracy(&folds[own], most_accurate(&Tally::of_pairs(others.copied())))
    };
    Some(mean_and_error(&(0..folds.len()).map(of_fold).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, file: &str) {
        let file = root.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, b"").unwrap();
    }

    fn written(root: &Path, text: &str) -> Result<Pairs> {
        let file = root.join("pairs.txt");
        std::fs::write(&file, text).unwrap();
        read(&file, &root.join("data"))
    }

    /// Ada has images 1, 2 and 10; Bob is counted through.
    fn data() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in ["Ada_X/Ada_X_0001.jpg", "Ada_X/Ada_X_0002.png", "Ada_X/Ada_X_0010.jpg", "Ada_X/notes.txt"] {
            touch(dir.path(), &format!("data/{file}"));
        }
        touch(dir.path(), "data/deep/bob/z.png");
        touch(dir.path(), "data/deep/bob/a.png");
        dir
    }

    #[test]
    fn folds_lines_and_files_are_found() {
        let dir = data();
        let text = "2\t1\nAda_X\t1\t2\nAda_X\t10\tdeep/bob\t1\n\ndeep/bob 1 2\r\nAda_X 1 deep/bob 2\n\n";
        let pairs = written(dir.path(), text).unwrap();
        let names: Vec<_> = pairs.files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["Ada_X_0001.jpg", "Ada_X_0002.png", "Ada_X_0010.jpg", "a.png", "z.png"]);
        let line = |first, second, genuine| Line { first, second, genuine };
        let expected = vec![vec![line(0, 1, true), line(2, 3, false)], vec![line(3, 4, true), line(0, 4, false)]];
        assert_eq!(pairs.folds, expected);
        assert_eq!(written(dir.path(), "1\nAda_X 1 2\nAda_X 1 deep/bob 1").unwrap().folds.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let dir = data();
        let refused = |text: &str, words: &[&str]| {
            let error = written(dir.path(), text).unwrap_err();
            assert_eq!(crate::bad_input::exit_code(&error), 2);
            for word in words.iter().chain(&["--pairs", "pairs.txt"]) {
                assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
            }
        };
        refused("", &["empty"]);
        refused("ten 300\n", &["line 1", "FOLDS PAIRS"]);
        refused("1 0\n", &["line 1", "FOLDS PAIRS"]);
        refused("1 1\nAda_X 1 2\n", &["1 pairs", "1 folds of 1 genuine"]);
        refused("99999999999 99999999999\nAda_X 1 2\n", &["1 pairs"]);
        refused("1\nAda_X 1 2\nAda_X 1 2\n", &["line 3", "impostor pair"]);
        refused("1\nAda_X 1 deep/bob 1\nAda_X 1 deep/bob 1\n", &["line 2", "genuine pair"]);
        refused("1\nAda_X 1 two\nAda_X 1 deep/bob 1\n", &["line 2", "two"]);
        refused("1\nAda_X 1 3\nAda_X 1 deep/bob 1\n", &["line 2", "no image 3", "Ada_X"]);
        refused("1\nAda_X 1 2\nAda_X 1 deep/bob 3\n", &["line 3", "no image 3", "bob"]);
        refused("1\nAda_X 1 2\nAda_X 1 deep/bob 0\n", &["line 3", "no image 0"]);
        refused("1\nAda_X 1 2\nAda_X 1 Cleo 1\n", &["line 3", "Cleo"]);
        let error = read(&dir.path().join("absent"), dir.path()).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }

    #[test]
    fn the_threshold_comes_from_the_other_folds() {
        // Fold 0 alone would choose 1.5 and be right; the other fold says 3.5, at which 1 of 2 is right.
        let folds = vec![vec![(1.0, true), (2.0, false)], vec![(3.0, true), (4.0, false)]];
        // The first fold's 1.5 rejects both pairs of the second: 1 of 2.
        assert_eq!(cross_validated(&folds), Some((0.5, 0.0)));
        let folds = vec![folds[0].clone(), folds[0].clone(), vec![(1.0, true), (1.2, false)]];
        let (mean, error) = cross_validated(&folds).unwrap();
        assert!((mean - 2.5 / 3.0).abs() < 1e-12 && (error - 1.0 / 6.0).abs() < 1e-12, "{mean} {error}");
        assert_eq!(cross_validated(&folds[..1]), None);
    }
}
