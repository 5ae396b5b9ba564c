//! Verification metrics from distances: ROC, EER, AUC, thresholds.
//!
//! A pair is accepted when its distance is at most the threshold. `far` is the share of impostor
//! pairs (two identities) that are accepted, `tar` the share of genuine pairs.

use crate::evaluation::ranking::{self, Ranking};
use crate::evaluation::tally::Tally;
use crate::model::calibration::{Calibration, Operating};
use crate::model::vectors::Vectors;
use serde::{Deserialize, Serialize};

/// One operating point of the ROC curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RocPoint {
    /// False accept rate.
    pub far: f64,
    /// True accept rate.
    pub tar: f64,
    /// Pairs up to this distance are accepted; minus infinity for none.
    pub threshold: f32,
}

/// The pairs of a set, genuine and impostor, compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The equal error rate: the rate at which `far = 1 - tar`.
    pub eer: f64,
    /// The area under the ROC curve: how often a genuine pair is nearer than an impostor pair.
    pub auc: f64,
    /// The curve from (0, 0) to (1, 1).
    pub roc: Vec<RocPoint>,
    /// The pairs by distance.
    pub tally: Tally,
}

impl Comparison {
    /// The comparison of these pairs, of which some must be genuine and some impostors.
    pub fn new(tally: Tally) -> Self {
        let roc = roc(&tally);
        Self { eer: eer(&roc), auc: auc(&roc), roc, tally }
    }

    /// The share of genuine pairs that are accepted if at most this share of impostor pairs is.
    pub fn tar_at_far(&self, far: f64) -> f64 {
        tar_at_far(&self.roc, far)
    }
}

/// One evaluation during a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How many steps had been done.
    pub step: u64,
    /// The equal error rate against random impostors.
    pub eer: f64,
    /// The equal error rate against skilled forgeries, if there are any.
    pub eer_skilled: Option<f64>,
}

/// What is measured before and after training.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The equal error rate: the rate at which `far = 1 - tar`.
    pub eer: f64,
    /// The area under the ROC curve: how often a genuine pair is nearer than an impostor pair.
    pub auc: f64,
    /// Share of images whose nearest other image has the same identity.
    pub recall_at_1: f64,
    /// Recall and precision among the nearest images.
    pub ranking: Ranking,
    /// All pairs: those of two identities are random impostors.
    pub random: Comparison,
    /// Genuine pairs against skilled forgeries, if there are any.
    pub skilled: Option<Comparison>,
    /// The threshold at the equal error rate of `random`.
    pub operating: Operating,
}

impl Verification {
    /// The error rates as a point of a run's history.
    pub fn measured(&self, step: u64) -> Measured {
        Measured { step, eer: self.eer, eer_skilled: self.skilled.as_ref().map(|c| c.eer) }
    }

    /// The calibration that follows from these scores of this many identities and images.
    pub fn calibration(&self, identities: usize, images: usize) -> Calibration {
        let skilled = self.skilled.as_ref().map(|c| at_threshold(&c.tally, self.operating.threshold).far);
        let (operating, eer) = (self.operating, self.eer);
        Calibration { operating, eer, far_skilled: skilled, identities, images, identification: None }
    }
}

impl std::fmt::Display for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EER {:.4}  AUC {:.4}  recall@1 {:.4}", self.eer, self.auc, self.recall_at_1)?;
        match &self.skilled {
            Some(skilled) => write!(f, "  EER of skilled forgeries {:.4}", skilled.eer),
            None => Ok(()),
        }
    }
}

/// All metrics of the embeddings; `identity[i]` is the identity of row `i`. There must be two identities, and one of them
/// must have two rows.
pub fn verify(identity: &[usize], vectors: &Vectors) -> Verification {
    let random = Comparison::new(Tally::of_all(identity, |i, j| vectors.distance(i, j)));
    let ranking = ranking::rank(identity, vectors, &[1]);
    let operating = at_equal_error(&random.roc);
    Verification {
        eer: random.eer,
        auc: random.auc,
        recall_at_1: ranking.recall[0].1,
        ranking,
        random,
        skilled: None,
        operating,
    }
}

/// The ROC curve, with one point per *different* distance: pairs at the same distance are accepted together, so the
/// curve runs diagonally through a tie and does not depend on the order of the pairs.
pub fn roc(tally: &Tally) -> Vec<RocPoint> {
    let (genuine, impostor) = tally.totals();
    assert!(genuine > 0 && impostor > 0, "a ROC curve needs genuine and impostor pairs");
    let mut points = vec![RocPoint { far: 0.0, tar: 0.0, threshold: f32::NEG_INFINITY }];
    let (mut accepted, mut wrongly) = (0, 0);
    for at in tally.counts() {
        accepted += at.genuine;
        wrongly += at.impostor;
        let (far, tar) = (wrongly as f64 / impostor as f64, accepted as f64 / genuine as f64);
        points.push(RocPoint { far, tar, threshold: at.distance });
    }
    points
}

/// The rate at which the curve, straight between its points, crosses `far = 1 - tar`.
pub fn eer(roc: &[RocPoint]) -> f64 {
    // g = far + tar - 1 rises from -1 to 1, and never falls.
    let g = |p: RocPoint| p.far + p.tar - 1.0;
    for ends in roc.windows(2) {
        let (from, to) = (ends[0], ends[1]);
        if g(to) >= 0.0 {
            let t = -g(from) / (g(to) - g(from));
            return from.far + t * (to.far - from.far);
        }
    }
    unreachable!("the curve ends at (1, 1)")
}

/// The area under the curve by trapezoids: `P(genuine < impostor) + P(equal) / 2`.
pub fn auc(roc: &[RocPoint]) -> f64 {
    roc.windows(2).map(|w| (w[1].far - w[0].far) * (w[1].tar + w[0].tar) / 2.0).sum()
}

/// The best `tar` among the points whose `far` is at most the given one.
pub fn tar_at_far(roc: &[RocPoint], far: f64) -> f64 {
    // Both rates never fall along the curve; it starts at far 0.
    roc[..roc.partition_point(|p| p.far <= far)].last().map_or(0.0, |p| p.tar)
}

/// The threshold at which the two errors differ least; of equally good ones the lowest.
pub fn at_equal_error(roc: &[RocPoint]) -> Operating {
    let gap = |i: usize| (roc[i].far + roc[i].tar - 1.0).abs();
    // Leave out the first point, which accepts nothing.
    let best = (1..roc.len()).min_by(|&i, &j| gap(i).total_cmp(&gap(j))).expect("the curve has two points");
    Operating { threshold: above(roc, best), far: roc[best].far, frr: 1.0 - roc[best].tar }
}

/// The threshold with the most right decisions, genuine and impostor pairs counted alike; of equally good ones the
/// lowest. If nothing should be accepted it is below every distance.
pub fn most_accurate(tally: &Tally) -> f32 {
    let (_, impostor) = tally.totals();
    let mut right = impostor as i128;
    let mut best = (right, f32::NEG_INFINITY);
    let counts = tally.counts();
    for (i, at) in counts.iter().enumerate() {
        right += i128::from(at.genuine) - i128::from(at.impostor);
        if right > best.0 {
            best = (right, between(at.distance, counts.get(i + 1).map(|next| next.distance)));
        }
    }
    best.1
}

/// The share of pairs that a threshold decides rightly: `(distance, genuine)`.
pub fn accuracy(pairs: &[(f32, bool)], threshold: f32) -> f64 {
    let right = pairs.iter().filter(|(distance, genuine)| (*distance <= threshold) == *genuine).count();
    right as f64 / pairs.len() as f64
}

/// The errors at a threshold that was chosen elsewhere.
pub fn at_threshold(tally: &Tally, threshold: f32) -> Operating {
    let (genuine, impostor) = tally.totals();
    let accepted = tally.counts().iter().filter(|c| c.distance <= threshold);
    let (tar, far) = accepted.fold((0, 0), |(g, i), c| (g + c.genuine, i + c.impostor));
    let share = |part: u64, all: u64| part as f64 / all.max(1) as f64;
    Operating { threshold, far: share(far, impostor), frr: 1.0 - share(tar, genuine) }
}

/// A distance as text for people: four significant digits, whatever its size.
pub fn text_of(distance: f32) -> String {
    let decimals = match distance {
        d if d > 0.0 && d.is_finite() => (3 - d.log10().floor() as i32).clamp(2, 12) as usize,
        _ => 4,
    };
    format!("{distance:.decimals$}")
}

fn above(roc: &[RocPoint], point: usize) -> f32 {
    between(roc[point].threshold, roc.get(point + 1).map(|next| next.threshold))
}

/// Halfway from a distance to the next: as far as possible from pairs on either side.
fn between(distance: f32, next: Option<f32>) -> f32 {
    let middle = next.map_or(distance, |next| distance + (next - distance) / 2.0);
    // There is no number between neighbouring ones, and infinity is no threshold to choose.
    if middle.is_finite() && next.is_none_or(|next| middle < next) { middle } else { distance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::distance::Distance;

    fn curve(genuine: &[f32], impostor: &[f32]) -> Vec<RocPoint> {
        let genuine = genuine.iter().map(|&d| (d, true));
        roc(&Tally::of_pairs(genuine.chain(impostor.iter().map(|&d| (d, false)))))
    }

    #[test]
    fn separated_pairs_make_no_errors_and_reversed_ones_only_errors() {
        let good = curve(&[1.0, 2.0], &[3.0, 4.0, 5.0]);
        assert_eq!((eer(&good), auc(&good)), (0.0, 1.0));
        let bad = curve(&[3.0, 4.0], &[1.0, 2.0]);
        assert_eq!((eer(&bad), auc(&bad)), (1.0, 0.0));
    }

    #[test]
    fn one_swap_by_hand() {
        // In order: g g i g i i i. Points (far, tar): (0,1/3) (0,2/3) (1/4,2/3) (1/4,1) ...
        // far = 1 - tar: at far 1/4 tar runs from 2/3 to 1 and passes 3/4, so the EER is 1/4.
        // AUC: 11 of the 12 (genuine, impostor) pairs are in order.
        let curve = curve(&[1.0, 2.0, 4.0], &[3.0, 5.0, 6.0, 7.0]);
        assert!((eer(&curve) - 0.25).abs() < 1e-15);
        assert!((auc(&curve) - 11.0 / 12.0).abs() < 1e-15);
    }

    #[test]
    fn ties_count_half_whatever_the_order() {
        // Genuine pairs at 0 and 1, impostors at 1 and 2. AUC: (0, 1), (0, 2), (1, 2) are in order, (1, 1) counts half:
        // 3.5 / 4. The tie runs from (0, 1/2) to (1/2, 1); far = 1 - tar at its middle: 1/4.
        for pairs in [
            vec![(0.0, true), (1.0, true), (1.0, false), (2.0, false)],
            vec![(1.0, false), (2.0, false), (1.0, true), (0.0, true)],
        ] {
            let curve = roc(&Tally::of_pairs(pairs));
            assert_eq!(curve.len(), 4);
            assert_eq!((eer(&curve), auc(&curve)), (0.25, 0.875));
        }
        let all_equal = curve(&[1.0; 3], &[1.0; 5]);
        assert_eq!((eer(&all_equal), auc(&all_equal)), (0.5, 0.5));
    }

    #[test]
    fn auc_is_the_mann_whitney_statistic() {
        // Distances on a small lattice, so that there are many ties.
        let draw = |i: usize, k: usize| ((i * 7919 + k * 104_729) % 11) as f32;
        let genuine: Vec<f32> = (0..40).map(|i| draw(i, 1)).collect();
        let impostor: Vec<f32> = (0..90).map(|i| draw(i, 2) + 1.0).collect();
        let mut sum = 0.0;
        for g in &genuine {
            for i in &impostor {
                sum += if g < i {
                    1.0
                } else if g == i {
                    0.5
                } else {
                    0.0
                };
            }
        }
        let expected = sum / (genuine.len() * impostor.len()) as f64;
        assert!((auc(&curve(&genuine, &impostor)) - expected).abs() < 1e-12);
    }

    #[test]
    fn tar_at_far_by_hand() {
        // Points (far, tar): (0, 1/2) at 1, (1/4, 1/2) at 2, (1/4, 1) at 3, then far to 1.
        let curve = curve(&[1.0, 3.0], &[2.0, 4.0, 5.0, 6.0]);
        assert_eq!([0.0, 0.2, 0.25, 1.0].map(|far| tar_at_far(&curve, far)), [0.5, 0.5, 1.0, 1.0]);
        // The nearest pair is an impostor: nothing can be accepted.
        assert_eq!(tar_at_far(&self::curve(&[2.0], &[1.0]), 0.5), 0.0);
    }

    #[test]
    fn the_threshold_lies_halfway_to_the_next_pair_and_does_what_it_says() {
        let separated = at_equal_error(&curve(&[1.0, 2.0], &[4.0, 5.0]));
        assert_eq!(separated, Operating { threshold: 3.0, far: 0.0, frr: 0.0 });
        // Of (1/4, 1/3 rejected) at 3 and (1/4, 0) at 4 the first has the smaller gap.
        let pairs = [1.0f32, 2.0, 4.0].map(|d| (d, true)).into_iter().chain([3.0, 5.0, 6.0, 7.0].map(|d| (d, false)));
        let tally = Tally::of_pairs(pairs);
        let chosen = at_equal_error(&roc(&tally));
        assert_eq!((chosen.threshold, chosen.far), (3.5, 0.25));
        assert_eq!(at_threshold(&tally, chosen.threshold), chosen);
        // There is no number between neighbouring ones, and nothing beyond the last distance.
        let next = f32::from_bits(1f32.to_bits() + 1);
        assert_eq!(at_equal_error(&curve(&[1.0], &[next])).threshold, 1.0);
        assert_eq!(at_equal_error(&curve(&[1.0], &[1.0])).threshold, 1.0);
        assert_eq!(at_equal_error(&curve(&[1.0], &[f32::INFINITY])).threshold, 1.0);
    }

    #[test]
    fn the_most_accurate_threshold_by_hand() {
        // In order: g g i g i i i. After two, 6 of 7 are right, and after four again 6: the lower threshold is taken.
        let tally = |genuine: &[f32], impostor: &[f32]| {
            let genuine = genuine.iter().map(|&d| (d, true));
            Tally::of_pairs(genuine.chain(impostor.iter().map(|&d| (d, false))))
        };
        assert_eq!(most_accurate(&tally(&[1.0, 2.0, 4.0], &[3.0, 5.0, 6.0, 7.0])), 2.5);
        assert_eq!(most_accurate(&tally(&[9.0], &[1.0, 2.0])), f32::NEG_INFINITY, "accepting nothing is best");
        let pairs = [(1.0, true), (2.0, true), (3.0, false), (2.5, false)];
        assert_eq!(accuracy(&pairs, 2.5), 0.75);
        assert_eq!(accuracy(&pairs, f32::NEG_INFINITY), 0.5);
    }

    #[test]
    fn distances_are_written_with_four_digits() {
        let texts = [0.0, 0.39471, 0.00031416, 12.3456, 1234.5].map(text_of);
        assert_eq!(texts, ["0.0000", "0.3947", "0.0003142", "12.35", "1234.50"]);
    }

    #[test]
    fn verify_counts_each_pair_once() {
        let at = Vectors::new(vec![0.0, 0.1, 5.0, 5.1], 1, Distance::Euclidean);
        let v = verify(&[0, 0, 1, 1], &at);
        assert_eq!((v.eer, v.auc, v.recall_at_1), (0.0, 1.0, 1.0));
    }
}
