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

/// The image for a target has no such kernel, because no device that it runs on takes it.
const LEFT_OUT: (f64, usize) = (0.0, 0);

/// What was counted when this table began, and 5 % for another release of the compiler.
const COUNTED: &str = "as counted, and 5 %";

/// What was counted of strips, and 5 %: the plan for an H200 asks for 15.9 of `highest_wide` and 8.6 of `half_wide`.
const STRIPS: &str = "strips: as counted, and 5 %";

/// What was counted of strips that take half of the tiles, and 5 %: one number more of each product, and the fold of columns.
const HALVES: &str = "half of the tiles: as counted, and 5 %";

/// What was counted of the searches of batch_semi_hard, with 8 pairs, and of batch_negative, and 5 %: the plan for an H200 asks for
/// 31 of `batch_semi_hard_choose_highest_tall`.
const SEARCHES: &str = "searches in strips: as counted, and 5 %";

/// What was counted of sweeps, and 5 %: the goal on sm_90a is 76 of batch_all's `highest_wide` and 48 of batch_contrastive's.
const SWEEPS: &str = "sweeps: as counted, and 5 %";

/// The table. Who makes a kernel better lowers its line; who must raise one says why.
#[rustfmt::skip]
const BUDGETS: &[Budget] = &[
    budget("batch_all_left_half", [(635.9, 219), (627.5, 215), (577.0, 172), (576.4, 172)], "2026-11-29", COUNTED),
    budget("batch_all_left_highest", [(645.4, 219), (638.0, 215), (584.1, 172), (587.7, 172)], "2026-11-29", COUNTED),
    budget("batch_all_sweep_half_narrow", [(79.9, 0), LEFT_OUT, LEFT_OUT, (82.4, 1)], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_half_narrow_long", [(103.9, 0), LEFT_OUT, LEFT_OUT, (106.6, 1)], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_half_wide", [(69.5, 0), (69.2, 0), (69.6, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_half_wide_long", [(79.1, 0), (79.0, 0), (80.2, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_highest_narrow", [(88.9, 0), LEFT_OUT, LEFT_OUT, (95.8, 1)], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_highest_narrow_long", [(113.5, 0), LEFT_OUT, LEFT_OUT, (120.1, 1)], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_highest_wide", [LEFT_OUT, (78.0, 0), (78.1, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_highest_wide_long", [LEFT_OUT, (88.4, 0), (89.2, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_root_half_narrow", [(95.0, 1), LEFT_OUT, LEFT_OUT, (99.0, 1)], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_root_half_narrow_long", [(109.3, 0), LEFT_OUT, LEFT_OUT, (111.5, 1)], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_root_half_wide", [(83.8, 0), (83.4, 0), (84.4, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_root_half_wide_long", [(93.9, 0), (94.2, 0), (94.4, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_root_highest_narrow", [(103.6, 0), LEFT_OUT, LEFT_OUT, (112.2, 1)], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_root_highest_narrow_long", [(119.3, 0), LEFT_OUT, LEFT_OUT, (125.4, 1)], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_root_highest_wide", [LEFT_OUT, (92.3, 0), (93.3, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_all_sweep_root_highest_wide_long", [LEFT_OUT, (103.6, 0), (103.8, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_contrastive_left_half", [(162.6, 114), (524.7, 142), (463.3, 129), (462.4, 129)], "2026-11-29", COUNTED),
    budget("batch_contrastive_left_highest", [(171.9, 114), (535.8, 142), (471.3, 129), (474.0, 129)], "2026-11-29", COUNTED),
    budget("batch_contrastive_pass_half", [(437.4, 62), (440.2, 62), (420.1, 66), (421.4, 66)], "2026-11-29", COUNTED),
    budget("batch_contrastive_pass_highest", [(445.5, 62), (450.3, 62), (428.1, 66), (432.7, 66)], "2026-11-29", COUNTED),
    budget("batch_contrastive_sweep_half_narrow_long", [(55.1, 0), LEFT_OUT, LEFT_OUT, (58.8, 1)], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_half_wide", [(33.0, 0), (32.5, 0), (32.8, 1), (38.4, 1)], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_half_wide_long", [(44.2, 0), (44.2, 0), (44.7, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_highest_narrow", [(49.3, 0), LEFT_OUT, LEFT_OUT, (58.2, 1)], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_highest_narrow_long", [(64.9, 0), LEFT_OUT, LEFT_OUT, (72.5, 1)], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_highest_wide", [LEFT_OUT, (41.2, 0), (41.8, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_highest_wide_long", [LEFT_OUT, (53.3, 0), (53.6, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_root_half_narrow_long", [(66.1, 0), LEFT_OUT, LEFT_OUT, (66.9, 1)], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_root_half_wide", [(41.2, 1), (40.8, 1), (40.6, 1), (46.5, 1)], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_root_half_wide_long", [(52.6, 1), (52.3, 0), (52.4, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_root_highest_narrow", [(57.7, 0), LEFT_OUT, LEFT_OUT, (66.4, 1)], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_root_highest_narrow_long", [(76.4, 0), LEFT_OUT, LEFT_OUT, (80.7, 1)], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_root_highest_wide", [LEFT_OUT, (49.3, 0), (49.5, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_contrastive_sweep_root_highest_wide_long", [LEFT_OUT, (61.6, 0), (61.2, 1), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("batch_hard_negatives_half_narrow", [(12.7, 0), LEFT_OUT, LEFT_OUT, (13.5, 0)], "2026-11-29", STRIPS),
    budget("batch_hard_negatives_half_narrow_long", [(16.3, 0), LEFT_OUT, LEFT_OUT, (16.7, 0)], "2026-11-29", STRIPS),
    budget("batch_hard_negatives_half_wide", [LEFT_OUT, (8.2, 0), (7.6, 0), LEFT_OUT], "2026-11-29", STRIPS),
    budget("batch_hard_negatives_half_wide_long", [(13.2, 0), (13.6, 0), (12.3, 0), LEFT_OUT], "2026-11-29", STRIPS),
    budget("batch_hard_negatives_highest_narrow", [(18.4, 0), LEFT_OUT, LEFT_OUT, (22.3, 0)], "2026-11-29", STRIPS),
    budget("batch_hard_negatives_highest_narrow_long", [(22.8, 0), LEFT_OUT, LEFT_OUT, (25.6, 0)], "2026-11-29", STRIPS),
    budget("batch_hard_negatives_highest_wide", [LEFT_OUT, (15.2, 0), (14.4, 0), LEFT_OUT], "2026-11-29", STRIPS),
    budget("batch_hard_negatives_highest_wide_long", [LEFT_OUT, (19.3, 0), (18.5, 0), LEFT_OUT], "2026-11-29", STRIPS),
    budget("batch_hard_triangle_half_narrow", [(15.0, 0), LEFT_OUT, LEFT_OUT, (17.1, 0)], "2026-11-29", HALVES),
    budget("batch_hard_triangle_half_narrow_long", [(19.3, 0), LEFT_OUT, LEFT_OUT, (20.1, 0)], "2026-11-29", HALVES),
    budget("batch_hard_triangle_half_wide", [LEFT_OUT, (11.2, 0), (10.2, 0), LEFT_OUT], "2026-11-29", HALVES),
    budget("batch_hard_triangle_half_wide_long", [(15.6, 0), (15.9, 0), (14.9, 0), LEFT_OUT], "2026-11-29", HALVES),
    budget("batch_hard_triangle_highest_narrow", [(21.6, 0), LEFT_OUT, LEFT_OUT, (25.9, 0)], "2026-11-29", HALVES),
    budget("batch_hard_triangle_highest_narrow_long", [(25.8, 0), LEFT_OUT, LEFT_OUT, (29.3, 0)], "2026-11-29", HALVES),
    budget("batch_hard_triangle_highest_wide", [LEFT_OUT, (18.5, 0), (17.0, 0), LEFT_OUT], "2026-11-29", HALVES),
    budget("batch_hard_triangle_highest_wide_long", [LEFT_OUT, (21.7, 0), (20.4, 0), LEFT_OUT], "2026-11-29", HALVES),
    budget("batch_negative_drawn_choose_half", [(228.5, 66), (229.3, 66), (254.2, 66), (254.7, 66)], "2026-11-29", COUNTED),
    budget("batch_negative_drawn_choose_highest", [(238.9, 66), (238.5, 66), (262.8, 66), (264.4, 66)], "2026-11-29", COUNTED),
    budget("batch_negative_hardest_choose_half_narrow", [(12.8, 0), LEFT_OUT, LEFT_OUT, (17.4, 0)], "2026-11-29", SEARCHES),
    budget("batch_negative_hardest_choose_half_narrow_long", [(17.0, 1), (20.6, 1), (18.6, 1), (20.0, 1)], "2026-11-29", SEARCHES),
    budget("batch_negative_hardest_choose_half_tall", [(10.6, 0), (13.1, 0), (11.8, 0), LEFT_OUT], "2026-11-29", SEARCHES),
    budget("batch_negative_hardest_choose_highest_narrow", [(17.9, 0), LEFT_OUT, LEFT_OUT, (24.4, 0)], "2026-11-29", SEARCHES),
    budget("batch_negative_hardest_choose_highest_narrow_long", [(21.5, 1), (24.0, 0), (23.0, 0), (27.3, 0)], "2026-11-29", SEARCHES),
    budget("batch_negative_hardest_choose_highest_tall", [LEFT_OUT, (16.7, 0), (15.8, 0), LEFT_OUT], "2026-11-29", SEARCHES),
    budget("batch_semi_hard_choose_half_narrow", [(13.9, 0), LEFT_OUT, LEFT_OUT, (39.6, 0)], "2026-11-29", SEARCHES),
    budget("batch_semi_hard_choose_half_narrow_long", [(18.9, 1), (36.7, 1), (33.0, 1), (43.6, 1)], "2026-11-29", SEARCHES),
    budget("batch_semi_hard_choose_half_tall", [(11.2, 0), (24.7, 0), (23.4, 0), LEFT_OUT], "2026-11-29", SEARCHES),
    budget("batch_semi_hard_choose_highest_narrow", [(17.9, 0), LEFT_OUT, LEFT_OUT, (48.8, 0)], "2026-11-29", SEARCHES),
    budget("batch_semi_hard_choose_highest_narrow_long", [(23.1, 1), (42.0, 0), (40.2, 1), (52.6, 1)], "2026-11-29", SEARCHES),
    budget("batch_semi_hard_choose_highest_tall", [LEFT_OUT, (29.0, 0), (28.7, 0), LEFT_OUT], "2026-11-29", SEARCHES),
    budget("pairwise_distance_left_half", [(166.9, 160), (532.7, 189), (499.3, 192), (496.7, 192)], "2026-11-29", COUNTED),
    budget("pairwise_distance_left_highest", [(175.9, 160), (543.5, 189), (506.4, 192), (506.9, 192)], "2026-11-29", COUNTED),
    budget("pairwise_distance_sweep_half_narrow_long", [(60.9, 1), LEFT_OUT, LEFT_OUT, (63.7, 3)], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_half_wide", [(38.9, 1), (39.0, 0), (38.6, 3), (42.4, 3)], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_half_wide_long", [(49.5, 1), (50.5, 0), (51.0, 3), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_highest_narrow", [(54.7, 1), LEFT_OUT, LEFT_OUT, (62.8, 3)], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_highest_narrow_long", [(72.3, 1), LEFT_OUT, LEFT_OUT, (77.3, 3)], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_highest_wide", [LEFT_OUT, (47.8, 0), (47.5, 3), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_highest_wide_long", [LEFT_OUT, (59.5, 0), (59.9, 3), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_root_half_narrow_long", [(68.1, 0), LEFT_OUT, LEFT_OUT, (70.7, 3)], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_root_half_wide", [(46.3, 1), (46.7, 1), (46.0, 3), (50.3, 3)], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_root_half_wide_long", [(57.1, 1), (58.1, 1), (57.9, 3), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_root_highest_narrow", [(62.6, 0), LEFT_OUT, LEFT_OUT, (69.8, 3)], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_root_highest_narrow_long", [(79.3, 0), LEFT_OUT, LEFT_OUT, (84.1, 3)], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_root_highest_wide", [LEFT_OUT, (55.0, 0), (54.8, 3), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("pairwise_distance_sweep_root_highest_wide_long", [LEFT_OUT, (67.1, 0), (67.0, 3), LEFT_OUT], "2026-11-29", SWEEPS),
    budget("pairwise_distance_tiles_half", [(111.4, 128), (122.6, 128), (117.3, 128), (118.2, 128)], "2026-11-29", COUNTED),
    budget("pairwise_distance_tiles_highest", [(120.2, 128), (131.4, 128), (126.1, 128), (129.3, 128)], "2026-11-29", COUNTED),
    budget("top_k_sweep_half_narrow", [(12.0, 0), LEFT_OUT, LEFT_OUT, (12.8, 0)], "2026-11-30", STRIPS),
    budget("top_k_sweep_half_narrow_long", [(16.0, 0), LEFT_OUT, LEFT_OUT, (16.4, 0)], "2026-11-30", STRIPS),
    budget("top_k_sweep_half_wide", [LEFT_OUT, (8.1, 0), (7.4, 0), LEFT_OUT], "2026-11-30", STRIPS),
    budget("top_k_sweep_half_wide_long", [(13.1, 0), (13.5, 0), (12.0, 0), LEFT_OUT], "2026-11-30", STRIPS),
    budget("top_k_sweep_highest_narrow", [(17.3, 0), LEFT_OUT, LEFT_OUT, (21.5, 0)], "2026-11-30", STRIPS),
    budget("top_k_sweep_highest_narrow_long", [(22.5, 0), LEFT_OUT, LEFT_OUT, (25.6, 0)], "2026-11-30", STRIPS),
    budget("top_k_sweep_highest_wide", [LEFT_OUT, (14.6, 0), (13.9, 0), LEFT_OUT], "2026-11-30", STRIPS),
    budget("top_k_sweep_highest_wide_long", [LEFT_OUT, (19.2, 0), (17.9, 0), LEFT_OUT], "2026-11-30", STRIPS),
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
        let budget = of_targets[at];
        assert_ne!(budget, LEFT_OUT, "{kernel} for {target}: it has no budget there");
        if let Some(what) = found.beyond(budget) {
            beyond.push(format!("{kernel} for {target}: {what} ({date}: {reason})"));
        }
        // Cut by a tenth it would fail: a line that lags behind its kernel holds nothing.
        if found.beyond((budget.0 * 0.9, budget.1)).is_none() {
            beyond.push(format!("{kernel} for {target}: {:.2} of {}: lower its line", found.instructions, budget.0));
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
    let kernels = |of: Option<&'static str>| {
        let images = IMAGES.iter().filter(move |image| of.is_none_or(|target| image.target == target));
        images.flat_map(|image| image.kernels).map(|kernel| kernel.kernel)
    };
    for kernel in kernels(None).filter(|kernel| Work::of(kernel).is_some()) {
        assert!(BUDGETS.iter().any(|budget| budget.kernel == kernel), "{kernel} has no budget");
    }
    for (at, target) in TARGETS.into_iter().enumerate().filter(|(_, target)| kernels(Some(target)).next().is_some()) {
        for budget in BUDGETS {
            let there = kernels(Some(target)).any(|kernel| kernel == budget.kernel);
            assert_eq!(there, budget.of_targets[at] != LEFT_OUT, "{} for {target}", budget.kernel);
        }
    }
}

#[test]
fn what_is_beyond_a_budget_is_told() {
    for budget in BUDGETS {
        for (instructions, bssy) in budget.of_targets.into_iter().filter(|of_target| *of_target != LEFT_OUT) {
            let counted = Found { instructions: instructions / 1.05, bssy };
            assert_eq!(counted.beyond((instructions, bssy)), None, "{}", budget.kernel);
            assert!(counted.beyond((instructions * 0.9, bssy)).is_some(), "{}", budget.kernel);
            let parts = Found { bssy: bssy + 1, ..counted };
            assert!(parts.beyond((instructions, bssy)).is_some(), "{}", budget.kernel);
        }
    }
}
