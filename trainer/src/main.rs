//! `tercet`: trains and evaluates embedding networks with Tercet's losses.

mod bad_input;
mod batch;
mod dataset;
mod encoder;
mod folders;
mod images;
mod metrics;
mod random;
mod signatures;
mod view;
mod weights;

fn main() {}
