//! How many genuine and impostor pairs lie at each distance: all that ROC curves, thresholds and
//! histograms need, in memory that does not grow with the square of the images.

use rayon::prelude::*;

/// How many different distances a tally keeps apart.
const CAPACITY: usize = 1 << 22;
/// How many pairs are sorted at a time.
const BLOCK: usize = 1 << 22;

/// The pairs at one distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count {
    /// The distance of these pairs.
    pub distance: f32,
    /// How many pairs of one identity there are.
    pub genuine: u64,
    /// How many pairs of two identities there are.
    pub impostor: u64,
}

/// Counts of pairs by distance, the nearest first.
///
/// Exact up to 4,194,304 different distances (all pairs of 2,800 images). Beyond that the last bits of the distances
/// are rounded up, as few bits as necessary: with 200 million pairs that is about 2^-17 of the distance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    counts: Vec<Count>,
    /// How many of every distance's last bits are set to 1.
    rounded: u32,
}

impl Tally {
    /// The tally of these pairs, `(distance, genuine)`. Distances are not negative and not NaN.
    pub fn of_pairs(pairs: impl IntoIterator<Item = (f32, bool)>) -> Self {
        Self::of_keys(pairs.into_iter().map(key).collect())
    }

    /// The tally of all pairs of rows with these identities, each pair once.
    pub fn of_all(identity: &[usize], distance: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        Self::of_all_within(identity, distance, CAPACITY, BLOCK)
    }

    fn of_all_within(
        identity: &[usize],
        distance: impl Fn(usize, usize) -> f32 + Sync,
        capacity: usize,
        block: usize,
    ) -> Self {
        let mut all = Self::default();
        let mut first = 0;
        while first < identity.len() {
            // Rows with about `block` pairs (i, j < i).
            let (mut last, mut pairs) = (first + 1, first);
            while last < identity.len() && pairs + last <= block {
                pairs += last;
                last += 1;
            }
            let keys = (first..last).into_par_iter().flat_map_iter(|i| {
                let distance = &distance;
                (0..i).map(move |j| key((distance(i, j), identity[i] == identity[j])))
            });
            // How far distances are rounded in the end depends on all of them alone, as a part of them never needs
            // more.
            all = all.merge(Self::of_keys(keys.collect()), capacity);
            first = last;
        }
        all
    }

    fn of_keys(mut keys: Vec<u32>) -> Self {
        keys.par_sort_unstable();
        let counts = keys.chunk_by(|a, b| a >> 1 == b >> 1).map(|tied| {
            let genuine = tied.iter().filter(|&&key| key & 1 == 1).count() as u64;
            Count { distance: f32::from_bits(tied[0] >> 1), genuine, impostor: tied.len() as u64 - genuine }
        });
        Self { counts: counts.collect(), rounded: 0 }
    }

    fn merge(self, other: Self, capacity: usize) -> Self {
        let rounded = self.rounded.max(other.rounded);
        let (a, b) = (self.round(rounded), other.round(rounded));
        let mut counts = Vec::with_capacity(a.counts.len() + b.counts.len());
        let (mut left, mut right) = (a.counts.into_iter().peekable(), b.counts.into_iter().peekable());
        loop {
            let from_left = match (left.peek(), right.peek()) {
                (Some(l), Some(r)) => l.distance <= r.distance,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let next = if from_left { left.next() } else { right.next() };
            push(&mut counts, next.expect("peeked"));
        }
        let mut merged = Self { counts, rounded };
        while merged.counts.len() > capacity {
            let further = merged.rounded + 1;
            merged = merged.round(further);
        }
        merged
    }

    /// Rounds distances up so that their last `bits` bits are 1: an accepted pair's distance is then still at most the
    /// threshold.
    fn round(self, bits: u32) -> Self {
        if bits == self.rounded {
            return self;
        }
        let mask = (1u32 << bits) - 1;
        let mut counts = Vec::with_capacity(self.counts.len());
        for count in self.counts {
            // Infinity has no larger number above it.
            let up = (count.distance.to_bits() | mask).min(f32::INFINITY.to_bits());
            push(&mut counts, Count { distance: f32::from_bits(up), ..count });
        }
        Self { counts, rounded: bits }
    }

    /// The counts, the nearest first; no distance twice.
    pub fn counts(&self) -> &[Count] {
        &self.counts
    }

    /// The numbers of genuine and of impostor pairs.
    pub fn totals(&self) -> (u64, u64) {
        self.counts.iter().fold((0, 0), |(g, i), c| (g + c.genuine, i + c.impostor))
    }

    /// The distance that this share of all pairs does not exceed; 0 without pairs.
    pub fn quantile(&self, share: f64) -> f32 {
        let (genuine, impostor) = self.totals();
        let mut left = (share * (genuine + impostor) as f64).ceil() as u64;
        let reached = |count: &&Count| {
            left = left.saturating_sub(count.genuine + count.impostor);
            left == 0
        };
        self.counts.iter().find(reached).map_or(0.0, |count| count.distance)
    }

    /// The share of the genuine pairs, and of the impostor pairs, in each of `bins` equal parts of `0..end`. Pairs
    /// beyond `end` count in the last one.
    pub fn histogram(&self, bins: usize, end: f32) -> Vec<(f64, f64)> {
        let (genuine, impostor) = self.totals();
        let mut shares = vec![(0.0, 0.0); bins];
        for count in &self.counts {
            let bin = (count.distance / end * bins as f32) as usize; // `as` saturates
            let share = &mut shares[bin.min(bins - 1)];
            share.0 += count.genuine as f64 / genuine.max(1) as f64;
            share.1 += count.impostor as f64 / impostor.max(1) as f64;
        }
        shares
    }
}

/// A pair as a number that is ordered as its distance: the bits of numbers from 0 to infinity are, and the first one is
/// free.
fn key((distance, genuine): (f32, bool)) -> u32 {
    debug_assert!(distance >= 0.0, "{distance}");
    // Adding 0 makes 0 of -0.
    (distance + 0.0).to_bits() << 1 | u32::from(genuine)
}

fn push(counts: &mut Vec<Count>, next: Count) {
    match counts.last_mut() {
        Some(last) if last.distance == next.distance => {
            last.genuine += next.genuine;
            last.impostor += next.impostor;
        }
        _ => counts.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lattice(i: usize, j: usize) -> f32 {
        ((i.min(j) * 7919 + i.max(j) * 104_729) % 61) as f32 / 8.0
    }

    fn pairs(identity: &[usize], distance: impl Fn(usize, usize) -> f32) -> Vec<(f32, bool)> {
        let all = (0..identity.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        all.map(|(i, j)| (distance(i, j), identity[i] == identity[j])).collect()
    }

    #[test]
    fn all_pairs_are_counted_once_whatever_the_blocks() {
        let identity: Vec<usize> = (0..57).map(|i| i * i % 9).collect();
        let expected = Tally::of_pairs(pairs(&identity, lattice));
        assert_eq!(expected.totals().0 + expected.totals().1, 57 * 56 / 2);
        for block in [1, 10, 100, 10_000] {
            assert_eq!(Tally::of_all_within(&identity, lattice, CAPACITY, block), expected);
        }
        assert_eq!(Tally::of_all(&[0], lattice).counts(), []);
    }

    #[test]
    fn beyond_its_capacity_distances_are_rounded_up_by_as_little_as_it_takes() {
        let identity: Vec<usize> = (0..200).map(|i| i % 20).collect();
        let distance = |i: usize, j: usize| 0.5 + ((i * 31 + j * 31) as f32).sin().abs() / ((i * j) as f32 + 3.0);
        let exact = Tally::of_pairs(pairs(&identity, distance));
        let capacity = 500;
        assert!(exact.counts().len() > 4 * capacity);
        let rounded = Tally::of_all_within(&identity, distance, capacity, 1 << 20);
        assert!(rounded.counts().len() <= capacity);
        assert_eq!(rounded.totals(), exact.totals());
        assert_eq!(rounded, exact.clone().round(rounded.rounded));
        assert!(exact.round(rounded.rounded - 1).counts().len() > capacity);
        for block in [1, 500] {
            assert_eq!(Tally::of_all_within(&identity, distance, capacity, block), rounded);
        }
        let up = |d: f32| f32::from_bits(d.to_bits() | ((1 << rounded.rounded) - 1));
        let ups = pairs(&identity, distance).into_iter().map(|(d, genuine)| (up(d), genuine));
        assert_eq!(Tally::of_pairs(ups).counts(), rounded.counts());
    }

    #[test]
    fn zero_has_no_sign_and_infinity_stays() {
        let tally = Tally::of_pairs([(-0.0, true), (0.0, false), (f32::INFINITY, false)]);
        let counts = tally.round(3).counts;
        assert_eq!(counts.len(), 2);
        assert_eq!((counts[0].genuine, counts[0].impostor), (1, 1));
        assert_eq!(counts[1].distance, f32::INFINITY);
    }

    #[test]
    fn a_histogram_holds_every_pair() {
        let tally = Tally::of_pairs([(0.0, true), (0.9, true), (1.0, false), (3.0, false), (9.0, false)]);
        let third = 1.0 / 3.0;
        assert_eq!([0.0, 0.2, 0.5, 0.81, 1.0].map(|share| tally.quantile(share)), [0.0, 0.0, 1.0, 9.0, 9.0]);
        assert_eq!(Tally::default().quantile(0.5), 0.0);
        assert_eq!(tally.histogram(4, 4.0), [(1.0, 0.0), (0.0, third), (0.0, 0.0), (0.0, 2.0 * third)]);
    }
}
