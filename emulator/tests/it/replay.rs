//! A failure that only some schedules show: the seed in its report, given to another process, brings back the same
//! report.

use std::collections::BTreeSet;
use std::process::Command;

use bytemuck::bytes_of;
use tercet::internal::{Address, Grid, Launcher, Memory};
use tercet_emulator::{Emulator, Options};

use crate::skipped::skipped;

/// Launches the kernel with the lost update; `Err` is what the emulator reports.
fn lost_update(seed: u64) -> Result<(), String> {
    // The detector would find the race in every schedule.
    let emulator = Emulator::new(Options { detect: false, seed, os_threads: 1 });
    let (none, out) = (emulator.upload(&[0u32]), emulator.allocate(128 * 4).expect("memory"));
    let args: [Address; 2] = [none.address(), out.address()];
    let grid = Grid { blocks: 3, threads: 128, shared_bytes: 0 };
    // SAFETY: the kernel's argument, two pointers; it writes one number per thread.
    unsafe { emulator.launch("misuse", "lost_update", grid, bytes_of(&args)) }.map_err(|e| e.to_string())
}

const SILENT: &str = "nothing to report";

/// What another process reports that is told nothing except `seed`.
fn replay(seed: &str) -> String {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "replay::as_the_environment_says", "--ignored", "--nocapture"])
        .env("TERCET_EMULATOR_SEED", seed)
        .output()
        .expect("this program runs");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    String::from_utf8(child.stdout).expect("text")
}

#[test]
#[ignore = "the other process of a_seed_brings_its_report_back"]
fn as_the_environment_says() {
    println!("{}", lost_update(0).err().unwrap_or_else(|| SILENT.into()));
}

#[test]
fn a_seed_brings_its_report_back() {
    if std::env::var_os("TERCET_EMULATOR_SEED").is_some() {
        skipped("every schedule is the same one: a_seed_brings_its_report_back");
        return;
    }
    const SEEDS: u64 = 64;
    let reports: Vec<(u64, String)> = (0..SEEDS).filter_map(|seed| Some((seed, lost_update(seed).err()?))).collect();
    assert!(lost_update(0).is_ok() && lost_update(1).is_ok(), "warps in order, forwards or backwards, do not show it");
    assert!(!reports.is_empty(), "no schedule lets a warp overtake another");
    let shown = |report: &str| report.split_once("(schedule").expect("every report names its schedule").0.to_string();
    let distinct: BTreeSet<String> = reports.iter().map(|(_, report)| shown(report)).collect();
    assert!(distinct.len() > 1, "every schedule shows the same: a replay would prove nothing");
    println!("lost update: {} of {SEEDS} schedules show it, in {} ways", reports.len(), distinct.len());

    for (seed, report) in reports.iter().take(3) {
        assert!(report.contains("deadlock") && report.contains("kernels/misuse.cu:"), "{report}");
        let (_, rest) = report.split_once("TERCET_EMULATOR_SEED=").expect("a seed");
        let named = rest.split(' ').next().expect("a number");
        assert_eq!(named, seed.to_string());
        let replayed = replay(named);
        assert!(replayed.contains(report.as_str()), "seed {named} gave\n{replayed}\nand not\n{report}");
    }
    assert!(replay("0").contains(SILENT));
}
