//! The fused CPU version: for each pair the anchor's nearest negative, or the candidate that comes first in the pair's
//! own random order.

use std::ops::Range;

use super::options::{Negative, Pairs, Problem};
use crate::cpu::comparison::{Comparison, NONE};
use crate::cpu::distance_matrix::DistanceMatrix;
use crate::cpu::nearest::nearest_negatives;
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

    let mut first: Vec<First> = vec![(u32::MAX, NONE, NONE); pairs.len()];
    let mut pair_words = vec![0u32; pairs.len()];
    for (i, &given) in comparison.classes.order.iter().enumerate() {
        let hash = hashes[given as usize];
        for (p, word) in comparison.class(i).zip(&mut pair_words[pairs.of(i)]) {
            *word = random::pair_word(session, hash, other_hashes[comparison.given(p) as usize]);
        }
    }
    let visit = |first: &mut &mut [First], i: usize, columns: Range<usize>, d: &mut [A]| {
        let class = comparison.class(i);
        if comparison.anchors.is_root() {
            d.iter_mut().for_each(|d| *d = d.sqrt());
        }
        let of = pairs.of(i);
        let words = pair_words[of.clone()].iter().zip(&distances[of]);
        for (first, (&word, &d_ap)) in first[pairs.in_task(i)].iter_mut().zip(words) {
            // NaN stands for no pair.
            if d_ap.is_nan() {
                continue;
            }
            for (j, &d_an) in columns.clone().zip(d.iter()) {
                let is_candidate = d_ap - d_an + margin > A::ZERO && (nearer_than_positive || d_an > d_ap);
                if is_candidate && !class.contains(&j) {
                    let priority = random::priority(word, row_words[j]);
                    if priority <= first.0 {
                        *first = (*first).min((priority, comparison.given(j), j as u32));
                    }
                }
            }
        }
    };
    DistanceMatrix::new(&comparison.anchors, comparison.others()).sweep(pairs.tasks(&mut first), visit);
    chosen.iter_mut().zip(first).for_each(|(chosen, first)| *chosen = first.2);
}
