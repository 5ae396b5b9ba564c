//! Decoded images: square, one byte per channel. As many as fit are held in memory, the others are decoded whenever
//! they are wanted.

use crate::data::decode::{self, Decoded};
use crate::data::folders::names;
use crate::process::bad_input::bad_input;
use crate::process::fingerprint::Fingerprint;
use crate::process::named::Named;
use crate::process::say::note;
use anyhow::{Result, ensure};
use image::GrayImage;
use rayon::prelude::*;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to do about an image that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum OnBadImage {
    /// Name it, leave it out and go on.
    Skip,
    /// Name it and stop.
    Stop,
}

/// Bytes of decoded images that may still be held.
#[derive(Clone, Copy, Debug)]
pub struct Budget(u64);

impl Budget {
    /// A budget of `mib` MiB.
    pub fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// A budget that holds all images.
    pub fn unlimited() -> Self {
        Self(u64::MAX)
    }

    fn take(&mut self, bytes: usize) -> bool {
        let rest = self.0.checked_sub(bytes as u64);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }
}

/// Images of one size. Each is grey or has three channels: `[row][column][channel]`.
pub struct Images {
    size: usize,
    pictures: Vec<Picture>,
}

struct Picture {
    /// The file; `None` for a generated picture.
    file: Option<PathBuf>,
    pixels: Pixels,
}

enum Pixels {
    Held(Box<[u8]>),
    /// Not held: decoded from the file when wanted. The hash is that of the pixels when the run began.
    Hash(Fingerprint),
}

/// How many files are decoded before the clock and the budget are looked at and errors reported.
const CHUNK: usize = 256;
/// How many single images are named in messages: a folder of files of another kind would fill the screen.
const MESSAGES: usize = 20;
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Reads files, and remembers what a user should know of them.
pub struct Reader {
    size: usize,
    on_bad: OnBadImage,
    budget: Budget,
    skipped: usize,
    several: Named,
    alpha_ignored: Named,
}

impl Reader {
    /// A reader of images of `size` pixels a side, of which as many are held as the budget has room for.
    pub fn new(size: usize, on_bad: OnBadImage, budget: Budget) -> Self {
        Self { size, on_bad, budget, skipped: 0, several: Named::default(), alpha_ignored: Named::default() }
    }

    /// Decodes all files, in parallel, so that each is known to be readable. Returns the images and, in order, the
    /// indices of the files they came from.
    pub fn read(&mut self, files: &[PathBuf]) -> Result<(Images, Vec<usize>)> {
        let (mut pictures, mut kept) = (Vec::new(), Vec::new());
        let mut said = Instant::now();
        for (chunk, files_of_chunk) in files.chunks(CHUNK).enumerate() {
            let decoded: Vec<_> = files_of_chunk.par_iter().map(|file| decode::read(file, self.size)).collect();
            for (place, (file, decoded)) in files_of_chunk.iter().zip(decoded).enumerate() {
                match decoded {
                    Ok(decoded) => {
                        pictures.push(self.picture(file, decoded));
                        kept.push(chunk * CHUNK + place);
                    }
                    Err(error) if self.on_bad == OnBadImage::Skip => {
                        self.skipped += 1;
                        if self.skipped <= MESSAGES {
                            note(&format!("skipped: {error:#}"));
                        }
                    }
                    Err(error) => return Err(bad_input(format!("{error:#}"))),
                }
            }
            if said.elapsed() >= LINE_EVERY {
                said = Instant::now();
                note(&format!("reading images: {} of {}", (chunk + 1) * CHUNK, files.len()));
            }
        }
        Ok((Images { size: self.size, pictures }, kept))
    }

    fn picture(&mut self, file: &Path, decoded: Decoded) -> Picture {
        let Decoded { pixels, several, alpha_ignored } = decoded;
        if several {
            self.several.add(names::text(file));
        }
        if alpha_ignored {
            self.alpha_ignored.add(names::text(file));
        }
        let pixels = match self.budget.take(pixels.len()) {
            true => Pixels::Held(pixels),
            false => Pixels::Hash(Fingerprint::of(&pixels)),
        };
        Picture { file: Some(file.to_owned()), pixels }
    }

    /// Reports on all files that were read. Returns how many were skipped.
    pub fn end(self) -> usize {
        if self.skipped > MESSAGES {
            note(&format!("skipped: {} more images that cannot be read", self.skipped - MESSAGES));
        }
        self.several.say("", "images have several pages or frames, of which the first is taken");
        self.alpha_ignored.say("", "images are transparent everywhere, and taken without their alpha");
        self.skipped
    }
}

impl Images {
    /// Makes images from grey pictures, resized to `size`.
    pub fn from_grey(pictures: Vec<GrayImage>, size: usize) -> Self {
        let held = |picture: GrayImage| Pixels::Held(decode::square(picture.into(), size).0);
        let picture = |picture| Picture { file: None, pixels: held(picture) };
        Self { size, pictures: pictures.into_par_iter().map(picture).collect() }
    }

    /// Keeps the images that are `wanted`, and drops the others.
    pub fn retain(&mut self, wanted: &[bool]) {
        let mut wanted = wanted.iter();
        self.pictures.retain(|_| wanted.next() == Some(&true));
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// How many images are in memory.
    pub fn held(&self) -> usize {
        self.pictures.iter().filter(|picture| matches!(picture.pixels, Pixels::Held(_))).count()
    }

    /// The side of the images in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The bytes of one image, and its channels: 1 or 3.
    ///
    /// # Errors
    /// If the image's file can no longer be read, or its content has changed.
    pub fn get(&self, index: usize) -> Result<(Cow<'_, [u8]>, usize)> {
        let picture = &self.pictures[index];
        let pixels: Cow<[u8]> = match &picture.pixels {
            Pixels::Held(pixels) => pixels[..].into(),
            Pixels::Hash(before) => {
                let file = picture.file.as_deref().expect("generated ones are held");
                let pixels = decode::read(file, self.size)?.pixels;
                ensure!(Fingerprint::of(&pixels) == *before, "{} has changed since the run began", file.display());
                pixels.into_vec().into()
            }
        };
        let channels = pixels.len() / (self.size * self.size);
        Ok((pixels, channels))
    }

    /// A hash of the image's pixels.
    pub fn hash(&self, index: usize) -> Fingerprint {
        match &self.pictures[index].pixels {
            Pixels::Held(pixels) => Fingerprint::of(pixels),
            Pixels::Hash(hash) => *hash,
        }
    }

    /// The file of the image; `None` for a generated one.
    pub fn file(&self, index: usize) -> Option<&Path> {
        self.pictures[index].file.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Luma, RgbImage};

    fn halves() -> GrayImage {
        GrayImage::from_fn(32, 32, |x, _| Luma([if x < 16 { 20 } else { 230 }]))
    }

    fn read(files: &[PathBuf], on_bad: OnBadImage) -> Result<(Images, Vec<usize>)> {
        Reader::new(16, on_bad, Budget::unlimited()).read(files)
    }

    #[test]
    fn a_truncated_file_is_skipped_or_fatal_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.png"), dir.path().join("cut.png"));
        halves().save(&good).unwrap();
        let bytes = std::fs::read(&good).unwrap();
        std::fs::write(&bad, &bytes[..bytes.len() / 2]).unwrap();
        let files = [bad, good];
        let (images, kept) = read(&files, OnBadImage::Skip).unwrap();
        assert_eq!((images.len(), kept), (1, vec![1]));
        let error = read(&files, OnBadImage::Stop).err().unwrap();
        assert!(error.to_string().contains("cut.png"), "{error:#}");
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
    }

    #[test]
    fn grey_and_colour_lie_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let (grey, red) = (dir.path().join("g.png"), dir.path().join("r.png"));
        halves().save(&grey).unwrap();
        RgbImage::from_pixel(8, 8, image::Rgb([200, 10, 10])).save(&red).unwrap();
        let (images, _) = read(&[grey, red], OnBadImage::Stop).unwrap();
        let (pixels, channels) = images.get(1).unwrap();
        assert_eq!((channels, &pixels[..3]), (3, &[200, 10, 10][..]));
        let (pixels, channels) = images.get(0).unwrap();
        assert_eq!((channels, pixels.len()), (1, 256));
    }

    #[test]
    fn what_is_not_held_is_decoded_again_to_the_same_pixels() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..3).map(|i| dir.path().join(format!("{i}.png"))).collect();
        for (i, file) in files.iter().enumerate() {
            GrayImage::from_fn(40, 30, |x, y| Luma([(x * 5 + y * i as u32) as u8])).save(file).unwrap();
        }
        let mut reader = Reader::new(16, OnBadImage::Stop, Budget(2 * 256 + 1));
        let (some, _) = reader.read(&files).unwrap();
        let (all, _) = read(&files, OnBadImage::Stop).unwrap();
        assert_eq!((some.len(), some.held(), all.held()), (3, 2, 3));
        for i in 0..3 {
            assert_eq!(some.get(i).unwrap(), all.get(i).unwrap());
            assert_eq!(some.hash(i), all.hash(i));
        }
        // A file whose content has changed would make another run, and a missing one half of a run.
        halves().save(&files[2]).unwrap();
        let error = some.get(2).unwrap_err().to_string();
        assert!(error.contains("2.png has changed"), "{error}");
        // A file that declares more than there is room for must not end the process.
        std::fs::write(&files[2], b"P5\n1000000 1000000\n255\n").unwrap();
        let error = format!("{:#}", some.get(2).unwrap_err());
        assert!(error.contains("2.png") && error.contains("it declares"), "{error}");
        std::fs::remove_file(&files[2]).unwrap();
        let error = format!("{:#}", some.get(2).unwrap_err());
        assert!(error.contains("cannot read") && error.contains("2.png"), "{error}");
    }
}
