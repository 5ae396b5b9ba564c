//! Anchors against a reference set: two passes over the tiles, with the anchors as rows and, for the reference set's gradient,
//! with the reference rows as rows. One thread takes a row of tiles.

use std::ops::Range;

use super::count::{Count, Sums};
use super::thresholds::{LARGE, Thresholds};
use crate::Scalar;
use crate::cpu::blocks;
use crate::cpu::comparison::Comparison;
use crate::cpu::distance_matrix::{DistanceMatrix, TASK_ROWS, TILE_COLUMNS};
use crate::cpu::pulls;

/// What the anchors of one task come to.
struct Task<'a> {
    counts: &'a mut [u32],
    active_distances: &'a mut f64,
    distances: &'a mut f64,
    overflow: &'a mut bool,
}

/// Counts the active triplets, and writes the gradients `with_grad` asks for. `None` if a distance overflows.
pub fn sweep<A: Scalar>(
    comparison: &Comparison<A>,
    pairs: &Thresholds<A>,
    with_grad: [bool; 2],
    grads: &mut [Vec<A>; 2],
) -> Option<Sums> {
    let rows = comparison.anchors.rows;
    let tasks = rows.div_ceil(TASK_ROWS);
    let mut sums =
        Sums { counts: vec![0; pairs.start[rows]], active_distances: vec![0.0; tasks], distances: vec![0.0; tasks] };
    let mut overflow = vec![false; tasks];
    let mut counts = &mut sums.counts[..];
    let mut states = Vec::with_capacity(tasks);
    let parts = sums.active_distances.iter_mut().zip(&mut sums.distances).zip(&mut overflow);
    for (task, ((active_distances, distances), overflow)) in parts.enumerate() {
        let end = rows.min((task + 1) * TASK_ROWS);
        let len = pairs.start[end] - pairs.start[task * TASK_ROWS];
        let counts = counts.split_off_mut(..len).expect("as long as all parts together");
        states.push(Task { counts, active_distances, distances, overflow });
    }

    let of_row = |i: usize| {
        let base = pairs.start[i - i % TASK_ROWS];
        pairs.start[i] - base..pairs.start[i + 1] - base
    };
    // Counts c_an of a run of anchor i's row; returns whether any is above 0.
    let count = |task: &mut Task<'_>, i: usize, columns: &Range<usize>, d: &mut [A], counts: &mut [A]| {
        let class = comparison.class(i);
        let bound = |at: usize| at.clamp(columns.start, columns.end) - columns.start;
        *task.overflow |= !d[..columns.len()].iter().all(|d| d.is_finite());
        d[bound(class.start)..bound(class.end)].fill(A::MAX);
        d[columns.len()..].fill(A::MAX);
        let totals = &mut task.counts[of_row(i)];
        let edge = TILE_COLUMNS;
        let found = pulp::Arch::new().dispatch(Count {
            pairs,
            rows: i..i + 1,
            edge,
            distances: d,
            counts,
            totals,
            columns: None,
        });
        *task.active_distances += found.active_distances;
        *task.distances += found.distances;
        found.active
    };
    let tiled = DistanceMatrix::new(&comparison.anchors, comparison.others());
    if with_grad[0] {
        let weigh = |task: &mut Task<'_>, i: usize, columns: Range<usize>, d: &mut [A], weights: &mut [A]| {
            let active = count(task, i, &columns, d, weights);
            weights.iter_mut().for_each(|weight| *weight = -*weight);
            active
        };
        let add = |task: &mut Task<'_>, i: usize, to: &mut [A]| {
            let counts = &mut task.counts[of_row(i)];
            pairs.in_class_order(i, counts);
            let of_class = comparison.class(i).zip(pairs.distances(i)).zip(counts.iter());
            for ((p, distance), &count) in of_class.filter(|(_, count)| **count > 0) {
                let weight = A::from_f64(f64::from(count)) * comparison.anchors.slope(*distance);
                pulls::add(to, &comparison.anchors, i, comparison.others(), p, weight);
            }
        };
        let mut sorted = vec![A::ZERO; grads[0].len()];
        tiled.gradient(&mut sorted, states, weigh, add);
        in_given_order(&sorted, &comparison.classes.position, comparison.anchors.dim, &mut grads[0]);
    } else {
        let states = states.into_iter().map(|task| (task, vec![A::ZERO; TILE_COLUMNS], vec![A::ZERO; TILE_COLUMNS]));
        let visit = |state: &mut (Task<'_>, Vec<A>, Vec<A>), i: usize, columns: Range<usize>, compared: &mut [A]| {
            let (task, d, counts) = state;
            d.iter_mut().zip(compared).for_each(|(d, compared)| *d = comparison.anchors.distance(*compared));
            count(task, i, &columns, d, counts);
        };
        tiled.sweep(states.collect(), visit);
        for i in 0..rows {
            pairs.in_class_order(i, &mut sums.counts[pairs.of(i)]);
        }
    }
    if overflow.contains(&true) {
        return None;
    }
    if with_grad[1] {
        let mut sorted = vec![A::ZERO; grads[1].len()];
        push_others(comparison, pairs, &sums.counts, &mut sorted);
        in_given_order(&sorted, &comparison.other_classes().position, comparison.anchors.dim, &mut grads[1]);
    }
    Some(sums)
}

/// The gradient with respect to the reference rows.
fn push_others<A: Scalar>(comparison: &Comparison<A>, pairs: &Thresholds<A>, counts: &[u32], to: &mut [A]) {
    let (anchors, others) = (&comparison.anchors, comparison.others());
    let of_class = comparison.anchors_of_others();
    let weigh = |_: &mut (), j: usize, columns: Range<usize>, d: &mut [A], weights: &mut [A]| {
        let mut any = false;
        for ((i, d), weight) in columns.zip(d.iter()).zip(weights) {
            if *d < pairs.reach[i] && !comparison.class(i).contains(&j) {
                let thresholds = pairs.thresholds(i);
                let count = match thresholds.len() {
                    len if len > LARGE => len - thresholds.partition_point(|t| *t <= *d),
                    _ => thresholds.iter().filter(|t| *d < **t).count(),
                };
                *weight = -A::from_f64(count as f64);
                any = true;
            }
        }
        any
    };
    let add = |_: &mut (), j: usize, to: &mut [A]| {
        for i in of_class[j].clone() {
            let k = j - comparison.class(i).start;
            let count = counts[pairs.start[i] + k];
            if count > 0 {
                let weight = A::from_f64(f64::from(count)) * anchors.slope(pairs.distances(i)[k]);
                pulls::add(to, others, j, anchors, i, weight);
            }
        }
    };
    DistanceMatrix::new(others, anchors).gradient(to, vec![(); others.rows.div_ceil(TASK_ROWS)], weigh, add);
}

/// Copies rows from class order to the given order.
fn in_given_order<A: Scalar>(sorted: &[A], position: &[u32], dim: usize, to: &mut [A]) {
    blocks::for_each(to.chunks_mut(TASK_ROWS * dim).collect(), |task, to: &mut [A]| {
        for (to, &position) in to.chunks_exact_mut(dim).zip(&position[task * TASK_ROWS..]) {
            to.copy_from_slice(&sorted[position as usize * dim..][..dim]);
        }
    });
}
