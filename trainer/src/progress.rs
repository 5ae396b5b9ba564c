//! A progress bar on a terminal, a line every ten seconds elsewhere (a log has no use for a bar).

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const RESOLUTION: u64 = 1000;
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is shown after a step.
pub struct State {
    /// From 1.
    pub epoch: u64,
    /// From 1, over the whole run.
    pub step: u64,
    /// Mean of the last steps.
    pub loss: f64,
    /// Since training began.
    pub images_per_second: f64,
    /// Done, 0 to 1.
    pub fraction: f64,
    /// Until training ends.
    pub left: Duration,
}

/// The display.
pub struct Progress {
    bar: Option<ProgressBar>,
    printed: Instant,
}

impl Progress {
    /// Starts at nothing done.
    pub fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg}");
            ProgressBar::new(RESOLUTION).with_style(style.expect("the template is valid"))
        });
        Self { bar, printed: Instant::now() }
    }

    /// After each step.
    pub fn show(&mut self, state: &State) {
        let left = state.left.as_secs();
        let text = format!(
            "epoch {}  step {}  loss {:.4}  {:.1} images/s  {}:{:02} left",
            state.epoch,
            state.step,
            state.loss,
            state.images_per_second,
            left / 60,
            left % 60
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position((state.fraction.clamp(0.0, 1.0) * RESOLUTION as f64) as u64);
                bar.set_message(text);
            }
            None if state.step == 1 || self.printed.elapsed() >= LINE_EVERY => {
                self.printed = Instant::now();
                eprintln!("{text}");
            }
            None => {}
        }
    }

    /// Leaves the last state standing.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
        }
    }
}
