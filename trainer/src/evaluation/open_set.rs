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
    rank_1: f64,
}

impl OpenSet {
    /// The share of mated searches whose person is the nearest.
    pub fn rank_1(&self) -> f64 {
        self.rank_1
    }
}

/// The outcome of a search for an enrolled person: how many people are nearer, and how far the person is.
#[derive(Clone, Copy)]
struct Mated {
    nearer: usize,
    distance: f32,
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
    let to_person = |image: usize, person: usize| {
        people[person].iter().map(|&sample| distance(image, sample)).fold(f32::INFINITY, f32::min)
    };
    let found: Vec<Mated> = mated
        .par_iter()
        .map(|&(own, image)| {
            let distance = to_person(image, own);
            let is_nearer = |person: usize| {
                let other = to_person(image, person);
                other < distance || (other == distance && person < own)
            };
            Mated { nearer: (0..people.len()).filter(|&person| person != own && is_nearer(person)).count(), distance }
        })
        .collect();
    let mut nearest: Vec<f32> = strangers
        .par_iter()
        .map(|&image| (0..people.len()).map(|person| to_person(image, person)).fold(f32::INFINITY, f32::min))
        .collect();
    nearest.sort_by(f32::total_cmp);

    let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
    let at = |threshold: f32| Point {
        threshold,
        fpir: share(nearest.partition_point(|x| *x <= threshold), nearest.len()),
        fnir: share(found.iter().filter(|f| f.nearer > 0 || f.distance > threshold).count(), found.len()),
    };
    // Just below the nearest stranger that is one too many.
    let most = |rate: f64| match nearest.get((rate * nearest.len() as f64) as usize) {
        Some(next) => next.next_down().max(0.0),
        None => nearest[nearest.len() - 1],
    };
    let fnir_at_fpir = RATES.map(|rate| {
        let Point { threshold, fnir, .. } = at(most(rate));
        AtRate { at: rate, fnir, threshold }
    });
    let mut thresholds: Vec<f32> = nearest.iter().copied().chain(found.iter().map(|f| f.distance)).collect();
    thresholds.sort_by(f32::total_cmp);
    thresholds.dedup();
    let step = thresholds.len().div_ceil(POINTS);
    let det = std::iter::once(0.0).chain(thresholds.iter().copied().step_by(step)).chain(thresholds.last().copied());
    let within = |k: usize| share(found.iter().filter(|f| f.nearer < k).count(), found.len());
    Some(OpenSet {
        people: people.len(),
        samples: people.iter().map(Vec::len).sum(),
        mated: found.len(),
        strangers: nearest.len(),
        cmc: ks.iter().map(|&k| (k, within(k))).collect(),
        fnir_at_fpir: fnir_at_fpir.to_vec(),
        at_threshold: threshold(people.len()).map(at),
        det: det.map(at).collect(),
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
    }
}
