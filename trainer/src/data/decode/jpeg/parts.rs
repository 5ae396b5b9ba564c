//! A JPEG file as segments and scans.

use crate::data::decode::exif;
use std::ops::Range;

const END: u8 = 0xd9;

/// A file taken apart.
pub struct Parts<'a> {
    pub exif: Option<&'a [u8]>,
    pub frame: Option<Frame>,
    /// The scans in the order of the file: tables change between them.
    pub scans: Vec<Scan<'a>>,
    /// Whether the picture's own end marker is there.
    pub ended: bool,
    /// What the decoder gets: neither profiles, comments and thumbnails nor what follows the end, and always an end
    /// marker.
    pub image: Vec<u8>,
}

/// How the samples are stored.
#[derive(Clone)]
pub struct Frame {
    /// Whether the scans can be checked: they have Huffman codes and samples of 8 bits.
    pub known: bool,
    pub progressive: bool,
    pub width: u16,
    pub height: u16,
    pub components: Vec<Component>,
}

#[derive(Clone)]
pub struct Component {
    pub id: u8,
    pub horizontal: u32,
    pub vertical: u32,
}

/// A scan: its header, its data, and the tables defined before it.
pub struct Scan<'a> {
    pub header: &'a [u8],
    pub data: &'a [u8],
    /// Payloads of the `DHT` segments since the last scan.
    pub tables: Vec<&'a [u8]>,
    pub restart_interval: usize,
}

impl<'a> Parts<'a> {
    /// Takes a file apart.
    pub fn read(bytes: &'a [u8]) -> Self {
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
                        0xe1 if parts.exif.is_none() => parts.exif = data.strip_prefix(exif::PREFIX),
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
