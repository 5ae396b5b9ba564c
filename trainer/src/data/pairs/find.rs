//! Which file an image's number means.
//!
//! Image 7 of `Ada_Example` is the file `Ada_Example/Ada_Example_0007` with an image's extension, or what a program
//! that cuts out faces makes of it (`Ada_Example_0007_0`). In a folder without any file of that form it is the one
//! whose last number is 7 (`7.pgm`, `0709_07.png`). If the images have no numbers, or count from 0 without a gap, it is
//! the 7th by name. In all other cases it is an error, never another image. A file's own name may stand in the place of
//! a number; `./a/b.png` is a path below the folder of images itself.

use crate::data::folders::{images_in, names};
use crate::process::named::Named;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

type Found<T> = Result<T, String>;

/// Finds images, and lists each once.
pub struct Finder<'a> {
    data: &'a Path,
    /// The images found so far.
    pub files: Vec<PathBuf>,
    /// For each image found, its place in `files`.
    known: HashMap<PathBuf, usize>,
    folders: BTreeMap<String, Folder>,
    /// Folders that count from 0, of which images were taken by their place.
    from_zero: BTreeMap<String, ()>,
}

impl<'a> Finder<'a> {
    /// A finder of images below `data`.
    pub fn new(data: &'a Path) -> Self {
        let (known, folders, from_zero) = Default::default();
        Self { data, files: Vec::new(), known, folders, from_zero }
    }

    /// The place in `files` of an image of `name`: a number, or a file.
    pub fn find(&mut self, name: &str, image: &str) -> Found<usize> {
        let file = match (image.strip_prefix("./"), image.parse::<usize>()) {
            (Some(path), _) => {
                let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
                self.folder(folder)?.named(file)?.to_owned()
            }
            (None, Ok(number)) => {
                let folder = self.folder(name)?;
                let file = folder.numbered(name, number)?.to_owned();
                if matches!(folder.numbers, Numbers::FromZero) {
                    self.from_zero.insert(name.to_owned(), ());
                }
                file
            }
            (None, Err(_)) if image.contains('.') => self.folder(name)?.named(image)?.to_owned(),
            (None, Err(_)) => return Err(format!("{image:?} is neither an image's number nor a file")),
        };
        let next = self.files.len();
        let place = *self.known.entry(file.clone()).or_insert(next);
        if place == next {
            self.files.push(file);
        }
        Ok(place)
    }

    fn folder(&mut self, name: &str) -> Found<&Folder> {
        if !self.folders.contains_key(name) {
            // A field may have a space too many, but a name may also end with one.
            let path = resolve(self.data, name).or_else(|error| resolve(self.data, name.trim()).map_err(|_| error))?;
            let images = images_in(&path).map_err(|e| format!("{}: {e}", names::text(&path)))?;
            let numbers = Numbers::of(&images, path.file_name().map(names::part).as_deref().unwrap_or_default());
            self.folders.insert(name.to_owned(), Folder { path, images, numbers });
        }
        Ok(&self.folders[name])
    }

    /// Says what was guessed.
    pub fn say(&self) {
        let folders: Named = self.from_zero.keys().collect();
        folders.say("", "folders count their images from 0; image 1 is taken to be the first one, whose number is 0");
    }
}

/// The folder of that name: as it is written, or as it looks, since accents can be stored in two ways.
fn resolve(data: &Path, name: &str) -> Found<PathBuf> {
    let mut path = data.to_owned();
    for part in name.split('/').filter(|_| !name.is_empty()) {
        let own = |path: &Path| path.file_name().map(names::part).unwrap_or_default();
        let mut alike: Vec<PathBuf> = std::fs::read_dir(&path)
            .map_err(|e| format!("{}: {e}", names::text(&path)))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|entry| names::composed(&own(entry)) == names::composed(part))
            .collect();
        if let Some(exact) = alike.iter().position(|entry| own(entry) == part) {
            alike = vec![alike.swap_remove(exact)];
        }
        path = match &alike[..] {
            [one] => one.clone(),
            [] => return Err(format!("no {part:?} in {}", names::text(&path))),
            _ => return Err(format!("{} folders in {} look like {part:?}", alike.len(), names::text(&path))),
        };
    }
    Ok(path)
}

/// A folder's images, sorted.
pub struct Folder {
    path: PathBuf,
    images: Vec<PathBuf>,
    numbers: Numbers,
}

/// What the names of a folder's images say of their numbers.
#[derive(Debug, PartialEq)]
pub enum Numbers {
    /// For each number, its images by their places. A number with several images is an error once somebody asks for it.
    Known(BTreeMap<usize, Vec<usize>>),
    /// The numbers are 0, 1, 2 and so on.
    FromZero,
    /// The names have no numbers.
    None,
}

impl Numbers {
    /// The numbers of images in a folder called `own`.
    pub fn of(images: &[PathBuf], own: &str) -> Self {
        let stems: Vec<String> =
            images.iter().map(|file| file.file_stem().map(names::part).unwrap_or_default()).collect();
        let own = names::composed(own);
        let mut known: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let add = |known: &mut BTreeMap<usize, Vec<usize>>, number: Option<usize>, place| {
            number.into_iter().for_each(|number| known.entry(number).or_default().push(place));
        };
        stems.iter().enumerate().for_each(|(place, stem)| add(&mut known, as_lfw(&names::composed(stem), &own), place));
        if !known.is_empty() {
            return Self::Known(known);
        }
        stems.iter().enumerate().for_each(|(place, stem)| add(&mut known, last_number(stem), place));
        let (first, last) = (known.keys().next().copied(), known.keys().next_back().copied());
        match (first, last) {
            (None, _) | (_, None) => Self::None,
            (Some(0), Some(last)) if known.len() == images.len() && last + 1 == images.len() => Self::FromZero,
            _ => Self::Known(known),
        }
    }
}

/// The number of `NAME_0007`, or of `NAME_0007` and something that does not begin with a letter or a digit.
fn as_lfw(stem: &str, name: &str) -> Option<usize> {
    let rest = stem.strip_prefix(name)?.strip_prefix('_')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let parted = rest[end..].chars().next().is_none_or(|c| !c.is_alphanumeric());
    parted.then(|| rest[..end].parse().ok())?
}

fn last_number(stem: &str) -> Option<usize> {
    let end = stem.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = stem[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| at + stem[at..].chars().next().map_or(1, char::len_utf8));
    stem[start..end].parse().ok()
}

impl Folder {
    fn numbered(&self, name: &str, number: usize) -> Found<&Path> {
        let own = |place: &usize| self.images[*place].file_name().map(names::part).unwrap_or_default();
        let places = match &self.numbers {
            Numbers::Known(known) => known.get(&number).map_or(&[][..], |places| places),
            Numbers::FromZero | Numbers::None => {
                let image = number.checked_sub(1).and_then(|place| self.images.get(place));
                return image.map(PathBuf::as_path).ok_or_else(|| self.missing(name, number));
            }
        };
        match places {
            [place] => Ok(&self.images[*place]),
            [] => Err(self.missing(name, number)),
            several => {
                let several: Named = several.iter().map(own).collect();
                let (count, examples) = (several.count(), several.examples());
                Err(format!(
                    "{count} files of {name:?} may be its image {number}: {examples}; a file's name can stand there"
                ))
            }
        }
    }

    fn missing(&self, name: &str, number: usize) -> String {
        let there = match &self.numbers {
            Numbers::Known(known) => {
                let numbers: Named = known.keys().map(usize::to_string).collect();
                format!(" (there are {})", numbers.examples())
            }
            _ => format!(" (there are {} images)", self.images.len()),
        };
        format!("no image {number} of {name:?} in {}{there}", names::text(&self.path))
    }

    fn named(&self, file: &str) -> Found<&Path> {
        let own = |image: &&PathBuf| image.file_name().map(names::part).unwrap_or_default();
        let exact = self.images.iter().find(|image| own(image) == file);
        let composed = names::composed(file);
        let found = exact.or_else(|| self.images.iter().find(|image| names::composed(&own(image)) == composed));
        found.map(PathBuf::as_path).ok_or_else(|| format!("no image {file:?} in {}", names::text(&self.path)))
    }
}
