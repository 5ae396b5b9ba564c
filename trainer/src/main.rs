//! `tercet`: trains and evaluates embedding networks with Tercet's losses.

mod metrics;
mod random;

fn main() {}
