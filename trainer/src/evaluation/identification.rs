//! Thresholds for telling who somebody is among many people, or that they are none of them.
//!
//! A search finds the nearest person of a gallery. A stranger's search is a false positive if that person is no farther than the
//! threshold; the share of them is the false positive identification rate, FPIR. It grows with the number of people: whoever
//! is compared with more of them is near one of them by accident more often.

use crate::evaluation::tally::Tally;
use crate::model::calibration::Identification;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The share of strangers' searches that may find somebody.
const FPIR: f64 = 0.01;
/// The smallest share of impostor pairs that a threshold is kept for: one of them lies below it at least.
const FEWEST: f64 = 1.0;

/// The thresholds that searches among these images give. Each image is a stranger to all identities but its own; `tally` holds
/// all pairs. `None` with fewer than two identities.
pub fn calibrate(
    identity: &[usize],
    distance: impl Fn(usize, usize) -> f32 + Sync,
    tally: &Tally,
) -> Option<Identification> {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    identity.iter().enumerate().for_each(|(i, &owner)| members.entry(owner).or_default().push(i));
    let strangers = members.len().checked_sub(1).filter(|others| *others > 0)?;
    // How far the nearest image of each other identity is, nearest first.
    let nearest: Vec<Vec<f32>> = (0..identity.len())
        .into_par_iter()
        .map(|i| {
            let others = members.iter().filter(|(owner, _)| **owner != identity[i]);
            let nearest =
                others.map(|(_, images)| images.iter().map(|&j| distance(i, j)).fold(f32::INFINITY, f32::min));
            let mut nearest: Vec<f32> = nearest.collect();
            nearest.sort_by(f32::total_cmp);
            nearest
        })
        .collect();
    let mut values: Vec<f32> = nearest.concat();
    values.sort_by(f32::total_cmp);
    values.dedup();
    let doubled = std::iter::successors(Some(1), |people| Some(2 * people));
    let people = doubled.take_while(|people| *people < strangers).chain([strangers]);
    let searches = people.map(|people| {
        let found = found_among(people, strangers);
        // The share of searches among `people` of the others, drawn at random, that find somebody up to a distance.
        let fpir = |distance: f32| {
            let of_image = |near: &Vec<f32>| found[near.partition_point(|x| *x <= distance)];
            nearest.iter().map(of_image).sum::<f64>() / nearest.len() as f64
        };
        (people, below(&values, values.partition_point(|value| fpir(*value) <= FPIR)))
    });
    Some(Identification { fpir: FPIR, searches: searches.collect(), matches: of_pairs(tally) })
}

/// For each number r of identities that are near, of `all`: how likely one of `people` drawn ones is among them.
fn found_among(people: usize, all: usize) -> Vec<f64> {
    let none = |near: usize| -> f64 {
        (0..people).map(|drawn| all.saturating_sub(near + drawn) as f64 / (all - drawn) as f64).product()
    };
    (0..=all).map(|near| 1.0 - none(near)).collect()
}

/// The largest threshold that accepts the first `count` of these distances and no more; they ascend.
fn below(values: &[f32], count: usize) -> f32 {
    match values.get(count) {
        Some(next) => next.next_down().max(0.0),
        None => values.last().copied().unwrap_or(0.0),
    }
}

/// The thresholds that 1, 2, 5 of ten, a hundred, a thousand .. impostor pairs lie below, as far as there are pairs.
fn of_pairs(tally: &Tally) -> Vec<(f64, f32)> {
    let (_, impostors) = tally.totals();
    let shares = (1..).flat_map(|power| [5.0, 2.0, 1.0].map(|digit| digit * 10f64.powi(-power)));
    let shares = shares.take_while(|share| share * impostors as f64 >= FEWEST);
    let threshold = |share: f64| {
        let mut accepted = 0;
        let next = tally.counts().iter().find(|count| {
            accepted += count.impostor;
            accepted as f64 > share * impostors as f64
        });
        let farthest = || tally.counts().last().map_or(0.0, |count| count.distance);
        next.map_or_else(farthest, |count| count.distance.next_down().max(0.0))
    };
    shares.map(|share| (share, threshold(share))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::calibration::Origin;

    #[test]
    fn one_of_some_drawn_people_is_near_as_often_as_counting_all_draws_says() {
        let all = 7;
        for people in 1..=all {
            let found = found_among(people, all);
            for (near, found) in found.iter().enumerate() {
                let draws = (0u32..1 << all).filter(|draw| draw.count_ones() as usize == people);
                let hits = draws.clone().filter(|draw| draw & ((1 << near) - 1) != 0).count();
                let expected = hits as f64 / draws.count() as f64;
                assert!((found - expected).abs() < 1e-12, "{people} {near}: {found} {expected}");
            }
        }
    }

    /// 200 identities of two images, at random places: the thresholds hold for searches among people that are drawn.
    #[test]
    fn strangers_find_somebody_as_often_as_they_may() {
        let mut state = 7u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let identity: Vec<usize> = (0..400).map(|i| i / 2).collect();
        let places: Vec<[f32; 2]> = (0..400).map(|_| [number(), number()]).collect();
        let distance = |i: usize, j: usize| (places[i][0] - places[j][0]).hypot(places[i][1] - places[j][1]);
        let tally = Tally::of_all(&identity, distance);
        let thresholds = calibrate(&identity, distance, &tally).unwrap();
        assert_eq!(
            thresholds.searches.iter().map(|(people, _)| *people).collect::<Vec<_>>(),
            [1, 2, 4, 8, 16, 32, 64, 128, 199]
        );
        assert!(thresholds.searches.is_sorted_by(|x, y| x.1 >= y.1), "{thresholds:?}");
        for (people, threshold) in &thresholds.searches {
            let (mut found, mut searches) = (0, 0);
            for trial in 0..40 {
                for (image, owner) in identity.iter().enumerate() {
                    let others = (0..199).map(|o| if o < *owner { o } else { o + 1 });
                    let mut others: Vec<(u32, usize)> = others.map(|o| (((number() * 1e6) as u32), o)).collect();
                    others.sort_unstable();
                    let near = others[..*people]
                        .iter()
                        .any(|(_, o)| [2 * o, 2 * o + 1].iter().any(|&j| distance(image, j) <= *threshold));
                    (found, searches) = (found + usize::from(near), searches + 1);
                }
                if *people == 199 && trial == 0 {
                    break;
                }
            }
            let fpir = found as f64 / searches as f64;
            assert!((0.004..0.016).contains(&fpir), "{people} people: {fpir}");
        }
        // Of pairs: what is asked of 1000 people is one stranger's pair in 100,000, which 79,800 pairs do not have.
        assert_eq!(thresholds.threshold(3).1, Origin::Searches(4));
        assert_eq!(thresholds.threshold(199), (thresholds.searches[8].1, Origin::Searches(199)));
        let (threshold, origin) = thresholds.threshold(300);
        assert_eq!(origin, Origin::Matches(2e-5));
        assert!(threshold <= thresholds.searches[8].1);
        assert_eq!(thresholds.threshold(1_000_000), (threshold, Origin::TooFew(2e-5)));
        assert!(thresholds.matches.is_sorted_by(|x, y| x.1 >= y.1));
    }

    #[test]
    fn one_identity_has_no_strangers() {
        let identity = [3, 3, 3];
        assert_eq!(calibrate(&identity, |_, _| 1.0, &Tally::of_all(&identity, |_, _| 1.0)), None);
    }
}
