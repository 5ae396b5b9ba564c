//! JPEG: segments, whether all of the picture is there, and what the decoder is given.
//!
//! The decoder fills what it does not find, or cannot make out, with grey and says nothing, as browsers do. A data set
//! that is trained on must not have such pictures, so [`scan`] checks all scans first.

mod scan;

use super::Opened;
use anyhow::{Result, bail};
use image::codecs::jpeg::JpegDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder};
use std::io::Cursor;
use std::ops::Range;

/// What comes before EXIF in a segment.
pub const EXIF: &[u8] = b"Exif\0\0";
const END: u8 = 0xd9;

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
    let orientation = parts.exif.and_then(super::orientation_of).unwrap_or(Orientation::NoTransforms);
    Ok(Opened {
        width,
        height,
        decoded: pixels * if frame.components.len() == 1 { 1 } else { 3 },
        working,
        orientation,
        several: false,
        decode: Box::new(move || {
            scan::check(&parts)?;
            let decoder = JpegDecoder::new(Cursor::new(&parts.image)).map_err(super::alone)?;
            debug_assert_eq!(decoder.dimensions(), (width, height));
            DynamicImage::from_decoder(decoder).map_err(super::alone)
        }),
    })
}

/// The pixels of the frame that a JPEG file declares, 0 if it declares none.
pub fn declared_pixels(bytes: &[u8]) -> u64 {
    Parts::read(bytes).frame.map_or(0, |frame| u64::from(frame.width) * u64::from(frame.height))
}

/// A file taken apart.
struct Parts<'a> {
    exif: Option<&'a [u8]>,
    frame: Option<Frame>,
    /// The scans in the order of the file: tables change between them.
    scans: Vec<Scan<'a>>,
    /// Whether the picture's own end marker is there.
    ended: bool,
    /// What the decoder gets: neither profiles, comments and thumbnails nor what follows the end, and always an end
    /// marker.
    image: Vec<u8>,
}

/// How the samples are stored.
#[derive(Clone)]
struct Frame {
    /// Whether the scans can be checked: they have Huffman codes and samples of 8 bits.
    known: bool,
    progressive: bool,
    width: u16,
    height: u16,
    components: Vec<Component>,
}

#[derive(Clone)]
struct Component {
    id: u8,
    horizontal: u32,
    vertical: u32,
}

/// A scan: its header, its data, and the tables defined before it.
struct Scan<'a> {
    header: &'a [u8],
    data: &'a [u8],
    /// Payloads of the `DHT` segments since the last scan.
    tables: Vec<&'a [u8]>,
    restart_interval: usize,
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Self {
        let mut parts = Self { exif: None, frame: None, scans: Vec::new(), ended: false, image: vec![0xff, 0xd8] };
        let (mut tables, mut restart_interval) = (Vec::new(), 0);
        let mut at = 2; // after the start marker
        while let Some(marker) = next_marker(bytes, at, false) {
            let code = bytes[marker + 1];
            match code {
                END => {
                    parts.ended = !parts.scans.is_empty();
                    break;
                }
                0x01 | 0xd0..=0xd8 => at = marker + 2, // markers without a segment
                _ => {
                    let Some(segment) = segment(bytes, marker) else { break };
                    let data = &bytes[marker + 4..segment.end];
                    at = segment.end;
                    match code {
                        0xc4 => tables.push(data),
                        0xc0..=0xcf if !matches!(code, 0xc8 | 0xcc) => {
                            parts.frame = parts.frame.or_else(|| Frame::read(code, data));
                        }
                        0xdd => {
                            let interval = data.get(..2).map(|b| u16::from_be_bytes([b[0], b[1]]));
                            restart_interval = interval.unwrap_or(0).into();
                        }
                        0xe1 if parts.exif.is_none() => parts.exif = data.strip_prefix(EXIF),
                        _ => {}
                    }
                    if code == 0xda {
                        // The data of a scan follow its segment. They contain no marker except restarts.
                        at = next_marker(bytes, segment.end, true).unwrap_or(bytes.len());
                        let data = &bytes[segment.end..at];
                        let header = &bytes[marker + 4..segment.end];
                        parts.scans.push(Scan { header, data, tables: std::mem::take(&mut tables), restart_interval });
                        parts.image.extend_from_slice(&bytes[marker..at]);
                    } else if !is_metadata(code, data) {
                        parts.image.extend_from_slice(&bytes[segment]);
                    }
                }
            }
        }
        parts.image.extend_from_slice(&[0xff, END]);
        parts
    }
}

/// Where the next marker begins. Before one there may be any number of 0xff; in a scan 0xff 0x00 stands for a byte
/// 0xff, and restarts (0xd0 to 0xd7) belong to the scan.
fn next_marker(bytes: &[u8], from: usize, in_scan: bool) -> Option<usize> {
    let is_marker = |pair: &[u8]| {
        pair[0] == 0xff && pair[1] != 0x00 && pair[1] != 0xff && !(in_scan && (0xd0..=0xd7).contains(&pair[1]))
    };
    bytes.get(from..)?.windows(2).position(is_marker).map(|place| from + place)
}

/// The segment that begins with this marker. `None` if the file ends before it does.
fn segment(bytes: &[u8], marker: usize) -> Option<Range<usize>> {
    let length = u16::from_be_bytes(bytes.get(marker + 2..marker + 4)?.try_into().ok()?);
    let end = marker + 2 + usize::from(length).max(2);
    (end <= bytes.len()).then_some(marker..end)
}

/// Whether a segment is EXIF, a profile or a comment. Adobe's segment is not: it says what the colours mean.
fn is_metadata(code: u8, data: &[u8]) -> bool {
    match code {
        0xee => !data.starts_with(b"Adobe"),
        0xe1..=0xef | 0xfe => true,
        _ => false,
    }
}

impl Frame {
    fn read(code: u8, data: &[u8]) -> Option<Self> {
        let &[precision, h1, h0, w1, w0, count] = data.first_chunk()?;
        let components = data.get(6..6 + 3 * usize::from(count))?.chunks_exact(3);
        let components = components.map(|c| Component {
            id: c[0],
            horizontal: u32::from(c[1] >> 4).max(1),
            vertical: u32::from(c[1] & 15).max(1),
        });
        Some(Self {
            known: precision == 8 && matches!(code, 0xc0..=0xc2),
            progressive: code == 0xc2,
            width: u16::from_be_bytes([w1, w0]),
            height: u16::from_be_bytes([h1, h0]),
            components: components.collect(),
        })
    }
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
