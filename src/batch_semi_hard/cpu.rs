//! The fused CPU version. Tiles of products are compared with the distances of each anchor's positives, and the nearest
//! negative beyond each is kept; in a large class its place among the positives is searched, and the nearest of each place
//! kept. A pair takes the negative of its positive or, if there is none, of the next positive that has one.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::Scalar;
use crate::cpu::anchors;
use crate::cpu::comparison::{Comparison, NONE, around_class};
use crate::cpu::paired::inlined;
use crate::cpu::simd::V;
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

/// What is known of a block of anchors.
struct Found<A> {
    /// The first of the anchors.
    start: usize,
    /// For each anchor's positives, nearest first, the nearest negative beyond that positive; of more than [`COMPARED`], where
    /// it is not beyond the next.
    nearest: Vec<(A, u32)>,
    /// The farthest negative of each anchor.
    farthest: Vec<(A, u32)>,
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

    let block = |rows: Range<usize>| Found {
        start: rows.start,
        nearest: vec![(A::INFINITY, NONE); pairs.start[rows.end] - pairs.start[rows.start]],
        farthest: vec![(-A::INFINITY, NONE); rows.len()],
    };
    let visit = |found: &mut Found<A>, i: usize, columns: Range<usize>, distances: &mut [A]| {
        let (class, of) = (comparison.class(i), pairs.of(i));
        if class.is_empty() {
            return;
        }
        let base = pairs.start[found.start];
        let nearest = &mut found.nearest[of.start - base..of.end - base];
        let (ranked, farthest) = (&ranked[of], &mut found.farthest[i - found.start]);
        let (before, after) = around_class(&class, &columns);
        for run in [0..before, after..columns.len()].into_iter().filter(|run| !run.is_empty()) {
            let first = columns.start + run.start;
            let beyond = Beyond { comparison, ranked, nearest, farthest, first, distances: &distances[run] };
            if ranked.len() <= COMPARED {
                pulp::Arch::new().dispatch(beyond);
            } else {
                beyond.search();
            }
        }
    };
    let (mut nearest, mut farthest) = (Vec::with_capacity(pairs.len()), Vec::with_capacity(comparison.anchors.rows));
    for mut block in anchors::sweep(comparison, block, visit) {
        nearest.append(&mut block.nearest);
        farthest.append(&mut block.farthest);
    }

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

/// In classes of more rows than this the place of a negative among the positives is searched.
const COMPARED: usize = 48;

/// A run of an anchor's negatives, and what is known of the anchor.
struct Beyond<'a, A> {
    comparison: &'a Comparison<A>,
    /// The distances of the anchor's positives, ascending.
    ranked: &'a [A],
    nearest: &'a mut [(A, u32)],
    farthest: &'a mut (A, u32),
    /// The row that the run starts with.
    first: usize,
    distances: &'a [A],
}

impl<A: Scalar> Beyond<'_, A> {
    fn given(&self, row: u32) -> u32 {
        if row == NONE { NONE } else { self.comparison.given(row as usize) }
    }

    /// The row of the run at this distance; of several the one that was given first.
    #[inline(always)]
    fn row_at(&self, distance: A) -> Option<u32> {
        let mut row = NONE;
        for (chunk, d) in self.distances.chunks(GROUP).enumerate() {
            if d.iter().fold(false, |any, d| any | (*d == distance)) {
                for (k, _) in d.iter().enumerate().filter(|(_, d)| **d == distance) {
                    let j = (self.first + chunk * GROUP + k) as u32;
                    if self.given(j) < self.given(row) {
                        row = j;
                    }
                }
            }
        }
        (row != NONE).then_some(row)
    }

    /// Offers the run's negatives at a distance that may be the greatest.
    #[inline(always)]
    fn offer_farthest(&mut self, distance: A) {
        if distance >= self.farthest.0
            && let Some(row) = self.row_at(distance)
            && (distance > self.farthest.0 || self.given(row) < self.given(self.farthest.1))
        {
            *self.farthest = (distance, row);
        }
    }

    fn search(self) {
        let last = self.ranked.len() - 1;
        for (j, &d) in (self.first as u32..).zip(self.distances) {
            // Most rows are beyond the last positive, and neither the nearest there nor the farthest of all.
            if d > self.ranked[last] && d > self.nearest[last].0 && d < self.farthest.0 {
                continue;
            }
            if d > self.farthest.0 || (d == self.farthest.0 && self.given(j) < self.given(self.farthest.1)) {
                *self.farthest = (d, j);
            }
            let beyond = self.ranked.partition_point(|t| *t < d);
            if beyond > 0 {
                let best = self.nearest[beyond - 1];
                if d < best.0 || (d == best.0 && self.given(j) < self.given(best.1)) {
                    self.nearest[beyond - 1] = (d, j);
                }
            }
        }
    }
}

/// Distances that are looked at together for one that is known to be among them.
const GROUP: usize = 32;

/// Positives that are compared together, so that what is found stays in registers.
const TOGETHER: usize = 4;

impl<A: Scalar> WithSimd for Beyond<'_, A> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let splat = inlined(
            #[inline(always)]
            |x| V::<S, A>::splat(simd, x),
        );
        let (whole, rest) = A::registers::<S>(self.distances);
        let mut most = splat(-A::INFINITY);
        for &register in whole {
            most = most.max(V { simd, register });
        }
        let most = rest.iter().fold(most.largest(), |most, &d| if d > most { d } else { most });
        self.offer_farthest(most);
        let mut found = A::INFINITY;
        let mut row = None;
        for (group, ranked) in self.ranked.chunks(TOGETHER).enumerate() {
            let mut limits = [splat(A::INFINITY); TOGETHER];
            for (limit, &d) in limits.iter_mut().zip(ranked) {
                *limit = splat(d);
            }
            let mut least = [splat(A::INFINITY); TOGETHER];
            for &register in whole {
                let d = V::<S, A> { simd, register };
                for (least, &limit) in least.iter_mut().zip(&limits) {
                    *least = least.min(d.if_above(limit, d, splat(A::INFINITY)));
                }
            }
            for (k, (&limit, least)) in ranked.iter().zip(least).enumerate() {
                let least =
                    rest.iter().fold(least.smallest(), |least, &d| if d > limit && d < least { d } else { least });
                let k = group * TOGETHER + k;
                // Infinity stands for none, unless a distance overflowed.
                let none = least == A::INFINITY && (most < A::INFINITY || limit == A::INFINITY);
                if none || least > self.nearest[k].0 {
                    continue;
                }
                if row.is_none() || found != least {
                    (found, row) = (least, self.row_at(least));
                }
                let Some(row) = row else { continue };
                if least < self.nearest[k].0 || self.given(row) < self.given(self.nearest[k].1) {
                    self.nearest[k] = (least, row);
                }
            }
        }
    }
}
