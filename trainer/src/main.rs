//! `tercet`: trains and evaluates embedding networks with Tercet's losses.

mod bad_input;
mod batch;
mod cli;
mod dataset;
mod encoder;
mod evaluate;
mod folders;
mod generate;
mod images;
mod loss;
mod metrics;
mod plot;
mod progress;
mod random;
mod run;
mod run_folder;
mod signatures;
mod source;
mod train;
mod view;
mod waiting;
mod weights;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match cli::Cli::parse().command {
        cli::Command::Train(args) => run::train(&args),
        cli::Command::Generate(args) => generate::generate(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(bad_input::exit_code(&error))
        }
    }
}
