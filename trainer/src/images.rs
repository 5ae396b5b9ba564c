//! Decoded images: square, one byte per channel, all in memory.
//!
//! `size * size` bytes per grey image, so a hundred thousand at 64 px are 0.4 GB.

use crate::bad_input::bad_input;
use anyhow::{Context, Result};
use image::{DynamicImage, GrayImage, ImageDecoder, ImageReader, RgbImage, imageops};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// What to do about an image that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum OnBadImage {
    /// Name it, leave it out and go on.
    Skip,
    /// Name it and stop.
    Stop,
}

/// Images of one size and one number of channels: `[image][row][column][channel]`.
pub struct Images {
    size: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Images {
    /// From grey pictures, resized to `size`.
    pub fn from_grey(pictures: Vec<GrayImage>, size: usize) -> Self {
        let pictures: Vec<_> = pictures.into_par_iter().map(|p| square(p.into(), size)).collect();
        Self::assemble(&pictures, size)
    }

    /// Reads files in parallel. Returns the images and, in order, which files they came from.
    pub fn read(files: &[PathBuf], size: usize, on_bad: OnBadImage) -> Result<(Self, Vec<usize>)> {
        let decoded: Vec<_> = files.par_iter().map(|f| read_square(f, size)).collect();
        let (mut pictures, mut kept) = (Vec::new(), Vec::new());
        for (index, picture) in decoded.into_iter().enumerate() {
            match picture {
                Ok(picture) => {
                    pictures.push(picture);
                    kept.push(index);
                }
                Err(error) if on_bad == OnBadImage::Skip => eprintln!("skipped: {error:#}"),
                Err(error) => return Err(bad_input(format!("{error:#}"))),
            }
        }
        Ok((Self::assemble(&pictures, size), kept))
    }

    /// One channel if all pictures are grey, else three.
    fn assemble(pictures: &[DynamicImage], size: usize) -> Self {
        let colour = pictures.iter().any(|p| p.color().has_color());
        let channels = if colour { 3 } else { 1 };
        let mut pixels = Vec::with_capacity(pictures.len() * size * size * channels);
        for picture in pictures {
            match colour {
                true => pixels.extend_from_slice(&picture.to_rgb8()),
                false => pixels.extend_from_slice(&picture.to_luma8()),
            }
        }
        Self { size, channels, pixels }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.pixels.len() / (self.size * self.size * self.channels)
    }

    /// Side in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The bytes of one image: `[row][column][channel]`.
    pub fn get(&self, index: usize) -> &[u8] {
        let bytes = self.size * self.size * self.channels;
        &self.pixels[index * bytes..][..bytes]
    }
}

fn read_square(file: &Path, size: usize) -> Result<DynamicImage> {
    let read = || -> Result<DynamicImage> {
        // By content, not by name: a PNG named .jpg is common.
        let mut decoder = ImageReader::open(file)?.with_guessed_format()?.into_decoder()?;
        let orientation = decoder.orientation()?;
        let mut picture = DynamicImage::from_decoder(decoder)?;
        picture.apply_orientation(orientation);
        Ok(square(picture, size))
    };
    read().with_context(|| format!("cannot read {}", file.display()))
}

/// 8 bits, no transparency, `size x size` (the aspect ratio is not kept, as in `Resize((s, s))`).
fn square(picture: DynamicImage, size: usize) -> DynamicImage {
    let side = size as u32;
    // A transparent scan is ink on paper: laid on white. Dropping alpha would make the paper black.
    let picture = match (picture.color().has_alpha(), picture.color().has_color()) {
        (true, colour) => on_white(&picture, colour),
        (false, true) => picture.to_rgb8().into(),
        (false, false) => picture.to_luma8().into(),
    };
    if picture.width() == side && picture.height() == side {
        return picture;
    }
    // `resize` widens the triangle to the scale, so thin strokes do not vanish when shrunk.
    match picture {
        DynamicImage::ImageLuma8(p) => imageops::resize(&p, side, side, imageops::FilterType::Triangle).into(),
        p => imageops::resize(&p.to_rgb8(), side, side, imageops::FilterType::Triangle).into(),
    }
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
    if colour { rgb } else { rgb.to_luma8().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, Luma, Rgba, RgbaImage};

    /// Left half dark, right half light: survives JPEG and any resize.
    fn halves() -> GrayImage {
        GrayImage::from_fn(32, 32, |x, _| Luma([if x < 16 { 20 } else { 230 }]))
    }

    #[test]
    fn png_jpeg_pgm_and_bmp_give_the_same_picture_whatever_the_name_says() {
        let dir = tempfile::tempdir().unwrap();
        let formats = [
            ("a.png", ImageFormat::Png),
            ("b.jpg", ImageFormat::Jpeg),
            ("c.pgm", ImageFormat::Pnm),
            ("d.bmp", ImageFormat::Bmp),
            ("misnamed.jpg", ImageFormat::Png),
        ];
        let files: Vec<PathBuf> = formats
            .iter()
            .map(|(name, format)| {
                let file = dir.path().join(name);
                halves().save_with_format(&file, *format).unwrap();
                file
            })
            .collect();
        let (images, kept) = Images::read(&files, 16, OnBadImage::Stop).unwrap();
        assert_eq!((images.len(), kept), (5, vec![0, 1, 2, 3, 4]));
        let stride = images.channels();
        for i in 0..images.len() {
            let row = &images.get(i)[..16 * stride];
            for (column, value) in [(2, 20i32), (13, 230)] {
                assert!((i32::from(row[column * stride]) - value).abs() <= 8, "{i} {column}");
            }
        }
    }

    #[test]
    fn a_truncated_file_is_skipped_or_fatal_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.png"), dir.path().join("cut.png"));
        halves().save(&good).unwrap();
        let bytes = std::fs::read(&good).unwrap();
        std::fs::write(&bad, &bytes[..bytes.len() / 2]).unwrap();
        let files = [bad, good];
        let (images, kept) = Images::read(&files, 16, OnBadImage::Skip).unwrap();
        assert_eq!((images.len(), kept), (1, vec![1]));
        let error = Images::read(&files, 16, OnBadImage::Stop).err().unwrap();
        assert!(error.to_string().contains("cut.png"), "{error:#}");
        assert_eq!(crate::bad_input::exit_code(&error), 2);
    }

    #[test]
    fn transparency_is_laid_on_white() {
        let clear = RgbaImage::from_pixel(4, 4, Rgba([0, 0, 0, 0]));
        assert!(square(clear.into(), 4).to_rgb8().iter().all(|&v| v == 255));
        let half = RgbaImage::from_pixel(4, 4, Rgba([0, 100, 255, 128]));
        assert_eq!(square(half.into(), 4).to_rgb8().get_pixel(1, 1).0, [127, 177, 255]);
    }

    #[test]
    fn one_colour_picture_makes_all_of_them_three_channels() {
        let dir = tempfile::tempdir().unwrap();
        let (grey, red) = (dir.path().join("g.png"), dir.path().join("r.png"));
        halves().save(&grey).unwrap();
        RgbImage::from_pixel(8, 8, image::Rgb([200, 10, 10])).save(&red).unwrap();
        let (images, _) = Images::read(&[grey, red], 8, OnBadImage::Stop).unwrap();
        assert_eq!(images.channels(), 3);
        assert_eq!(images.get(1)[..3], [200, 10, 10]);
        assert_eq!(images.get(0)[0], images.get(0)[2]);
    }
}
