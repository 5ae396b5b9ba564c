//! Each emulated instruction against its definition and against what devices answered, and the launches that are
//! refused.

use std::path::Path;

use bytemuck::{Pod, Zeroable, bytes_of};
use tercet::internal::{Address, Grid, Launcher, Memory};
use tercet_emulator::{Buffer, Emulator, Options};

use super::probes::{self, Probe};
use crate::support::skipped::skipped;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    input: Address,
    out: Address,
}

fn launch(
    emulator: &Emulator,
    [stem, kernel]: [&str; 2],
    grid: Grid,
    input: &[u32],
    out: &Buffer,
) -> Result<(), String> {
    let input = emulator.upload(input);
    let args = Args { input: input.address(), out: out.address() };
    // SAFETY: the kernel's argument; kernels that leave their buffers, on purpose, run with the detector on.
    unsafe { emulator.launch(stem, kernel, grid, bytes_of(&args)) }.map_err(|e| e.to_string())
}

/// What `probe`'s kernel writes, which is the same under several schedules.
fn answer(probe: &Probe) -> Vec<u32> {
    let grid = Grid { blocks: probe.blocks, threads: probe.threads, shared_bytes: probe.shared_bytes };
    let mut answers = (0..6).map(|seed| {
        let emulator = Emulator::new(Options { detect: seed % 2 == 0, seed, os_threads: 2 });
        let out = emulator.upload(&probe.initial);
        launch(&emulator, ["conformance", probe.kernel], grid, &probe.input, &out).unwrap_or_else(|e| panic!("{e}"));
        out.read::<u32>()
    });
    let first = answers.next().expect("six");
    assert!(answers.all(|other| other == first), "{} depends on the schedule", probe.name);
    first
}

#[test]
fn every_instruction_does_as_defined() {
    let probes = probes::all();
    let wrong: Vec<String> = probes.iter().filter_map(|probe| probe.check(&answer(probe)).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "conformance: {} probes, {} numbers",
        probes.len(),
        probes.iter().map(|p| p.expected.len()).sum::<usize>()
    );
}

#[test]
fn every_16_bit_float() {
    // Both halves of the words take every value of 16 bits.
    let probe = probes::conversions_of((0..=0xffff).map(|i: u32| i.wrapping_mul(0x10001) ^ i << 7).collect());
    let emulator = Emulator::new(Options { os_threads: 2, ..Options::default() });
    let out = emulator.upload(&probe.initial);
    let grid = Grid { blocks: probe.blocks, threads: probe.threads, shared_bytes: 0 };
    launch(&emulator, ["conformance", probe.kernel], grid, &probe.input, &out).unwrap_or_else(|e| panic!("{e}"));
    probe.check(&out.read::<u32>()).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn the_emulator_answers_as_devices_did() {
    let records = probes::read_records(&probes::records());
    if records.is_empty() {
        skipped("no device has been recorded: the_emulator_answers_as_devices_did");
        return;
    }
    let mut wrong = Vec::new();
    for (file, record) in &records {
        for probe in probes::all() {
            let Some(recorded) = probes::answer(record, &probe) else {
                let (device, name) = (record["device"].as_str().unwrap_or(file), &probe.name);
                skipped(&format!("not asked of {device} yet: the_emulator_answers_as_devices_did, {name}"));
                continue;
            };
            let check = recorded.and_then(|record| probe.check_record(&answer(&probe), &record));
            wrong.extend(check.err().map(|e| format!("{file}: {e}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A record is read back as it was written; a changed number, a changed input and a missing probe are found.
#[test]
fn records_are_compared() {
    let folder = std::env::temp_dir().join(format!("tercet-conformance-{}", std::process::id()));
    let probes = probes::all();
    let answers: Vec<_> = probes.iter().map(|probe| (probe, answer(probe))).collect();
    probes::write_record(&folder, "A device, 80 GB", "9.0", &answers);
    let records = probes::read_records(&folder);
    std::fs::remove_dir_all(&folder).expect("written above");
    let [(file, record)] = &records[..] else { panic!("{} records", records.len()) };
    assert!(Path::new(file).ends_with("conformance-a-device--80-gb.json"), "{file}");
    assert_eq!(record["device"], "A device, 80 GB");
    let (mut compared, mut bounded) = (0, 0);
    for (probe, out) in &answers {
        let recorded = probes::answer(record, probe).expect("there").expect("written");
        assert_eq!(&recorded, out);
        probe.check_record(out, &recorded).expect("the same numbers");
        // Flip the lowest bit of each word in turn: that is found, or within the bound, or nothing pins the number
        // down.
        for at in 0..recorded.len().min(300) {
            let mut other = recorded.clone();
            other[at] ^= 1;
            match probe.check_record(out, &other) {
                Err(e) => {
                    assert!(e.contains("recorded"), "{e}");
                    compared += 1;
                }
                Ok(()) => bounded += 1,
            }
        }
        let mut other = recorded;
        other.pop();
        assert!(probe.check_record(out, &other).expect_err("too short").contains("words"));
    }
    assert!(compared > bounded, "{compared} of {} changes found", compared + bounded);
    let other = Probe { input: vec![1; 128], ..probes::all().pop().expect("some") };
    let refused = probes::answer(record, &other).expect("there").expect_err("other numbers");
    assert!(refused.contains("another input"));
    let other = Probe { name: "new".into(), ..other };
    assert!(probes::answer(record, &other).is_none());
}

const ONE_WARP: Grid = Grid { blocks: 1, threads: 32, shared_bytes: 0 };

#[test]
fn what_a_launch_refuses() {
    let emulator = Emulator::new(Options { detect: true, ..Options::default() });
    let out = emulator.allocate(256).expect("memory");
    let numbers: Vec<u32> = (0..64).collect();
    let refusal =
        |kernel: &str, grid: Grid| launch(&emulator, ["misuse", kernel], grid, &numbers, &out).expect_err("an error");
    for (kernel, grid, says) in [
        ("nothing", ONE_WARP, "no such kernel"),
        ("misaligned", ONE_WARP, "misaligned vector access\n  at kernels/misuse.cu:"),
        ("unwritten", ONE_WARP, " of a buffer, which nobody has written\n  at kernels/misuse.cu:"),
        ("much_shared", ONE_WARP, "are too much\n  at kernels/misuse.cu:"),
        (
            "dynamic_shared",
            Grid { shared_bytes: 4000, ..ONE_WARP },
            "4096 bytes of dynamic shared memory, but the launch gave 4000",
        ),
        ("dynamic_shared", Grid { shared_bytes: 1 << 20, ..ONE_WARP }, "too much dynamic shared memory"),
        ("unwritten", Grid { threads: 33, ..ONE_WARP }, "its launch bounds are 32 threads"),
        ("unwritten", Grid { blocks: 0, ..ONE_WARP }, "no device takes such a grid"),
    ] {
        let text = refusal(kernel, grid);
        assert!(text.contains(says), "{text}\ndoes not say: {says}");
    }
    let seed = std::env::var("TERCET_EMULATOR_SEED").unwrap_or_else(|_| "0".into());
    let text = refusal("misaligned", ONE_WARP);
    let says = format!(" of block 0\n(schedule {seed}: TERCET_EMULATOR_SEED={seed} replays it)");
    assert!(text.contains(&says), "{text}\ndoes not say: {says}");
    // SAFETY: refused before anything runs.
    let size = unsafe { emulator.launch("misuse", "unwritten", ONE_WARP, &[0; 24]) }.expect_err("an error");
    assert!(size.to_string().contains("its argument has 16 bytes, not 24"), "{size}");
}
