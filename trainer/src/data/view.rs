//! From bytes to the encoder's input: an affine view, three channels, ImageNet's scale.
//!
//! Grey images are repeated in all three channels. Values are `(v / 255 - mean) / std` with the mean
//! and standard deviation of ImageNet, as torchvision's weights expect them.

use crate::data::images::Images;
use crate::process::random::symmetric;
use anyhow::Result;
use rand::Rng;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Where a view's pixel comes from in the image, in coordinates from -1 to 1:
/// `x' = xx x + xy y + tx`, `y' = yx x + yy y + ty`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    xx: f32,
    xy: f32,
    tx: f32,
    yx: f32,
    yy: f32,
    ty: f32,
}

impl Affine {
    /// The image as it is.
    pub const IDENTITY: Self = Self { xx: 1.0, xy: 0.0, tx: 0.0, yx: 0.0, yy: 1.0, ty: 0.0 };

    /// A small random rotation, scale, slant and shift. `strength` 1 means up to 10 degrees, 10 %, 0.15 and 6 % of the
    /// side.
    pub fn random(rng: &mut impl Rng, strength: f32) -> Self {
        let angle = symmetric(rng, 0.175 * strength);
        let scale = 1.0 + symmetric(rng, 0.1 * strength);
        let slant = symmetric(rng, 0.15 * strength);
        let (sin, cos) = angle.sin_cos();
        Self {
            xx: cos * scale,
            xy: slant - sin * scale,
            tx: symmetric(rng, 0.12 * strength),
            yx: sin * scale,
            yy: cos * scale,
            ty: symmetric(rng, 0.12 * strength),
        }
    }
}

/// The images of `views` as one `[N, 3, size, size]` tensor.
///
/// The memory is `[N, size, size, 3]`, permuted: libtorch takes such strides for channels-last, and
/// then runs all convolutions of the encoder in that layout, which is the faster one on CPUs.
pub fn tensor(images: &Images, views: &[(usize, Affine)], device: Device) -> Result<Tensor> {
    let size = images.size();
    let mut values = vec![0f32; views.len() * size * size * 3];
    values.par_chunks_mut(size * size * 3).zip(views).try_for_each(|(out, (image, affine))| -> Result<()> {
        let (pixels, channels) = images.get(*image)?;
        render(&pixels, channels, size, affine, out);
        Ok(())
    })?;
    let side = size as i64;
    let values = Tensor::from_slice(&values).view([views.len() as i64, side, side, 3]);
    Ok(values.f_to_device(device)?.to_kind(Kind::Float).permute([0, 3, 1, 2]))
}

/// Renders a view with bilinear interpolation. Outside the image its border is repeated, so paper stays paper.
fn render(bytes: &[u8], channels: usize, size: usize, affine: &Affine, out: &mut [f32]) {
    let last = (size - 1) as f32;
    let to_unit = |pixel: usize| (2 * pixel + 1) as f32 / size as f32 - 1.0;
    let to_pixel = |unit: f32| (((unit + 1.0) * size as f32 - 1.0) * 0.5).clamp(0.0, last);
    for row in 0..size {
        for column in 0..size {
            let (x, y) = (to_unit(column), to_unit(row));
            let from_x = to_pixel(affine.xx * x + affine.xy * y + affine.tx);
            let from_y = to_pixel(affine.yx * x + affine.yy * y + affine.ty);
            let (left, top) = (from_x as usize, from_y as usize);
            let (right, bottom) = ((left + 1).min(size - 1), (top + 1).min(size - 1));
            let (fx, fy) = (from_x - left as f32, from_y - top as f32);
            let pixel = &mut out[(row * size + column) * 3..][..3];
            for (channel, value) in pixel.iter_mut().enumerate() {
                let at = |r: usize, c: usize| f32::from(bytes[(r * size + c) * channels + channel % channels]);
                let upper = at(top, left) + fx * (at(top, right) - at(top, left));
                let lower = at(bottom, left) + fx * (at(bottom, right) - at(bottom, left));
                let v = (upper + fy * (lower - upper)) / 255.0;
                *value = (v - MEAN[channel]) / STD[channel];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::random::{Purpose, stream};
    use image::{GrayImage, Luma};

    #[test]
    fn the_identity_view_is_the_image_itself_normalised() {
        let picture = GrayImage::from_fn(5, 5, |x, y| Luma([(x * 40 + y * 7) as u8]));
        let images = Images::from_grey(vec![picture.clone()], 5);
        let t = tensor(&images, &[(0, Affine::IDENTITY)], Device::Cpu).unwrap();
        assert_eq!(t.size(), [1, 3, 5, 5]);
        assert_eq!(t.stride(), [75, 1, 15, 3]);
        for (x, y, c) in [(0, 0, 0), (4, 2, 1), (1, 4, 2)] {
            let v = f32::from(picture.get_pixel(x, y).0[0]) / 255.0;
            let expected = (v - MEAN[c]) / STD[c];
            let got = t.double_value(&[0, c as i64, i64::from(y), i64::from(x)]) as f32;
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }

    #[test]
    fn a_shift_by_one_pixel_moves_by_one_pixel_and_repeats_the_border() {
        let picture = GrayImage::from_fn(4, 4, |x, _| Luma([x as u8 * 60]));
        let images = Images::from_grey(vec![picture], 4);
        let shifted = Affine { tx: 0.5, ..Affine::IDENTITY };
        let t = tensor(&images, &[(0, Affine::IDENTITY), (0, shifted)], Device::Cpu).unwrap();
        for (column, from) in [(0, 1), (1, 2), (2, 3), (3, 3)] {
            let difference = t.double_value(&[1, 0, 2, column]) - t.double_value(&[0, 0, 2, from]);
            assert!(difference.abs() < 1e-5, "{column}: {difference}");
        }
    }

    #[test]
    fn strength_zero_is_the_identity() {
        let mut rng = stream(0, Purpose::Augment, 0, 0);
        assert_eq!(Affine::random(&mut rng, 0.0), Affine::IDENTITY);
        assert_ne!(Affine::random(&mut rng, 1.0), Affine::IDENTITY);
    }
}
