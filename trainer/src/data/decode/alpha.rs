//! Transparency: a picture is laid on white, as a transparent scan is ink on paper.

use image::{DynamicImage, RgbImage, Rgba, RgbaImage};

/// Lays a picture on white: `value alpha + 255 (1 - alpha)`. Grey stays grey. Returns also whether the alpha was
/// ignored: programs that know nothing of it leave a BMP's at 0 everywhere, and its pixels, unless they are all equal,
/// are meant to be seen.
pub fn on_white(picture: DynamicImage) -> (DynamicImage, bool) {
    let colour = picture.color().has_color();
    let rgba = picture.into_rgba8();
    let ignored = rgba.pixels().all(|pixel| pixel.0[3] == 0) && !is_flat(&rgba);
    let over = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let rgb = laid(&rgba, |value, alpha| if ignored { value } else { over(value, alpha) });
    (if colour { rgb } else { rgb.into_luma8().into() }, ignored)
}

/// Lays a picture on white whose values were multiplied by their alpha before they were stored ("associated"), as in
/// TIFF: `value + 255 (1 - alpha)`.
pub fn premultiplied_on_white(picture: DynamicImage) -> DynamicImage {
    laid(&picture.into_rgba8(), |value, alpha| value.saturating_add(255 - alpha))
}

fn laid(rgba: &RgbaImage, over: impl Fn(u8, u8) -> u8) -> DynamicImage {
    let of = |&Rgba([r, g, b, a]): &Rgba<u8>| image::Rgb([over(r, a), over(g, a), over(b, a)]);
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| of(rgba.get_pixel(x, y))).into()
}

fn is_flat(rgba: &RgbaImage) -> bool {
    let first = rgba.pixels().next().map(|pixel| pixel.0);
    rgba.pixels().all(|pixel| Some(pixel.0) == first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, LumaA};

    #[test]
    fn transparency_is_laid_on_white() {
        let clear = RgbaImage::from_pixel(4, 4, Rgba([0, 0, 0, 0]));
        let (laid, ignored) = on_white(clear.into());
        assert!(laid.to_luma8().pixels().all(|p| p.0 == [255]) && !ignored);
        let half = RgbaImage::from_pixel(4, 4, Rgba([0, 100, 255, 128]));
        assert_eq!(on_white(half.clone().into()).0.to_rgb8().get_pixel(0, 0).0, [127, 177, 255]);
        // 0, 50 and 128 are 0, 100 and 255 at half the alpha.
        let associated = RgbaImage::from_pixel(4, 4, Rgba([0, 50, 128, 128]));
        assert_eq!(premultiplied_on_white(associated.into()).to_rgb8().get_pixel(0, 0).0, [127, 177, 255]);
        // Grey with alpha stays grey, also if it has 16 bits.
        let grey = ImageBuffer::from_pixel(4, 4, LumaA([0u16, 32_896]));
        assert_eq!(on_white(DynamicImage::ImageLumaA16(grey)).0.as_luma8().unwrap().get_pixel(0, 0).0, [127]);
    }

    #[test]
    fn alpha_that_hides_everything_is_not_meant() {
        let mut picture = RgbaImage::from_pixel(4, 4, Rgba([200, 200, 200, 0]));
        picture.put_pixel(1, 2, Rgba([10, 20, 30, 0]));
        let (laid, ignored) = on_white(picture.clone().into());
        assert!(ignored);
        assert_eq!(laid.to_rgb8().get_pixel(1, 2).0, [10, 20, 30]);
        // One pixel can be seen, so the others are meant not to be.
        picture.put_pixel(0, 0, Rgba([7, 7, 7, 255]));
        let (laid, ignored) = on_white(picture.into());
        assert!(!ignored);
        assert_eq!([(0, 0), (1, 2)].map(|(x, y)| laid.to_rgb8().get_pixel(x, y).0[0]), [7, 255]);
    }
}
