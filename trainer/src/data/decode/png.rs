//! PNG: the chunks that hold the picture, with their checksums, and the orientation, wherever it is in the file.

use super::exif;
use super::memory;
use super::opened::{Opened, alone};
use anyhow::{Result, bail};
use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, Limits};
use std::io::Cursor;

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// The end chunk, which is always the same.
const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";

/// Opens a file. The decoder gets only the chunks of the picture, so neither a profile that unpacks to gigabytes nor a
/// damaged comment or EXIF can keep it from the pixels. It stops reading when it has them, before the checksum that
/// would tell that they are damaged, so checksums are compared here.
pub fn open(bytes: &[u8]) -> Result<Opened<'_>> {
    let mut kept = SIGNATURE.to_vec();
    let (mut exif, mut animated, mut header) = (None, false, None);
    let mut rest = bytes.get(SIGNATURE.len()..).unwrap_or_default();
    // No chunk after the last one of pixels is needed; the end chunk is put there.
    while let Some((length, name)) = rest.get(..8).map(|head| head.split_at(4)) {
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        let Some(whole) = length.checked_add(12).and_then(|end| rest.get(..end)) else {
            if matches!(name, b"IHDR" | b"PLTE" | b"IDAT") {
                bail!("the file is cut off: its {} chunk has no end", String::from_utf8_lossy(name));
            }
            break;
        };
        let (data, sum) = (&whole[8..8 + length], &whole[8 + length..]);
        // A fuzzer changes bytes, hardly ever a checksum with them. The decoder does the same.
        let holds = cfg!(fuzzing) || crc32fast::hash(&whole[4..8 + length]).to_be_bytes() == *sum;
        match name {
            b"IHDR" | b"PLTE" | b"IDAT" | b"tRNS" => {
                if !holds {
                    bail!("the file is damaged: the checksum of its {} chunk is wrong", String::from_utf8_lossy(name));
                }
                if name == b"IHDR" {
                    header = header.or(Header::read(data));
                }
                kept.extend_from_slice(whole);
            }
            b"eXIf" if holds => exif = Some(data),
            b"acTL" => animated = true,
            _ => {}
        }
        rest = &rest[whole.len()..];
    }
    kept.extend_from_slice(END);
    let Some(Header { width, height, bytes_per_pixel }) = header else { bail!("it has no IHDR chunk") };
    let pixels = u64::from(width).saturating_mul(height.into());
    Ok(Opened {
        width,
        height,
        decoded: pixels.saturating_mul(bytes_per_pixel),
        // Two rows, unpacked, and the copy of the chunks.
        working: u64::from(width) * bytes_per_pixel * 4 + kept.len() as u64,
        orientation: exif.and_then(exif::orientation_of).unwrap_or(Orientation::NoTransforms),
        several: animated,
        decode: Box::new(move || {
            let mut limits = Limits::default();
            limits.max_alloc = Some(memory::ALL);
            let decoder = PngDecoder::with_limits(Cursor::new(kept), limits).map_err(alone)?;
            DynamicImage::from_decoder(decoder).map_err(alone)
        }),
    })
}

struct Header {
    width: u32,
    height: u32,
    bytes_per_pixel: u64,
}

impl Header {
    fn read(data: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?));
        let channels = match data.get(9)? {
            0 => 2, // grey; a tRNS chunk gives it alpha
            4 => 2,
            _ => 4,
        };
        let bytes = if *data.get(8)? == 16 { 2 } else { 1 };
        Some(Self { width: word(0)?, height: word(4)?, bytes_per_pixel: channels * bytes })
    }
}
