use super::*;
use image::ImageEncoder;
use image::codecs::webp::WebPEncoder;
use image::{GrayImage, ImageBuffer, Luma, Rgb};
use std::path::PathBuf;

const NAMES: [(&str, ImageFormat); 6] = [
    ("a.png", ImageFormat::Png),
    ("b.jpg", ImageFormat::Jpeg),
    ("c.pgm", ImageFormat::Pnm),
    ("d.bmp", ImageFormat::Bmp),
    ("e.tiff", ImageFormat::Tiff),
    ("f.webp", ImageFormat::WebP),
];

/// A picture whose left half is dark and whose right half is light: that survives JPEG and any resize.
fn halves() -> GrayImage {
    GrayImage::from_fn(32, 32, |x, _| Luma([if x < 16 { 20 } else { 230 }]))
}

fn pixels(file: &Path, size: usize) -> Box<[u8]> {
    read(file, size).unwrap().pixels
}

fn saved(folder: &Path, picture: &DynamicImage) -> Vec<PathBuf> {
    let save = |(name, format): &(&str, ImageFormat)| {
        let file = folder.join(name);
        // WebP has no grey pictures.
        let rgb = DynamicImage::from(picture.to_rgb8());
        let picture = if *format == ImageFormat::WebP { &rgb } else { picture };
        picture.save_with_format(&file, *format).unwrap();
        file
    };
    NAMES.iter().map(save).collect()
}

#[test]
fn all_formats_give_the_same_picture_whatever_the_name_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = saved(dir.path(), &halves().into());
    files.push(dir.path().join("misnamed.jpg"));
    std::fs::copy(&files[0], &files[6]).unwrap();
    for file in files {
        let pixels = pixels(&file, 16);
        let channels = pixels.len() / 256;
        for (column, value) in [(2, 20i32), (13, 230)] {
            let got = i32::from(pixels[5 * 16 * channels + column * channels]);
            assert!((got - value).abs() <= 8, "{} {column}: {got}", file.display());
        }
    }
}

#[test]
fn a_file_that_is_cut_off_is_an_error_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    // Noise cannot be compressed, so no part of the file can be cut away unnoticed.
    let noise = GrayImage::from_fn(64, 64, |x, y| Luma([(x * x * 31 + y * 17 * x + y * y * 7) as u8]));
    for file in saved(dir.path(), &noise.into()) {
        let bytes = std::fs::read(&file).unwrap();
        read(&file, 16).unwrap();
        for share in [0, 10, 60, 90] {
            std::fs::write(&file, &bytes[..bytes.len() * share / 100]).unwrap();
            let error = read(&file, 16).err();
            let text = format!("{:#}", error.unwrap_or_else(|| panic!("{} at {share} %", file.display())));
            assert!(text.contains(file.to_str().unwrap()), "{text}");
        }
    }
}

#[test]
fn a_decoder_that_panics_is_an_error() {
    let size = std::hint::black_box(3);
    let error = guarded(|| -> Result<()> { panic!("{size} rows of 4") }).unwrap_err();
    assert_eq!(error.to_string(), "the decoder gave up: 3 rows of 4");
    let error = guarded(|| -> Result<()> { panic!("no rows") }).unwrap_err();
    assert_eq!(error.to_string(), "the decoder gave up: no rows");
    assert_eq!(guarded(|| Ok(size)).unwrap(), 3);
    assert!(!GUARDED.get());
}

/// EXIF with its prefix, which says only the orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec();
    exif[25] = orientation; // the high half of the value's four bytes, big-endian
    exif
}

/// A JPEG file with EXIF of this orientation in an APP1 segment after its start marker.
fn turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let exif = exif(orientation);
    let length = (exif.len() + 2) as u16;
    [&jpeg[..2], &[0xff, 0xe1], &length.to_be_bytes(), &exif, &jpeg[2..]].concat()
}

#[test]
fn a_camera_that_was_held_upright_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, webp) = (dir.path().join("a.jpg"), dir.path().join("a.webp"));
    let mut jpeg = Vec::new();
    halves().write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg).unwrap();
    let dark = |file: &Path| {
        let pixels = pixels(file, 4);
        let channels = pixels.len() / 16;
        [(0, 1), (1, 3), (3, 1), (1, 0)].map(|(row, column)| pixels[(row * 4 + column) * channels] < 100)
    };
    // Whether the picture is dark at the top, right, bottom and left. 6: turn by 90 degrees clockwise, left goes up.
    for (orientation, expected) in [
        (1, [true, false, true, true]),
        (2, [false, true, false, false]),
        (3, [false, true, false, false]),
        (4, [true, false, true, true]),
        (5, [true, true, false, true]),
        (6, [true, true, false, true]),
        (7, [false, false, true, false]),
        (8, [false, false, true, false]),
    ] {
        std::fs::write(&file, turned(&jpeg, orientation)).unwrap();
        assert_eq!(dark(&file), expected, "{orientation}");
        // WebP whose EXIF has the prefix of JPEG, and as it should be.
        for skipped in [0, exif::PREFIX.len()] {
            let mut bytes = Vec::new();
            let mut encoder = WebPEncoder::new_lossless(&mut bytes);
            encoder.set_exif_metadata(exif(orientation)[skipped..].to_vec()).unwrap();
            DynamicImage::from(halves()).to_rgb8().write_with_encoder(encoder).unwrap();
            std::fs::write(&webp, bytes).unwrap();
            assert_eq!(dark(&webp), expected, "{orientation}");
        }
    }
}

#[test]
fn sixteen_bits_grey_and_colour_become_eight() {
    let dir = tempfile::tempdir().unwrap();
    let value = |x: u32, y: u32| (x * 4096 + y * 512 + 17) as u16;
    let grey = ImageBuffer::from_fn(8, 8, |x, y| Luma([value(x, y)]));
    let colour = ImageBuffer::from_fn(8, 8, |x, y| Rgb([value(x, y), 65_535, 0]));
    for name in ["a.png", "a.tiff", "a.pgm"] {
        let file = dir.path().join(name);
        DynamicImage::from(grey.clone()).save(&file).unwrap();
        let pixels = pixels(&file, 8);
        assert_eq!(pixels.len(), 64, "{name}");
        for (at, &pixel) in pixels.iter().enumerate() {
            let expected = f64::from(value(at as u32 % 8, at as u32 / 8)) / 257.0;
            assert!((f64::from(pixel) - expected).abs() <= 0.51, "{name} {at}: {pixel} {expected}");
        }
    }
    for name in ["b.png", "b.tiff"] {
        let file = dir.path().join(name);
        DynamicImage::from(colour.clone()).save(&file).unwrap();
        let pixels = pixels(&file, 8);
        assert_eq!((pixels.len(), &pixels[1..3]), (192, &[255, 0][..]), "{name}");
    }
}

/// A chunk of a PNG file.
fn chunk(name: &[u8], data: &[u8]) -> Vec<u8> {
    let named = [name, data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &named, &crc32fast::hash(&named).to_be_bytes()].concat()
}

/// A PNG file's header, for colour with alpha of 8 bits.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let data = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 6, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &data)].concat()
}

/// A TIFF file of one strip without compression: tags as (number, value), grey of 8 bits unless they say otherwise.
fn tiff_file(tags: &[(u16, u32)], pixels: &[u8]) -> Vec<u8> {
    let mut all = std::collections::BTreeMap::from([(258, 8), (259, 1), (262, 1), (273, 8), (277, 1)]);
    all.extend([(279, pixels.len() as u32)]);
    all.extend(tags.iter().copied());
    let rows = all[&257];
    all.entry(278).or_insert(rows);
    let samples = all[&277];
    let (mut entries, mut values) = (Vec::new(), pixels.to_vec());
    values.resize(values.len().next_multiple_of(2), 0);
    let long = |value: u32| value.to_le_bytes();
    for (&tag, &value) in &all {
        // The bits of more than two samples do not fit into the entry.
        let (count, value) = if tag == 258 && samples > 2 {
            let place = 8 + values.len() as u32;
            (0..samples).for_each(|_| values.extend((value as u16).to_le_bytes()));
            (samples, place)
        } else {
            (1, if tag == 258 && samples == 2 { value | value << 16 } else { value })
        };
        let kind: u16 = if matches!(tag, 256 | 257 | 273 | 278 | 279) { 4 } else { 3 };
        entries.extend(tag.to_le_bytes().into_iter().chain(kind.to_le_bytes()).chain(long(count)).chain(long(value)));
    }
    let directory = long(8 + values.len() as u32);
    let count = (all.len() as u16).to_le_bytes();
    [&b"II*\0"[..], &directory, &values, &count, &entries, &[0; 4]].concat()
}

fn webp_file(chunks: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (name, data) in chunks {
        body.extend([name, &(data.len() as u32).to_le_bytes()[..], data].concat());
        body.resize(body.len().next_multiple_of(2), 0);
    }
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

fn bmp_header(width: i32, height: i32) -> Vec<u8> {
    let sizes = [40, width, height].map(i32::to_le_bytes).concat();
    [&b"BM\0\0\0\0\0\0\0\0\x36\0\0\0"[..], &sizes, &[1, 0, 32, 0], &[0; 24]].concat()
}

#[test]
fn a_file_that_declares_more_than_fits_is_an_error_before_anything_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    // 65536 columns and 65535 rows.
    let canvas = [0, 0, 0, 0, 0xff, 0xff, 0, 0xfe, 0xff, 0];
    // 16383 x 16383 in a canvas of 1 x 1.
    let inside = [&[0x10, 0, 0, 0x9d, 1, 0x2a][..], &[0xff, 0x3f, 0xff, 0x3f]].concat();
    let scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0";
    let jpeg = |code| [&[0xff, 0xd8, 0xff, code, 0, 11, 8, 0xff, 0xff, 0xff, 0xff, 1, 1, 0x11, 0][..], scan].concat();
    let many = 200_000;
    for (name, bytes) in [
        ("binary.pgm", b"P5\n1000000 1000000\n255\n".to_vec()),
        ("wide.pgm", b"P5\n1000000000 1\n255\n".to_vec()),
        // The pixels fit, but not as many floats for each column.
        ("resized.pgm", b"P5\n50000000 1\n255\n".to_vec()),
        ("ascii.ppm", b"P3 400000 400000 255 0".to_vec()),
        ("bits.pbm", b"P4 100000 100000\n".to_vec()),
        ("any.pam", b"P7\nWIDTH 99999\nHEIGHT 99999\nDEPTH 4\nMAXVAL 65535\nTUPLTYPE RGB_ALPHA\nENDHDR\n".to_vec()),
        ("a.png", [png_header(500_000, 500_000), chunk(b"IDAT", &[0; 8])].concat()),
        ("b.png", [png_header(u32::MAX >> 1, u32::MAX >> 1), chunk(b"IDAT", &[0; 8])].concat()),
        ("a.bmp", bmp_header(65_000, 65_000)),
        ("a.tif", tiff_file(&[(256, many), (257, many)], &[0; 64])),
        ("canvas.webp", webp_file(&[(b"VP8X", &canvas), (b"VP8L", &[0x2f, 0xff, 0xff, 0xff, 0x0f, 0, 0])])),
        ("lossless.webp", webp_file(&[(b"VP8L", &[0x2f, 0xfe, 0xbf, 0xff, 0x0f, 0, 0])])),
        ("inside.webp", webp_file(&[(b"VP8X", &[0; 10]), (b"VP8 ", &inside)])),
        ("baseline.jpg", jpeg(0xc0)),
        ("progressive.jpg", jpeg(0xc2)),
    ] {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let text = format!("{:#}", read(&file, 224).unwrap_err());
        assert!(text.contains(name) && text.contains("it declares") && text.contains("the limit is 1.0 GiB"), "{text}");
    }
    // A file that is itself too long: it is sparse, so that it takes no room on the disk.
    let file = dir.path().join("long.png");
    std::fs::File::create(&file).unwrap().set_len(memory::ALL + 1).unwrap();
    let text = format!("{:#}", read(&file, 16).unwrap_err());
    assert!(text.contains("1073741825 bytes, and the limit is 1073741824"), "{text}");
    let text = format!("{:#}", read(dir.path(), 16).unwrap_err());
    assert!(text.contains("it is no file"), "{text}");
}

#[test]
fn metadata_that_is_damaged_costs_no_picture() {
    let dir = tempfile::tempdir().unwrap();
    // The left half is dark; turned by orientation 6, the upper half is.
    let turned = exif(6)[exif::PREFIX.len()..].to_vec();
    let [(mut png, png_name), (jpeg, jpeg_name)] =
        [(ImageFormat::Png, "a.png"), (ImageFormat::Jpeg, "a.jpg")].map(|(f, n)| {
            let mut bytes = Vec::new();
            halves().write_to(&mut Cursor::new(&mut bytes), f).unwrap();
            (bytes, n)
        });
    let is_turned = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let pixels = pixels(&file, 4);
        pixels[pixels.len() / 4 - pixels.len() / 16] < 100 // the first row's last column
    };
    let before_pixels = 8 + 25; // signature and header
    let with = |png: &[u8], extra: &[u8]| [&png[..before_pixels], extra, &png[before_pixels..]].concat();
    assert!(is_turned(png_name, &with(&png, &chunk(b"eXIf", &turned))));
    let prefixed = chunk(b"eXIf", &exif(6));
    assert!(is_turned(png_name, &with(&png, &prefixed)));
    // The chunk after the pixels, where some programs put it.
    let end = png.len() - 12;
    assert!(is_turned(png_name, &[&png[..end], &chunk(b"eXIf", &turned), &png[end..]].concat()));
    for cut in 0..turned.len() - 8 {
        assert!(!is_turned(png_name, &with(&png, &chunk(b"eXIf", &turned[..cut]))), "{cut}");
        let segment = [&[0xff, 0xe1], &(cut as u16 + 8).to_be_bytes()[..], exif::PREFIX, &turned[..cut]].concat();
        assert!(!is_turned(jpeg_name, &[&jpeg[..2], &segment, &jpeg[2..]].concat()), "{cut}");
    }
    let mut wrong = chunk(b"eXIf", &turned);
    *wrong.last_mut().unwrap() ^= 1;
    assert!(!is_turned(png_name, &with(&png, &wrong)), "its checksum is wrong");
    // A profile and a text that are no zlib data; a JPEG profile with the number of a part that does not exist.
    assert!(!is_turned(png_name, &with(&png, &[chunk(b"iCCP", b"x\0\0zzzz"), chunk(b"zTXt", b"x\0\0zz")].concat())));
    assert!(!is_turned(jpeg_name, &[&jpeg[..2], b"\xff\xe2\0\x12ICC_PROFILE\0\xff\x01zz", &jpeg[2..]].concat()));
    png.truncate(end);
    assert!(!is_turned(png_name, &png), "without its end chunk");

    // WebP: EXIF that is announced and absent, cut short, or longer than any file.
    let mut webp = Vec::new();
    let encoder = WebPEncoder::new_lossless(&mut webp);
    DynamicImage::from(halves()).to_rgb8().write_with_encoder(encoder).unwrap();
    let lossless = &webp[20..];
    let header = [0x08, 0, 0, 0, 31, 0, 0, 31, 0, 0];
    let parts = |exif: &[u8]| webp_file(&[(b"VP8X", &header), (b"VP8L", lossless), (b"EXIF", exif)]);
    assert!(is_turned("a.webp", &parts(&turned)));
    assert!(!is_turned("a.webp", &webp_file(&[(b"VP8X", &header), (b"VP8L", lossless)])));
    for cut in [0, 1, 9, 20] {
        assert!(!is_turned("a.webp", &parts(&turned[..cut])));
    }
    let mut endless = parts(&turned);
    let length = endless.len() - turned.len() - 4;
    endless[length..length + 4].fill(0xff);
    assert!(is_turned("a.webp", &endless), "what there is of it is whole");

    // TIFF has a tag of its own for the orientation.
    let picture = halves().into_raw();
    let sizes = [(256, 32), (257, 32)];
    assert!(!is_turned("a.tif", &tiff_file(&sizes, &picture)));
    assert!(is_turned("a.tif", &tiff_file(&[sizes[0], sizes[1], (274, 6)], &picture)));
    assert!(!is_turned("a.tif", &tiff_file(&[sizes[0], sizes[1], (274, 77)], &picture)), "there is no such");
}

#[test]
fn alpha_is_what_the_format_says_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let decoded = read(&file, 8).unwrap();
        (decoded.pixels[..3].to_vec(), decoded.alpha_ignored)
    };
    // BMP with masks and an alpha that is 0 everywhere, as from programs that know no alpha: its colours are meant to
    // be seen.
    let masks = [0x00ff_0000u32, 0xff00, 0xff, 0xff00_0000].map(u32::to_le_bytes).concat();
    let mut header = bmp_header(8, 8);
    header[10..14].copy_from_slice(&(14u32 + 56).to_le_bytes());
    header[14] = 56;
    header[30] = 3;
    let pixels = |alpha: u8| -> Vec<u8> {
        (0..64u8).flat_map(|i| [30, 20, if i < 32 { 10 } else { 200 }, if i == 63 { alpha } else { 0 }]).collect()
    };
    assert_eq!(read("a.bmp", &[&header[..], &masks, &pixels(0)].concat()), (vec![200, 20, 30], true));
    assert_eq!(read("a.bmp", &[&header[..], &masks, &pixels(9)].concat()), (vec![255, 255, 255], false));
    // Without a mask the fourth byte is no alpha.
    assert_eq!(read("a.bmp", &[&bmp_header(8, 8)[..], &pixels(0)].concat()), (vec![200, 20, 30], false));
    // TIFF: colours that are multiplied by their alpha already, colours that are not, and a fourth sample that is no
    // alpha.
    for (extra, expected) in [(1, [127, 177, 255]), (2, [127, 152, 191]), (0, [0, 50, 128])] {
        let tags = [(256, 8), (257, 8), (262, 2), (277, 4), (338, extra)];
        let (pixels, _) = read("a.tif", &tiff_file(&tags, &[0, 50, 128, 128].repeat(64)));
        assert_eq!(pixels, expected, "{extra}");
    }
}

#[test]
fn of_several_pages_or_frames_the_first_is_taken_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let several = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let decoded = read(&file, 4).unwrap();
        (decoded.several, decoded.pixels[0])
    };
    let page = tiff_file(&[(256, 4), (257, 4)], &[77; 16]);
    assert_eq!(several("a.tif", &page), (false, 77));
    // A second page whose directory is the first one's.
    let (end, directory) = (page.len() - 4, u32::from_le_bytes(page[4..8].try_into().unwrap()));
    let count = usize::from(u16::from_le_bytes([page[directory as usize], page[directory as usize + 1]]));
    let second =
        [&page[..end], &(page.len() as u32).to_le_bytes(), &page[directory as usize..][..2 + 12 * count], &[0; 4]];
    assert_eq!(several("a.tif", &second.concat()), (true, 77));

    let mut png = Vec::new();
    GrayImage::from_pixel(4, 4, Luma([77])).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
    assert_eq!(several("a.png", &png), (false, 77));
    let animated = [&png[..33], &chunk(b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]), &png[33..]].concat();
    assert_eq!(several("a.png", &animated), (true, 77));

    let mut webp = Vec::new();
    let grey = image::RgbImage::from_pixel(4, 4, Rgb([77; 3]));
    grey.write_with_encoder(WebPEncoder::new_lossless(&mut webp)).unwrap();
    assert_eq!(several("a.webp", &webp), (false, 77));
    let frame = [&[0, 0, 0, 0, 0, 0, 3, 0, 0, 3, 0, 0, 9, 0, 0, 0][..], &webp[12..]].concat();
    let animation: [(&[u8], &[u8]); 4] =
        [(b"VP8X", &[2, 0, 0, 0, 3, 0, 0, 3, 0, 0]), (b"ANIM", &[0; 6]), (b"ANMF", &frame), (b"ANMF", &frame)];
    let (several, value) = several("a.webp", &webp_file(&animation));
    assert!(several && value.abs_diff(77) <= 1, "{value}"); // a frame is blended
}

#[test]
fn damage_in_the_middle_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let noise = GrayImage::from_fn(64, 64, |x, y| Luma([(x * x * 31 + y * 17 * x + y * y * 7) as u8]));
    let file = dir.path().join("a.png");
    noise.save(&file).unwrap();
    let png = std::fs::read(&file).unwrap();
    for place in [png.len() / 2, png.len() - 30, png.len() - 18] {
        let mut bytes = png.clone();
        bytes[place] ^= 0x10;
        std::fs::write(&file, bytes).unwrap();
        let text = format!("{:#}", read(&file, 16).unwrap_err());
        assert!(text.contains("the checksum of its IDAT chunk is wrong"), "{place}: {text}");
    }
    let file = dir.path().join("a.jpg");
    noise.save(&file).unwrap();
    let jpeg = std::fs::read(&file).unwrap();
    // A sector of the disk that was never written.
    let mut bytes = jpeg.clone();
    bytes[jpeg.len() / 2..][..512].fill(0);
    std::fs::write(&file, bytes).unwrap();
    let text = format!("{:#}", read(&file, 16).unwrap_err());
    assert!(text.contains("the file is damaged"), "{text}");
    // A sector that is missing.
    std::fs::write(&file, [&jpeg[..jpeg.len() / 3], &jpeg[jpeg.len() / 2..]].concat()).unwrap();
    let text = format!("{:#}", read(&file, 16).unwrap_err());
    assert!(text.contains("the file is damaged"), "{text}");
    // A file without its end marker alone is a whole picture.
    std::fs::write(&file, &jpeg).unwrap();
    let whole = pixels(&file, 16);
    std::fs::write(&file, &jpeg[..jpeg.len() - 2]).unwrap();
    assert_eq!(pixels(&file, 16), whole);
    for bytes in [3, 4, 8, 40] {
        std::fs::write(&file, &jpeg[..jpeg.len() - bytes]).unwrap();
        let text = format!("{:#}", read(&file, 16).unwrap_err());
        assert!(text.contains("the file is cut off"), "{text}");
    }
}

#[test]
fn ink_is_not_paper() {
    /// A JPEG of 16 x 16 whose blocks have only a DC coefficient, with Adobe's marker.
    fn ink(values: [u8; 4], transform: u8) -> Vec<u8> {
        let (mut bits, mut scan) = (String::new(), Vec::new());
        for block in 0..4 {
            for value in values {
                let dc = if block == 0 { (i32::from(value) - 128) * 8 } else { 0 };
                let length = 32 - dc.unsigned_abs().leading_zeros();
                let number = if dc >= 0 { dc } else { dc + (1 << length) - 1 };
                bits += &format!("{length:04b}");
                (0..length).rev().for_each(|bit| bits.push(if number >> bit & 1 == 1 { '1' } else { '0' }));
                bits.push('0'); // no AC
            }
        }
        bits += &"1".repeat(bits.len().next_multiple_of(8) - bits.len());
        for byte in bits.as_bytes().chunks(8) {
            scan.push(byte.iter().fold(0, |value, bit| value << 1 | (bit - b'0')));
            if scan.last() == Some(&0xff) {
                scan.push(0);
            }
        }
        let segment =
            |code: u8, data: &[u8]| [&[0xff, code], &(data.len() as u16 + 2).to_be_bytes()[..], data].concat();
        let components: Vec<u8> = (1..=4).flat_map(|id| [id, 0x11, 0]).collect();
        let of_scan: Vec<u8> = (1..=4).flat_map(|id| [id, 0]).collect();
        [
            vec![0xff, 0xd8],
            segment(0xee, &[b"Adobe\0\x64\0\0\0\0", &[transform][..]].concat()),
            segment(0xdb, &[&[0][..], &[1; 64]].concat()),
            segment(0xc0, &[&[8, 0, 16, 0, 16, 4][..], &components].concat()),
            segment(0xc4, &[&[0, 0, 0, 0, 12][..], &[0; 12], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]].concat()),
            segment(0xc4, &[&[0x10, 1][..], &[0; 15], &[0]].concat()),
            segment(0xda, &[&[4][..], &of_scan, &[0, 63, 0]].concat()),
            scan,
            vec![0xff, 0xd9],
        ]
        .concat()
    }
    // Adobe stores ink inverted: both are the grey 200.
    let dir = tempfile::tempdir().unwrap();
    for (name, values, transform) in [("cmyk.jpg", [200, 200, 200, 255], 0), ("ycck.jpg", [55, 128, 128, 255], 2)] {
        let file = dir.path().join(name);
        std::fs::write(&file, ink(values, transform)).unwrap();
        let pixels = pixels(&file, 8);
        assert!(pixels.iter().all(|&v| v.abs_diff(200) <= 1), "{name}: {:?}", &pixels[..6]);
    }
}
