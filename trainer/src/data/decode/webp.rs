//! WebP: a RIFF file whose chunks for metadata may be absent, cut short or as long as they like.

use super::exif;
use super::opened::{Opened, alone};
use anyhow::Result;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder};
use std::io::Cursor;

/// Where the flags of a `VP8X` chunk are, which is the first of all chunks.
const FLAGS: usize = 20;
const EXIF: u8 = 0x08;
const XMP: u8 = 0x04;

/// Opens a file. The decoder is told of no EXIF and no XMP: it refuses a file that announces what is not there, and
/// allocates as much as a chunk declares. The orientation is found here.
pub fn open(bytes: &[u8]) -> Result<Opened<'_>> {
    let mut kept = bytes.to_vec();
    if bytes.get(12..16) == Some(b"VP8X")
        && let Some(flags) = kept.get_mut(FLAGS)
    {
        *flags &= !(EXIF | XMP);
    }
    let decoder = WebPDecoder::new(Cursor::new(kept)).map_err(alone)?;
    let (width, height) = decoder.dimensions();
    let mut frame = u64::from(width).saturating_mul(height.into());
    let mut exif = None;
    chunks(bytes.get(12..).unwrap_or_default(), &mut |name, data| match name {
        b"EXIF" => exif = exif.or(Some(data)),
        // A picture inside has a size of its own, which the decoder allocates before it compares.
        b"VP8 " => frame = frame.max(lossy_pixels(data).unwrap_or(0)),
        _ => {}
    });
    Ok(Opened {
        width,
        height,
        decoded: decoder.total_bytes(),
        // Bytes per pixel: four of a lossless picture, one and a half of a lossy one, four of its packed alpha.
        working: frame.saturating_mul(8).saturating_add(bytes.len() as u64),
        orientation: exif.and_then(exif::orientation_of).unwrap_or(Orientation::NoTransforms),
        several: decoder.has_animation(),
        decode: Box::new(move || DynamicImage::from_decoder(decoder).map_err(alone)),
    })
}

/// Calls `with` for each chunk, those of frames included. A chunk that is cut off gets what the file has of it.
fn chunks<'a>(mut rest: &'a [u8], with: &mut impl FnMut(&[u8], &'a [u8])) {
    while let Some((name, length)) = rest.get(..8).map(|head| head.split_at(4)) {
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let data = &rest[8..][..length.min(rest.len() - 8)];
        with(name, data);
        if name == b"ANMF" {
            chunks(data.get(16..).unwrap_or_default(), with);
        }
        // Chunks begin at even places.
        rest = rest.get(8 + data.len() + data.len() % 2..).unwrap_or_default();
    }
}

fn lossy_pixels(data: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u64::from(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?) & 0x3fff));
    Some(word(6)? * word(8)?)
}
