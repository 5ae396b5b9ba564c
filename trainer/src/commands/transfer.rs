//! `tercet export` and `tercet import`: the samples of a gallery as files that other programs read and write.
//!
//! A `.safetensors` file is what `tercet embed` writes, with the metadata `model` and, as a JSON list, `pictures`. A `.npy` file
//! holds the embeddings `[N, D]` alone; whose they are stands in a file of its name with `.csv` behind it, with the columns
//! `person,source,picture`.

use crate::commands::cli::{ExportArgs, ImportArgs};
use crate::gallery::{Gallery, Made, New, Sample, check_name};
use crate::model::saved::Model;
use crate::model::vectors::Vectors;
use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::fingerprint::Fingerprint;
use crate::process::named::plural;
use crate::process::say::{note, say, say_path};
use anyhow::Result;
use npyz::WriterBuilder;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Samples that are imported together.
const TOGETHER: usize = 4096;

/// A line of the file beside a `.npy` file.
#[derive(Serialize, Deserialize)]
struct Line {
    person: String,
    source: String,
    #[serde(default)]
    picture: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    SafeTensors,
    Npy,
}

impl Form {
    fn of(option: &str, file: &Path) -> Result<Self> {
        match file.extension().and_then(|suffix| suffix.to_str()) {
            Some("safetensors") => Ok(Self::SafeTensors),
            Some("npy") => Ok(Self::Npy),
            _ => Err(bad_input(format!(
                "{option} {}: expected a name that ends in .safetensors or .npy",
                file.display()
            ))),
        }
    }
}

/// The file with the people of a `.npy` file.
fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".csv");
    name.into()
}

/// Writes all samples to a file, which must not be there yet.
pub fn export(args: &ExportArgs) -> Result<()> {
    let form = Form::of("OUT", &args.out)?;
    atomic::check_new("OUT", &args.out)?;
    if form == Form::Npy {
        atomic::check_new("OUT", &beside(&args.out))?;
    }
    let gallery = Gallery::open(&args.gallery)?;
    let (vectors, samples) = gallery.described()?;
    if samples.is_empty() {
        return Err(bad_input(format!("{}: no samples", args.gallery.display())));
    }
    let (n, dim) = (samples.len(), vectors.dim());
    let people: BTreeSet<&str> = samples.iter().map(|sample| sample.name.as_str()).collect();
    if form == Form::SafeTensors {
        let number: HashMap<&str, i64> = people.iter().zip(0..).map(|(name, i)| (*name, i)).collect();
        let of = |f: fn(&Sample) -> &str| serde_json::to_string(&samples.iter().map(f).collect::<Vec<_>>());
        let metadata = HashMap::from([
            ("names".into(), of(|sample| &sample.source)?),
            ("pictures".into(), of(|sample| &sample.picture)?),
            ("identities".into(), serde_json::to_string(&people)?),
            ("distance".into(), gallery.made.distance.title()),
            ("model".into(), gallery.made.model.into()),
        ]);
        let values: Vec<u8> = vectors.as_slice().iter().flat_map(|v| v.to_le_bytes()).collect();
        let labels: Vec<u8> = samples.iter().flat_map(|s| number[s.name.as_str()].to_le_bytes()).collect();
        let tensors = [
            ("embeddings", TensorView::new(Dtype::F32, vec![n, dim], &values)?),
            ("labels", TensorView::new(Dtype::I64, vec![n], &labels)?),
        ];
        atomic::write_new("OUT", &args.out, &serialize(tensors, &Some(metadata))?)?;
    } else {
        let mut bytes = Vec::new();
        let mut writer =
            npyz::WriteOptions::new().default_dtype().shape(&[n as u64, dim as u64]).writer(&mut bytes).begin_nd()?;
        writer.extend(vectors.as_slice().iter().copied())?;
        writer.finish()?;
        let mut lines = csv::Writer::from_writer(Vec::new());
        for Sample { name, source, picture } in &samples {
            lines.serialize(Line { person: name.clone(), source: source.clone(), picture: picture.clone() })?;
        }
        let lines = lines.into_inner().map_err(|error| error.into_error())?;
        // The embeddings last: with them it is complete.
        atomic::write_new("OUT", &beside(&args.out), &lines)?;
        atomic::write_new("OUT", &args.out, &bytes)?;
    }
    let (count, samples) = (people.len(), plural(n, "sample", "samples"));
    say(&format!("{n} {samples} of {count} {}", plural(count, "person", "people")))?;
    say_path(&args.out)
}

/// Enrols the embeddings of a file.
pub fn import(args: &ImportArgs) -> Result<()> {
    let wrong = |what: &str| bad_input(format!("{}: {what}", args.file.display()));
    let form = Form::of("FILE", &args.file)?;
    let device = args.model.device()?;
    let bytes = std::fs::read(&args.file).map_err(|error| wrong(&error.to_string()))?;
    let (rows, dim, lines, by) = match form {
        Form::SafeTensors => of_safetensors(&bytes).map_err(|error| wrong(&format!("{error:#}")))?,
        Form::Npy => {
            let (rows, dim) = of_npy(&bytes).map_err(|error| wrong(&format!("{error:#}")))?;
            let beside = args.people.clone().unwrap_or_else(|| beside(&args.file));
            let named = |error: csv::Error| bad_input(format!("{}: {error}", beside.display()));
            let lines = csv::Reader::from_path(&beside).map_err(named)?.deserialize().collect::<Result<Vec<Line>, _>>();
            (rows, dim, lines.map_err(named)?, None)
        }
    };
    if lines.len() != rows.len() / dim {
        return Err(wrong(&format!("{} embeddings, but {} people and sources", rows.len() / dim, lines.len())));
    }
    for line in &lines {
        check_name(&format!("{}: person", args.file.display()), &line.person)?;
    }
    if rows.iter().any(|x| !x.is_finite()) {
        return Err(wrong("an embedding with NaN or infinity"));
    }
    let model = Model::load(&args.model.model, device)?;
    let made = Made::by(&model)?;
    if dim != made.dim {
        return Err(wrong(&format!("embeddings of {dim} numbers; the model's have {}", made.dim)));
    }
    if by.is_some_and(|by| by != made.model) {
        return Err(wrong("of another model than --model"));
    }
    let of_length_1 = model.settings.normalize || made.distance.of_directions();
    let length = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if of_length_1 && rows.chunks_exact(dim).any(|row| (length(row) - 1.0).abs() > 1e-3) {
        return Err(wrong("embeddings that are not of length 1, as the model's are"));
    }
    let mut gallery = Gallery::open_or_make(&args.gallery, &made)?;
    let vectors = Vectors::new(rows, dim, made.distance);
    let mut added = 0;
    for first in (0..lines.len()).step_by(TOGETHER) {
        let some = first..lines.len().min(first + TOGETHER);
        let new = |i: usize| {
            let bytes: Vec<u8> = vectors.row(i).iter().flat_map(|x| x.to_le_bytes()).collect();
            // Of a picture that nobody knows, the embedding tells whether it was enrolled before.
            let picture = Fingerprint::try_from(lines[i].picture.clone()).unwrap_or_else(|_| Fingerprint::of(&bytes));
            let Line { person, source, .. } = &lines[i];
            New { name: person, picture, source, embedding: vectors.row(i), note: None }
        };
        added += gallery.enroll(&some.map(new).collect::<Vec<_>>())?;
    }
    let known = lines.len() - added;
    if known > 0 {
        note(&format!("{known} {} enrolled already", plural(known, "sample was", "samples were")));
    }
    say(&format!("{added} new {} in {}", plural(added, "sample", "samples"), args.gallery.display()))
}

type Read = (Vec<f32>, usize, Vec<Line>, Option<Fingerprint>);

fn of_safetensors(bytes: &[u8]) -> Result<Read> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let list = |key: &str| -> Result<Vec<String>> {
        let text = metadata.get(key).ok_or_else(|| anyhow::anyhow!("no {key} in its metadata"))?;
        Ok(serde_json::from_str(text)?)
    };
    let embeddings = tensors.tensor("embeddings")?;
    let labels = tensors.tensor("labels")?;
    let &[n, dim] = embeddings.shape() else { anyhow::bail!("embeddings of shape {:?}", embeddings.shape()) };
    let fit = embeddings.dtype() == Dtype::F32 && labels.dtype() == Dtype::I64 && labels.shape() == [n] && dim > 0;
    anyhow::ensure!(fit, "expected embeddings f32 [N, D] and labels i64 [N]");
    let (names, identities) = (list("names")?, list("identities")?);
    let pictures = list("pictures").unwrap_or_else(|_| vec![String::new(); n]);
    anyhow::ensure!(names.len() == n && pictures.len() == n, "{n} embeddings, but {} names", names.len());
    let mut lines = Vec::new();
    for ((label, source), picture) in labels.data().chunks_exact(8).zip(names).zip(pictures) {
        let label = i64::from_le_bytes(label.try_into()?);
        let person = usize::try_from(label).ok().and_then(|label| identities.get(label));
        let person = person.ok_or_else(|| anyhow::anyhow!("label {label} of {} identities", identities.len()))?.clone();
        lines.push(Line { person, source, picture });
    }
    let rows = embeddings.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    let by = metadata.get("model").and_then(|model| Fingerprint::try_from(model.clone()).ok());
    Ok((rows, dim, lines, by))
}

fn of_npy(bytes: &[u8]) -> Result<(Vec<f32>, usize)> {
    let file = npyz::NpyFile::new(bytes)?;
    let &[_, dim] = file.shape() else { anyhow::bail!("an array of shape {:?}, expected [N, D]", file.shape()) };
    anyhow::ensure!(dim > 0 && file.order() == npyz::Order::C, "expected rows of numbers, one after another");
    Ok((file.into_vec::<f32>()?, dim as usize))
}
