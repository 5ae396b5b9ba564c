//! The program `tercet`, which trains and evaluates embedding networks with Tercet's losses.
//!
//! A wing imports from itself and from the floors below it:
//!
//! ```text
//! commands                    the command line, and what each command does
//! training    report          the loop of a run; charts and pages
//! gallery                     the people that a model can recognise
//! evaluation                  how well embeddings tell identities apart
//! model                       the encoder, its weights and embeddings
//! data        run_folder      images in memory; the folder of one run
//! process                     messages, signals, other processes, files that appear whole, seeds
//! ```
//!
//! What other crates may use is [`run`], and for fuzz targets [`readers`].
#![cfg(feature = "torch")]
#![warn(clippy::unwrap_used)]

mod commands;
mod data;
mod evaluation;
mod gallery;
mod model;
mod process;
mod report;
mod run_folder;
mod training;

use clap::{CommandFactory, FromArgMatches};
use commands::cli::{Cli, Command, given};
use commands::{compare, embed, enroll, eval, generate, identify, mine, pairs, people, train, transfer, verify};
use process::interrupt::Interrupted;
use process::ranks::OfFirst;
use process::{bad_input, say, waiting};
use std::process::ExitCode;

/// The readers of files that the program did not write, or that somebody may have changed since, over their bytes: none
/// may panic, whatever the bytes are. And a writer, as what was read must come back from it.
pub mod readers {
    pub use crate::data::decode::{Decoded, from_bytes as picture};
    pub use crate::data::pairs::{Written, parse as pairs};
    pub use crate::model::distance::Distance;
    pub use crate::model::encoder::Architecture;
    pub use crate::model::saved::{Settings, parse as settings};
    pub use crate::model::weights::parse as weights;
    pub use crate::training::checkpoint::{Checkpoint, parse as checkpoint, write as write_checkpoint};
}

/// Runs the program with the arguments of the process, and returns its exit code.
pub fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let without_model = matches!(
        cli.command,
        Command::Generate(_)
            | Command::Compare(_)
            | Command::List(_)
            | Command::Rename(_)
            | Command::Remove(_)
            | Command::Export(_)
    );
    if !without_model {
        waiting::sleep_instead_of_spinning();
    }
    let result = match cli.command {
        Command::Train(args) => train::train(*args, &given(&matches)),
        Command::Generate(args) => generate::generate(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Embed(args) => embed::embed(&args),
        Command::Eval(args) => eval::eval(&args),
        Command::Pairs(args) => pairs::make(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Enroll(args) => enroll::enroll(&args),
        Command::Identify(args) => identify::identify(&args),
        Command::Mine(args) => mine::mine(&args),
        Command::List(args) => people::list(&args),
        Command::Rename(args) => people::rename(&args),
        Command::Remove(args) => people::remove(&args),
        Command::Export(args) => transfer::export(&args),
        Command::Import(args) => transfer::import(&args),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        return ExitCode::from(interrupted.exit_code());
    }
    if let Some(said) = error.downcast_ref::<OfFirst>() {
        return ExitCode::from(said.code);
    }
    say::error(&format!("{error:#}"));
    ExitCode::from(bad_input::exit_code(&error))
}
