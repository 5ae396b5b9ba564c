//! How many instructions a kernel of tiles may take for an element, which is one product of two rows. Time on a device follows
//! them before anything else (docs/experiments.md), and a device is seldom at hand.

use std::collections::BTreeMap;
use std::time::Instant;

use tercet::internal::{IMAGES, Image};
use tercet_kernel_report::parallel;
use tercet_kernel_report::report::{self, TileReport};
use tercet_kernel_report::work::{Problem, Work};

/// The targets that there are budgets for, in the order of their numbers below.
const TARGETS: [&str; 4] = ["sm_80", "sm_90a", "sm_100", "sm_120"];

/// What a kernel may take at D = 128 with 7 positives, on the path that is not rare (`cargo xtask kernel-report`).
struct Budget {
    kernel: &'static str,
    /// By target: instructions of an element, at most, and places in the loop of tiles where parted threads meet (BSSY).
    of_targets: [(f64, usize); 4],
    /// When it was last set.
    date: &'static str,
    reason: &'static str,
}

const fn budget(
    kernel: &'static str,
    of_targets: [(f64, usize); 4],
    date: &'static str,
    reason: &'static str,
) -> Budget {
    Budget { kernel, of_targets, date, reason }
}

/// What was counted when this table began, and 5 % for another release of the compiler.
const COUNTED: &str = "as counted, and 5 %";

/// The table. Who makes a kernel better lowers its line; who must raise one says why.
#[rustfmt::skip]
const BUDGETS: &[Budget] = &[
    budget("batch_all_sweep_bf16", [(550.5, 181), (581.1, 183), (525.2, 145), (525.3, 145)], "2026-11-29", COUNTED),
    budget("batch_all_sweep_f16", [(550.5, 181), (581.1, 183), (525.2, 145), (525.3, 145)], "2026-11-29", COUNTED),
    budget("batch_all_sweep_high", [(565.4, 181), (595.8, 183), (535.3, 145), (536.9, 145)], "2026-11-29", COUNTED),
    budget("batch_all_sweep_highest", [(557.8, 181), (591.0, 182), (535.8, 145), (537.2, 145)], "2026-11-29", COUNTED),
    budget("batch_contrastive_sweep_bf16", [(435.3, 62), (438.5, 62), (406.8, 73), (406.6, 73)], "2026-11-29", COUNTED),
    budget("batch_contrastive_sweep_f16", [(435.3, 62), (438.5, 62), (406.8, 73), (406.6, 73)], "2026-11-29", COUNTED),
    budget("batch_contrastive_sweep_high", [(450.4, 62), (453.5, 62), (416.8, 73), (418.1, 73)], "2026-11-29", COUNTED),
    budget("batch_contrastive_sweep_highest", [(444.8, 62), (450.2, 62), (416.4, 73), (417.0, 73)], "2026-11-29", COUNTED),
    budget("batch_hard_negatives_bf16", [(52.4, 33), (53.8, 33), (46.5, 33), (47.1, 33)], "2026-11-29", COUNTED),
    budget("batch_hard_negatives_f16", [(52.4, 33), (53.8, 33), (46.5, 33), (47.1, 33)], "2026-11-29", COUNTED),
    budget("batch_hard_negatives_high", [(68.7, 33), (70.9, 33), (58.3, 33), (60.5, 33)], "2026-11-29", COUNTED),
    budget("batch_hard_negatives_highest", [(63.8, 33), (64.6, 33), (58.8, 33), (61.7, 33)], "2026-11-29", COUNTED),
    budget("batch_negative_drawn_choose_bf16", [(228.8, 66), (230.8, 66), (364.6, 66), (321.8, 66)], "2026-11-29", COUNTED),
    budget("batch_negative_drawn_choose_f16", [(228.8, 66), (230.8, 66), (364.6, 66), (321.8, 66)], "2026-11-29", COUNTED),
    budget("batch_negative_drawn_choose_high", [(239.7, 66), (242.7, 66), (375.7, 66), (334.7, 66)], "2026-11-29", COUNTED),
    budget("batch_negative_drawn_choose_highest", [(238.7, 66), (239.6, 66), (373.2, 66), (333.8, 66)], "2026-11-29", COUNTED),
    budget("batch_negative_hardest_choose_bf16", [(66.6, 33), (67.9, 33), (66.2, 33), (63.2, 33)], "2026-11-29", COUNTED),
    budget("batch_negative_hardest_choose_f16", [(66.6, 33), (67.9, 33), (66.2, 33), (63.2, 33)], "2026-11-29", COUNTED),
    budget("batch_negative_hardest_choose_high", [(82.3, 33), (83.4, 33), (77.3, 33), (76.0, 33)], "2026-11-29", COUNTED),
    budget("batch_negative_hardest_choose_highest", [(76.7, 33), (79.8, 33), (74.9, 33), (74.3, 33)], "2026-11-29", COUNTED),
    budget("batch_semi_hard_choose_bf16", [(122.7, 35), (122.5, 35), (115.1, 35), (102.8, 35)], "2026-11-29", COUNTED),
    budget("batch_semi_hard_choose_f16", [(122.7, 35), (122.5, 35), (115.1, 35), (102.8, 35)], "2026-11-29", COUNTED),
    budget("batch_semi_hard_choose_high", [(138.4, 35), (137.9, 35), (127.1, 35), (116.5, 35)], "2026-11-29", COUNTED),
    budget("batch_semi_hard_choose_highest", [(132.8, 35), (134.4, 35), (123.8, 35), (115.3, 35)], "2026-11-29", COUNTED),
    budget("pairwise_distance_tiles_bf16", [(109.9, 128), (120.8, 128), (103.3, 128), (102.5, 128)], "2026-11-29", COUNTED),
    budget("pairwise_distance_tiles_f16", [(109.9, 128), (120.8, 128), (103.3, 128), (102.5, 128)], "2026-11-29", COUNTED),
    budget("pairwise_distance_tiles_high", [(124.5, 128), (135.7, 128), (113.8, 128), (114.7, 128)], "2026-11-29", COUNTED),
    budget("pairwise_distance_tiles_highest", [(121.0, 128), (131.1, 128), (112.7, 128), (113.1, 128)], "2026-11-29", COUNTED),
];

/// What a kernel takes.
#[derive(Clone, Copy)]
struct Found {
    instructions: f64,
    bssy: usize,
}

impl Found {
    fn of(tile: &TileReport) -> Self {
        Self { instructions: tile.instructions_per_element, bssy: tile.bssy_in_tile_loop }
    }

    /// Says by what it is beyond a budget.
    fn beyond(&self, (instructions, bssy): (f64, usize)) -> Option<String> {
        let more = self.instructions > instructions || self.bssy > bssy;
        more.then(|| {
            let Self { instructions: found, bssy: found_bssy } = self;
            format!("{found:.2} instructions an element of {instructions}, {found_bssy} BSSY of {bssy}")
        })
    }
}

#[test]
fn hot_loops_stay_within_their_budget() {
    let Some(disassembler) = super::disassembler("hot_loops_stay_within_their_budget") else { return };
    let start = Instant::now();
    let budgets: BTreeMap<_, _> = BUDGETS.iter().map(|budget| (budget.kernel, budget)).collect();
    let stem_has_some = |image: &&Image| image.kernels.iter().any(|kernel| budgets.contains_key(kernel.kernel));
    let images: Vec<_> = IMAGES.iter().filter(|i| TARGETS.contains(&i.target)).filter(stem_has_some).collect();
    let reports = parallel::map(&images, |image| {
        report::of_image(image, Some(&disassembler), &Problem::default(), |kernel| budgets.contains_key(kernel))
            .unwrap()
    });
    let (mut lines, mut beyond) = (Vec::new(), Vec::new());
    for report in reports.iter().flatten() {
        let (kernel, target) = (report.resources.kernel, report.resources.target);
        let tile = report.code.as_ref().and_then(|code| code.tile.as_ref()).expect("a kernel of tiles");
        let at = TARGETS.iter().position(|of| *of == target).expect("asked for");
        let Budget { of_targets, date, reason, .. } = budgets[kernel];
        let found = Found::of(tile);
        lines.push(format!(
            "{kernel} for {target}: {:.2} instructions an element, {} BSSY",
            found.instructions, found.bssy
        ));
        if let Some(what) = found.beyond(of_targets[at]) {
            beyond.push(format!("{kernel} for {target}: {what} ({date}: {reason})"));
        }
        assert_eq!(
            tile.counts.of(tercet_kernel_report::classes::Class::Local),
            0.0,
            "{kernel} for {target}: local memory"
        );
    }
    assert!(!lines.is_empty(), "no kernel has a budget");
    println!("{}\n{} kernels, {:.1} s", lines.join("\n"), lines.len(), start.elapsed().as_secs_f64());
    assert!(beyond.is_empty(), "beyond their budgets:\n{}", beyond.join("\n"));
}

#[test]
fn every_kernel_of_tiles_has_a_budget() {
    let kernels = || IMAGES.iter().filter(|i| i.stem != "conformance").flat_map(|i| i.kernels).map(|k| k.kernel);
    for kernel in kernels().filter(|kernel| Work::of(kernel).is_some()) {
        assert!(BUDGETS.iter().any(|budget| budget.kernel == kernel), "{kernel} has no budget");
    }
    for budget in BUDGETS {
        assert!(kernels().any(|kernel| kernel == budget.kernel), "there is no {}", budget.kernel);
    }
}

#[test]
fn a_budget_that_is_cut_by_a_tenth_fails() {
    for budget in BUDGETS {
        for (instructions, bssy) in budget.of_targets {
            let counted = Found { instructions: instructions / 1.05, bssy };
            assert_eq!(counted.beyond((instructions, bssy)), None, "{}", budget.kernel);
            assert!(counted.beyond((instructions * 0.9, bssy)).is_some(), "{}", budget.kernel);
            let parts = Found { bssy: bssy + 1, ..counted };
            assert!(parts.beyond((instructions, bssy)).is_some(), "{}", budget.kernel);
        }
    }
}
