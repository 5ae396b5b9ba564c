//! `tercet`: trains and evaluates embedding networks with Tercet's losses.

mod bad_input;
mod batch;
mod chart;
mod checkpoint;
mod cli;
mod collections;
mod compare;
mod dataset;
mod decode;
mod doubles;
mod embed;
mod encoder;
mod eval;
mod evaluate;
mod folders;
mod generate;
mod images;
mod interrupt;
mod lock;
mod loss;
mod metrics;
mod mistakes;
mod model;
mod named;
mod optimiser;
mod options;
mod pairs;
mod plot;
mod progress;
mod random;
mod ranking;
#[cfg(test)]
mod recorded;
mod report;
mod run;
mod run_folder;
mod run_report;
mod say;
mod scaler;
mod schedule;
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
    let result = match cli.command {
        cli::Command::Train(args) => match run::train(*args, &cli::given(&matches)) {
            Ok(run::Ended::Complete) => Ok(()),
            Ok(run::Ended::Interrupted) => return ExitCode::from(interrupt::EXIT_CODE),
            Err(error) => Err(error),
        },
        cli::Command::Generate(args) => generate::generate(&args),
        cli::Command::Verify(args) => verify::verify(&args),
        cli::Command::Embed(args) => embed::embed(&args),
        cli::Command::Eval(args) => eval::eval(&args),
        cli::Command::Pairs(args) => pairs::make(&args),
        cli::Command::Compare(args) => compare::compare(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(bad_input::exit_code(&error))
        }
    }
}
