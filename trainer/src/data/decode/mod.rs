//! From an image file to square pixels: 8 bits, upright, no transparency.

mod alpha;
mod exif;
mod jpeg;
mod memory;
mod opened;
mod png;
mod tiff;
mod webp;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, imageops};
use opened::{Opened, alone};
use std::cell::Cell;
use std::io::{Cursor, Read};
use std::panic;
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};

/// The extensions of the formats that are read, in lower case. Which format a file has, its content says.
pub const EXTENSIONS: [&str; 19] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "pgm", "ppm", "pbm", "pnm", "pam", "bmp",
    "dib", "tif", "tiff", "webp",
];
/// The formats that are read, for people.
pub const FORMATS: &str = "PNG, JPEG, PGM, BMP, TIFF or WebP";

/// Files with more bytes than this are read one at a time.
const LARGE: u64 = 32 << 20;

/// A picture as the encoder gets it, and what a user should know of it.
#[derive(Debug)]
pub struct Decoded {
    /// `size * size` bytes if it is grey, else three times as many (`[row][column][channel]`).
    pub pixels: Box<[u8]>,
    /// Whether the file has other pages or frames, which are ignored.
    pub several: bool,
    /// Whether the alpha was ignored, as the picture would be invisible everywhere.
    pub alpha_ignored: bool,
}

/// Reads a file.
pub fn read(file: &Path, size: usize) -> Result<Decoded> {
    let read = || -> Result<Decoded> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let about = std::fs::metadata(file)?;
        ensure!(about.is_file(), "it is no file"); // a pipe, say, which may never end
        ensure!(about.len() <= memory::ALL, "the file has {} bytes, and the limit is {}", about.len(), memory::ALL);
        let _alone = (about.len() > LARGE).then(|| ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner));
        let mut bytes = Vec::new();
        std::fs::File::open(file)?.take(memory::ALL).read_to_end(&mut bytes)?;
        from_bytes(&bytes, size)
    };
    read().with_context(|| format!("cannot read {}", file.display()))
}

/// Decodes the content of a picture's file, in whatever format it is, to `size` pixels a side. Never panics: a decoder
/// that does has met a broken file, which is an error.
pub fn from_bytes(bytes: &[u8], size: usize) -> Result<Decoded> {
    guarded(|| {
        let opened = open(bytes)?;
        let what = format!("it declares {} x {} pixels", opened.width, opened.height);
        let _share = memory::take(opened.need(bytes.len(), size), &what)?;
        let mut picture = (opened.decode)()?;
        picture.apply_orientation(opened.orientation);
        let (pixels, alpha_ignored) = square(picture, size);
        Ok(Decoded { pixels, several: opened.several, alpha_ignored })
    })
}

/// Opens a file by its content, not by its name: a PNG named .jpg is common.
fn open(bytes: &[u8]) -> Result<Opened<'_>> {
    let big_tiff = bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+");
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => png::open(bytes),
        Ok(ImageFormat::Jpeg) => jpeg::open(bytes),
        Ok(ImageFormat::Tiff) => tiff::open(bytes),
        Err(_) if big_tiff => tiff::open(bytes),
        Ok(ImageFormat::WebP) => webp::open(bytes),
        Ok(format @ (ImageFormat::Bmp | ImageFormat::Pnm)) => {
            let decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(alone)?;
            let (width, height) = decoder.dimensions();
            Ok(Opened {
                width,
                height,
                decoded: decoder.total_bytes(),
                working: 0,
                orientation: Orientation::NoTransforms,
                several: false,
                decode: Box::new(move || DynamicImage::from_decoder(decoder).map_err(alone)),
            })
        }
        Ok(other) => bail!("it is a {other:?} file; expected {FORMATS}"),
        Err(_) if bytes.is_empty() => bail!("the file is empty"),
        Err(_) => bail!("it is no picture in a format that is read; expected {FORMATS}"),
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Calls `decode`, with a panic as its error: decoders assert what a broken file can violate, and one file of many
/// thousands must not end a run.
fn guarded<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                hook(info);
            }
        }));
    });
    GUARDED.set(true);
    // Nothing that `decode` had access to is used after a panic.
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(decode));
    GUARDED.set(false);
    outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(anyhow!("the decoder gave up: {}", said.unwrap_or("without a word")))
    })
}

/// Makes a picture of 8 bits, without transparency, `size x size` (the aspect ratio is not kept, as in `Resize((s,
/// s))`). Returns also whether its alpha was ignored.
pub fn square(picture: DynamicImage, size: usize) -> (Box<[u8]>, bool) {
    let side = size as u32;
    let (picture, alpha_ignored) = match (picture.color().has_alpha(), picture.color().has_color()) {
        (true, _) => alpha::on_white(picture),
        (false, true) => (picture.into_rgb8().into(), false),
        (false, false) => (picture.into_luma8().into(), false),
    };
    let fits = picture.width() == side && picture.height() == side;
    // `resize` widens the triangle to the scale, so thin strokes do not vanish when shrunk.
    let picture = match picture {
        picture if fits => picture,
        DynamicImage::ImageLuma8(p) => imageops::resize(&p, side, side, imageops::FilterType::Triangle).into(),
        p => imageops::resize(&p.into_rgb8(), side, side, imageops::FilterType::Triangle).into(),
    };
    (picture.into_bytes().into(), alpha_ignored)
}

#[cfg(test)]
mod tests;
