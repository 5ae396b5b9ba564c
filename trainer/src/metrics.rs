//! Verification metrics from distances: ROC, EER, AUC and recall@1.
//!
//! A pair is accepted when its distance is at most the threshold. `far` is the share of impostor
//! pairs (two identities) that are accepted, `tar` the share of genuine pairs.

/// One operating point of the ROC curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RocPoint {
    /// False accept rate.
    pub far: f64,
    /// True accept rate.
    pub tar: f64,
}

/// What is reported before and after training.
#[derive(Clone, Debug)]
pub struct Verification {
    /// Equal error rate: where `far = 1 - tar`.
    pub eer: f64,
    /// Area under the ROC curve: how often a genuine pair is nearer than an impostor pair.
    pub auc: f64,
    /// Share of images whose nearest other image has the same identity.
    pub recall_at_1: f64,
    /// The curve from (0, 0) to (1, 1).
    pub roc: Vec<RocPoint>,
}

/// All metrics of `rows` embeddings. `distance(i, j)` is symmetric; `identity[i]` says whose image
/// `i` is. There must be two identities, and one of them with two images.
pub fn verify(identity: &[usize], distance: impl Fn(usize, usize) -> f32) -> Verification {
    let rows = identity.len();
    let mut pairs = Vec::with_capacity(rows * (rows - 1) / 2);
    for i in 0..rows {
        pairs.extend((0..i).map(|j| (distance(i, j), identity[i] == identity[j])));
    }
    let roc = roc(pairs);
    Verification { eer: eer(&roc), auc: auc(&roc), recall_at_1: recall_at_1(identity, distance), roc }
}

/// One point per *different* distance: pairs at the same distance are accepted together, so the
/// curve runs diagonally through a tie and does not depend on the order of the pairs.
pub fn roc(mut pairs: Vec<(f32, bool)>) -> Vec<RocPoint> {
    pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let genuine = pairs.iter().filter(|pair| pair.1).count();
    let impostor = pairs.len() - genuine;
    assert!(genuine > 0 && impostor > 0, "a ROC curve needs genuine and impostor pairs");
    let mut points = vec![RocPoint { far: 0.0, tar: 0.0 }];
    let (mut accepted, mut wrongly) = (0, 0);
    for tied in pairs.chunk_by(|a, b| a.0 == b.0) {
        let hits = tied.iter().filter(|pair| pair.1).count();
        accepted += hits;
        wrongly += tied.len() - hits;
        points.push(RocPoint { far: wrongly as f64 / impostor as f64, tar: accepted as f64 / genuine as f64 });
    }
    points
}

/// Where the curve crosses `far = 1 - tar`, straight between its points.
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

/// The trapezoids under the curve: `P(genuine < impostor) + P(equal) / 2`.
pub fn auc(roc: &[RocPoint]) -> f64 {
    roc.windows(2).map(|w| (w[1].far - w[0].far) * (w[1].tar + w[0].tar) / 2.0).sum()
}

/// Over the images whose identity has another image. Of equally near ones the lowest index counts.
pub fn recall_at_1(identity: &[usize], distance: impl Fn(usize, usize) -> f32) -> f64 {
    let rows = identity.len();
    let (mut asked, mut found) = (0usize, 0usize);
    for i in 0..rows {
        let others = || (0..rows).filter(|&j| j != i);
        if !others().any(|j| identity[j] == identity[i]) {
            continue;
        }
        asked += 1;
        // `min_by` keeps the first of equal ones.
        let nearest = others().min_by(|&j, &k| distance(i, j).total_cmp(&distance(i, k)));
        found += usize::from(nearest.is_some_and(|j| identity[j] == identity[i]));
    }
    found as f64 / asked.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(genuine: &[f32], impostor: &[f32]) -> Vec<RocPoint> {
        let genuine = genuine.iter().map(|&d| (d, true));
        roc(genuine.chain(impostor.iter().map(|&d| (d, false))).collect())
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
        // g1 i2 tie at 1; g at 0; i at 2. AUC: pairs (0,1) (0,2) (1,2) in order, (1,1) half: 3.5 / 4.
        // The tie runs from (0, 1/2) to (1/2, 1); far = 1 - tar at its middle: 1/4.
        for pairs in [
            vec![(0.0, true), (1.0, true), (1.0, false), (2.0, false)],
            vec![(1.0, false), (2.0, false), (1.0, true), (0.0, true)],
        ] {
            let curve = roc(pairs);
            assert_eq!(curve.len(), 4);
            assert_eq!((eer(&curve), auc(&curve)), (0.25, 0.875));
        }
        let all_equal = curve(&[1.0; 3], &[1.0; 5]);
        assert_eq!((eer(&all_equal), auc(&all_equal)), (0.5, 0.5));
    }

    #[test]
    fn auc_is_the_mann_whitney_statistic() {
        // Distances on a small lattice, so that ties are many.
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
    fn recall_by_hand() {
        // On a line: A at 0, A at 1, B at 1.5, B at 9, C (alone) at 8.5. Nearest: A of A(0), B of
        // A(1), A of B(1.5), C of B(9). C has no second image and is not asked: 1 of 4.
        let at = [0.0f32, 1.0, 1.5, 9.0, 8.5];
        let identity = [0, 0, 1, 1, 2];
        let distance = |i: usize, j: usize| (at[i] - at[j]).abs();
        assert_eq!(recall_at_1(&identity, distance), 0.25);
        // Equal distances: the lowest index wins.
        assert_eq!(recall_at_1(&[0, 1, 0, 1], |_, _| 1.0), 0.25);
    }

    #[test]
    fn verify_counts_each_pair_once() {
        let at = [0.0f32, 0.1, 5.0, 5.1];
        let v = verify(&[0, 0, 1, 1], |i, j| (at[i] - at[j]).abs());
        assert_eq!((v.eer, v.auc, v.recall_at_1), (0.0, 1.0, 1.0));
    }
}
