//! `tercet`: trains and evaluates embedding networks with Tercet's losses.

mod atomic;
mod bad_input;
mod batch;
mod chart;
mod checkpoint;
mod cli;
mod collections;
mod compare;
mod dataset;
mod decode;
mod device;
mod distance;
mod doubles;
mod embed;
mod encoder;
mod eval;
mod evaluate;
mod finish;
mod folders;
mod generate;
mod images;
mod interrupt;
mod lock;
mod loss;
mod loss_options;
mod metrics;
mod metrics_csv;
mod mistakes;
mod model;
mod named;
mod optimiser;
mod options;
mod overwritten;
mod pairs;
mod paths;
mod plot;
mod progress;
mod random;
mod ranking;
#[cfg(test)]
mod recorded;
mod report;
mod room;
mod run;
mod run_folder;
mod run_report;
mod say;
mod scaler;
mod schedule;
mod shell;
mod signatures;
mod source;
mod svg;
mod tally;
mod train;
mod vectors;
mod verify;
mod view;
mod waiting;
mod watch;
mod weights;
mod workers;

use clap::{CommandFactory, FromArgMatches};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::var_os("NVIDIA_TF32_OVERRIDE").is_none() {
        // cuDNN would compute f32 convolutions in TF32, and then an image's embedding, and what `verify` decides, would depend
        // on the size of its batch.
        // SAFETY: no other thread has started.
        unsafe { std::env::set_var("NVIDIA_TF32_OVERRIDE", "0") };
    }
    let matches = cli::Cli::command().get_matches();
    let cli = cli::Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if !matches!(cli.command, cli::Command::Generate(_) | cli::Command::Compare(_)) {
        waiting::sleep_instead_of_spinning();
    }
    let result = match cli.command {
        cli::Command::Train(args) => run::train(*args, &cli::given(&matches)),
        cli::Command::Generate(args) => generate::generate(&args),
        cli::Command::Verify(args) => verify::verify(&args),
        cli::Command::Embed(args) => embed::embed(&args),
        cli::Command::Eval(args) => eval::eval(&args),
        cli::Command::Pairs(args) => pairs::make(&args),
        cli::Command::Compare(args) => compare::compare(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<interrupt::Interrupted>() {
            Some(interrupted) => ExitCode::from(interrupted.exit_code()),
            None => {
                say::note(&format!("error: {error:#}"));
                ExitCode::from(bad_input::exit_code(&error))
            }
        },
    }
}
