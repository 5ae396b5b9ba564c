//! `tercet embed`: a folder of images to a file of embeddings.
//!
//! A `.safetensors` file holds
//!
//! ```text
//! embeddings  f32 [N, D]   of length 1 where the model compares such
//! labels      i64 [N]      the identity's index into `identities`
//! ```
//!
//! and, as its format has texts only there, in the header's metadata `names` (N image files, relative to
//! the folder), `identities` and `distance`; the first two are JSON lists.

use crate::atomic;
use crate::bad_input::bad_input;
use crate::cli::EmbedArgs;
use crate::folders;
use crate::model::Model;
use crate::say::{say, say_path};
use crate::verify::new_file;
use anyhow::Result;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::HashMap;
use std::path::PathBuf;

/// Writes `--out`, which must not be there yet.
pub fn embed(args: &EmbedArgs) -> Result<()> {
    let device = args.model.device()?;
    new_file("--out", &args.out)?;
    let identities = folders::find(&args.folder)?;
    let model = Model::load(&args.model.model, device)?;
    let (files, owners): (Vec<PathBuf>, Vec<usize>) = identities
        .values()
        .enumerate()
        .flat_map(|(owner, files)| files.iter().map(move |f| (f.clone(), owner)))
        .unzip();
    let (vectors, kept) = model.embed(&files, args.on_bad_image)?;
    if kept.is_empty() {
        return Err(bad_input(format!("{}: no readable image", args.folder.display())));
    }
    let name = |&index: &usize| {
        let file = files[index].strip_prefix(&args.folder).unwrap_or(&files[index]);
        file.to_string_lossy().into_owned()
    };
    let names: Vec<String> = kept.iter().map(name).collect();
    let metadata = HashMap::from([
        ("names".into(), serde_json::to_string(&names)?),
        ("identities".into(), serde_json::to_string(&identities.keys().collect::<Vec<_>>())?),
        ("distance".into(), model.settings.distance.clone()),
    ]);
    let rows: Vec<u8> = vectors.as_slice().iter().flat_map(|v| v.to_le_bytes()).collect();
    let labels: Vec<u8> = kept.iter().flat_map(|&index| (owners[index] as i64).to_le_bytes()).collect();
    let (n, dim) = (vectors.len(), vectors.dim());
    let tensors = [
        ("embeddings", TensorView::new(Dtype::F32, vec![n, dim], &rows)?),
        ("labels", TensorView::new(Dtype::I64, vec![n], &labels)?),
    ];
    atomic::write_new("--out", &args.out, &serialize(tensors, &Some(metadata))?)?;
    let identities = identities.len();
    say(&format!("{n} embeddings of {dim} numbers, {identities} identities"))?;
    say_path(&args.out)
}
