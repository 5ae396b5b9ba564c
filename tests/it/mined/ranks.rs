//! The order of classes that every mined loss prepares: counted among all labels, and from some size on by sorted runs.

use tercet::internal::{Input, Memory, class_order};
use tercet_emulator::{Emulator, Options};

use crate::support::Numbers;

/// Labels of every kind that another order of comparisons could get wrong.
fn labellings(rows: usize) -> [(&'static str, Vec<i64>); 9] {
    let mut numbers = Numbers(rows as u64);
    let count = rows as i64;
    let mut random = |classes: usize| (0..rows).map(|_| numbers.below(classes) as i64 - 3).collect::<Vec<_>>();
    [
        ("equal", vec![7; rows]),
        ("different", (0..count).map(|i| (i * 7919) % 10007 * 100_003 + i).collect()),
        ("sorted", (0..count).map(|i| i / 3).collect()),
        ("reversed", (0..count).rev().collect()),
        ("two classes", (0..count).map(|i| i % 2).collect()),
        ("one class but for a row", (0..count).map(|i| i64::from(i == count / 2) * -5).collect()),
        ("negative", (0..count).map(|i| -(i * 31 % 100)).collect()),
        ("extremes", (0..rows).map(|i| [i64::MAX, i64::MIN, 0, i64::MIN + 1, -1][i * i % 5]).collect()),
        ("random", random(rows / 8 + 1)),
    ]
}

/// `order`, `position`, `first` and `end`, by a stable sort.
fn expected(labels: &[i64]) -> [Vec<u32>; 4] {
    let mut order: Vec<u32> = (0..labels.len() as u32).collect();
    order.sort_by_key(|&i| labels[i as usize]);
    let mut position = vec![0; labels.len()];
    let (mut first, mut end) = (position.clone(), position.clone());
    for (at, &i) in order.iter().enumerate() {
        position[i as usize] = at as u32;
        let label = |at: usize| labels[order[at] as usize];
        first[at] = if at > 0 && label(at - 1) == label(at) { first[at - 1] } else { at as u32 };
    }
    for at in (0..labels.len()).rev() {
        let ends = at + 1 == labels.len() || first[at + 1] != first[at];
        end[at] = if ends { at as u32 + 1 } else { end[at + 1] };
    }
    [order, position, first, end]
}

/// Ranks rows with every kind of labels, and returns what the emulator launched last.
fn ranked(rows: usize, options: Options) -> Vec<String> {
    let mut launched = Vec::new();
    for (what, labels) in labellings(rows) {
        let emulator = Emulator::new(options);
        let (x, uploaded) = (emulator.upload(&vec![1f32; rows]), emulator.upload(&labels));
        let input = Input { x: x.address(), stride: 1, labels: uploaded.address() };
        // SAFETY: buffers of the emulator, of these sizes.
        let (memory, addresses) =
            unsafe { class_order(&emulator, [rows, 1], &input) }.unwrap_or_else(|e| panic!("{e}"));
        let bytes = memory.read::<u8>();
        let found: [Vec<u32>; 4] = addresses.map(|at| {
            let from = (at - memory.address()) as usize;
            bytes[from..from + 4 * rows].chunks(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]])).collect()
        });
        assert!(found == expected(&labels), "{rows} rows, {what}, {options:?}");
        launched = emulator.take_work().into_iter().map(|work| work.kernel.unwrap_or("a fill".into())).collect();
    }
    launched
}

#[test]
fn classes_are_in_order() {
    for rows in [1, 2, 31, 32, 33, 257, 1025] {
        let launched = ranked(rows, Options { seed: rows as u64 % 5, ..Options::default() });
        let first = if rows <= 1024 { "batch_prepare_f32_highest" } else { "batch_order" };
        assert_eq!(launched[0], first, "{rows} rows: {launched:?}");
    }
    for rows in [4096, 4097, 8193] {
        let launched = ranked(rows, Options { seed: rows as u64 % 5, ..Options::default() });
        assert_eq!(launched[..2], ["batch_runs", "batch_ranks"], "{rows} rows: {launched:?}");
    }
}

#[test]
fn the_detector_sees_no_race_in_the_order_of_classes() {
    ranked(4128, Options { detect: true, seed: 1, ..Options::default() });
}
