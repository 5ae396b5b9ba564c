//! `tercet generate`: generated signatures as files.

use crate::commands::cli::GenerateArgs;
use crate::data::signatures::Signer;
use crate::process::say::say_path;
use crate::run_folder;
use anyhow::{Context, Result};
use image::GrayImage;
use rayon::prelude::*;
use std::path::Path;

/// Writes `OUT/generated-0000/0000.png` and so on; with forgeries `OUT/genuine/...` and `OUT/forged/...`.
/// A folder of forgeries has the name of the signer who is forged.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    run_folder::create("--out", &args.out)?;
    let folder = &args.out;
    let (genuine, forged) = match args.forgeries {
        0 => (folder.clone(), None),
        _ => (folder.join("genuine"), Some(folder.join("forged"))),
    };
    (0..args.identities).into_par_iter().try_for_each(|identity| {
        let signer = Signer::new(args.seed, identity);
        let name = format!("generated-{identity:04}");
        write(&genuine.join(&name), args.drawings, |index| signer.draw(index))?;
        match &forged {
            Some(forged) => write(&forged.join(&name), args.forgeries, |index| signer.forge(index)),
            None => Ok(()),
        }
    })?;
    say_path(folder)
}

fn write(folder: &Path, count: u64, draw: impl Fn(u64) -> GrayImage) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    (0..count).try_for_each(|index| {
        let file = folder.join(format!("{index:04}.png"));
        draw(index).save(&file).with_context(|| format!("cannot write {}", file.display()))
    })
}
