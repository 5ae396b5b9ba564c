//! `checkpoint.safetensors`: everything that a run needs to go on to the same numbers, in one file, so that no two
//! parts of it can be of different steps.
//!
//! The tensors are `encoder/NAME` (batch norm's statistics among them); after the first update Adam's `mean/NAME` and
//! `square/NAME`; `best/NAME` if the best weights are kept; `memory/embeddings` and `memory/labels` if there is a
//! memory that is not empty; `before/images` and `before/forgeries`, the embeddings before training; `history/loss` and
//! `history/active`. All else is JSON in the file's metadata. Every random draw derives from (seed, epoch, step), so
//! there is no generator to store.

use crate::data::dataset::Dataset;
use crate::evaluation::metrics::Measured;
use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::fingerprint::{Fingerprint, Sequence};
use crate::run_folder::{self, CHECKPOINT};
use crate::training::scaler::Scaler;
use anyhow::{Result, anyhow};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// The key of the JSON in the file's metadata.
const KEY: &str = "tercet";
/// The version of the format that this program writes and reads.
const FORMAT: u32 = 5;

/// What a run is made of: resuming needs the same options and files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// All of the run's options by name.
    pub options: serde_json::Value,
    /// [`fingerprint`] of the images.
    pub data: Fingerprint,
    /// [`weights::fingerprint`](crate::model::weights::fingerprint) of the initial weights' file.
    pub weights: Option<Fingerprint>,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Updates done: fewer than steps if a gradient scaler left some out.
    pub updates: u64,
    /// Training images encoded.
    pub images: u64,
    /// Seconds spent on training.
    pub seconds: f64,
    /// Seconds of training spent waiting for images.
    pub waited: f64,
    /// Seconds spent on the whole run.
    pub run_seconds: f64,
    /// Seconds spent on the evaluation before training.
    pub evaluating: f64,
    /// The gradient scaler of f16.
    pub scaler: Scaler,
    /// The place in the memory that the next embedding goes to.
    pub memory: usize,
    /// Evaluations so far.
    pub measured: Vec<Measured>,
    /// Evaluations in a row without a better EER.
    pub stale: u64,
    /// The loss of each step.
    #[serde(skip)]
    pub losses: Vec<f64>,
    /// The active fraction of each step.
    #[serde(skip)]
    pub active: Vec<f64>,
}

impl State {
    /// The lowest EER of the evaluations during training.
    pub fn best(&self) -> Option<f64> {
        self.measured.iter().map(|measured| measured.eer).min_by(f64::total_cmp)
    }

    /// Whether the evaluation after the present step has been done.
    pub fn is_measured(&self) -> bool {
        self.measured.last().is_some_and(|last| last.step == self.step)
    }

    /// Steps that were left out because a number overflowed.
    pub fn skipped(&self) -> u64 {
        self.step - self.updates
    }

    /// The evaluations of the whole run, from `first`, before training. `last` is the one after training; it is left
    /// out if it is of the `best` weights, or if the last step has been evaluated already, as both then have their
    /// point.
    pub fn curve(&self, first: Measured, last: Measured, best: bool) -> Vec<Measured> {
        let mut curve = vec![first];
        curve.extend(&self.measured);
        if !best && !self.is_measured() {
            curve.push(Measured { step: self.step, ..last });
        }
        curve
    }
}

/// The metadata's JSON.
#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    version: String,
    origin: Origin,
    state: State,
}

/// A checkpoint as it was read.
pub struct Checkpoint {
    /// The run's folder, for errors.
    folder: PathBuf,
    /// What the run is made of.
    pub origin: Origin,
    /// Where the run stands.
    pub state: State,
    tensors: HashMap<String, Tensor>,
}

/// Replaces a run folder's checkpoint, or leaves it as it was: the new one is on the disk, whole, before it
/// gets the name.
pub fn write<'a>(
    folder: &Path,
    origin: &Origin,
    state: &State,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
) -> Result<()> {
    let document = Document {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        origin: origin.clone(),
        state: state.clone(),
    };
    let metadata = HashMap::from([(KEY.to_owned(), serde_json::to_string(&document)?)]);
    let mut views = Vec::new();
    for (name, tensor) in tensors {
        views.push((name, Bytes::new(&tensor.f_to_device(Device::Cpu)?.f_contiguous()?)?));
    }
    views.push(("history/loss".into(), Bytes::new(&Tensor::from_slice(&state.losses))?));
    views.push(("history/active".into(), Bytes::new(&Tensor::from_slice(&state.active))?));

    atomic::write_by(&run_folder::checkpoint(folder), |temporary| {
        serialize_to_file(views, &Some(metadata), temporary.path()).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(error) => error.into(),
            other => anyhow!("{other:?}"),
        })
    })
}

/// The checkpoint in the bytes of a file; an error says what is wrong with them.
pub fn parse(bytes: &[u8]) -> Result<Checkpoint, String> {
    let torn = |error| format!("{error:?}");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(torn)?;
    let json = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    let json = json.ok_or("not a checkpoint of this program")?;
    // Check the format first: another version's fields may have other names.
    let value: serde_json::Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    if value["format"] != FORMAT {
        let (format, version) = (&value["format"], value["version"].as_str().unwrap_or("an unknown version"));
        return Err(format!(
            "format {format}, which Tercet {version} wrote; this program reads format {FORMAT}: its run goes on with the \
             Tercet that began it, or begins anew"
        ));
    }
    let Document { origin, mut state, .. } = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if state.updates > state.step {
        return Err(format!("{} updates; expected at most one for each of its {} steps", state.updates, state.step));
    }
    let mut tensors = HashMap::new();
    for (name, view) in SafeTensors::deserialize(bytes).map_err(torn)?.tensors() {
        tensors.insert(name, Tensor::try_from(view).map_err(|e| e.to_string())?);
    }
    let mut history = |name: &str| -> Result<Vec<f64>, String> {
        let tensor = tensors.remove(name).ok_or_else(|| format!("{name}: missing"))?;
        let values: Vec<f64> = tensor.try_into().map_err(|e| format!("{name}: {e}"))?;
        let (there, steps) = (values.len() as u64, state.step);
        (there == steps).then_some(values).ok_or_else(|| format!("{name}: {there} values of {steps} steps"))
    };
    (state.losses, state.active) = (history("history/loss")?, history("history/active")?);
    Ok(Checkpoint { folder: PathBuf::new(), origin, state, tensors })
}

/// The error of a checkpoint that cannot be used.
fn wrong(folder: &Path, what: &dyn std::fmt::Display) -> anyhow::Error {
    bad_input(format!("--resume {}: {CHECKPOINT}: {what}", folder.display()))
}

impl Checkpoint {
    /// Refuses a run folder without a checkpoint.
    pub fn must_exist(folder: &Path) -> Result<()> {
        let why = match run_folder::checkpoint(folder).metadata() {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound && folder.is_dir() => {
                format!("no {CHECKPOINT} in it: the run ended before the first one")
            }
            Err(error) => format!("{CHECKPOINT}: {error}"),
        };
        Err(bad_input(format!("--resume {}: {why}", folder.display())))
    }

    /// The bytes of the checkpoint of a run folder.
    pub fn bytes(folder: &Path) -> Result<Vec<u8>> {
        std::fs::read(run_folder::checkpoint(folder)).map_err(|error| wrong(folder, &error))
    }

    /// The checkpoint of a run folder in its bytes.
    pub fn of(folder: &Path, bytes: &[u8]) -> Result<Self> {
        let checkpoint = parse(bytes).map_err(|what| wrong(folder, &what))?;
        Ok(Self { folder: folder.to_owned(), ..checkpoint })
    }

    /// Reads the checkpoint of a run folder.
    #[cfg(test)]
    pub fn read(folder: &Path) -> Result<Self> {
        Self::of(folder, &Self::bytes(folder)?)
    }

    /// Takes a tensor out of the checkpoint.
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        let missing = || bad_input(format!("--resume {}: {CHECKPOINT}: {name}: missing", self.folder.display()));
        self.tensors.remove(name).ok_or_else(missing)
    }

    /// The tensor of this name, if it has this shape. One of another shape could be copied all the same: libtorch repeats it.
    pub fn take_shaped(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let (tensor, folder) = (self.take(name)?, self.folder.display());
        let there = tensor.size();
        if there != shape {
            let wrong = format!("expected the shape {shape:?}, got {there:?}");
            return Err(bad_input(format!("--resume {folder}: {CHECKPOINT}: {name}: {wrong}")));
        }
        Ok(tensor)
    }

    /// All tensors that have not been taken, with their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.tensors.iter()
    }

    /// Whether the checkpoint has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// A hash of the images and of how they are divided among identities.
pub fn fingerprint(sets: &[&Dataset]) -> Fingerprint {
    let mut all = Sequence::default();
    for set in sets.iter().flat_map(|set| std::iter::once(*set).chain(set.forgeries.as_deref())) {
        all.number(set.members.len());
        for images in &set.members {
            all.number(images.len());
            images.iter().for_each(|&image| all.fingerprint(set.images.hash(image)));
        }
    }
    all.end()
}

/// A contiguous CPU tensor's memory, copied when it is written.
struct Bytes {
    tensor: Tensor,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Bytes {
    fn new(tensor: &Tensor) -> Result<Self> {
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        Ok(Self { tensor: tensor.detach(), shape, dtype: tensor.kind().try_into()? })
    }
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut data = vec![0; self.data_len()];
        self.tensor.copy_data_u8(&mut data, self.tensor.numel());
        data.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::images::Images;
    use tch::Kind;

    fn origin() -> Origin {
        Origin {
            options: serde_json::json!({"seed": 5, "margin": 0.2}),
            data: Fingerprint::of(b"data"),
            weights: Some(Fingerprint::of(b"weights")),
        }
    }

    fn state(step: u64) -> State {
        State {
            step,
            updates: step,
            seconds: 0.1 + 0.2,
            measured: vec![Measured { step, eer: 1.0 / 3.0, eer_skilled: None }],
            losses: (0..step).map(|i| 1.0 / (i as f64 + 3.0)).collect(),
            active: (0..step).map(|i| 1.0 / (i as f64 + 7.0)).collect(),
            ..Default::default()
        }
    }

    fn put(folder: &Path, step: u64, value: f64) -> Result<()> {
        let tensor = Tensor::full([3, 2], value, (Kind::Float, Device::Cpu));
        write(folder, &origin(), &state(step), [("encoder/a".to_owned(), &tensor)])
    }

    #[test]
    fn what_was_written_comes_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), 0, 1.0).unwrap();
        put(dir.path(), 4, 0.1).unwrap();
        let mut read = Checkpoint::read(dir.path()).unwrap();
        assert_eq!((read.state.clone(), read.origin.clone()), (state(4), origin()));
        assert!(read.has("encoder/a"));
        let tensor = read.take_shaped("encoder/a", &[3, 2]).unwrap();
        assert_eq!(tensor, Tensor::full([3, 2], 0.1, (Kind::Float, Device::Cpu)));
        // Of this shape the tensor would be repeated.
        let other = Checkpoint::read(dir.path()).unwrap().take_shaped("encoder/a", &[5, 3, 2]).unwrap_err();
        assert!(other.to_string().ends_with("encoder/a: expected the shape [5, 3, 2], got [3, 2]"), "{other}");
        let missing = format!("--resume {}: {CHECKPOINT}: encoder/b: missing", dir.path().display());
        assert_eq!(read.take("encoder/b").unwrap_err().to_string(), missing);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn the_curve_ends_with_the_last_step_even_where_nothing_changed() {
        let at = |step: u64, eer: f64| Measured { step, eer, eer_skilled: None };
        let steps =
            |state: &State, best| state.curve(at(0, 0.5), at(9, 0.25), best).iter().map(|m| m.step).collect::<Vec<_>>();
        let mut state = State { step: 9, measured: vec![at(4, 0.25)], ..Default::default() };
        // The same error rate as at step 4 is another point at step 9.
        assert_eq!(steps(&state, false), [0, 4, 9]);
        assert_eq!(steps(&state, true), [0, 4], "the best weights are those of step 4");
        state.measured.push(at(9, 0.25));
        assert_eq!(steps(&state, false), [0, 4, 9]);
        state.measured.clear();
        assert_eq!(steps(&state, false), [0, 9]);
    }

    #[test]
    fn files_that_are_no_checkpoint_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |words: &str| {
            let error =
                Checkpoint::must_exist(dir.path()).and_then(|()| Checkpoint::read(dir.path())).map(|_| ()).unwrap_err();
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
            assert!(error.to_string().contains(words), "{error}");
        };
        refused("the run ended before the first one");
        put(dir.path(), 2, 1.0).unwrap();
        let whole = std::fs::read(run_folder::checkpoint(dir.path())).unwrap();
        std::fs::write(run_folder::checkpoint(dir.path()), &whole[..whole.len() - 1]).unwrap();
        refused(CHECKPOINT);
        std::fs::write(run_folder::checkpoint(dir.path()), b"").unwrap();
        refused(CHECKPOINT);
        Tensor::write_safetensors(&[("a", Tensor::from(1.0))], run_folder::checkpoint(dir.path())).unwrap();
        refused("not a checkpoint");
        write(dir.path(), &origin(), &State { updates: 3, ..state(2) }, []).unwrap();
        refused("3 updates; expected at most one for each of its 2 steps");
    }

    #[test]
    fn a_run_folder_of_an_earlier_format_is_refused_by_its_number() {
        // As format 4 had it: the hashes were numbers, and there is nothing else to tell the two apart by.
        let origin = serde_json::json!({"options": {"seed": 5}, "data": u64::MAX, "weights": null});
        let state = serde_json::to_value(state(0)).unwrap();
        let old = serde_json::json!({"format": 4, "version": "0.0.9", "origin": origin, "state": state});
        let metadata = HashMap::from([(KEY.to_owned(), old.to_string())]);
        let losses = Bytes::new(&Tensor::from_slice::<f64>(&[])).unwrap();
        let bytes = safetensors::serialize([("history/loss", losses)], &Some(metadata)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(run_folder::checkpoint(dir.path()), bytes).unwrap();
        let error = Checkpoint::read(dir.path()).map(|_| ()).unwrap_err();
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        let dir = dir.path().display().to_string();
        for word in ["--resume", &dir, "format 4, which Tercet 0.0.9 wrote", "reads format 5"] {
            assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
        }
    }

    #[test]
    fn other_images_have_another_fingerprint() {
        let set = |values: &[u8], counts: &[usize]| {
            let grey = |&v: &u8| image::GrayImage::from_pixel(8, 8, image::Luma([v]));
            let mut next = 0..values.len();
            Dataset {
                images: Images::from_grey(values.iter().map(grey).collect(), 8),
                members: counts.iter().map(|&n| next.by_ref().take(n).collect()).collect(),
                names: counts.iter().map(|n| n.to_string()).collect(),
                forgeries: None,
            }
        };
        let one = set(&[1, 2, 3, 4], &[2, 2]);
        let same = fingerprint(&[&one]);
        assert_eq!(same, fingerprint(&[&set(&[1, 2, 3, 4], &[2, 2])]));
        assert_ne!(same, fingerprint(&[&set(&[1, 2, 3, 5], &[2, 2])]));
        assert_ne!(same, fingerprint(&[&set(&[1, 2, 3, 4], &[3, 1])]));
        assert_ne!(same, fingerprint(&[&one, &one]));
    }
}
