//! TIFF: several pages, alpha that is multiplied into the colours, JPEG inside.

use super::alpha;
use super::jpeg;
use super::memory;
use super::opened::{Opened, alone};
use anyhow::{Error, Result, bail, ensure};
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
    check_counts(bytes)?;
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

/// The tags that are read. The others may be damaged: the picture is there all the same.
const READ: [Tag; 19] = [
    Tag::ImageWidth,
    Tag::ImageLength,
    Tag::BitsPerSample,
    Tag::Compression,
    Tag::PhotometricInterpretation,
    Tag::StripOffsets,
    Tag::Orientation,
    Tag::SamplesPerPixel,
    Tag::RowsPerStrip,
    Tag::StripByteCounts,
    Tag::PlanarConfiguration,
    Tag::Predictor,
    Tag::TileWidth,
    Tag::TileLength,
    Tag::TileOffsets,
    Tag::TileByteCounts,
    Tag::ExtraSamples,
    Tag::SampleFormat,
    Tag::JPEGTables,
];

/// Refuses a file of which a tag declares more values than there are bytes: the decoder takes 32 bytes for each before it
/// looks for them.
fn check_counts(bytes: &[u8]) -> Result<()> {
    let number = |at: usize, size: usize| {
        let part = bytes.get(at..at.checked_add(size)?)?.iter().map(|&byte| u64::from(byte));
        let join = |high: u64, low: u64| high << 8 | low;
        Some(if bytes.starts_with(b"II") { part.rev().fold(0, join) } else { part.fold(0, join) })
    };
    let big = number(2, 2) == Some(43);
    // The bytes of an offset and of a number of values, of the number of entries, and of an entry.
    let (word, head, entry) = if big { (8, 8, 20) } else { (4, 2, 12) };
    let Some(directory) = number(word, word).and_then(|place| usize::try_from(place).ok()) else { return Ok(()) };
    let entries = number(directory, head).unwrap_or(0);
    let first = directory.saturating_add(head);
    for at in (0..entries).map_while(|place| first.checked_add(usize::try_from(place).ok()?.checked_mul(entry)?)) {
        // A directory that is cut off is the decoder's to refuse.
        let (Some(tag), Some(count)) = (number(at, 2), number(at.saturating_add(4), word)) else { break };
        let length = bytes.len();
        let is_read = READ.iter().any(|read| u64::from(read.to_u16()) == tag);
        ensure!(!is_read || count <= length as u64, "its tag {tag} has {count} values; the file has {length} bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_of_more_values_than_bytes_is_refused() {
        let refused = |bytes: &[u8]| check_counts(bytes).err().map(|error| error.to_string());
        let file =
            |tag: u8, count: u8| [b"II*\0\x08\0\0\0\x01\0", &[tag, 1, 3, 0, 0, 0, count, 0][..], &[0; 8]].concat();
        assert_eq!(refused(&file(3, 1)).unwrap(), "its tag 259 has 65536 values; the file has 26 bytes");
        assert_eq!(refused(&file(3, 0)), None);
        assert_eq!(refused(&file(14, 1)), None, "the description is not read");
        let large =
            [b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x01", &[1, 1, 0, 4][..], &[1; 8], &[0; 8]].concat();
        assert_eq!(refused(&large).unwrap(), "its tag 257 has 72340172838076673 values; the file has 44 bytes");
        for cut in 0..large.len() {
            let expected = cut >= 36; // then the number of values is there
            assert_eq!(refused(&large[..cut]).is_some(), expected, "{cut}");
        }
        // Directories at the end of all memory.
        assert_eq!(refused(&[b"II+\0\x08\0\0\0", &[0xff; 8][..]].concat()), None);
        assert_eq!(refused(b"II*\0\xff\xff\xff\xff"), None);
    }
}
