//! A picture's file whose header has been read, as the reader of each format returns it.

use anyhow::{Error, Result};
use image::DynamicImage;
use image::metadata::Orientation;

/// A file whose header has been read.
pub struct Opened<'a> {
    pub width: u32,
    pub height: u32,
    /// Bytes of the picture that `decode` returns.
    pub decoded: u64,
    /// Bytes that decoding needs beside those of the picture.
    pub working: u64,
    pub orientation: Orientation,
    pub several: bool,
    pub decode: Box<dyn FnOnce() -> Result<DynamicImage> + 'a>,
}

impl Opened<'_> {
    /// How many bytes reading needs in all, the file's own `length` included.
    pub fn need(&self, length: usize, size: usize) -> u64 {
        let pixels = u64::from(self.width).saturating_mul(self.height.into());
        // Copies of the picture: turned, of 8 bits, laid on white.
        let copies = self.decoded.saturating_add(pixels.saturating_mul(7));
        // `resize` needs four floats for each column of the picture and row of the square in between.
        let columns = u64::from(self.width.max(self.height)).saturating_mul(16 * size as u64);
        [self.decoded, self.working, copies, columns, length as u64].into_iter().fold(0, u64::saturating_add)
    }
}

/// The error without its source, whose text its own text contains.
pub fn alone(error: image::ImageError) -> Error {
    Error::msg(error.to_string())
}
