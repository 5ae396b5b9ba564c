//! The end of a run: the last evaluation, the model, the report, the summary.

use crate::commands::cli::TrainArgs;
use crate::commands::train::report::RunReport;
use crate::commands::train::source::Source;
use crate::commands::train::summary::Summary;
use crate::evaluation::evaluate::{Evaluated, Evaluation};
use crate::evaluation::identification;
use crate::model::saved::{self, Settings};
use crate::process::interrupt::Interrupt;
use crate::process::say::{note, say, say_path};
use crate::report::page::History;
use crate::training::checkpoint::State;
use crate::training::plan::{End, Plan};
use crate::training::watch;
use anyhow::Result;
use std::path::Path;
use std::time::{Duration, Instant};
use tch::nn;

/// Time kept free at the end for the weights, the pictures and the report.
pub const FINISH: Duration = Duration::from_secs(8);

/// A run whose training is over.
pub struct Finished<'a> {
    /// When this process began; `earlier` is the seconds of the processes before it.
    pub start: Instant,
    pub earlier: f64,
    pub folder: &'a Path,
    pub args: &'a TrainArgs,
    pub plan: &'a Plan,
    /// The encoder's variables.
    pub vs: &'a nn::VarStore,
    pub source: &'a Source,
    pub evaluation: &'a Evaluation,
    /// The evaluation before training.
    pub before: &'a Evaluated,
    pub state: &'a State,
    /// Whether the encoder has the weights of the lowest EER instead of the last ones.
    pub best: bool,
    pub ended_by: End,
    /// The evaluation after training.
    pub after: &'a Evaluated,
    /// How many processes the run has.
    pub processes: usize,
    pub interrupt: &'a Interrupt,
}

/// Writes everything, `summary.json` last, and says what came of it.
///
/// # Errors
/// [`Interrupted`](crate::process::interrupt::Interrupted) if somebody has asked to stop: all of this can be done again.
pub fn finish(run: &Finished) -> Result<()> {
    let Finished { start, earlier, folder, args, plan, source, evaluation, state, after, .. } = *run;
    let (val, size) = (&source.val, source.val.images.size());
    note(&format!("after:  {}", after.scores));
    let slow = state.waited > 0.1 * state.seconds;
    let advice = if slow { "; more --workers or a greater --image-cache may help" } else { "" };
    note(&format!(
        "the encoder waited {:.1} s for images, of {:.1} s of training{advice}",
        state.waited, state.seconds
    ));
    if state.skipped() > 0 {
        note(&format!("{} of {} steps were left out: a number overflowed f16", state.skipped(), state.step));
    }
    let level = plan.loss.of_equal_embeddings();

    run.interrupt.check()?;
    let mut calibration = after.scores.calibration(val.members.len(), evaluation.len());
    let (subjects, vectors) = (evaluation.images(), &after.vectors);
    let between = |i: usize, j: usize| vectors.distance(i, j);
    calibration.identification = identification::calibrate(&subjects.identity, between, &after.scores.random.tally);
    let settings = Settings::new(
        args.encoder,
        args.embedding_dim,
        size,
        args.loss.normalize(),
        args.loss.distance(),
        calibration,
        &source.description,
    );
    saved::save(folder, run.vs, &settings)?;
    run.interrupt.check()?;
    let (was, is) = (&run.before.scores, &after.scores);
    let mut summary = Summary {
        eer_before: was.eer,
        eer_after: is.eer,
        auc_before: was.auc,
        auc_after: is.auc,
        recall_at_1_before: was.recall_at_1,
        recall_at_1_after: is.recall_at_1,
        eer_skilled_before: was.skilled.as_ref().map(|c| c.eer),
        eer_skilled_after: is.skilled.as_ref().map(|c| c.eer),
        map_at_r_before: was.ranking.map_at_r,
        map_at_r_after: is.ranking.map_at_r,
        threshold: is.operating.threshold,
        steps: state.step,
        skipped_steps: state.skipped(),
        seconds: earlier + start.elapsed().as_secs_f64(),
        images_per_second: state.images as f64 / state.seconds.max(1e-9),
        seconds_waited: state.waited,
        device: args.device.clone(),
        processes: run.processes,
        seed: args.seed,
        data: source.description.clone(),
        encoder: settings.encoder.clone(),
        loss: args.loss.loss.name().into(),
        loss_options: args.loss.clone(),
        image_size: size,
        training_identities: source.train.members.len(),
        validation_identities: val.members.len(),
        validation_images: evaluation.len(),
        skipped_images: source.skipped,
        collapsed_at: watch::collapsed_at(&state.losses, &state.active, level),
        ended_by: run.ended_by.name().into(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let measured = state.curve(was.measured(0), is.measured(state.step), run.best);
    RunReport {
        folder,
        summary: &summary,
        loss: args.loss.loss.title(),
        equal: level,
        history: &History { losses: state.losses.clone(), active: state.active.clone(), measured },
        before: was,
        after,
        evaluation,
        val,
    }
    .write()?;
    run.interrupt.check()?;
    summary.seconds = earlier + start.elapsed().as_secs_f64();
    summary.write(folder)?;
    say(&format!(
        "EER {:.4} -> {:.4} in {} steps, {:.0} s",
        summary.eer_before, summary.eer_after, summary.steps, summary.seconds
    ))?;
    say_path(folder)
}
