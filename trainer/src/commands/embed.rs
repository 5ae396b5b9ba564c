//! `tercet embed`: writes the embeddings of a folder's images to a file.
//!
//! A `.safetensors` file holds
//!
//! ```text
//! embeddings  f32 [N, D]   of length 1 if the model compares unit rows
//! labels      i64 [N]      the identity's index into `identities`
//! forged      u8 [N]       with `--forged`: 1 for a forgery of that identity, else 0
//! ```
//!
//! and in the header's metadata, which can hold texts only, `names` (N image files, relative to the folder; bytes that
//! are no UTF-8 as `\xE9`, and `\` as `\\`), `identities` and `distance`; the first two are JSON lists.

use crate::commands::cli::EmbedArgs;
use crate::data::collections::Patterns;
use crate::data::doubles::{Doubles, Place};
use crate::data::folders::{self, Found, below};
use crate::model::saved::{Embedded, Model};
use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::say::{say, say_path};
use anyhow::Result;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::HashMap;
use std::path::PathBuf;

/// Writes `--out`, which must not be there yet.
pub fn embed(args: &EmbedArgs) -> Result<()> {
    let device = args.model.device()?;
    atomic::check_new("--out", &args.out)?;
    let patterns = Patterns::new(&args.patterns)?;
    let Found { genuine, forged } = folders::find(&args.folder, &patterns)?;
    let model = Model::load(&args.model.model, device)?;
    let mut rows: Vec<Row> = Vec::new();
    for (owner, (identity, files)) in genuine.iter().enumerate() {
        let forged = forged.get(identity).into_iter().flatten().map(|file| (file, true));
        let files = files.iter().map(|file| (file, false)).chain(forged);
        rows.extend(files.map(|(file, forged)| Row { file: file.clone(), owner, identity, forged }));
    }
    let files: Vec<PathBuf> = rows.iter().map(|row| row.file.clone()).collect();
    let Embedded { vectors, kept, hashes } = model.embed(&files, args.on_bad_image)?;
    if kept.is_empty() {
        return Err(bad_input(format!("{}: no readable image", args.folder.display())));
    }
    let mut doubles = Doubles::default();
    for (&index, hash) in kept.iter().zip(hashes) {
        let Row { file, identity, forged, .. } = &rows[index];
        doubles.add(hash, Place { set: "", identity, forged: *forged }, Some(file));
    }
    doubles.say(model.settings.image_size);
    let names: Vec<String> = kept.iter().map(|&index| below(&args.folder, &files[index])).collect();
    let identities: Vec<&String> = genuine.keys().collect();
    let metadata = HashMap::from([
        ("names".into(), serde_json::to_string(&names)?),
        ("identities".into(), serde_json::to_string(&identities)?),
        ("distance".into(), model.settings.distance.clone()),
    ]);
    let values: Vec<u8> = vectors.as_slice().iter().flat_map(|v| v.to_le_bytes()).collect();
    let labels: Vec<u8> = kept.iter().flat_map(|&index| (rows[index].owner as i64).to_le_bytes()).collect();
    let is_forged: Vec<u8> = kept.iter().map(|&index| u8::from(rows[index].forged)).collect();
    let (n, dim) = (vectors.len(), vectors.dim());
    let mut tensors = vec![
        ("embeddings", TensorView::new(Dtype::F32, vec![n, dim], &values)?),
        ("labels", TensorView::new(Dtype::I64, vec![n], &labels)?),
    ];
    if patterns.has_forged() {
        tensors.push(("forged", TensorView::new(Dtype::U8, vec![n], &is_forged)?));
    }
    atomic::write_new("--out", &args.out, &serialize(tensors, &Some(metadata))?)?;
    let forgeries = is_forged.iter().filter(|&&forged| forged == 1).count();
    let forgeries = if patterns.has_forged() { format!(", {forgeries} forgeries") } else { String::new() };
    let identities = identities.len();
    say(&format!("{n} embeddings of {dim} numbers, {identities} identities{forgeries}"))?;
    say_path(&args.out)
}

/// A file that is embedded.
struct Row<'a> {
    file: PathBuf,
    /// The identity's index.
    owner: usize,
    identity: &'a str,
    forged: bool,
}
