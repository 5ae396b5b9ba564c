//! What a finished run says of itself.

use crate::process::atomic;
use crate::run_folder;
use crate::training::loss_options::LossOptions;
use anyhow::Result;
use serde::Serialize;
use std::path::Path;

/// The content of `summary.json`.
#[derive(Serialize)]
pub struct Summary {
    /// Equal error rate before training, on identities never trained on.
    pub eer_before: f64,
    /// Equal error rate after training, on identities never trained on.
    pub eer_after: f64,
    /// Area under the ROC curve before training.
    pub auc_before: f64,
    /// Area under the ROC curve after training.
    pub auc_after: f64,
    /// Share of images whose nearest other image has the same identity, before training.
    pub recall_at_1_before: f64,
    /// Share of images whose nearest other image has the same identity, after training.
    pub recall_at_1_after: f64,
    /// Equal error rate against skilled forgeries before training, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eer_skilled_before: Option<f64>,
    /// Equal error rate against skilled forgeries after training, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eer_skilled_after: Option<f64>,
    /// Mean average precision at R before training.
    pub map_at_r_before: f64,
    /// Mean average precision at R after training.
    pub map_at_r_after: f64,
    /// The calibrated threshold: the distance at which the error rates after training are equal.
    pub threshold: f32,
    /// Optimiser steps done.
    pub steps: u64,
    /// Steps that were left out because a number overflowed f16.
    pub skipped_steps: u64,
    /// Seconds of the whole run, evaluations included.
    pub seconds: f64,
    /// Training images per second, without evaluations.
    pub images_per_second: f64,
    /// Seconds that the encoder waited for images in training.
    pub seconds_waited: f64,
    /// The device, as `cpu` or `cuda:0`.
    pub device: String,
    /// How many processes it had at its end.
    pub processes: usize,
    /// The run's seed.
    pub seed: u64,
    /// What was trained on: `generated signatures`, or the folder.
    pub data: String,
    /// The encoder's name.
    pub encoder: String,
    /// The loss's name, as `--loss` takes it.
    pub loss: String,
    /// All options of the loss; null for one that it does not have.
    pub loss_options: LossOptions,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Identities trained on.
    pub training_identities: usize,
    /// Identities evaluated on; none of them is trained on.
    pub validation_identities: usize,
    /// Images evaluated on.
    pub validation_images: usize,
    /// Image files that could not be read.
    pub skipped_images: usize,
    /// The step at which the run was warned of a collapse of its embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collapsed_at: Option<u64>,
    /// Why training ended: `epochs`, `steps`, `time limit` or `patience`.
    pub ended_by: String,
    /// The version of Tercet that made the run.
    pub version: String,
}

impl Summary {
    /// Writes `summary.json`, last of all: its presence says that the run is complete.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        atomic::write(&run_folder::summary(folder), text.as_bytes())
    }
}
