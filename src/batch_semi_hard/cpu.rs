//! The fused CPU version. Tiles of products rank each negative among its anchor's positives by distance, and the
//! nearest negative of each rank is kept. A pair takes the one of its positive's rank or, if there is none, of the next
//! rank that has one.

use std::ops::Range;

use crate::Scalar;
use crate::cpu::comparison::{Comparison, NONE};
use crate::cpu::distance_matrix::{DistanceMatrix, TASK_ROWS};
use crate::cpu::triplets::{ChosenTriplets, ClassPairs, hinge, poisoned};
use crate::element::{ByScalar, ScalarFn};

/// The options and sizes of one call.
pub(crate) type Problem = crate::problem::Problem<()>;

/// Chooses the triplets of a batch, and computes their losses.
pub(crate) fn select<A: Scalar>(problem: &Problem, comparison: &Comparison<A>) -> ChosenTriplets<A> {
    A::of_scalar(&FIND)(problem, comparison)
}

struct Find;
impl ScalarFn for Find {
    type Of<A: Scalar> = fn(&Problem, &Comparison<A>) -> ChosenTriplets<A>;
}
static FIND: ByScalar<Find> = ByScalar { f32: find, f64: find };

/// What one task of the sweep writes: the nearest negative of each rank, and the farthest of each anchor.
struct Task<'a, A> {
    /// For each anchor's positives, nearest first, the nearest negative beyond that positive and not beyond the next.
    nearest: &'a mut [(A, u32)],
    /// The farthest negative of each anchor.
    farthest: &'a mut [(A, u32)],
}

fn find<A: Scalar>(problem: &Problem, comparison: &Comparison<A>) -> ChosenTriplets<A> {
    if comparison.poisoned() {
        return poisoned(comparison, |_, _| true);
    }
    let pairs = ClassPairs::new(comparison);
    // In the numbers that distances are compared by. A row with itself is at -∞: it comes first, and has no triplet.
    let compared = pairs.fill(comparison, -A::INFINITY, |i, p| comparison.direct(i, p));
    let mut ranked = compared.clone();
    let mut owner: Vec<u32> = vec![0; compared.len()];
    for i in 0..comparison.anchors.rows {
        let of = pairs.of(i);
        let (compared, owner) = (&compared[of.clone()], &mut owner[of.clone()]);
        (0..).zip(owner.iter_mut()).for_each(|(k, owner)| *owner = k);
        owner.sort_by(|&j, &k| compared[j as usize].partial_cmp(&compared[k as usize]).expect("no NaN: not poisoned"));
        ranked[of].iter_mut().zip(owner).for_each(|(to, &mut k)| *to = compared[k as usize]);
    }

    let mut nearest = vec![(A::INFINITY, NONE); pairs.len()];
    let mut farthest = vec![(-A::INFINITY, NONE); comparison.anchors.rows];
    let tasks = pairs.tasks(&mut nearest).into_iter().zip(farthest.chunks_mut(TASK_ROWS));
    let tasks = tasks.map(|(nearest, farthest)| Task { nearest, farthest }).collect();
    let visit = |task: &mut Task<'_, A>, i: usize, columns: Range<usize>, distances: &mut [A]| {
        let (class, of) = (comparison.class(i), pairs.of(i));
        if class.is_empty() {
            return;
        }
        let (ranked, nearest) = (&ranked[of], &mut task.nearest[pairs.in_task(i)]);
        let farthest = &mut task.farthest[i % TASK_ROWS];
        let given = |row: u32| if row == NONE { NONE } else { comparison.given(row as usize) };
        let last = ranked.len() - 1;
        for (j, &d) in columns.zip(distances.iter()) {
            // Most rows are beyond the last positive, and neither the nearest there nor the farthest of all.
            if (d > ranked[last] && d > nearest[last].0 && d < farthest.0) || class.contains(&j) {
                continue;
            }
            if d > farthest.0 || (d == farthest.0 && comparison.given(j) < given(farthest.1)) {
                *farthest = (d, j as u32);
            }
            let beyond = ranked.partition_point(|t| *t < d);
            if beyond > 0 {
                let best = &mut nearest[beyond - 1];
                if d < best.0 || (d == best.0 && comparison.given(j) < given(best.1)) {
                    *best = (d, j as u32);
                }
            }
        }
    };
    DistanceMatrix::new(&comparison.anchors, comparison.others()).sweep(tasks, visit);

    let mut chosen = vec![NONE; pairs.len()];
    for i in (0..comparison.anchors.rows).filter(|&i| comparison.is_valid(i)) {
        let of = pairs.of(i);
        let own = comparison.own(i);
        let mut row = farthest[i].1;
        for (k, &(_, nearest)) in owner[of.clone()].iter().zip(&nearest[of.clone()]).rev() {
            if nearest != NONE {
                row = nearest;
            }
            if own != Some(comparison.class(i).start + *k as usize) {
                chosen[of.start + *k as usize] = row;
            }
        }
    }
    hinge(comparison, problem.options.margin, &pairs, &chosen)
}
