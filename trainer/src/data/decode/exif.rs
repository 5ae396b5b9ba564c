//! EXIF, of which the orientation alone matters.

use image::metadata::Orientation;

/// What comes before EXIF in a segment of a JPEG file.
pub const PREFIX: &[u8] = b"Exif\0\0";

/// How the camera was held, by EXIF. In WebP and PNG some programs begin it as in JPEG.
pub fn orientation_of(exif: &[u8]) -> Option<Orientation> {
    Orientation::from_exif_chunk(exif.strip_prefix(PREFIX).unwrap_or(exif))
}
