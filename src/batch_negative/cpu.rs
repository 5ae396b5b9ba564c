//! The fused CPU version: for each pair the anchor's nearest negative, or the candidate that comes first in the pair's
//! own random order.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::options::{Negative, Pairs, Problem};
use crate::cpu::anchors;
use crate::cpu::batch::roots;
use crate::cpu::comparison::{Comparison, NONE, around_class};
use crate::cpu::nearest::nearest_negatives;
use crate::cpu::rounds::EDGE;
use crate::cpu::triplets::{ChosenTriplets, ClassPairs, hinge, poisoned};
use crate::element::{ByScalar, ScalarFn};
use crate::mined::Slices;
use crate::{Element, Matrix, Scalar, random};

/// Chooses the triplets of a batch, and computes their losses.
pub(crate) fn select<T: Element>(
    problem: &Problem,
    comparison: &Comparison<T::Scalar>,
    slices: &Slices<'_, T>,
) -> ChosenTriplets<T::Scalar> {
    let hashes = match problem.options.extra.negative {
        Negative::Hardest => [Vec::new(), Vec::new()],
        Negative::Random | Negative::SemiHard => {
            [hashes(&slices.embeddings), slices.reference.map_or(Vec::new(), |reference| hashes(&reference.embeddings))]
        }
    };
    T::Scalar::of_scalar(&FIND)(problem, comparison, &hashes)
}

/// The hashes of the rows as given: before they are normalised or translated.
fn hashes<T: Element>(matrix: &Matrix<'_, T>) -> Vec<[u32; 2]> {
    let mut wide = vec![T::Scalar::ZERO; matrix.dim()];
    let hash = |i| {
        T::widen(matrix.row(i), &mut wide);
        random::row_hash(&wide)
    };
    (0..matrix.rows()).map(hash).collect()
}

struct Find;
impl ScalarFn for Find {
    type Of<A: Scalar> = fn(&Problem, &Comparison<A>, &[Vec<[u32; 2]>; 2]) -> ChosenTriplets<A>;
}
static FIND: ByScalar<Find> = ByScalar { f32: find, f64: find };

fn find<A: Scalar>(problem: &Problem, comparison: &Comparison<A>, hashes: &[Vec<[u32; 2]>; 2]) -> ChosenTriplets<A> {
    let is_pair = |i: usize, p: usize| match (problem.options.extra.pairs, comparison.own(i)) {
        (Pairs::Ordered, _) => true,
        (Pairs::Once, Some(own)) => comparison.given(own) < comparison.given(p),
        (Pairs::Once, None) => false,
    };
    if comparison.poisoned() {
        return poisoned(comparison, is_pair);
    }
    let pairs = ClassPairs::new(comparison);
    let distances = pairs.fill(comparison, A::NAN, |i, p| match is_pair(i, p) {
        true => comparison.anchors.distance(comparison.direct(i, p)),
        false => A::NAN,
    });
    let margin = A::from_f64(problem.options.margin);
    let mut chosen = vec![NONE; pairs.len()];
    match problem.options.extra.negative {
        Negative::Hardest => {
            let nearest = nearest_negatives(comparison);
            for i in (0..comparison.anchors.rows).filter(|&i| comparison.is_valid(i)) {
                let d_an = comparison.anchors.distance(nearest.compared[i]);
                for (chosen, &d_ap) in chosen[pairs.of(i)].iter_mut().zip(&distances[pairs.of(i)]) {
                    if d_ap - d_an + margin > A::ZERO {
                        *chosen = nearest.row[i];
                    }
                }
            }
        }
        Negative::Random | Negative::SemiHard => draw(problem, comparison, hashes, &pairs, &distances, &mut chosen),
    }
    // If d_ap is infinite the loss is NaN whichever negative is taken: take the one with the lowest index.
    for i in (0..comparison.anchors.rows).filter(|&i| distances[pairs.of(i)].contains(&A::INFINITY)) {
        let class = comparison.class(i);
        let negatives = (0..class.start).chain(class.end..comparison.others().rows);
        let Some(any) = negatives.min_by_key(|&j| comparison.given(j)) else { continue };
        for (chosen, d_ap) in chosen[pairs.of(i)].iter_mut().zip(&distances[pairs.of(i)]) {
            if *d_ap == A::INFINITY {
                *chosen = any as u32;
            }
        }
    }
    hinge(comparison, problem.options.margin, &pairs, &chosen)
}

/// The first candidate of a pair in the pair's random order: its priority, its given index, its sorted row.
type First = (u32, u32, u32);

fn draw<A: Scalar>(
    problem: &Problem,
    comparison: &Comparison<A>,
    [hashes, other_hashes]: &[Vec<[u32; 2]>; 2],
    pairs: &ClassPairs,
    distances: &[A],
    chosen: &mut [u32],
) {
    let other_hashes = if comparison.is_itself() { hashes } else { other_hashes };
    let session = random::session(problem.options.extra.seed, problem.step);
    let of_row = |given: &u32| random::row_word(session, other_hashes[*given as usize]);
    let row_words: Vec<u32> = comparison.other_classes().order.iter().map(of_row).collect();
    let margin = A::from_f64(problem.options.margin);
    let nearer_than_positive = problem.options.extra.negative == Negative::Random;

    let mut pair_words = vec![0u32; pairs.len()];
    for (i, &given) in comparison.classes.order.iter().enumerate() {
        let hash = hashes[given as usize];
        for (p, word) in comparison.class(i).zip(&mut pair_words[pairs.of(i)]) {
            *word = random::pair_word(session, hash, other_hashes[comparison.given(p) as usize]);
        }
    }
    // The first pair of a block of anchors, and what is known of all of them.
    let block = |rows: Range<usize>| {
        let pairs = pairs.start[rows.start]..pairs.start[rows.end];
        (pairs.start, vec![(u32::MAX, NONE, NONE); pairs.len()])
    };
    let visit = |(base, first): &mut (usize, Vec<First>), i: usize, columns: Range<usize>, d: &mut [A]| {
        let (before, after) = around_class(&comparison.class(i), &columns);
        if comparison.anchors.is_root() {
            roots(d);
        }
        let mut priorities = [0; EDGE];
        let of = pairs.of(i);
        let first = &mut first[of.start - *base..of.end - *base];
        let words = pair_words[of.clone()].iter().zip(&distances[of]);
        for (first, (&word, &d_ap)) in first.iter_mut().zip(words) {
            // NaN stands for no pair.
            if d_ap.is_nan() {
                continue;
            }
            for run in [0..before, after..columns.len()].into_iter().filter(|run| !run.is_empty()) {
                let (d, start) = (&d[run.clone()], columns.start + run.start);
                let (row_words, priorities) = (&row_words[start..][..d.len()], &mut priorities[..d.len()]);
                let beyond = if nearer_than_positive { -A::INFINITY } else { d_ap };
                let draw = Draw { word, d_ap, margin, beyond, distances: d, row_words, priorities };
                let Some(least) = pulp::Arch::new().dispatch(draw).filter(|least| *least <= first.0) else { continue };
                for (chunk, of_chunk) in priorities.chunks(GROUP).enumerate() {
                    if of_chunk.iter().fold(false, |any, priority| any | (*priority == least)) {
                        for k in (0..of_chunk.len()).filter(|&k| of_chunk[k] == least) {
                            let at = chunk * GROUP + k;
                            let j = start + at;
                            // A candidate's priority may be the one of all others.
                            if is_candidate(d_ap, d[at], margin, beyond) {
                                *first = (*first).min((least, comparison.given(j), j as u32));
                            }
                        }
                    }
                }
            }
        }
    };
    let first = anchors::sweep(comparison, block, visit).into_iter().flat_map(|(_, first)| first);
    chosen.iter_mut().zip(first).for_each(|(chosen, first)| *chosen = first.2);
}

/// Priorities that are looked at together for one that is known to be among them.
const GROUP: usize = 32;

/// The priorities of a positive's candidates: negatives that violate the margin and are beyond `beyond`.
struct Draw<'a, A> {
    /// Of the pair.
    word: u32,
    d_ap: A,
    margin: A,
    beyond: A,
    /// The distances and words of negatives.
    distances: &'a [A],
    row_words: &'a [u32],
    /// Overwritten; [`NO_CANDIDATE`] for the others.
    priorities: &'a mut [u32],
}

impl<A: Scalar> WithSimd for Draw<'_, A> {
    /// The least priority; `None` without a candidate.
    type Output = Option<u32>;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<u32> {
        // A plain loop, which the compiler makes vectors of for the processor that it is compiled for.
        let Self { word, d_ap, margin, beyond, distances, row_words, priorities } = self;
        let (mut least, mut any) = (NO_CANDIDATE, false);
        for ((priority, &d_an), &row_word) in priorities.iter_mut().zip(distances).zip(row_words) {
            let is_candidate = is_candidate(d_ap, d_an, margin, beyond);
            any |= is_candidate;
            *priority = if is_candidate { random::priority(word, row_word) } else { NO_CANDIDATE };
            least = least.min(*priority);
        }
        any.then_some(least)
    }
}

/// The priority of what is no candidate.
const NO_CANDIDATE: u32 = u32::MAX;

#[inline(always)]
fn is_candidate<A: Scalar>(d_ap: A, d_an: A, margin: A, beyond: A) -> bool {
    (d_ap - d_an + margin > A::ZERO) & (d_an > beyond)
}
