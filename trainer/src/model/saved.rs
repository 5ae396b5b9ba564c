//! A trained encoder as a run folder keeps it: `encoder.safetensors`, and `model.json` with what the
//! weights alone do not say, the calibrated threshold among it.

use crate::data::images::{Budget, Images, OnBadImage, Reader};
use crate::data::view::{Affine, tensor};
use crate::model::calibration::Calibration;
use crate::model::distance::Distance;
use crate::model::encoder::{Architecture, Encoder, Pass};
use crate::model::vectors::Vectors;
use crate::model::weights;
use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::fingerprint::{Fingerprint, Sequence};
use crate::process::shell;
use crate::run_folder;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use tch::{Device, Tensor, nn};

/// The weights' file in a run folder.
const WEIGHTS: &str = "encoder.safetensors";
/// The settings' file.
const SETTINGS: &str = "model.json";
/// The version of `model.json` that this program writes and reads.
const FORMAT: u32 = 1;
/// How many files are decoded while those before them are encoded.
const CHUNK: usize = 256;
/// Images per forward pass.
const BATCH: usize = 64;

/// The content of `model.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The version of the file's format.
    pub format: u32,
    /// The network, as `--encoder` names it.
    pub encoder: String,
    /// How many numbers an embedding has.
    pub embedding_dim: i64,
    /// The side in pixels that images are resized to.
    pub image_size: usize,
    /// Whether embeddings are brought to length 1 before they are compared.
    pub normalize: bool,
    /// The distance that embeddings are compared by, the same as in training: the title of a [`Distance`].
    pub distance: String,
    /// The calibrated threshold.
    pub calibration: Calibration,
    /// What the model was trained on.
    pub trained_on: String,
    /// The version of Tercet that wrote the file.
    pub version: String,
}

impl Settings {
    /// The settings of an encoder that was just trained.
    pub fn new(
        encoder: Architecture,
        embedding_dim: i64,
        image_size: usize,
        normalize: bool,
        distance: Distance,
        calibration: Calibration,
        trained_on: &str,
    ) -> Self {
        let name = encoder.to_possible_value().expect("no architecture is hidden").get_name().to_owned();
        Self {
            format: FORMAT,
            encoder: name,
            embedding_dim,
            image_size,
            normalize,
            distance: distance.title(),
            calibration,
            trained_on: trained_on.into(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// The fingerprint of weights and of what else an embedding and its distances depend on.
    fn fingerprint(&self, weights: Fingerprint) -> Fingerprint {
        let Self { encoder, embedding_dim, image_size, normalize, distance, .. } = self;
        let text = format!("{encoder} {embedding_dim} {image_size} {normalize} {distance}");
        let mut all = Sequence::default();
        all.fingerprint(weights);
        all.fingerprint(Fingerprint::of(text.as_bytes()));
        all.end()
    }

    /// Reads the settings of a run folder.
    fn read(folder: &Path) -> Result<(Self, Architecture, Distance)> {
        let wrong = |what: String| bad_input(format!("--model {}: {SETTINGS}: {what}", folder.display()));
        let text = std::fs::read_to_string(folder.join(SETTINGS)).map_err(|e| wrong(e.to_string()))?;
        parse(&text).map_err(wrong)
    }
}

/// The settings in the text of a `model.json`, their encoder and their distance. Numbers that cannot be are refused, so
/// that nothing later meets them; an error says what is wrong.
pub fn parse(text: &str) -> Result<(Settings, Architecture, Distance), String> {
    // Check the format first: another version's fields may have other names.
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if value["format"] != FORMAT {
        return Err(format!("format {}; this program reads format {FORMAT}", value["format"]));
    }
    let settings: Settings = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let architecture = Architecture::from_str(&settings.encoder, false)
        .map_err(|_| format!("encoder {:?} is not one of this program's", settings.encoder))?;
    let Some(distance) = Distance::from_title(&settings.distance) else {
        let expected = "expected squared Euclidean, Euclidean, cosine, or L and a number";
        return Err(format!("distance {:?}; {expected}", settings.distance));
    };
    if !(1..=65_536).contains(&settings.embedding_dim) {
        return Err(format!("embedding_dim {}; expected 1 to 65536", settings.embedding_dim));
    }
    if !(8..=1024).contains(&settings.image_size) {
        return Err(format!("image_size {}; expected 8 to 1024", settings.image_size));
    }
    let threshold = settings.calibration.operating.threshold;
    if !(threshold.is_finite() && threshold >= 0.0) {
        return Err(format!("threshold {threshold}; expected a distance"));
    }
    if let Some(identification) = &settings.calibration.identification {
        let of_pairs = identification.matches.iter().map(|(_, threshold)| threshold);
        let mut thresholds = identification.searches.iter().map(|(_, threshold)| threshold).chain(of_pairs);
        if let Some(wrong) = thresholds.find(|threshold| !(threshold.is_finite() && **threshold >= 0.0)) {
            return Err(format!("identification: threshold {wrong}; expected a distance"));
        }
        if !(identification.fpir > 0.0 && identification.fpir < 1.0) {
            return Err(format!("identification: fpir {}; expected a number between 0 and 1", identification.fpir));
        }
    }
    Ok((settings, architecture, distance))
}

/// Writes both files, `model.json` last: with it the model is complete.
pub fn save(folder: &Path, vs: &nn::VarStore, settings: &Settings) -> Result<()> {
    weights::save(vs, &folder.join(WEIGHTS))?;
    let mut text = serde_json::to_string_pretty(settings)?;
    text.push('\n');
    atomic::write(&folder.join(SETTINGS), text.as_bytes())
}

/// The embeddings of those image files that could be read.
#[derive(Default)]
pub struct Embedded {
    /// One row per image.
    pub vectors: Vectors,
    /// The index of each image's file.
    pub kept: Vec<usize>,
    /// The hash of each image's pixels.
    pub hashes: Vec<Fingerprint>,
}

/// An encoder, ready to compare images.
pub struct Model {
    /// What `model.json` says.
    pub settings: Settings,
    distance: Distance,
    encoder: Encoder,
    device: Device,
    /// The file of the weights.
    weights: PathBuf,
}

impl Model {
    /// Reads a run folder of `tercet train`. Weights that do not fit the settings are refused, and all of them are
    /// named.
    pub fn load(folder: &Path, device: Device) -> Result<Self> {
        if !folder.is_dir() {
            let expected = "expected the run folder of a `tercet train`";
            return Err(bad_input(format!("--model {}: not a folder; {expected}", folder.display())));
        }
        if !folder.join(SETTINGS).exists() && run_folder::checkpoint(folder).exists() {
            let (folder, word) = (folder.display(), shell::word(folder));
            return Err(bad_input(format!(
                "--model {folder}: no {SETTINGS}: its run has not come to its end; to go on: tercet train --resume {word}"
            )));
        }
        let (settings, architecture, distance) = Settings::read(folder)?;
        let vs = nn::VarStore::new(device);
        let encoder = Encoder::new(&vs.root(), architecture, settings.embedding_dim);
        let file = folder.join(WEIGHTS);
        weights::load_all(&vs, &file, "--model")?;
        Ok(Self { settings, distance, encoder, device, weights: file })
    }

    /// The fingerprint of everything that an embedding depends on. Reads the weights' file once more.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        let bytes = std::fs::read(&self.weights).with_context(|| format!("cannot read {}", self.weights.display()))?;
        Ok(self.settings.fingerprint(Fingerprint::of(&bytes)))
    }

    /// The distance that embeddings are compared by.
    pub fn distance(&self) -> Distance {
        self.distance
    }

    /// The calibrated threshold.
    pub fn threshold(&self) -> f32 {
        self.settings.calibration.operating.threshold
    }

    /// Embeds image files. The next files are decoded while the encoder works.
    pub fn embed(&self, files: &[PathBuf], on_bad: OnBadImage) -> Result<Embedded> {
        let _guard = tch::no_grad_guard();
        let mut reader = Reader::new(self.settings.image_size, on_bad, Budget::unlimited());
        let mut embedded = Embedded::default();
        std::thread::scope(|scope| -> Result<()> {
            let (send, receive) = sync_channel(1);
            let reader = &mut reader;
            scope.spawn(move || {
                for (number, chunk) in files.chunks(CHUNK).enumerate() {
                    if send.send((number * CHUNK, reader.read(chunk))).is_err() {
                        return; // the receiver has met an error
                    }
                }
            });
            for (first, images) in receive {
                let (images, read) = images?;
                self.encode(&images, &mut embedded.vectors)?;
                embedded.kept.extend(read.into_iter().map(|index| first + index));
                embedded.hashes.extend((0..images.len()).map(|image| images.hash(image)));
            }
            Ok(())
        })?;
        reader.end();
        Ok(embedded)
    }

    fn encode(&self, images: &Images, vectors: &mut Vectors) -> Result<()> {
        let all: Vec<_> = (0..images.len()).map(|image| (image, Affine::IDENTITY)).collect();
        for views in all.chunks(BATCH) {
            let embeddings: Tensor = self.encoder.forward(&tensor(images, views, self.device)?, Pass::Evaluate)?;
            let rows = Vectors::from_tensor(&embeddings, self.settings.normalize, self.distance);
            vectors.extend(&rows.context("the model cannot be used")?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::calibration::Operating;

    fn settings() -> Settings {
        let operating = Operating { threshold: 0.7, far: 0.1, frr: 0.11 };
        let calibration =
            Calibration { operating, eer: 0.105, far_skilled: None, identities: 9, images: 40, identification: None };
        Settings::new(Architecture::Resnet18, 8, 32, true, Distance::Euclidean, calibration, "a folder")
    }

    fn saved(folder: &Path) {
        let vs = nn::VarStore::new(Device::Cpu);
        Encoder::new(&vs.root(), Architecture::Resnet18, 8);
        save(folder, &vs, &settings()).unwrap();
    }

    #[track_caller]
    fn refused(folder: &Path, words: &[&str]) {
        let error = Model::load(folder, Device::Cpu).err().expect("it loads");
        let text = format!("{error:#}");
        assert_eq!(crate::process::bad_input::exit_code(&error), 2, "{text}");
        for word in words.iter().chain(&["--model"]) {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    }

    #[test]
    fn a_saved_model_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path());
        let model = Model::load(dir.path(), Device::Cpu).unwrap();
        assert_eq!(model.settings, settings());
        assert_eq!(model.threshold(), 0.7);
        let picture = dir.path().join("a.png");
        image::GrayImage::from_fn(40, 20, |x, y| image::Luma([(x * y) as u8])).save(&picture).unwrap();
        let files = vec![picture; 3];
        let Embedded { vectors, kept, hashes } = model.embed(&files, OnBadImage::Stop).unwrap();
        assert!(hashes.len() == 3 && hashes[0] == hashes[2]);
        assert_eq!((vectors.len(), vectors.dim(), kept), (3, 8, vec![0, 1, 2]));
        assert_eq!(vectors.distance(0, 2), 0.0);
    }

    #[test]
    fn a_model_compares_by_the_distance_that_it_was_trained_with() {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path());
        let file = dir.path().join(SETTINGS);
        let good: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(good["distance"], "Euclidean");
        let pictures = [1, 5].map(|step| {
            let picture = dir.path().join(format!("{step}.png"));
            image::GrayImage::from_fn(40, 20, |x, y| image::Luma([(x * y * step) as u8])).save(&picture).unwrap();
            picture
        });
        let distance = |title: &str| {
            let mut changed = good.clone();
            changed["distance"] = title.into();
            std::fs::write(&file, changed.to_string()).unwrap();
            let model = Model::load(dir.path(), Device::Cpu).unwrap();
            model.embed(&pictures, OnBadImage::Stop).unwrap().vectors.distance(0, 1)
        };
        // The other distances follow from that of rows of length 1.
        let euclidean = distance("Euclidean");
        assert!(euclidean > 0.0);
        for (title, expected) in
            [("squared Euclidean", euclidean * euclidean), ("cosine", euclidean * euclidean / 2.0), ("L2", euclidean)]
        {
            let got = distance(title);
            assert!((got - expected).abs() <= 1e-5 * expected, "{title}: {got}, not {expected}");
        }
        assert!(distance("L1") > euclidean && distance("Linf") < euclidean);
    }

    #[test]
    fn what_is_no_model_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        refused(&dir.path().join("absent"), &["absent", "not a folder", "tercet train"]);
        refused(dir.path(), &["model.json", "No such file"]);
        std::fs::write(run_folder::checkpoint(dir.path()), b"").unwrap();
        refused(dir.path(), &["model.json", "has not come to its end", "tercet train --resume"]);
        std::fs::remove_file(run_folder::checkpoint(dir.path())).unwrap();
        saved(dir.path());

        let file = dir.path().join(SETTINGS);
        let good: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let changed = |key: &str, value: serde_json::Value| {
            let mut changed = good.clone();
            match key {
                "threshold" => changed["calibration"][key] = value,
                _ => changed[key] = value,
            }
            std::fs::write(&file, changed.to_string()).unwrap();
        };
        std::fs::write(&file, "{").unwrap();
        refused(dir.path(), &["model.json", "EOF"]);
        changed("format", 9.into());
        refused(dir.path(), &["format 9", "reads format 1"]);
        changed("encoder", "vgg".into());
        refused(dir.path(), &["vgg"]);
        changed("distance", "taxi".into());
        refused(dir.path(), &["taxi", "squared Euclidean"]);
        changed("threshold", serde_json::Value::Null);
        refused(dir.path(), &["model.json"]);
        changed("threshold", (-1.0).into());
        refused(dir.path(), &["threshold -1"]);
        changed("image_size", 4.into());
        refused(dir.path(), &["image_size 4"]);
        changed("embedding_dim", 0.into());
        refused(dir.path(), &["embedding_dim 0"]);
        // The weights of another head are named, not left out.
        changed("embedding_dim", 9.into());
        refused(dir.path(), &["fc.weight: [8, 512] in the file, [9, 512]", "fc.bias"]);
        std::fs::write(&file, good.to_string()).unwrap();
        std::fs::write(dir.path().join(WEIGHTS), b"torn").unwrap();
        refused(dir.path(), &[WEIGHTS]);
        std::fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
        refused(dir.path(), &[WEIGHTS]);
    }
}
