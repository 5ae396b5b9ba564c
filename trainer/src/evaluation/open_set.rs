//! Open-set identification: whether searches in a gallery find the right person, and those of strangers nobody.
//!
//! With `M` people enrolled and a threshold `t`, as NIST's FRTE 1:N reports them:
//!
//! ```text
//! CMC(k)  the share of mated searches whose person is among the k nearest
//! FPIR    the share of strangers' searches whose nearest person is no farther than t
//! FNIR    the share of mated searches whose person is not the nearest, or farther than t
//! ```
//!
//! A person counts by the nearest of their samples; of equally far people the first is nearer.

use crate::evaluation::mistakes::Pair;
use crate::process::random::{Purpose, stream};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Rates of strangers that FNIR is given at.
const RATES: [f64; 3] = [0.01, 0.1, 0.3];
/// Points of a curve, at most.
const POINTS: usize = 400;

/// Both error rates at a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    pub threshold: f32,
    pub fpir: f64,
    pub fnir: f64,
}

/// FNIR where FPIR is no more than `at`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AtRate {
    pub at: f64,
    pub fnir: f64,
    pub threshold: f32,
}

/// The results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpenSet {
    /// People that are enrolled, and their samples.
    pub people: usize,
    pub samples: usize,
    /// Searches for people that are enrolled, and of strangers.
    pub mated: usize,
    pub strangers: usize,
    /// `(k, CMC(k))`.
    pub cmc: Vec<(usize, f64)>,
    pub fnir_at_fpir: Vec<AtRate>,
    /// At the model's threshold for so many people, if it has one.
    pub at_threshold: Option<Point>,
    /// The curve of both rates, from the smallest threshold on.
    #[serde(skip)]
    pub det: Vec<Point>,
    #[serde(skip)]
    pub hardest: HardestSearches,
    rank_1: f64,
}

/// The searches that mislead most: of each pair the first image is searched for, and the second is enrolled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HardestSearches {
    /// Strangers, with the sample that is nearest to them; the nearest first.
    pub strangers: Vec<Pair>,
    /// Enrolled people, with the sample of another person that is nearer than their own; the nearest first.
    pub confused: Vec<Pair>,
    /// Enrolled people, with the nearest of their own samples; the farthest first.
    pub far: Vec<Pair>,
}

impl OpenSet {
    /// The share of mated searches whose person is the nearest.
    pub fn rank_1(&self) -> f64 {
        self.rank_1
    }

    /// The threshold that decides searches: the model's for so many people, or else that of the lowest FPIR here.
    pub fn threshold(&self) -> f32 {
        self.at_threshold.map_or(self.fnir_at_fpir[0].threshold, |at| at.threshold)
    }
}

/// The outcome of a search for an enrolled person: how many people are nearer, the nearest sample of the person, and the
/// nearest of somebody who is nearer.
#[derive(Clone, Copy)]
struct Mated {
    nearer: usize,
    own: Pair,
    other: Option<Pair>,
}

/// Enrols half of the identities, drawn by the seed, with `each` of their images, and searches for all other images. Only
/// identities with more images can be enrolled. `threshold` is that of a model for so many people. `None` if nobody can be
/// enrolled, or there is no stranger.
pub fn open_set(
    identity: &[usize],
    distance: impl Fn(usize, usize) -> f32 + Sync,
    each: usize,
    ks: &[usize],
    threshold: impl Fn(usize) -> Option<f32>,
    seed: u64,
) -> Option<OpenSet> {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    identity.iter().enumerate().for_each(|(image, &owner)| members.entry(owner).or_default().push(image));
    let rng = &mut stream(seed, Purpose::Gallery, 0, 0);
    let mut owners: Vec<usize> = members.keys().copied().filter(|owner| members[owner].len() > each).collect();
    owners.shuffle(rng);
    owners.truncate((members.len() / 2).max(1));
    owners.sort_unstable();
    let (mut people, mut mated, mut strangers) = (Vec::new(), Vec::new(), Vec::new());
    for (owner, images) in &mut members {
        if owners.binary_search(owner).is_err() {
            strangers.extend_from_slice(images);
            continue;
        }
        images.shuffle(rng);
        let (enrolled, others) = images.split_at(each);
        mated.extend(others.iter().map(|&image| (people.len(), image)));
        people.push(enrolled.to_vec());
    }
    if people.is_empty() || strangers.is_empty() {
        return None;
    }
    // Of equally far samples the first.
    let to_person = |image: usize, person: usize| {
        let pairs = people[person].iter().map(|&sample| Pair {
            first: image,
            second: sample,
            distance: distance(image, sample),
        });
        pairs.min_by(|x, y| x.distance.total_cmp(&y.distance)).expect("each person has a sample")
    };
    let nearest_of = |pairs: &mut dyn Iterator<Item = Pair>| pairs.min_by(|x, y| x.distance.total_cmp(&y.distance));
    let found: Vec<Mated> = mated
        .par_iter()
        .map(|&(person, image)| {
            let own = to_person(image, person);
            let mut nearer = 0;
            let other = nearest_of(&mut (0..people.len()).filter(|&other| other != person).filter_map(|other| {
                let pair = to_person(image, other);
                let is_nearer = pair.distance < own.distance || (pair.distance == own.distance && other < person);
                nearer += usize::from(is_nearer);
                is_nearer.then_some(pair)
            }));
            Mated { nearer, own, other }
        })
        .collect();
    let mut nearest: Vec<Pair> = strangers
        .par_iter()
        .filter_map(|&image| nearest_of(&mut (0..people.len()).map(|person| to_person(image, person))))
        .collect();
    nearest.sort_by(|x, y| x.distance.total_cmp(&y.distance));

    let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
    let at = |threshold: f32| Point {
        threshold,
        fpir: share(nearest.partition_point(|pair| pair.distance <= threshold), nearest.len()),
        fnir: share(found.iter().filter(|f| f.nearer > 0 || f.own.distance > threshold).count(), found.len()),
    };
    // Just below the nearest stranger that is one too many.
    let most = |rate: f64| match nearest.get((rate * nearest.len() as f64) as usize) {
        Some(next) => next.distance.next_down().max(0.0),
        None => nearest[nearest.len() - 1].distance,
    };
    let fnir_at_fpir = RATES.map(|rate| {
        let Point { threshold, fnir, .. } = at(most(rate));
        AtRate { at: rate, fnir, threshold }
    });
    let distances = nearest.iter().chain(found.iter().map(|f| &f.own)).map(|pair| pair.distance);
    let mut thresholds: Vec<f32> = distances.collect();
    thresholds.sort_by(f32::total_cmp);
    thresholds.dedup();
    let step = thresholds.len().div_ceil(POINTS);
    let det = std::iter::once(0.0).chain(thresholds.iter().copied().step_by(step)).chain(thresholds.last().copied());
    let within = |k: usize| share(found.iter().filter(|f| f.nearer < k).count(), found.len());
    let mut confused: Vec<Pair> = found.iter().filter_map(|f| f.other).collect();
    confused.sort_by(|x, y| x.distance.total_cmp(&y.distance));
    let mut far: Vec<Pair> = found.iter().map(|f| f.own).collect();
    far.sort_by(|x, y| y.distance.total_cmp(&x.distance));
    Some(OpenSet {
        people: people.len(),
        samples: people.iter().map(Vec::len).sum(),
        mated: found.len(),
        strangers: nearest.len(),
        cmc: ks.iter().map(|&k| (k, within(k))).collect(),
        fnir_at_fpir: fnir_at_fpir.to_vec(),
        at_threshold: threshold(people.len()).map(at),
        det: det.map(at).collect(),
        hardest: HardestSearches { strangers: nearest, confused, far },
        rank_1: within(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Identities 10 apart, their images 0, 1 and 2 from there: nobody is mistaken.
    #[test]
    fn identities_far_apart_are_all_told() {
        let identity: Vec<usize> = (0..60).map(|i| i / 3).collect();
        let place = |i: usize| (10 * (i / 3) + i % 3) as f32;
        let distance = |i: usize, j: usize| (place(i) - place(j)).abs();
        let open = open_set(&identity, distance, 1, &[1, 3], |people| Some(people as f32 / 5.0), 4).unwrap();
        assert_eq!((open.people, open.samples, open.mated, open.strangers), (10, 10, 20, 30));
        assert_eq!(open.cmc, [(1, 1.0), (3, 1.0)]);
        assert_eq!(open.at_threshold, Some(Point { threshold: 2.0, fpir: 0.0, fnir: 0.0 }));
        // The nearest strangers are 8 away: all people are found below.
        assert!(open.fnir_at_fpir.iter().all(|point| point.fnir == 0.0 && point.threshold >= 2.0), "{open:?}");
        assert_eq!(open.det[0].fnir, 1.0);
        assert_eq!(open.det.last().map(|point| (point.fpir, point.fnir)), Some((1.0, 0.0)));
        assert!(open.det.is_sorted_by(|x, y| x.fpir <= y.fpir && x.fnir >= y.fnir));
        assert_eq!(open, open_set(&identity, distance, 1, &[1, 3], |people| Some(people as f32 / 5.0), 4).unwrap());
        let HardestSearches { strangers, confused, far } = &open.hardest;
        assert_eq!((strangers.len(), confused.len(), far.len()), (30, 0, 20));
        assert!(strangers.is_sorted_by(|x, y| x.distance <= y.distance) && strangers[0].distance >= 8.0);
        assert!(far.is_sorted_by(|x, y| x.distance >= y.distance) && far[0].distance <= 2.0);
        assert!(far.iter().all(|pair| identity[pair.first] == identity[pair.second] && pair.first != pair.second));
    }

    #[test]
    fn rates_are_those_of_counting_by_hand() {
        // Two people of one sample each, at 0 and 10; whoever is enrolled, images lie at 0, 1, 7 of the first.
        let identity = [0, 0, 0, 1];
        let place = [0.0f32, 1.0, 7.0, 10.0];
        let distance = |i: usize, j: usize| (place[i] - place[j]).abs();
        let open = open_set(&identity, distance, 2, &[1], |_| Some(6.5), 0).unwrap();
        assert_eq!((open.people, open.samples, open.mated, open.strangers), (1, 2, 1, 1));
        assert_eq!(open.cmc, [(1, 1.0)], "there is no other");
        assert!(open_set(&identity, distance, 3, &[1], |_| None, 0).is_none(), "nobody has four images");
        assert!(open_set(&[5, 5, 5], distance, 1, &[1], |_| None, 0).is_none(), "no stranger");
        // Everybody at one place: the first person is found for all.
        let identity: Vec<usize> = (0..8).map(|i| i / 2).collect();
        let open = open_set(&identity, |_, _| 0.0, 1, &[1, 2], |_| Some(0.0), 0).unwrap();
        assert_eq!(open.cmc, [(1, 0.5), (2, 1.0)]);
        assert_eq!(open.at_threshold, Some(Point { threshold: 0.0, fpir: 1.0, fnir: 0.5 }));
        let [confused] = open.hardest.confused[..] else { panic!("{:?}", open.hardest) };
        assert_ne!(identity[confused.first], identity[confused.second]);
        assert_eq!(open.hardest.far.len(), 2);
    }
}
