//! The corpus of the fuzz targets, `trainer/fuzz/corpus`: seeds, which `TERCET_REWRITE_SEEDS=1` writes again, what the
//! fuzzer made of them that goes other ways through a reader, and a file for each finding.

use crate::checks;
use image::codecs::pnm::{PnmEncoder, PnmSubtype, SampleEncoding};
use image::codecs::{bmp::BmpEncoder, jpeg::JpegEncoder, png::PngEncoder, tiff::TiffEncoder, webp::WebPEncoder};
use image::{DynamicImage, ImageEncoder, ImageResult};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;
use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

type Seeds = Vec<(&'static str, Vec<u8>)>;

/// Reads each file of a target's corpus. The checks panic where a reader has not done what it must.
#[track_caller]
fn replay(target: &str, check: fn(&[u8]) -> bool, seeds: fn() -> Seeds) {
    // Not by env!: in a bundle that path is another machine's.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let folder = Path::new(&root).join("fuzz/corpus").join(target);
    if std::env::var_os("TERCET_REWRITE_SEEDS").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in seeds() {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
    let read = |file: &PathBuf| {
        let bytes = std::fs::read(file).unwrap();
        // Named before it is read, since a panic says nothing of it.
        println!("{}", file.display());
        check(&bytes)
    };
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(!seeds().is_empty(), "no seeds of {target}");
    for (name, _) in seeds() {
        assert!(files.contains(&folder.join(name)), "{}: {name} is missing", folder.display());
    }
    for file in &files {
        let seed = seeds().iter().any(|(name, _)| file.ends_with(name));
        // What is no seed may be refused, as long as the reader says so.
        assert!(read(file) || !seed, "{} is refused", file.display());
    }
}

#[test]
fn pictures_of_the_corpus_are_read() {
    replay("picture", checks::picture, pictures);
}

#[test]
fn pairs_of_the_corpus_are_read() {
    replay("pairs", checks::pairs, pairs);
}

#[test]
fn checkpoints_of_the_corpus_are_read() {
    replay("checkpoint", checks::checkpoint, checkpoints);
}

#[test]
fn weights_of_the_corpus_are_read() {
    replay("weights", checks::weights, weights);
}

#[test]
fn settings_of_the_corpus_are_read() {
    replay("settings", checks::settings, settings);
}

/// Small pictures in each format, of each kind of pixels that its encoder takes.
fn pictures() -> Seeds {
    // Colours, ink at a diagonal, and an alpha that is 0 in a corner.
    let colours = image::RgbaImage::from_fn(9, 7, |x, y| {
        image::Rgba([x as u8 * 28, y as u8 * 36, if x == y { 0 } else { 200 }, if x + y < 3 { 0 } else { 255 }])
    });
    let rgba = DynamicImage::from(colours);
    let (rgb, grey) = (DynamicImage::from(rgba.to_rgb8()), DynamicImage::from(rgba.to_luma8()));
    let deep = DynamicImage::from(rgba.to_luma16());
    let grey_alpha = DynamicImage::from(rgba.to_luma_alpha8());
    let bits = DynamicImage::from(image::GrayImage::from_fn(9, 7, |x, y| image::Luma([u8::from(x != y)])));
    let floats = DynamicImage::from(rgba.to_rgb32f());
    let png = |picture: &DynamicImage| written(|to| picture.write_with_encoder(PngEncoder::new(to)));
    let jpeg = |picture: &DynamicImage| written(|to| picture.write_with_encoder(JpegEncoder::new_with_quality(to, 50)));
    let bmp = |picture: &DynamicImage| written(|to| picture.write_with_encoder(BmpEncoder::new(to)));
    let tiff = |picture: &DynamicImage| written(|to| picture.write_with_encoder(TiffEncoder::new(to)));
    let webp = |picture: &DynamicImage| written(|to| picture.write_with_encoder(WebPEncoder::new_lossless(to)));
    let pnm = |picture: &DynamicImage, subtype| {
        written(|to| picture.write_with_encoder(PnmEncoder::new(to).with_subtype(subtype)))
    };
    let (ascii, binary) = (SampleEncoding::Ascii, SampleEncoding::Binary);
    vec![
        ("grey.png", png(&grey)),
        ("grey-16.png", png(&deep)),
        ("grey-alpha.png", png(&grey_alpha)),
        ("rgb.png", png(&rgb)),
        ("rgba.png", png(&rgba)),
        ("turned.png", written(|to| held(PngEncoder::new(to), &rgb))),
        ("grey.jpg", jpeg(&grey)),
        ("rgb.jpg", jpeg(&rgb)),
        ("turned.jpg", written(|to| held(JpegEncoder::new_with_quality(to, 50), &grey))),
        ("grey.bmp", bmp(&grey)),
        ("rgb.bmp", bmp(&rgb)),
        ("rgba.bmp", bmp(&rgba)),
        ("grey.tiff", tiff(&grey)),
        ("rgba.tiff", tiff(&rgba)),
        ("floats.tiff", tiff(&floats)),
        ("rgb.webp", webp(&rgb)),
        ("rgba.webp", webp(&rgba)),
        ("turned.webp", written(|to| held(WebPEncoder::new_lossless(to), &rgba))),
        ("ascii.pbm", pnm(&bits, PnmSubtype::Bitmap(ascii))),
        ("binary.pbm", pnm(&bits, PnmSubtype::Bitmap(binary))),
        ("ascii.pgm", pnm(&grey, PnmSubtype::Graymap(ascii))),
        ("binary.pgm", pnm(&grey, PnmSubtype::Graymap(binary))),
        ("ascii.ppm", pnm(&rgb, PnmSubtype::Pixmap(ascii))),
        ("binary.ppm", pnm(&rgb, PnmSubtype::Pixmap(binary))),
        ("rgba.pam", pnm(&rgba, PnmSubtype::ArbitraryMap)),
    ]
}

fn written(write: impl FnOnce(&mut Cursor<Vec<u8>>) -> ImageResult<()>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    write(&mut bytes).unwrap();
    bytes.into_inner()
}

/// Writes a picture with the EXIF of a camera that was held on its side.
fn held(mut encoder: impl ImageEncoder, picture: &DynamicImage) -> ImageResult<()> {
    // Big-endian, with one entry: the orientation, 6, which is a quarter of a turn.
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    encoder.set_exif_metadata(exif.to_vec()).expect("the format has EXIF");
    picture.write_with_encoder(encoder)
}

fn pairs() -> Seeds {
    let texts = [
        ("one-fold.txt", "2\nAda 1 2\nBob 1 3\nAda 1 Bob 2\nAda 3 Cleo 1\n"),
        ("folds.txt", "2\t1\nAda Lovelace\t1\t2\nAda Lovelace\t1\tBob\t3\nBob\t1\t2\r\nBob\t2\tCleo\tc.png\n"),
        ("genuine.csv", "name,imagenum1,imagenum2\r\nAda,1,2\r\n\"Bob, the second\",1,3\r\n"),
        (
            "folds.csv",
            "name,imagenum1,imagenum2,\nA,1,2,\nA,1,3,\nA,1,B,1\nA,2,B,2\nB,1,2,\nB,2,3,\nA,1,B,2\nA,2,B,1\n",
        ),
        ("numbered.csv", "\u{feff};name;imagenum1;imagenum2;\n0;Ada;1.0;2.0\n1;Ada;1;deep/bob;1\n"),
        ("counted.csv", "1,1\nAda,1,2\nAda,1,Bob,1\n"),
    ];
    let mut seeds: Seeds = texts.map(|(name, text)| (name, text.into())).into();
    let wide = "\u{feff}1\nÅsa 1 2\nÅsa 1 Bob 2\n".encode_utf16();
    seeds.push(("little-endian.txt", wide.clone().flat_map(u16::to_le_bytes).collect()));
    seeds.push(("big-endian.txt", wide.flat_map(u16::to_be_bytes).collect()));
    seeds
}

/// Checkpoints before the first step and after the second.
fn checkpoints() -> Seeds {
    let at = |step: u64, weights: Option<&str>, tensors: &[(&str, Tensor)]| {
        let measured: Vec<_> = (1..=step).map(|step| json!({"step": step, "eer": 0.3, "eer_skilled": null})).collect();
        let document = json!({
            "format": 5, "version": "0.1.0",
            "origin": {"options": {"seed": 5, "margin": 0.2}, "data": "0123456789abcdef".repeat(2), "weights": weights},
            "state": {
                "step": step, "updates": step, "images": 6 * step, "seconds": 0.1, "waited": 0.0, "run_seconds": 0.3,
                "evaluating": 0.1, "scaler": {"scale": 65536.0, "good": step}, "memory": 0, "measured": measured, "stale": 0
            }
        });
        let history = Tensor::from_slice(&vec![0.5f64; step as usize]);
        let mut tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        tensors.extend([("history/loss", &history), ("history/active", &history)]);
        safetensors(&tensors, Some(HashMap::from([("tercet".to_owned(), document.to_string())])))
    };
    let tensor = Tensor::full([3, 2], 0.1, (Kind::Float, Device::Cpu));
    let labels = Tensor::from_slice(&[1i64, 2]);
    vec![
        ("begun.safetensors", at(0, None, &[])),
        (
            "going.safetensors",
            at(2, Some("f".repeat(32).as_str()), &[("encoder/a", tensor), ("memory/labels", labels)]),
        ),
    ]
}

/// Weights of each type, and of none.
fn weights() -> Seeds {
    let all = [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int, Kind::Int16, Kind::Int8];
    let tensors = all.map(|kind| Tensor::ones([2, 1], (kind, Device::Cpu)));
    let names = ["conv1.weight", "b", "c", "d", "e", "f", "g", "h"];
    let several: Vec<_> = names.into_iter().zip(&tensors).collect();
    let odd = [Tensor::from(true), Tensor::from_slice(&[7u8, 9]), Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))];
    let odd: Vec<_> = ["scalar", "bytes", "empty"].into_iter().zip(&odd).collect();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    vec![
        ("several.safetensors", safetensors(&several, None)),
        ("odd.safetensors", safetensors(&odd, Some(metadata))),
        ("none.safetensors", safetensors(&[], None)),
    ]
}

fn safetensors(tensors: &[(&str, &Tensor)], metadata: Option<HashMap<String, String>>) -> Vec<u8> {
    let held: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, checks::raw(tensor))).collect();
    let views = held.iter().map(|(name, (kind, size, bytes))| {
        let shape = size.iter().map(|&n| n as usize).collect();
        (*name, TensorView::new(Dtype::try_from(*kind).unwrap(), shape, bytes).unwrap())
    });
    serialize(views, &metadata).unwrap()
}

fn settings() -> Seeds {
    let text = |distance: &str, far_skilled: Option<f64>| {
        let mut settings = json!({
            "format": 1, "encoder": "resnet18", "embedding_dim": 8, "image_size": 32, "normalize": true,
            "distance": distance, "trained_on": "a folder", "version": "0.1.0",
            "calibration": {"threshold": 0.7, "far": 0.1, "frr": 0.11, "eer": 0.105, "identities": 9, "images": 40}
        });
        if let Some(far) = far_skilled {
            settings["calibration"]["far_skilled"] = far.into();
        }
        settings.to_string().into_bytes()
    };
    let titles = [("euclidean.json", "Euclidean"), ("cosine.json", "cosine"), ("power.json", "L2.5")];
    let mut seeds: Seeds = titles.map(|(name, title)| (name, text(title, None))).into();
    seeds.push(("skilled.json", text("squared Euclidean", Some(0.25))));
    seeds
}
