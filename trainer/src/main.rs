//! `tercet`: trains and evaluates embedding networks with Tercet's losses.

mod bad_input;
mod batch;
mod chart;
mod cli;
mod dataset;
mod embed;
mod encoder;
mod eval;
mod evaluate;
mod folders;
mod generate;
mod images;
mod loss;
mod metrics;
mod mistakes;
mod model;
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
mod signatures;
mod source;
mod svg;
mod tally;
mod train;
mod vectors;
mod verify;
mod view;
mod waiting;
mod weights;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match cli::Cli::parse().command {
        cli::Command::Train(args) => run::train(&args),
        cli::Command::Generate(args) => generate::generate(&args),
        cli::Command::Verify(args) => verify::verify(&args),
        cli::Command::Embed(args) => embed::embed(&args),
        cli::Command::Eval(args) => eval::eval(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(bad_input::exit_code(&error))
        }
    }
}
