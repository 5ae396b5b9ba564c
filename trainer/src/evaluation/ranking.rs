//! Retrieval metrics: each image is a query for its identity among all others.
//!
//! With `R` other images of the query's identity, and `rel(i)` 1 if the i-th nearest other image is one of them, else
//! 0:
//!
//! ```text
//! recall@k    = 1 if rel(1..k) has a 1                    precision(i) = Σ_{j<=i} rel(j) / i
//! R-precision = precision(R)                              MAP@R = 1/R Σ_{i<=R} precision(i) rel(i)
//! ```
//!
//! each averaged over the queries that have such others (Musgrave et al., 2020, "A metric learning reality check"). Of
//! equally near images the one with the lower index is nearer.

use crate::model::nearest::for_nearest_others;
use crate::model::vectors::Vectors;
use crate::process::random::{Purpose, stream};
use rand::seq::index;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Means over the queries: the images that have others of their identity.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// `(k, recall@k)`; recall@1 is also called precision at 1.
    pub recall: Vec<(usize, f64)>,
    /// R-precision.
    pub r_precision: f64,
    /// Mean average precision at R.
    pub map_at_r: f64,
    /// How many queries there are.
    pub queries: usize,
}

/// Ranks the other images for each image, as far as one of the metrics asks: no more than these are in memory.
pub fn rank(identity: &[usize], vectors: &Vectors, ks: &[usize]) -> Ranking {
    let mut images: BTreeMap<usize, usize> = BTreeMap::new();
    identity.iter().for_each(|&owner| *images.entry(owner).or_default() += 1);
    // Queries that have equally many others of their identity are searched for together.
    let mut queries: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    identity.iter().enumerate().for_each(|(image, owner)| queries.entry(images[owner] - 1).or_default().push(image));
    queries.remove(&0);
    let deepest = ks.iter().copied().max().unwrap_or(1);

    /// The result of one query: at which place the first image of its identity is, and the two precisions.
    #[derive(Clone, Copy)]
    struct Answer {
        first: usize,
        r_precision: f64,
        map_at_r: f64,
    }
    let mut answers: Vec<Option<Answer>> = vec![None; identity.len()];
    for (wanted, some) in queries {
        let of = |query: usize, nearest: &[(usize, f32)]| {
            let relevant = |place: usize| identity[nearest[place].0] == identity[query];
            let (mut found, mut precisions) = (0, 0.0);
            for place in (0..wanted).filter(|&place| relevant(place)) {
                found += 1;
                precisions += f64::from(found) / (place + 1) as f64;
            }
            let r = wanted as f64;
            let first = (0..nearest.len()).find(|&place| relevant(place)).unwrap_or(nearest.len());
            Answer { first, r_precision: f64::from(found) / r, map_at_r: precisions / r }
        };
        let found = for_nearest_others(vectors, &some, deepest.max(wanted).min(identity.len() - 1), of);
        some.into_iter().zip(found).for_each(|(query, answer)| answers[query] = Some(answer));
    }
    // In the order of the images, so that the sums do not depend on the sizes of identities.
    let answers: Vec<Answer> = answers.into_iter().flatten().collect();
    let mean = |value: &dyn Fn(&Answer) -> f64| answers.iter().map(value).sum::<f64>() / answers.len().max(1) as f64;
    Ranking {
        recall: ks.iter().map(|&k| (k, mean(&|a| f64::from(u8::from(a.first < k))))).collect(),
        r_precision: mean(&|a| a.r_precision),
        map_at_r: mean(&|a| a.map_at_r),
        queries: answers.len(),
    }
}

/// How often the nearest of `ways` single examples has the right identity.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OneShot {
    /// How many identities each trial has.
    pub ways: usize,
    /// How many trials were drawn.
    pub trials: usize,
    /// The accuracy, averaged over the trials.
    pub accuracy: f64,
    /// The standard error of `accuracy`.
    pub standard_error: f64,
}

/// N-way one-shot classification: a trial draws `ways` identities among those with two images (all of them, if there
/// are fewer), and of each an example and another image, which is given the identity of the nearest example. `None` if
/// fewer than two identities have two images.
pub fn one_shot(
    identity: &[usize],
    distance: impl Fn(usize, usize) -> f32 + Sync,
    ways: usize,
    trials: usize,
    seed: u64,
) -> Option<OneShot> {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    identity.iter().enumerate().for_each(|(i, &owner)| members.entry(owner).or_default().push(i));
    let members: Vec<Vec<usize>> = members.into_values().filter(|images| images.len() > 1).collect();
    let ways = ways.min(members.len());
    if ways < 2 || trials == 0 {
        return None;
    }
    let trial = |number: usize| {
        let rng = &mut stream(seed, Purpose::Trial, 0, number as u64);
        let drawn: Vec<[usize; 2]> = index::sample(rng, members.len(), ways)
            .into_iter()
            .map(|own| {
                let two = index::sample(rng, members[own].len(), 2);
                [members[own][two.index(0)], members[own][two.index(1)]]
            })
            .collect();
        let nearest = |asking: usize| {
            // `min_by` takes the first of equal ones, and their order is random.
            (0..ways).min_by(|&a, &b| distance(asking, drawn[a][0]).total_cmp(&distance(asking, drawn[b][0])))
        };
        let right = (0..ways).filter(|&own| nearest(drawn[own][1]) == Some(own)).count();
        right as f64 / ways as f64
    };
    let accuracies: Vec<f64> = (0..trials).into_par_iter().map(trial).collect();
    let (accuracy, standard_error) = mean_and_error(&accuracies);
    Some(OneShot { ways, trials, accuracy, standard_error })
}

/// The mean, and its standard error `s / √n` with `s² = Σ (x - mean)² / (n - 1)`; 0 for one value.
pub fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
    (mean, if values.len() < 2 { 0.0 } else { (squares / (n - 1.0) / n).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::distance::Distance;

    /// Images on a line.
    fn line(at: &[f32]) -> Vectors {
        Vectors::new(at.to_vec(), 1, Distance::Euclidean)
    }

    #[test]
    fn recall_by_hand() {
        // On a line: A at 0, A at 1, B at 1.5, B at 9, C (alone) at 8.5. Nearest: to A(0) A, to A(1) B, to B(1.5) A, to
        // B(9) C. C has no second image and is no query: 1 of 4.
        let recall_at_1 = |identity: &[usize], at: &[f32]| rank(identity, &line(at), &[1]).recall[0].1;
        assert_eq!(recall_at_1(&[0, 0, 1, 1, 2], &[0.0, 1.0, 1.5, 9.0, 8.5]), 0.25);
        // Equal distances: the lowest index wins.
        assert_eq!(recall_at_1(&[0, 1, 0, 1], &[1.0; 4]), 0.25);
    }

    #[test]
    fn precision_at_r_by_hand() {
        // A at 0, 2 and 5 (R = 2), B at 1 and 9 (R = 1). The two nearest to A(0) are B A: precision 1/2, MAP@R 1/2 *
        // 1/2. To A(2): B A, the same. To A(5): A B: 1/2, and 1/2 * 1. The nearest to B(1) is A(0), to B(9) A(5). The
        // first of the own identity is at places 2, 2, 1, 4 (A A A B) and 3 (A A B).
        let ranking = rank(&[0, 0, 0, 1, 1], &line(&[0.0, 2.0, 5.0, 1.0, 9.0]), &[1, 2, 3, 4, 100]);
        assert!((ranking.r_precision - 1.5 / 5.0).abs() < 1e-15);
        assert!((ranking.map_at_r - (0.25 + 0.25 + 0.5) / 5.0).abs() < 1e-15);
        assert_eq!(ranking.recall, [(1, 0.2), (2, 0.6), (3, 0.8), (4, 1.0), (100, 1.0)]);
        assert_eq!(ranking.queries, 5);
    }

    #[test]
    fn one_shot_is_perfect_on_separate_identities_and_chance_on_equal_ones() {
        let identity: Vec<usize> = (0..60).map(|i| i / 3).collect();
        let apart = |i: usize, j: usize| if identity[i] == identity[j] { 0.0 } else { 1.0 };
        let perfect = one_shot(&identity, apart, 5, 50, 0).unwrap();
        assert_eq!((perfect.ways, perfect.trials, perfect.accuracy, perfect.standard_error), (5, 50, 1.0, 0.0));
        // With all at one distance the first example of each trial is taken, which is right once in `ways`.
        let chance = one_shot(&identity, |_, _| 1.0, 5, 50, 0).unwrap();
        assert!((chance.accuracy - 0.2).abs() < 1e-12);
        assert_eq!(one_shot(&identity, apart, 99, 3, 0).unwrap().ways, 20, "no more than there are");
        assert_eq!(one_shot(&[0, 1, 2, 2], apart, 5, 50, 0), None);
        let noise = |i: usize, j: usize| ((i * 31 + j * 17) % 13) as f32;
        assert_eq!(one_shot(&identity, noise, 5, 50, 1), one_shot(&identity, noise, 5, 50, 1));
        assert_ne!(one_shot(&identity, noise, 5, 50, 1), one_shot(&identity, noise, 5, 50, 2));
    }

    #[test]
    fn the_standard_error_by_hand() {
        // The mean is 3, and the squared differences are 4, 1, 9 and 0.
        assert_eq!(mean_and_error(&[1.0, 2.0, 6.0, 3.0]), (3.0, ((4.0 + 1.0 + 9.0 + 0.0) / 3.0 / 4.0f64).sqrt()));
        assert_eq!(mean_and_error(&[0.5]), (0.5, 0.0));
    }
}
