//! Ctrl-C and SIGTERM: the first one asks the program to save and stop, the second one stops it at once.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of a run that was interrupted: what shells give for SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Whether somebody wants the program to stop.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the signals no longer end the program by themselves.
    pub fn watch() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order decides: the first signal must not see the flag that it sets.
            flag::register_conditional_shutdown(signal, i32::from(EXIT_CODE), asked.clone())
                .and_then(|_| flag::register(signal, asked.clone()))
                .context("cannot watch for signals")?;
        }
        Ok(Self(asked))
    }

    /// Asked to stop?
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
