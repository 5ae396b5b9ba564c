//! Ctrl-C, SIGTERM (what job schedulers and `kill` send) and SIGHUP (a connection that is lost): the first one asks the
//! program to save and stop, the second one stops it at once.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Whether somebody wants the program to stop.
#[derive(Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    /// The number of the signal that asked.
    signal: Arc<AtomicUsize>,
}

/// The error that ends work after a request to stop: it is not the user's mistake, and nothing has gone wrong.
#[derive(Debug)]
pub struct Interrupted {
    signal: i32,
}

impl Interrupted {
    /// The interruption that has this exit code, if it is one's.
    pub fn of(exit_code: u8) -> Option<Self> {
        let signal = i32::from(exit_code) - code(0);
        (signal > 0).then_some(Self { signal })
    }

    /// The number of the signal.
    pub fn signal(&self) -> i32 {
        self.signal
    }

    /// The code that shells give for a program that the signal has ended: 130 for Ctrl-C, 143 for SIGTERM.
    pub fn exit_code(&self) -> u8 {
        code(self.signal) as u8
    }
}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "interrupted by {}", low_level::signal_name(self.signal).unwrap_or("a signal"))
    }
}

impl std::error::Error for Interrupted {}

impl Interrupt {
    /// Watches the signals: from now on the first one no longer ends the program.
    pub fn watch() -> Result<Self> {
        let new = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if is_ignored(signal) {
                continue; // ignored by `nohup`, or by a shell for what runs in its background
            }
            // Actions run in the order in which they are registered: the first signal must not see the flag that it
            // sets.
            flag::register_conditional_shutdown(signal, code(signal), new.asked.clone())
                .and_then(|_| flag::register_usize(signal, new.signal.clone(), signal as usize))
                .and_then(|_| flag::register(signal, new.asked.clone()))
                .context("cannot watch for signals")?;
        }
        Ok(new)
    }

    /// The number of the signal that asked; 0 for none.
    pub fn signal(&self) -> i32 {
        if self.asked() { self.signal.load(Ordering::SeqCst) as i32 } else { 0 }
    }

    /// Asks to stop, as the signal does that another process of the run has got.
    pub fn ask(&self, signal: i32) {
        self.signal.store(signal as usize, Ordering::SeqCst);
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Whether somebody has asked to stop.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// An error if somebody has asked to stop: for work that can be done again.
    pub fn check(&self) -> Result<()> {
        if self.asked() { Err(self.error().into()) } else { Ok(()) }
    }

    /// The error that names the signal that asked.
    pub fn error(&self) -> Interrupted {
        Interrupted { signal: self.signal.load(Ordering::SeqCst) as i32 }
    }
}

fn code(signal: i32) -> i32 {
    128 + signal
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no action is given, so none is changed; if 0 is returned, the present action has been written in full.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn is_ignored(_: i32) -> bool {
    false
}
