//! The report of a training run.

use crate::commands::train::summary::Summary;
use crate::data::dataset::Dataset;
use crate::evaluation::evaluate::{Evaluated, Evaluation};
use crate::evaluation::metrics::{Verification, text_of};
use crate::process::shell;
use crate::report::page::{Compare, History, Number, Page, data_title};
use crate::report::plot::thumbnail;
use crate::training::watch;
use anyhow::Result;
use std::path::Path;

/// What the report of a finished run shows.
pub struct RunReport<'a> {
    pub folder: &'a Path,
    pub summary: &'a Summary,
    /// The loss and its options, for people.
    pub loss: &'a str,
    /// The loss if all embeddings are the same.
    pub equal: f64,
    pub history: &'a History,
    pub before: &'a Verification,
    pub after: &'a Evaluated,
    pub evaluation: &'a Evaluation,
    /// The validation images.
    pub val: &'a Dataset,
}

impl RunReport<'_> {
    /// Writes the charts, the sheet of the hardest pairs and `report.html`.
    pub fn write(&self) -> Result<()> {
        let (summary, scores) = (self.summary, &self.after.scores);
        let subjects = self.evaluation.images();
        let (forgeries, owners) = match self.evaluation.forgeries() {
            Some((set, subjects)) => (Some((set, &subjects.image)), &subjects.identity[..]),
            None => (None, &[][..]),
        };
        let compare = Compare {
            scores,
            vectors: &self.after.vectors,
            identity: &subjects.identity,
            names: &self.val.names,
            forged: (&self.after.forged, owners),
            picture: &|row| thumbnail(&self.val.images, subjects.image[row]),
            forgery: &|row| {
                let (set, images) = forgeries.expect("a forgery's row");
                thumbnail(&set.images, images[row])
            },
        };
        let mut charts = self.history.charts(self.loss);
        charts.extend(compare.charts(Some(self.before))?);
        let mut numbers = vec![
            Number::share("equal error rate", Some(summary.eer_before), summary.eer_after),
            Number::share("recall@1", Some(summary.recall_at_1_before), summary.recall_at_1_after),
            Number::share("MAP@R", Some(summary.map_at_r_before), summary.map_at_r_after),
        ];
        if let Some(after) = summary.eer_skilled_after {
            numbers.push(Number::share("EER, skilled forgeries", summary.eer_skilled_before, after));
        }
        let run = shell::word(self.folder);
        let page = Page {
            title: format!("{} on {}", summary.encoder, data_title(&summary.data)),
            context: format!("{}, {}", summary.encoder, data_title(&summary.data)),
            warning: summary.collapsed_at.map(|step| watch::collapse(step, self.equal)),
            lead: format!(
                "{} steps in {:.0} s on {}; measured on {} images of {} identities that were never trained on",
                summary.steps,
                summary.seconds,
                summary.device,
                summary.validation_images,
                summary.validation_identities
            ),
            numbers,
            charts,
            hardest: compare.hardest()?,
            settings: self.settings(scores),
            commands: vec![
                format!("tercet verify A.png B.png --model {run}"),
                format!("tercet eval FOLDER --model {run} --out NEW_FOLDER"),
                format!("tercet embed FOLDER --model {run} --out NEW.safetensors"),
            ],
        };
        page.write(self.folder)
    }

    fn settings(&self, scores: &Verification) -> Vec<(&'static str, String)> {
        let summary = self.summary;
        let at = scores.operating;
        let errors = format!("{:.1} % false accepts, {:.1} % false rejects", 100.0 * at.far, 100.0 * at.frr);
        vec![
            ("loss", summary.loss_options.text()),
            ("trained on", format!("{} identities of {}", summary.training_identities, summary.data)),
            ("image size", format!("{} px", summary.image_size)),
            ("images per second", format!("{:.1}", summary.images_per_second)),
            ("waited for images", format!("{:.1} s", summary.seconds_waited)),
            ("ended by", summary.ended_by.clone()),
            ("seed", summary.seed.to_string()),
            ("threshold", format!("{}: {errors} on the validation pairs", text_of(at.threshold))),
            (
                "true accepts at 1 % and 0.1 % false ones",
                format!(
                    "{:.1} %, {:.1} %",
                    100.0 * scores.random.tar_at_far(1e-2),
                    100.0 * scores.random.tar_at_far(1e-3)
                ),
            ),
            ("AUC", format!("{:.4}, before training {:.4}", summary.auc_after, summary.auc_before)),
            ("version", summary.version.clone()),
        ]
    }
}
