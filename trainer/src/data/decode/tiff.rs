//! TIFF: several pages, alpha that is multiplied into the colours, JPEG inside.

use super::alpha;
use super::jpeg;
use super::memory;
use super::opened::{Opened, alone};
use anyhow::{Error, Result, bail};
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, Limits};
use std::io::Cursor;
use tiff::decoder::Decoder;
use tiff::tags::Tag;

/// The value of the tag `Compression` for JPEG.
const JPEG: u16 = 7;
/// The value of the tag `ExtraSamples` if the colours are multiplied by alpha already.
const ASSOCIATED: u16 = 1;

/// Opens a file, of which the first page is read.
pub fn open(bytes: &[u8]) -> Result<Opened<'_>> {
    let mut tags = Decoder::new(Cursor::new(bytes)).map_err(|error| Error::msg(error.to_string()))?;
    // Ignore a tag that cannot be read; the picture is there all the same.
    let first = |tags: &mut Decoder<_>, tag| tags.find_tag_unsigned_vec::<u64>(tag).ok().flatten()?.first().copied();
    let orientation = first(&mut tags, Tag::Orientation);
    let orientation = orientation.and_then(|value| Orientation::from_exif(value.min(255) as u8));
    let associated = first(&mut tags, Tag::ExtraSamples) == Some(ASSOCIATED.into());
    let several = tags.more_images();
    let mut packed = 0;
    if first(&mut tags, Tag::Compression) == Some(JPEG.into()) {
        // Each piece is a JPEG file with a size of its own, which the decoder allocates before it compares.
        for tag in [Tag::StripOffsets, Tag::TileOffsets] {
            for offset in tags.find_tag_unsigned_vec::<u64>(tag).ok().flatten().unwrap_or_default() {
                let piece = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
                packed = packed.max(jpeg::declared_pixels(piece).saturating_mul(4));
            }
        }
    }

    let mut decoder = TiffDecoder::new(Cursor::new(bytes)).map_err(alone)?;
    let (width, height) = decoder.dimensions();
    let decoded = decoder.total_bytes();
    Ok(Opened {
        width,
        height,
        decoded,
        // The decoder fills a buffer of its own, with four bytes of ink for three of colour, and unpacks a strip at a
        // time.
        working: decoded.saturating_mul(2).saturating_add(packed),
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
        several,
        decode: Box::new(move || {
            let mut limits = Limits::default();
            limits.max_alloc = Some(memory::ALL);
            decoder.set_limits(limits).map_err(alone)?;
            let picture = DynamicImage::from_decoder(decoder).map_err(alone)?;
            let beyond = |samples: &[f32]| samples.iter().any(|v| !(-0.001..=1.001).contains(v));
            // Samples from 0 to 255, say, would all become white.
            if picture.as_rgb32f().is_some_and(|p| beyond(p)) || picture.as_rgba32f().is_some_and(|p| beyond(p)) {
                bail!("its samples are floating-point numbers that go beyond 0 to 1");
            }
            Ok(match associated && picture.color().has_alpha() {
                true => alpha::premultiplied_on_white(picture),
                false => picture,
            })
        }),
    })
}
