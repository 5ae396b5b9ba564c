//! From an image file to square pixels: 8 bits, upright, no transparency.

use anyhow::{Context, Error, Result, anyhow, bail};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage, imageops};
use std::cell::Cell;
use std::io::Cursor;
use std::panic;
use std::path::Path;
use std::sync::Once;

/// The extensions of the formats that are read, in lower case. What a file is, its content says.
pub const EXTENSIONS: [&str; 11] = ["png", "jpg", "jpeg", "pgm", "ppm", "pbm", "pnm", "bmp", "tif", "tiff", "webp"];
/// The same for people.
pub const FORMATS: &str = "PNG, JPEG, PGM, BMP, TIFF or WebP";

/// What stands before EXIF in a JPEG segment.
const PREFIX: &[u8] = b"Exif\0\0";

/// Reads a file: `size * size` bytes if it is grey, else three times as many (`[row][column][channel]`).
pub fn read(file: &Path, size: usize) -> Result<Box<[u8]>> {
    let read = || -> Result<DynamicImage> {
        let bytes = std::fs::read(file)?;
        // By content, not by name: a PNG named .jpg is common.
        let reader = ImageReader::new(Cursor::new(&bytes[..])).with_guessed_format()?;
        if reader.format() == Some(ImageFormat::Jpeg) && !is_whole_jpeg(&bytes) {
            bail!("the file is cut off: its JPEG data have no end");
        }
        // What such an error says contains what its source says.
        let alone = |error: image::ImageError| Error::msg(error.to_string());
        let mut decoder = reader.into_decoder().map_err(alone)?;
        // In WebP and PNG some programs begin EXIF as it begins in JPEG, and the decoders then find no orientation in it.
        let orientation = match decoder.exif_metadata().map_err(alone)?.as_deref().map(|exif| exif.strip_prefix(PREFIX))
        {
            Some(Some(exif)) => Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms),
            _ => decoder.orientation().map_err(alone)?,
        };
        let mut picture = DynamicImage::from_decoder(decoder).map_err(alone)?;
        picture.apply_orientation(orientation);
        Ok(picture)
    };
    let picture = guarded(read).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(square(picture, size))
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// `decode`, with a panic as its error: decoders assert what a file that is no good can break, and one file of many thousands
/// must not end a run.
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
    // Nothing that `decode` had hold of is used after a panic.
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(decode));
    GUARDED.set(false);
    outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(anyhow!("the decoder gave up: {}", said.unwrap_or("without a word")))
    })
}

/// Whether the picture's own end marker is there. The decoder fills what a truncated file lacks with grey
/// and says nothing. Thumbnails lie in segments that are stepped over, so their ends do not count.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2; // behind the start marker
    let mut scanned = false;
    while let Some(marker) = bytes.get(at..).and_then(|rest| rest.windows(2).position(|w| is_marker([w[0], w[1]]))) {
        let start = at + marker;
        match bytes[start + 1] {
            0xd9 => return scanned,
            0x01 | 0xd0..=0xd8 => at = start + 2, // stand alone
            code => {
                let Some(&[high, low]) = bytes.get(start + 2..start + 4) else { return false };
                // The pixels of a scan follow its segment. They hold no marker but restarts.
                scanned |= code == 0xda;
                at = start + 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
    false
}

/// In a scan 0xff 0x00 stands for a byte 0xff; before a marker there may be any number of 0xff.
fn is_marker(pair: [u8; 2]) -> bool {
    pair[0] == 0xff && pair[1] != 0x00 && pair[1] != 0xff
}

/// 8 bits, no transparency, `size x size` (the aspect ratio is not kept, as in `Resize((s, s))`).
pub fn square(picture: DynamicImage, size: usize) -> Box<[u8]> {
    let side = size as u32;
    // A transparent scan is ink on paper: laid on white. Dropping alpha would make the paper black.
    let picture = match (picture.color().has_alpha(), picture.color().has_color()) {
        (true, colour) => on_white(&picture, colour),
        (false, true) => picture.into_rgb8().into(),
        (false, false) => picture.into_luma8().into(),
    };
    let fits = picture.width() == side && picture.height() == side;
    // `resize` widens the triangle to the scale, so thin strokes do not vanish when shrunk.
    let picture = match picture {
        picture if fits => picture,
        DynamicImage::ImageLuma8(p) => imageops::resize(&p, side, side, imageops::FilterType::Triangle).into(),
        p => imageops::resize(&p.into_rgb8(), side, side, imageops::FilterType::Triangle).into(),
    };
    picture.into_bytes().into()
}

fn on_white(picture: &DynamicImage, colour: bool) -> DynamicImage {
    let rgba = picture.to_rgba8();
    let over = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let rgb = RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        image::Rgb([over(r, a), over(g, a), over(b, a)])
    });
    let rgb = DynamicImage::from(rgb);
    if colour { rgb } else { rgb.into_luma8().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::ImageEncoder;
    use image::codecs::webp::WebPEncoder;
    use image::{GrayImage, ImageBuffer, Luma, LumaA, Rgb, Rgba, RgbaImage};
    use std::path::PathBuf;

    const NAMES: [(&str, ImageFormat); 6] = [
        ("a.png", ImageFormat::Png),
        ("b.jpg", ImageFormat::Jpeg),
        ("c.pgm", ImageFormat::Pnm),
        ("d.bmp", ImageFormat::Bmp),
        ("e.tiff", ImageFormat::Tiff),
        ("f.webp", ImageFormat::WebP),
    ];

    /// Left half dark, right half light: survives JPEG and any resize.
    fn halves() -> GrayImage {
        GrayImage::from_fn(32, 32, |x, _| Luma([if x < 16 { 20 } else { 230 }]))
    }

    fn saved(folder: &Path, picture: &DynamicImage) -> Vec<PathBuf> {
        let save = |(name, format): &(&str, ImageFormat)| {
            let file = folder.join(name);
            // WebP has no grey pictures.
            let rgb = DynamicImage::from(picture.to_rgb8());
            let picture = if *format == ImageFormat::WebP { &rgb } else { picture };
            picture.save_with_format(&file, *format).unwrap();
            file
        };
        NAMES.iter().map(save).collect()
    }

    #[test]
    fn all_formats_give_the_same_picture_whatever_the_name_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = saved(dir.path(), &halves().into());
        files.push(dir.path().join("misnamed.jpg"));
        std::fs::copy(&files[0], &files[6]).unwrap();
        for file in files {
            let pixels = read(&file, 16).unwrap();
            let channels = pixels.len() / 256;
            for (column, value) in [(2, 20i32), (13, 230)] {
                let got = i32::from(pixels[5 * 16 * channels + column * channels]);
                assert!((got - value).abs() <= 8, "{} {column}: {got}", file.display());
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_off_is_an_error_in_every_format() {
        let dir = tempfile::tempdir().unwrap();
        // Noise: what can be compressed away can be cut away.
        let noise = GrayImage::from_fn(64, 64, |x, y| Luma([(x * x * 31 + y * 17 * x + y * y * 7) as u8]));
        for file in saved(dir.path(), &noise.into()) {
            let bytes = std::fs::read(&file).unwrap();
            read(&file, 16).unwrap();
            for share in [0, 10, 60, 90] {
                std::fs::write(&file, &bytes[..bytes.len() * share / 100]).unwrap();
                let error = read(&file, 16).err();
                let text = format!("{:#}", error.unwrap_or_else(|| panic!("{} at {share} %", file.display())));
                assert!(text.contains(file.to_str().unwrap()), "{text}");
            }
        }
    }

    #[test]
    fn a_decoder_that_panics_is_an_error() {
        let size = std::hint::black_box(3);
        let error = guarded(|| -> Result<()> { panic!("{size} rows of 4") }).unwrap_err();
        assert_eq!(error.to_string(), "the decoder gave up: 3 rows of 4");
        let error = guarded(|| -> Result<()> { panic!("no rows") }).unwrap_err();
        assert_eq!(error.to_string(), "the decoder gave up: no rows");
        assert_eq!(guarded(|| Ok(size)).unwrap(), 3);
        assert!(!GUARDED.get());
    }

    #[test]
    fn the_end_of_a_jpeg_is_its_own() {
        let mut bytes = Vec::new();
        halves().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
        assert!(is_whole_jpeg(&bytes));
        assert!(is_whole_jpeg(&[&bytes[..], b"a camera's trailer"].concat()));
        let cut = &bytes[..bytes.len() - 2];
        assert!(!is_whole_jpeg(cut));
        // A thumbnail's end in a segment before the pixels.
        let thumbnail = [&cut[..2], &[0xff, 0xe1, 0, 6, 0xff, 0xda, 0xff, 0xd9], &cut[2..]].concat();
        assert!(!is_whole_jpeg(&thumbnail));
        assert!(is_whole_jpeg(&[&thumbnail[..], &[0xff, 0xd9]].concat()));
        for short in 0..12 {
            assert!(!is_whole_jpeg(&bytes[..short]));
        }
    }

    /// EXIF, with its prefix, that says `Orientation` alone.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec();
        exif[25] = orientation; // the high half of the value's four bytes, big-endian
        exif
    }

    /// That in an APP1 segment, behind the start marker of a JPEG file.
    fn turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let exif = exif(orientation);
        let length = (exif.len() + 2) as u16;
        [&jpeg[..2], &[0xff, 0xe1], &length.to_be_bytes(), &exif, &jpeg[2..]].concat()
    }

    #[test]
    fn a_camera_that_was_held_upright_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, webp) = (dir.path().join("a.jpg"), dir.path().join("a.webp"));
        let mut jpeg = Vec::new();
        halves().write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg).unwrap();
        let dark = |file: &Path| {
            let pixels = read(file, 4).unwrap();
            let channels = pixels.len() / 16;
            [(0, 1), (1, 3), (3, 1), (1, 0)].map(|(row, column)| pixels[(row * 4 + column) * channels] < 100)
        };
        // Of the picture's top, right, bottom and left. 6: turn by 90 degrees clockwise, left goes up.
        for (orientation, expected) in [
            (1, [true, false, true, true]),
            (2, [false, true, false, false]),
            (3, [false, true, false, false]),
            (6, [true, true, false, true]),
            (8, [false, false, true, false]),
        ] {
            std::fs::write(&file, turned(&jpeg, orientation)).unwrap();
            assert_eq!(dark(&file), expected, "{orientation}");
            // WebP with the prefix, and as it should be.
            for skipped in [0, PREFIX.len()] {
                let mut bytes = Vec::new();
                let mut encoder = WebPEncoder::new_lossless(&mut bytes);
                encoder.set_exif_metadata(exif(orientation)[skipped..].to_vec()).unwrap();
                DynamicImage::from(halves()).to_rgb8().write_with_encoder(encoder).unwrap();
                std::fs::write(&webp, bytes).unwrap();
                assert_eq!(dark(&webp), expected, "{orientation}");
            }
        }
    }

    #[test]
    fn sixteen_bits_grey_and_colour_become_eight() {
        let dir = tempfile::tempdir().unwrap();
        let value = |x: u32, y: u32| (x * 4096 + y * 512 + 17) as u16;
        let grey = ImageBuffer::from_fn(8, 8, |x, y| Luma([value(x, y)]));
        let colour = ImageBuffer::from_fn(8, 8, |x, y| Rgb([value(x, y), 65_535, 0]));
        for name in ["a.png", "a.tiff", "a.pgm"] {
            let file = dir.path().join(name);
            DynamicImage::from(grey.clone()).save(&file).unwrap();
            let pixels = read(&file, 8).unwrap();
            assert_eq!(pixels.len(), 64, "{name}");
            for (at, &pixel) in pixels.iter().enumerate() {
                let expected = f64::from(value(at as u32 % 8, at as u32 / 8)) / 257.0;
                assert!((f64::from(pixel) - expected).abs() <= 0.51, "{name} {at}: {pixel} {expected}");
            }
        }
        for name in ["b.png", "b.tiff"] {
            let file = dir.path().join(name);
            DynamicImage::from(colour.clone()).save(&file).unwrap();
            let pixels = read(&file, 8).unwrap();
            assert_eq!((pixels.len(), &pixels[1..3]), (192, &[255, 0][..]), "{name}");
        }
    }

    #[test]
    fn transparency_is_laid_on_white() {
        let clear = RgbaImage::from_pixel(4, 4, Rgba([0, 0, 0, 0]));
        assert!(square(clear.into(), 4).iter().all(|&v| v == 255));
        let half = RgbaImage::from_pixel(4, 4, Rgba([0, 100, 255, 128]));
        assert_eq!(square(half.into(), 4)[..3], [127, 177, 255]);
        // Grey with alpha stays grey, of 16 bits too.
        let grey = ImageBuffer::from_pixel(4, 4, LumaA([0u16, 32_896]));
        let pixels = square(DynamicImage::ImageLumaA16(grey), 4);
        assert_eq!((pixels.len(), pixels[0]), (16, 127));
    }
}
