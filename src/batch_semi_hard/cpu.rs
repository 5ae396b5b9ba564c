//! The fused CPU version: each negative is ranked among its anchor's positives by tiles of products, and the nearest of each
//! rank is kept: that of a pair is the nearest of its own rank or of the next that has one.

use std::ops::Range;

use super::Problem;
use crate::cpu::against::{Against, NONE};
use crate::cpu::sides::{Sides, TASK_ROWS};
use crate::cpu::triplets::{Chosen, Pairs, hinge, poisoned};
use crate::element::{ByScalar, ScalarFn};
use crate::mined::Set;
use crate::{Element, Matrix, Scalar};

/// Finds the triplets, and what they cost.
pub(crate) fn select<T: Element>(
    problem: &Problem,
    embeddings: &Matrix<'_, T>,
    labels: &[i64],
    reference: Option<&Set<'_, T>>,
) -> (Against<T::Scalar>, Chosen<T::Scalar>) {
    let against = Against::new(embeddings, labels, reference, problem.metric, problem.normalize);
    let chosen = T::Scalar::of_scalar(&FIND)(problem, &against);
    (against, chosen)
}

struct Find;
impl ScalarFn for Find {
    type Of<A: Scalar> = fn(&Problem, &Against<A>) -> Chosen<A>;
}
static FIND: ByScalar<Find> = ByScalar { f32: find, f64: find };

/// The nearest negative beyond one positive and not beyond the next, and the farthest of all.
struct Task<'a, A> {
    /// Per pair, in the order of the positives' distances.
    nearest: &'a mut [(A, u32)],
    /// Per anchor.
    farthest: &'a mut [(A, u32)],
}

fn find<A: Scalar>(problem: &Problem, against: &Against<A>) -> Chosen<A> {
    if against.poisoned() {
        return poisoned(against, |_, _| true);
    }
    let pairs = Pairs::new(against);
    // In terms of what distances are compared by; -∞ for a row with itself comes first, and has no triplet.
    let compared = pairs.fill(against, -A::INFINITY, |i, p| against.direct(i, p));
    let mut ranked = compared.clone();
    let mut owner: Vec<u32> = vec![0; compared.len()];
    for i in 0..against.anchors.rows {
        let of = pairs.of(i);
        let (compared, owner) = (&compared[of.clone()], &mut owner[of.clone()]);
        (0..).zip(owner.iter_mut()).for_each(|(k, owner)| *owner = k);
        owner.sort_by(|&j, &k| compared[j as usize].partial_cmp(&compared[k as usize]).expect("no NaN: not poisoned"));
        ranked[of].iter_mut().zip(owner).for_each(|(to, &mut k)| *to = compared[k as usize]);
    }

    let mut nearest = vec![(A::INFINITY, NONE); pairs.len()];
    let mut farthest = vec![(-A::INFINITY, NONE); against.anchors.rows];
    let tasks = pairs.tasks(&mut nearest).into_iter().zip(farthest.chunks_mut(TASK_ROWS));
    let tasks = tasks.map(|(nearest, farthest)| Task { nearest, farthest }).collect();
    let visit = |task: &mut Task<'_, A>, i: usize, columns: Range<usize>, distances: &mut [A]| {
        let (class, of) = (against.class(i), pairs.of(i));
        if class.is_empty() {
            return;
        }
        let (ranked, nearest) = (&ranked[of], &mut task.nearest[pairs.in_task(i)]);
        let farthest = &mut task.farthest[i % TASK_ROWS];
        let given = |row: u32| if row == NONE { NONE } else { against.given(row as usize) };
        let last = ranked.len() - 1;
        for (j, &d) in columns.zip(distances.iter()) {
            // Most rows are beyond the last positive and not the nearest there, and not the farthest.
            if (d > ranked[last] && d > nearest[last].0 && d < farthest.0) || class.contains(&j) {
                continue;
            }
            if d > farthest.0 || (d == farthest.0 && against.given(j) < given(farthest.1)) {
                *farthest = (d, j as u32);
            }
            let beyond = ranked.partition_point(|t| *t < d);
            if beyond > 0 {
                let best = &mut nearest[beyond - 1];
                if d < best.0 || (d == best.0 && against.given(j) < given(best.1)) {
                    *best = (d, j as u32);
                }
            }
        }
    };
    Sides::new(&against.anchors, against.others()).sweep(tasks, visit);

    let mut chosen = vec![NONE; pairs.len()];
    for i in (0..against.anchors.rows).filter(|&i| against.is_valid(i)) {
        let of = pairs.of(i);
        let own = against.own(i);
        let mut row = farthest[i].1;
        for (k, &(_, nearest)) in owner[of.clone()].iter().zip(&nearest[of.clone()]).rev() {
            if nearest != NONE {
                row = nearest;
            }
            if own != Some(against.class(i).start + *k as usize) {
                chosen[of.start + *k as usize] = row;
            }
        }
    }
    hinge(against, problem.margin, &pairs, &chosen)
}
