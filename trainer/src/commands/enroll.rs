//! `tercet enroll`: people and their pictures into a gallery.

use crate::commands::cli::EnrollArgs;
use crate::data::collections::Patterns;
use crate::data::folders::{self, names};
use crate::gallery::{Gallery, Made, New, check_name};
use crate::model::saved::{Embedded, Model};
use crate::process::bad_input::bad_input;
use crate::process::bar::Bar;
use crate::process::interrupt::Interrupt;
use crate::process::named::plural;
use crate::process::say::{note, say};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Images that are enrolled together: what a killed process loses at most.
const TOGETHER: usize = 64;

/// Enrols the images, some at a time.
pub fn enroll(args: &EnrollArgs) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let device = args.model.device()?;
    let images = images(args)?;
    let model = Model::load(&args.model.model, device)?;
    let made = Made::by(&model)?;
    // One that is there must be this model's, before anything is read; a new one is made with its first samples.
    let mut gallery = match args.gallery.exists() {
        true => Some(Gallery::open_or_make(&args.gallery, &made)?),
        false => None,
    };
    let mut bar = Bar::new(images.len(), "images");
    let (mut added, mut read) = (0, 0);
    for some in images.chunks(TOGETHER) {
        interrupt.check()?;
        let files: Vec<PathBuf> = some.iter().map(|(_, file)| file.clone()).collect();
        let Embedded { vectors, kept, hashes } = model.embed(&files, args.on_bad_image)?;
        bar.add(some.len());
        if kept.is_empty() {
            continue;
        }
        let sources: Vec<String> = files.iter().map(|file| names::text(file)).collect();
        let samples: Vec<New<'_>> = kept
            .iter()
            .zip(hashes)
            .enumerate()
            .map(|(row, (&index, picture))| New {
                name: &some[index].0,
                picture,
                source: &sources[index],
                embedding: vectors.row(row),
                note: args.note.as_deref(),
            })
            .collect();
        let open = match gallery.take() {
            Some(open) => open,
            None => Gallery::open_or_make(&args.gallery, &made)?,
        };
        added += gallery.insert(open).enroll(&samples)?;
        read += kept.len();
    }
    drop(bar);
    let Some(gallery) = gallery.filter(|_| read > 0) else {
        return Err(bad_input(format!("{}: no readable image", args.path.display())));
    };
    if added < read {
        let known = read - added;
        note(&format!("{known} {} enrolled already", plural(known, "picture was", "pictures were")));
    }
    let people = gallery.people()?;
    let samples: usize = people.iter().map(|person| person.samples).sum();
    say(&format!(
        "{added} new {}; {} {} of {} {} in {}",
        plural(added, "sample", "samples"),
        samples,
        plural(samples, "sample", "samples"),
        people.len(),
        plural(people.len(), "person", "people"),
        args.gallery.display()
    ))
}

/// The images, and whose they are.
fn images(args: &EnrollArgs) -> Result<Vec<(String, PathBuf)>> {
    if args.path.is_file() {
        let Some(name) = &args.name else {
            return Err(bad_input(format!("{}: an image; --name says whose it is", args.path.display())));
        };
        check_name("--name", name)?;
        return Ok(vec![(name.clone(), args.path.clone())]);
    }
    if let Some(name) = &args.name {
        check_name("--name", name)?;
        let files = all_images(&args.path)?;
        return Ok(files.into_iter().map(|file| (name.clone(), file)).collect());
    }
    let patterns = Patterns::new(&args.patterns)?;
    let found = folders::find(&args.path, &patterns)?;
    let forged: usize = found.forged.values().map(Vec::len).sum();
    if forged > 0 {
        note(&format!("left out {forged} forgeries"));
    }
    let of_person = |(name, files): (String, Vec<PathBuf>)| files.into_iter().map(move |file| (name.clone(), file));
    Ok(found.genuine.into_iter().flat_map(of_person).collect())
}

/// All images of a folder, at any depth.
pub fn all_images(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Err(bad_input(format!("{}: no such image or folder", folder.display())));
    }
    let files = folders::all(folder)?;
    if files.is_empty() {
        return Err(bad_input(format!("no images in {}", folder.display())));
    }
    Ok(files)
}
