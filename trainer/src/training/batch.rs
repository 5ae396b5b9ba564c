//! Which images a training step sees, and which triplets they form.
//!
//! A step draws `identities x images` pictures and `triplets` triplets among them, uniformly: an
//! identity and two different images of it (anchor, positive), another identity and one image of it
//! (negative). Each picture goes through the encoder once, however many triplets it is part of: the
//! seed's loop with three forward passes spends 3 pictures on one triplet, this spends 48 on
//! hundreds. It is also one joint forward pass, so that all three roles are normalised by the same
//! batch statistics.

use crate::process::random::{Purpose, stream};
use crate::process::ranks::Share;
use rand::{Rng, seq::index};
use serde::{Deserialize, Serialize};

/// The shape of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchShape {
    /// Identities per batch, at least 2.
    pub identities: usize,
    /// Images of each identity; fewer if it has fewer.
    pub images: usize,
    /// Triplets drawn among these images.
    pub triplets: usize,
}

/// Forward passes per step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum Forwards {
    /// One for the batch's images
    One,
    /// Anchors, positives and negatives each for themselves
    Three,
}

/// One step's images, and the rows of the batch that form its triplets.
#[derive(Debug, Default, PartialEq)]
pub struct TripletBatch {
    /// Indices into the dataset's images.
    pub images: Vec<usize>,
    /// Indices into the forgeries' images; their rows follow those of `images`.
    pub forged: Vec<usize>,
    /// Each row's identity: the same number in every batch, on which a memory of several batches depends. Each forgery
    /// has a number of its own, below 0: it is nobody's positive, and a negative of everybody, the one whom it imitates
    /// included.
    pub labels: Vec<i64>,
    /// For each triplet, the row of its anchor.
    pub anchor: Vec<i64>,
    /// For each triplet, the row of its positive.
    pub positive: Vec<i64>,
    /// For each triplet, the row of its negative.
    pub negative: Vec<i64>,
}

impl TripletBatch {
    /// The rows of the anchors, the positives and the negatives.
    pub fn roles(&self) -> [&[i64]; 3] {
        [&self.anchor, &self.positive, &self.negative]
    }

    /// How many images go through the encoder.
    pub fn encoded(&self, forwards: Forwards) -> usize {
        match forwards {
            Forwards::One => self.labels.len(),
            Forwards::Three => 3 * self.anchor.len(),
        }
    }
}

/// A step's batch, and what one of the run's processes does of it.
#[derive(Debug, PartialEq)]
pub struct OwnBatch {
    /// The batch of all processes.
    pub whole: TripletBatch,
    /// The rows of the batch that this process encodes, in order.
    pub rows: Vec<usize>,
    /// If roles are encoded apart, this process's anchors, positives and negatives, as places in `rows`.
    pub roles: [Vec<i64>; 3],
}

impl OwnBatch {
    /// A share of the images, or of the triplets if roles are encoded apart.
    pub fn new(whole: TripletBatch, forwards: Forwards, share: Share) -> Self {
        if forwards == Forwards::One {
            let rows = share.of(whole.labels.len()).collect();
            return Self { whole, rows, roles: Default::default() };
        }
        let own = share.of(whole.anchor.len());
        let roles = whole.roles().map(|rows| rows[own.clone()].to_vec());
        let mut rows: Vec<usize> = roles.iter().flatten().map(|&row| row as usize).collect();
        rows.sort_unstable();
        rows.dedup();
        let place = |row: i64| rows.partition_point(|other| *other < row as usize) as i64;
        let roles = roles.map(|all| all.into_iter().map(place).collect());
        Self { whole, rows, roles }
    }
}

/// Draws the batch of (seed, epoch, step). `members` must hold two identities, and one with two images; `forgeries`
/// holds each identity's forgeries, or is empty.
///
/// An identity comes with its forgeries, half as many as images. If an anchor's identity has some in the batch, every
/// second of its triplets, on average, has one as its negative.
pub fn draw(
    members: &[Vec<usize>],
    forgeries: &[Vec<usize>],
    shape: BatchShape,
    seed: u64,
    epoch: u64,
    step: u64,
) -> TripletBatch {
    let mut rng = stream(seed, Purpose::Batch, epoch, step);
    // For each identity, its rows in the batch.
    let mut rows: Vec<Vec<i64>> = Vec::new();
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    let identities = draw_identities(&mut rng, members, shape.identities);
    for &identity in &identities {
        let own = &members[identity];
        let first = images.len() as i64;
        let chosen = index::sample(&mut rng, own.len(), shape.images.min(own.len()));
        images.extend(chosen.iter().map(|i| own[i]));
        labels.resize(images.len(), identity as i64);
        rows.push((first..images.len() as i64).collect());
    }
    let mut forged = Vec::new();
    let mut forged_rows: Vec<Vec<i64>> = vec![Vec::new(); rows.len()];
    for (rows, &identity) in forged_rows.iter_mut().zip(&identities) {
        let own = forgeries.get(identity).map_or(&[][..], |own| own);
        if own.is_empty() {
            continue; // no draw: a run without forgeries is the same run as ever
        }
        for i in index::sample(&mut rng, own.len(), shape.images.div_ceil(2).min(own.len())) {
            rows.push(labels.len() as i64);
            labels.push(-1 - own[i] as i64);
            forged.push(own[i]);
        }
    }
    let paired: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].len() > 1).collect();
    let (mut anchor, mut positive, mut negative) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..shape.triplets {
        let own = paired[rng.random_range(0..paired.len())];
        // Another identity: skip over the one already taken.
        let other = (own + rng.random_range(1..rows.len())) % rows.len();
        let a = rng.random_range(0..rows[own].len());
        let p = (a + rng.random_range(1..rows[own].len())) % rows[own].len();
        anchor.push(rows[own][a]);
        positive.push(rows[own][p]);
        let imitated = !forged_rows[own].is_empty() && rng.random();
        let from = if imitated { &forged_rows[own] } else { &rows[other] };
        negative.push(from[rng.random_range(0..from.len())]);
    }
    TripletBatch { images, forged, labels, anchor, positive, negative }
}

/// Different identities, of which at least the first can give a pair.
fn draw_identities(rng: &mut impl Rng, members: &[Vec<usize>], count: usize) -> Vec<usize> {
    let paired: Vec<usize> = (0..members.len()).filter(|&i| members[i].len() > 1).collect();
    let first = paired[rng.random_range(0..paired.len())];
    let others = index::sample(rng, members.len() - 1, (count - 1).min(members.len() - 1));
    let others = others.iter().map(|i| if i < first { i } else { i + 1 });
    std::iter::once(first).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const SHAPE: BatchShape = BatchShape { identities: 4, images: 3, triplets: 50 };

    fn members(counts: &[usize]) -> Vec<Vec<usize>> {
        let mut next = 0..;
        counts.iter().map(|&n| next.by_ref().take(n).collect()).collect()
    }

    #[test]
    fn positives_share_the_identity_and_negatives_do_not() {
        let members = members(&[1, 5, 2, 1, 7, 3]);
        let owner = |image: usize| members.iter().position(|m| m.contains(&image)).unwrap();
        for step in 0..200 {
            let batch = draw(&members, &[], SHAPE, 9, 0, step);
            let distinct: HashSet<_> = batch.images.iter().collect();
            assert_eq!(distinct.len(), batch.images.len());
            assert_eq!(batch.anchor.len(), 50);
            for (i, j) in (0..batch.images.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
                assert_eq!(batch.labels[i] == batch.labels[j], owner(batch.images[i]) == owner(batch.images[j]));
            }
            assert!(batch.images.iter().zip(&batch.labels).all(|(&image, &label)| owner(image) as i64 == label));
            for i in 0..50 {
                let [a, p, n] =
                    [&batch.anchor, &batch.positive, &batch.negative].map(|rows| batch.images[rows[i] as usize]);
                assert!(a != p && owner(a) == owner(p) && owner(a) != owner(n));
            }
        }
    }

    #[test]
    fn the_shares_of_processes_are_the_whole_batch() {
        let members = members(&[3, 5, 2, 4, 7, 3]);
        let batch = || draw(&members, &[], SHAPE, 5, 0, 2);
        for forwards in [Forwards::One, Forwards::Three] {
            let shares: Vec<OwnBatch> =
                (0..3).map(|rank| OwnBatch::new(batch(), forwards, Share::new(rank, 3))).collect();
            if forwards == Forwards::One {
                let rows: Vec<usize> = shares.iter().flat_map(|share| share.rows.clone()).collect();
                assert!(rows.into_iter().eq(0..batch().labels.len()));
            }
            for (role, all) in batch().roles().into_iter().enumerate() {
                let of =
                    |share: &OwnBatch| share.roles[role].iter().map(|&at| share.rows[at as usize] as i64).collect();
                let rows: Vec<i64> = shares.iter().flat_map(|share| -> Vec<i64> { of(share) }).collect();
                assert_eq!(rows, if forwards == Forwards::Three { all } else { &[] });
            }
        }
    }

    #[test]
    fn the_smallest_possible_set_works() {
        let batch = draw(&members(&[2, 1]), &[], SHAPE, 0, 0, 0);
        assert_eq!(batch.images.len(), 3);
        assert!(batch.negative.iter().all(|&row| row == 2));
    }

    #[test]
    fn a_batch_depends_on_its_key_alone() {
        let members = members(&[9; 12]);
        let at = |seed, epoch, step| draw(&members, &[], SHAPE, seed, epoch, step);
        assert_eq!(at(1, 2, 3), at(1, 2, 3));
        assert_ne!(at(1, 2, 3), at(1, 2, 4));
        assert_ne!(at(1, 2, 3), at(1, 3, 3));
        assert_ne!(at(1, 2, 3), at(2, 2, 3));
    }

    #[test]
    fn forgeries_are_negatives_of_their_writer_and_nobodys_positives() {
        let members = members(&[3, 2, 4, 1]);
        let forgeries = [vec![0, 1, 2], vec![], vec![3], vec![4, 5]];
        let (mut skilled, mut random) = (0, 0);
        for step in 0..100 {
            let batch = draw(&members, &forgeries, SHAPE, 3, 0, step);
            let genuine = batch.images.len();
            assert_eq!(batch.labels.len(), genuine + batch.forged.len());
            assert_eq!(batch.encoded(Forwards::One), batch.labels.len());
            let forged: HashSet<i64> = batch.labels[genuine..].iter().copied().collect();
            assert_eq!(forged.len(), batch.forged.len(), "each its own");
            assert!(forged.iter().all(|&label| label < 0) && batch.labels[..genuine].iter().all(|&label| label >= 0));
            for i in 0..SHAPE.triplets {
                let [a, p, n] = [&batch.anchor, &batch.positive, &batch.negative].map(|rows| rows[i] as usize);
                assert!(a < genuine && p < genuine && batch.labels[a] == batch.labels[p]);
                match n < genuine {
                    true => random += usize::from(!forgeries[batch.labels[a] as usize].is_empty()),
                    false => {
                        assert!(forgeries[batch.labels[a] as usize].contains(&batch.forged[n - genuine]));
                        skilled += 1;
                    }
                }
            }
        }
        // Half of the triplets that can have a forgery: within five standard errors.
        let all = (skilled + random) as f64;
        assert!((skilled as f64 / all - 0.5).abs() < 2.5 / all.sqrt(), "{skilled} of {all}");
        let without = draw(&members, &[vec![], vec![], vec![], vec![]], SHAPE, 3, 0, 7);
        assert_eq!(without, draw(&members, &[], SHAPE, 3, 0, 7));
    }
}
