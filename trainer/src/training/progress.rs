//! Progress as a bar on a terminal, and as a line every ten seconds elsewhere: a log has no use for a bar.

use crate::process::say::{is_silent, note};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const RESOLUTION: u64 = 1000;
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is shown after a step.
pub struct State {
    /// The epoch, from 1.
    pub epoch: u64,
    /// The step, from 1, over the whole run.
    pub step: u64,
    /// The mean loss of the last steps.
    pub loss: f64,
    /// The share of the batch's triplets with a loss, averaged over the last steps.
    pub active: f64,
    /// Training images per second since training began.
    pub images_per_second: f64,
    /// The share of the time that was spent waiting for images.
    pub waited: f64,
    /// The fraction of the training that is done, 0 to 1.
    pub fraction: f64,
    /// The time until training ends.
    pub left: Duration,
}

/// The display of a run's progress.
pub struct Progress {
    bar: Option<ProgressBar>,
    printed: Instant,
}

impl Progress {
    /// Starts the display with nothing done.
    pub fn start() -> Self {
        let bar = (std::io::stderr().is_terminal() && !is_silent()).then(|| {
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg}");
            ProgressBar::new(RESOLUTION).with_style(style.expect("the template is valid"))
        });
        Self { bar, printed: Instant::now() }
    }

    /// Shows the state after a step.
    pub fn show(&mut self, state: &State) {
        let text = format!(
            "epoch {}  step {}  loss {:.4}  active {:.1} %  {:.1} images/s  waited {:.1} %  {} left",
            state.epoch,
            state.step,
            state.loss,
            100.0 * state.active,
            state.images_per_second,
            100.0 * state.waited,
            clock(state.left),
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position((state.fraction.clamp(0.0, 1.0) * RESOLUTION as f64) as u64);
                bar.set_message(text);
            }
            None if state.step == 1 || self.printed.elapsed() >= LINE_EVERY => {
                self.printed = Instant::now();
                note(&text);
            }
            None => {}
        }
    }

    /// Writes a line of text between states.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Ends the display and leaves the last state visible.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
        }
    }
}

/// A time as `4:05` or `2:04:05`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_shown_where_there_are_any() {
        let shown = [5, 65, 3599, 3600, 90_061].map(|s| clock(Duration::from_secs(s)));
        assert_eq!(shown, ["0:05", "1:05", "59:59", "1:00:00", "25:01:01"]);
    }
}
