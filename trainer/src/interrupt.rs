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
    /// The signal that asked.
    signal: Arc<AtomicUsize>,
}

/// The error with which work ends that has been asked to stop: not one of the user's, and nothing has gone wrong.
#[derive(Debug)]
pub struct Interrupted {
    signal: i32,
}

impl Interrupted {
    /// What shells give for a program that the signal has ended: 130 for Ctrl-C, 143 for SIGTERM.
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
    /// From now on the signals no longer end the program by themselves.
    pub fn watch() -> Result<Self> {
        let new = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if is_ignored(signal) {
                continue; // by `nohup`, or by a shell for what runs in its background
            }
            // The order decides: the first signal must not see the flag that it sets.
            flag::register_conditional_shutdown(signal, code(signal), new.asked.clone())
                .and_then(|_| flag::register_usize(signal, new.signal.clone(), signal as usize))
                .and_then(|_| flag::register(signal, new.asked.clone()))
                .context("cannot watch for signals")?;
        }
        Ok(new)
    }

    /// Asked to stop?
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Ends work that can be done again.
    pub fn check(&self) -> Result<()> {
        if self.asked() { Err(self.error().into()) } else { Ok(()) }
    }

    /// Who asked.
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
    // SAFETY: no action is given, so none is changed; the present one is written whole where 0 is returned.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn is_ignored(_: i32) -> bool {
    false
}
