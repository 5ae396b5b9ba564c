//! The gallery's embeddings in memory, mapped from a file beside the gallery. The file may be removed at any time: it is made
//! again whenever it does not belong to the gallery's present state.
//!
//! It is a `.safetensors` file, which other programs read too:
//!
//! ```text
//! embeddings  f32 [N, D]   of length 1 if the model compares unit rows; one person's rows follow each other
//! people      i64 [N]      whose row it is: a number of the gallery
//! samples     i64 [N]      which sample it is
//! ```

use crate::gallery::store::Gallery;
use crate::model::distance::Distance;
use crate::process::atomic;
use crate::process::say::note;
use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What follows the gallery's name in the name of the index.
const SUFFIX: &str = ".index.safetensors";

/// The embeddings of a gallery, and whose they are.
pub struct Index {
    bytes: Bytes,
    dim: usize,
    distance: Distance,
}

enum Bytes {
    Mapped {
        map: Mmap,
        embeddings: std::ops::Range<usize>,
        people: std::ops::Range<usize>,
        samples: std::ops::Range<usize>,
    },
    Held {
        embeddings: Vec<f32>,
        people: Vec<i64>,
        samples: Vec<i64>,
    },
}

impl Index {
    /// The index of a gallery: the file beside it, or a new one.
    pub fn of(gallery: &Gallery) -> Result<Self> {
        let file = beside(gallery.file());
        if let Ok(index) = Self::map(&file, gallery, gallery.changes()?) {
            return Ok(index);
        }
        let (vectors, of, changes) = gallery.samples()?;
        let people: Vec<i64> = of.iter().map(|[person, _]| *person).collect();
        let samples: Vec<i64> = of.iter().map(|[_, sample]| *sample).collect();
        if let Err(error) = write(&file, gallery, (vectors.as_slice(), &people, &samples), changes) {
            note(&format!("{}: the index could not be kept, and is made again each time: {error:#}", file.display()));
        } else if let Ok(index) = Self::map(&file, gallery, changes) {
            return Ok(index);
        }
        let embeddings = vectors.as_slice().to_vec();
        let (dim, distance) = (gallery.made.dim, gallery.made.distance);
        Ok(Self { bytes: Bytes::Held { embeddings, people, samples }, dim, distance })
    }

    /// Maps the file, if it belongs to this state of the gallery.
    fn map(file: &Path, gallery: &Gallery, changes: u64) -> Result<Self> {
        let opened = File::open(file)?;
        // SAFETY: the file is only ever replaced as a whole, under its name, so what is mapped stays as it is. Whoever changes
        // it in place breaks that, as with any mapped file.
        let map = unsafe { Mmap::map(&opened)? };
        let (_, metadata) = SafeTensors::read_metadata(&map)?;
        let said = metadata.metadata().as_ref().context("no metadata")?;
        ensure!(*said == about(gallery, changes), "of another state");
        let tensors = SafeTensors::deserialize(&map)?;
        let dim = gallery.made.dim;
        let range = |name: &str, dtype: Dtype, size: usize| -> Result<std::ops::Range<usize>> {
            let tensor = tensors.tensor(name)?;
            ensure!(tensor.dtype() == dtype, "{name}: {:?}", tensor.dtype());
            let start = tensor.data().as_ptr() as usize - map.as_ptr() as usize;
            ensure!(start.is_multiple_of(size), "{name}: not aligned");
            Ok(start..start + tensor.data().len())
        };
        let (embeddings, people) = (range("embeddings", Dtype::F32, 4)?, range("people", Dtype::I64, 8)?);
        let samples = range("samples", Dtype::I64, 8)?;
        let rows = people.len() / 8;
        ensure!(samples.len() == 8 * rows && embeddings.len() == 4 * rows * dim, "of other sizes");
        drop(tensors);
        Ok(Self { bytes: Bytes::Mapped { map, embeddings, people, samples }, dim, distance: gallery.made.distance })
    }

    /// All embeddings, row after row.
    pub fn embeddings(&self) -> &[f32] {
        match &self.bytes {
            Bytes::Mapped { map, embeddings, .. } => bytemuck::cast_slice(&map[embeddings.clone()]),
            Bytes::Held { embeddings, .. } => embeddings,
        }
    }

    /// Whose row each is.
    pub fn people(&self) -> &[i64] {
        match &self.bytes {
            Bytes::Mapped { map, people, .. } => bytemuck::cast_slice(&map[people.clone()]),
            Bytes::Held { people, .. } => people,
        }
    }

    /// Which sample each row is.
    pub fn samples(&self) -> &[i64] {
        match &self.bytes {
            Bytes::Mapped { map, samples, .. } => bytemuck::cast_slice(&map[samples.clone()]),
            Bytes::Held { samples, .. } => samples,
        }
    }

    /// The numbers of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The distance that rows are compared by.
    pub fn distance(&self) -> Distance {
        self.distance
    }
}

/// The index of a gallery's file.
fn beside(gallery: &Path) -> PathBuf {
    let mut name = gallery.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// What the index says of itself.
fn about(gallery: &Gallery, changes: u64) -> HashMap<String, String> {
    HashMap::from([
        ("model".into(), gallery.made.model.into()),
        ("changes".into(), changes.to_string()),
        ("distance".into(), gallery.made.distance.name()),
    ])
}

fn write(file: &Path, gallery: &Gallery, rows: (&[f32], &[i64], &[i64]), changes: u64) -> Result<()> {
    let (embeddings, people, samples) = rows;
    let n = people.len();
    let integers = |of: &'_ [i64]| of.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>();
    let (people, samples) = (integers(people), integers(samples));
    let embeddings: Vec<u8> = embeddings.iter().flat_map(|x| x.to_le_bytes()).collect();
    // Integers first: they want the larger alignment.
    let tensors = [
        ("people", TensorView::new(Dtype::I64, vec![n], &people)?),
        ("samples", TensorView::new(Dtype::I64, vec![n], &samples)?),
        ("embeddings", TensorView::new(Dtype::F32, vec![n, gallery.made.dim], &embeddings)?),
    ];
    atomic::write_by(file, |temporary| {
        Ok(serialize_to_file(tensors, &Some(about(gallery, changes)), temporary.path())?)
    })
}
