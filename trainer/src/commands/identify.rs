//! `tercet identify`: whose pictures these are.

use crate::commands::cli::IdentifyArgs;
use crate::commands::enroll::all_images;
use crate::data::folders::names;
use crate::evaluation::metrics::text_of;
use crate::gallery::{Answer, By, Gallery, Index, Made, search};
use crate::model::saved::{Embedded, Model};
use crate::process::bad_input::bad_input;
use crate::process::say::say;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;

/// What is said of an image.
#[derive(Serialize)]
struct Identified {
    image: String,
    threshold: f32,
    /// Where the threshold comes from.
    threshold_origin: String,
    #[serde(flatten)]
    answer: Answer,
}

/// Names the nearest people for each image.
pub fn identify(args: &IdentifyArgs) -> Result<()> {
    let device = args.model.device()?;
    let files = if args.path.is_file() { vec![args.path.clone()] } else { all_images(&args.path)? };
    let gallery = Gallery::open(&args.gallery)?;
    let model = Model::load(&args.model.model, device)?;
    gallery.check(&Made::by(&model)?)?;
    let index = Index::of(&gallery)?;
    let Embedded { vectors, kept, .. } = model.embed(&files, args.on_bad_image)?;
    if kept.is_empty() {
        return Err(bad_input(format!("{}: no readable image", args.path.display())));
    }
    let (threshold, origin) = match (args.threshold, &model.settings.calibration.identification) {
        (Some(threshold), _) => (threshold, "given".into()),
        (None, Some(identification)) => {
            let people = gallery.people()?.len();
            let (threshold, origin) = identification.threshold(people);
            let share = 100.0 * identification.fpir;
            (threshold, format!("at which {share} % of strangers find somebody among {people} people, {origin}"))
        }
        (None, None) => (model.threshold(), "the model's for pairs: it knows none for many people".into()),
    };
    let answers = search(&gallery, &index, &vectors, args.top, args.by, threshold)?;
    let identified: Vec<Identified> = kept
        .iter()
        .zip(answers)
        .map(|(&file, answer)| Identified {
            image: names::text(&files[file]),
            threshold,
            threshold_origin: origin.clone(),
            answer,
        })
        .collect();
    if args.json {
        return say(&serde_json::to_string_pretty(&identified)?);
    }
    let by = if args.by == By::Mean { "the mean of their samples" } else { "their nearest sample" };
    let measure = &model.settings.distance;
    let mut text = format!("threshold {} ({origin})\n{measure}; people by {by}\n", text_of(threshold));
    for Identified { image, answer, .. } in &identified {
        let _ = writeln!(text, "{image}: {}", answer.person.as_deref().unwrap_or("nobody"));
        for found in &answer.nearest {
            let sample = found.sample.as_ref().map_or(String::new(), |sample| format!("  ({sample})"));
            let _ = writeln!(text, "  {:<9} {}{sample}", text_of(found.distance), found.name);
        }
    }
    say(&text)
}
