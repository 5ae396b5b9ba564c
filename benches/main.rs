//! The benches: a module for each stem, with criterion's report and rows for the table of `cargo xtask bench`, and
//! `growth`, `on_device` and `operators`, which measure by themselves.
//!
//! ```sh
//! cargo bench -p tercet                           # all of them
//! cargo bench -p tercet -- batch_hard             # a module, by its name
//! cargo bench -p tercet -- batch_hard --rows      # its rows alone
//! cargo bench -p tercet -- 1024x128               # what criterion's filter leaves, and the rows of its stems
//! cargo bench -p tercet -- growth --draw          # what the module says of its options
//! ```
//!
//! Without `-p tercet` cargo runs the trainer's benches too, to which these options are unknown, and plotters has the
//! trainer's features, with which it draws no text before a font is registered.

mod batch_all;
mod batch_contrastive;
mod batch_hard;
mod batch_negative;
mod batch_semi_hard;
mod contrastive;
mod growth;
#[cfg(feature = "cuda")]
mod on_device;
mod operators;
mod pairwise_distance;
mod support;
mod top_k;
mod triplet_margin;

type Module = (&'static str, fn());

const STEMS: [Module; 9] = [
    ("batch_all", batch_all::bench),
    ("batch_contrastive", batch_contrastive::bench),
    ("batch_hard", batch_hard::bench),
    ("batch_negative", batch_negative::bench),
    ("batch_semi_hard", batch_semi_hard::bench),
    ("contrastive", contrastive::bench),
    ("pairwise_distance", pairwise_distance::bench),
    ("top_k", top_k::bench),
    ("triplet_margin", triplet_margin::bench),
];

/// Those that know nothing of criterion's arguments.
const OTHERS: &[Module] = &[
    ("growth", growth::bench),
    ("operators", operators::bench),
    #[cfg(feature = "cuda")]
    ("on_device", on_device::bench),
];

/// The variable with the name of the module that a process is for.
const MODULE: &str = "TERCET_BENCH_MODULE";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let modules = || STEMS.iter().chain(OTHERS);
    let named = std::env::var(MODULE).ok();
    let mut names = named.iter().chain(&arguments);
    if let Some((_, bench)) = names.find_map(|name| modules().find(|(of, _)| of == name)) {
        return bench();
    }
    let for_criterion = arguments.iter().any(|a| !["--bench", "--test", "--quick"].contains(&a.as_str()));
    // Each in a process of its own: how the C library serves a request depends on the sizes that were freed before, and
    // libtorch keeps a device's memory.
    for (name, _) in modules().take(if for_criterion { STEMS.len() } else { usize::MAX }) {
        support::run_again(&[(MODULE, name)]);
    }
}
