//! JPEG: segments, whether all of the picture is there, and what the decoder is given.
//!
//! The decoder fills what it does not find, or cannot make out, with grey and says nothing, as browsers do. A data set
//! that is trained on must not have such pictures, so [`scan`] checks all scans first.

mod parts;
mod scan;

use super::exif;
use super::opened::{Opened, alone};
use anyhow::{Result, bail};
use image::codecs::jpeg::JpegDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder};
use parts::Parts;
use std::io::Cursor;

/// Opens a file. A file without its end marker is whole if its pixels are: cameras and scrapers write such files.
pub fn open(bytes: &[u8]) -> Result<Opened<'_>> {
    let parts = Parts::read(bytes);
    let Some(frame) = &parts.frame else { bail!("the file is cut off: its JPEG data have no header") };
    let pixels = u64::from(frame.width) * u64::from(frame.height);
    let samples = pixels * frame.components.len() as u64;
    let scans = parts.scans.len() as u64;
    let (width, height) = (frame.width.into(), frame.height.into());
    // The scans are looked at only after this is known, as that needs memory too: with several scans, 16 bits for each
    // coefficient, and one more bit.
    let working = parts.image.len() as u64 * 2 + if scans > 1 { samples * 2 + samples / 8 } else { 0 };
    let orientation = parts.exif.and_then(exif::orientation_of).unwrap_or(Orientation::NoTransforms);
    Ok(Opened {
        width,
        height,
        decoded: pixels * if frame.components.len() == 1 { 1 } else { 3 },
        working,
        orientation,
        several: false,
        decode: Box::new(move || {
            scan::check(&parts)?;
            let decoder = JpegDecoder::new(Cursor::new(&parts.image)).map_err(alone)?;
            debug_assert_eq!(decoder.dimensions(), (width, height));
            DynamicImage::from_decoder(decoder).map_err(alone)
        }),
    })
}

/// The pixels of the frame that a JPEG file declares, 0 if it declares none.
pub fn declared_pixels(bytes: &[u8]) -> u64 {
    Parts::read(bytes).frame.map_or(0, |frame| u64::from(frame.width) * u64::from(frame.height))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageFormat, Luma};

    fn halves() -> Vec<u8> {
        let mut bytes = Vec::new();
        let picture = GrayImage::from_fn(32, 32, |x, _| Luma([if x < 16 { 20 } else { 230 }]));
        picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
        bytes
    }

    #[test]
    fn the_end_of_a_jpeg_is_its_own() {
        let bytes = halves();
        let ended = |bytes: &[u8]| Parts::read(bytes).ended;
        assert!(ended(&bytes));
        assert!(ended(&[&bytes[..], b"a camera's trailer"].concat()));
        let cut = &bytes[..bytes.len() - 2];
        assert!(!ended(cut));
        // The end of a thumbnail, in a segment before the pixels.
        let thumbnail = [&cut[..2], &[0xff, 0xe1, 0, 6, 0xff, 0xda, 0xff, 0xd9], &cut[2..]].concat();
        assert!(!ended(&thumbnail));
        assert!(ended(&[&thumbnail[..], &[0xff, 0xd9]].concat()));
        for short in 0..12 {
            assert!(!ended(&bytes[..short]));
        }
    }

    #[test]
    fn the_decoder_gets_the_picture_alone() {
        let bytes = halves();
        assert_eq!(Parts::read(&bytes).image, bytes);
        assert_eq!(Parts::read(&bytes[..bytes.len() - 2]).image, bytes, "the end is put there");
        let profile =
            [&bytes[..2], &[0xff, 0xe2, 0, 4, 1, 2], &[0xff, 0xfe, 0, 3, 9], &bytes[2..], b"trailer"].concat();
        assert_eq!(Parts::read(&profile).image, bytes);
        let adobe = [&bytes[..2], b"\xff\xee\0\x0eAdobe\0\0\0\0\0\0\0", &bytes[2..]].concat();
        assert_eq!(Parts::read(&adobe).image, adobe, "it says what colours mean");
        assert_eq!(declared_pixels(&bytes), 1024);
        assert_eq!(declared_pixels(b"\xff\xd8\xff"), 0);
    }
}
