//! The fused CPU version: the nearest negative of each anchor, or for each of its pairs the candidate that comes first in the
//! pair's own random order.

use std::ops::Range;

use super::{Negative, Pairs as Which, Problem};
use crate::cpu::against::{Against, NONE};
use crate::cpu::nearest::nearest_negatives;
use crate::cpu::sides::Sides;
use crate::cpu::triplets::{Chosen, Pairs, hinge, poisoned};
use crate::element::{ByScalar, ScalarFn};
use crate::mined::Set;
use crate::{Element, Matrix, Scalar, random};

/// Finds the triplets, and what they cost.
pub(crate) fn select<T: Element>(
    problem: &Problem,
    embeddings: &Matrix<'_, T>,
    labels: &[i64],
    reference: Option<&Set<'_, T>>,
) -> (Against<T::Scalar>, Chosen<T::Scalar>) {
    let against = Against::new(embeddings, labels, reference, problem.metric, problem.normalize);
    let hashes = match problem.negative {
        Negative::Hardest => [Vec::new(), Vec::new()],
        Negative::Random | Negative::SemiHard => {
            [hashes(embeddings), reference.map_or(Vec::new(), |reference| hashes(&reference.embeddings))]
        }
    };
    let chosen = T::Scalar::of_scalar(&FIND)(problem, &against, &hashes);
    (against, chosen)
}

/// Of the given rows, before they are normalised or moved.
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
    type Of<A: Scalar> = fn(&Problem, &Against<A>, &[Vec<[u32; 2]>; 2]) -> Chosen<A>;
}
static FIND: ByScalar<Find> = ByScalar { f32: find, f64: find };

fn find<A: Scalar>(problem: &Problem, against: &Against<A>, hashes: &[Vec<[u32; 2]>; 2]) -> Chosen<A> {
    let is_pair = |i: usize, p: usize| match (problem.pairs, against.own(i)) {
        (Which::Ordered, _) => true,
        (Which::Once, Some(own)) => against.given(own) < against.given(p),
        (Which::Once, None) => false,
    };
    if against.poisoned() {
        return poisoned(against, is_pair);
    }
    let pairs = Pairs::new(against);
    let distances = pairs.fill(against, A::NAN, |i, p| match is_pair(i, p) {
        true => against.anchors.distance(against.direct(i, p)),
        false => A::NAN,
    });
    let margin = A::from_f64(problem.margin);
    let mut chosen = vec![NONE; pairs.len()];
    match problem.negative {
        Negative::Hardest => {
            let nearest = nearest_negatives(against);
            for i in (0..against.anchors.rows).filter(|&i| against.is_valid(i)) {
                let d_an = against.anchors.distance(nearest.compared[i]);
                for (chosen, &d_ap) in chosen[pairs.of(i)].iter_mut().zip(&distances[pairs.of(i)]) {
                    if d_ap - d_an + margin > A::ZERO {
                        *chosen = nearest.row[i];
                    }
                }
            }
        }
        Negative::Random | Negative::SemiHard => draw(problem, against, hashes, &pairs, &distances, &mut chosen),
    }
    // Nothing can be said against a positive at an infinite distance: its loss is that of any row, the first one given.
    for i in (0..against.anchors.rows).filter(|&i| distances[pairs.of(i)].contains(&A::INFINITY)) {
        let class = against.class(i);
        let negatives = (0..class.start).chain(class.end..against.others().rows);
        let Some(any) = negatives.min_by_key(|&j| against.given(j)) else { continue };
        for (chosen, d_ap) in chosen[pairs.of(i)].iter_mut().zip(&distances[pairs.of(i)]) {
            if *d_ap == A::INFINITY {
                *chosen = any as u32;
            }
        }
    }
    hinge(against, problem.margin, &pairs, &chosen)
}

/// The first candidate of each pair in its order: its priority, its given index, its place.
type First = (u32, u32, u32);

fn draw<A: Scalar>(
    problem: &Problem,
    against: &Against<A>,
    [hashes, other_hashes]: &[Vec<[u32; 2]>; 2],
    pairs: &Pairs,
    distances: &[A],
    chosen: &mut [u32],
) {
    let other_hashes = if against.is_itself() { hashes } else { other_hashes };
    let session = random::session(problem.seed, problem.step);
    let of_row = |given: &u32| random::row_word(session, other_hashes[*given as usize]);
    let row_words: Vec<u32> = against.other_classes().order.iter().map(of_row).collect();
    let margin = A::from_f64(problem.margin);
    let nearer_than_positive = problem.negative == Negative::Random;

    let mut first: Vec<First> = vec![(u32::MAX, NONE, NONE); pairs.len()];
    let mut pair_words = vec![0u32; pairs.len()];
    for (i, &given) in against.classes.order.iter().enumerate() {
        let hash = hashes[given as usize];
        for (p, word) in against.class(i).zip(&mut pair_words[pairs.of(i)]) {
            *word = random::pair_word(session, hash, other_hashes[against.given(p) as usize]);
        }
    }
    let visit = |first: &mut &mut [First], i: usize, columns: Range<usize>, d: &mut [A]| {
        let class = against.class(i);
        if against.anchors.is_root() {
            d.iter_mut().for_each(|d| *d = d.sqrt());
        }
        let of = pairs.of(i);
        let words = pair_words[of.clone()].iter().zip(&distances[of]);
        for (first, (&word, &d_ap)) in first[pairs.in_task(i)].iter_mut().zip(words) {
            // NaN where there is no pair.
            if d_ap.is_nan() {
                continue;
            }
            for (j, &d_an) in columns.clone().zip(d.iter()) {
                let is_candidate = d_ap - d_an + margin > A::ZERO && (nearer_than_positive || d_an > d_ap);
                if is_candidate && !class.contains(&j) {
                    let priority = random::priority(word, row_words[j]);
                    if priority <= first.0 {
                        *first = (*first).min((priority, against.given(j), j as u32));
                    }
                }
            }
        }
    };
    Sides::new(&against.anchors, against.others()).sweep(pairs.tasks(&mut first), visit);
    chosen.iter_mut().zip(first).for_each(|(chosen, first)| *chosen = first.2);
}
